//! Resizing of images [B, H, W, C] to H' W', nearest and bilinear, by PyTorch's rules (`align_corners=False`, no antialiasing),
//! and their backward: dx is written (`=`).

use std::ops::Range;

use rayon::prelude::*;

use super::backward::sums::accumulate;
use super::simd::vectorized;
use super::{SpecLayout, expect, launch_elementwise, round, spec, to_i32, with_real};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `upsample_*`.
    UpsampleSpec {
        images: i32, height: i32, width: i32, channels: i32, out_height: i32, out_width: i32, scale_h: f32, scale_w: f32,
    }
}
pub(super) const LAYOUT: SpecLayout = UpsampleSpec::LAYOUT;

/// How pixels between pixels are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// Output o takes input floor(o in / out), the product of o and in / out rounded to f32: PyTorch's `nearest`.
    Nearest,
    /// Output o lies at (o + 1/2) in / out - 1/2, not below 0, and takes of both pixels around in proportion.
    Bilinear,
}

impl Resize {
    fn name(self) -> &'static str {
        match self {
            Self::Nearest => "nearest",
            Self::Bilinear => "bilinear",
        }
    }
}

/// y [B, H', W', C] = x [B, H, W, C], resized.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn upsample(device: &Device, x: &Tensor, resize: Resize, y: &mut Tensor) -> Result<()> {
    let shape = Shape::new(x, y)?;
    match device {
        Device::Cpu(_) => {
            with_real!(x.dtype(), T => shape.forward::<T>(resize, x.host()?, y.host_mut()?));
            match resize {
                Resize::Nearest => Ok(()),
                Resize::Bilinear => round(y),
            }
        }
        Device::Cuda(cuda) => {
            let pointers = [x.address(0)?, y.address(0)?];
            let per_thread = 16 / x.dtype().size();
            let whole = resize == Resize::Nearest
                && x.last_dim().is_multiple_of(per_thread)
                && pointers.iter().all(|p| p.is_multiple_of(16));
            let threads = if whole { y.len() / per_thread } else { y.len() };
            let kernel = ("upsample", format!("upsample_{}_fwd_{}", resize.name(), x.dtype()));
            let spec = shape.spec()?;
            launch_elementwise(cuda, kernel, threads, &pointers, bytemuck::bytes_of(&spec), x.bytes() + y.bytes())
        }
    }
}

/// Backward of [`upsample`]: dx [B, H, W, C] from dy [B, H', W', C].
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
pub fn upsample_backward(device: &Device, resize: Resize, dy: &Tensor, dx: &mut Tensor) -> Result<()> {
    let shape = Shape::new(dx, dy)?;
    match device {
        Device::Cpu(_) => {
            with_real!(dy.dtype(), T => shape.backward::<T>(resize, dy.host()?, dx.host_mut()?));
            round(dx)
        }
        Device::Cuda(cuda) => {
            let pointers = [dy.address(0)?, dx.address(0)?];
            let kernel = ("upsample", format!("upsample_{}_bwd_{}", resize.name(), dy.dtype()));
            let (spec, bytes) = (shape.spec()?, dy.bytes() + dx.bytes());
            launch_elementwise(cuda, kernel, dx.len(), &pointers, bytemuck::bytes_of(&spec), bytes)
        }
    }
}

struct Shape {
    images: usize,
    channels: usize,
    rows: Axis,
    cols: Axis,
}

/// One of the two dimensions.
#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    out: usize,
}

impl Shape {
    fn new(small: &Tensor, large: &Tensor) -> Result<Self> {
        let (&[images, height, width, channels], &[_, out_height, out_width, _]) = (small.shape(), large.shape())
        else {
            let (small, large) = (small.shape(), large.shape());
            return Err(Error::Runtime(format!(
                "resizing: images [B, H, W, C] expected, {small:?} and {large:?} found"
            )));
        };
        expect("resized images", large, small.dtype(), &[images, out_height, out_width, channels])?;
        if small.is_empty() || large.is_empty() {
            return Err(Error::Runtime(format!("resizing of {:?} to {:?}", small.shape(), large.shape())));
        }
        let (rows, cols) = (Axis { size: height, out: out_height }, Axis { size: width, out: out_width });
        Ok(Self { images, channels, rows, cols })
    }

    fn spec(&self) -> Result<UpsampleSpec> {
        let (rows, cols) = (self.rows, self.cols);
        // Elements and twice the products of the two sizes are counted in 32 bits.
        to_i32(self.images * self.channels * (rows.size * cols.size).max(rows.out * cols.out))?;
        to_i32((2 * rows.out + 1) * rows.size + (2 * cols.out + 1) * cols.size)?;
        Ok(UpsampleSpec {
            images: to_i32(self.images)?,
            height: to_i32(rows.size)?,
            width: to_i32(cols.size)?,
            channels: to_i32(self.channels)?,
            out_height: to_i32(rows.out)?,
            out_width: to_i32(cols.out)?,
            scale_h: rows.scale(),
            scale_w: cols.scale(),
        })
    }

    fn forward<T: Real>(&self, resize: Resize, x: &[T], y: &mut [T]) {
        let (rows, cols, c) = (self.rows, self.cols, self.channels);
        y.par_chunks_mut(cols.out * c).enumerate().for_each(|(line, y)| {
            let (image, row) = (line / rows.out * rows.size, line % rows.out);
            let pixel = |row: usize, col: usize| &x[((image + row) * cols.size + col) * c..][..c];
            for (col, y) in y.chunks_exact_mut(c).enumerate() {
                match resize {
                    Resize::Nearest => y.copy_from_slice(pixel(rows.nearest(row), cols.nearest(col))),
                    Resize::Bilinear => {
                        let (down, across) = (rows.between::<T>(row), cols.between::<T>(col));
                        let [upper, lower] =
                            [down.0, down.1].map(|row| [across.0, across.1].map(|col| pixel(row, col)));
                        mix(y, upper, lower, down.2, across.2);
                    }
                }
            }
        });
    }

    fn backward<T: Real>(&self, resize: Resize, dy: &[T], dx: &mut [T]) {
        let (rows, cols, c) = (self.rows, self.cols, self.channels);
        dx.par_chunks_mut(cols.size * c).enumerate().for_each(|(line, dx)| {
            let (image, row) = (line / rows.size * rows.out, line % rows.size);
            dx.fill(T::default());
            for (col, dx) in dx.chunks_exact_mut(c).enumerate() {
                for out_row in rows.takers(resize, row) {
                    for out_col in cols.takers(resize, col) {
                        let dy = &dy[((image + out_row) * cols.out + out_col) * c..][..c];
                        match resize {
                            Resize::Nearest => accumulate(dx, dy),
                            Resize::Bilinear => {
                                add_scaled(dx, dy, rows.share::<T>(out_row, row) * cols.share(out_col, col))
                            }
                        }
                    }
                }
            }
        });
    }
}

impl Axis {
    fn scale(self) -> f32 {
        self.size as f32 / self.out as f32
    }

    fn nearest(self, o: usize) -> usize {
        ((o as f32 * self.scale()) as usize).min(self.size - 1)
    }

    /// The pixels that output `o` lies between, and how far from the first.
    fn between<T: Real>(self, o: usize) -> (usize, usize, T) {
        let at = ((2 * o + 1) * self.size).saturating_sub(self.out);
        let (first, part) = (at / (2 * self.out), at % (2 * self.out));
        let part = T::from_f64(part as f64) / T::from_f64((2 * self.out) as f64);
        (first, (first + 1).min(self.size - 1), part)
    }

    /// What output `o` takes of input `i`.
    fn share<T: Real>(self, o: usize, i: usize) -> T {
        let (first, second, part) = self.between::<T>(o);
        let (one, none) = (T::from_f64(1.0), T::default());
        (if first == i { one - part } else { none }) + (if second == i { part } else { none })
    }

    /// Outputs that take of input `i`: all that do, and of the bilinear ones perhaps some that do not.
    fn takers(self, resize: Resize, i: usize) -> Range<usize> {
        match resize {
            Resize::Nearest => {
                // Where they would begin without rounding, then by the rule itself.
                let near = (i * self.out / self.size).saturating_sub(2);
                let begin = (near..self.out).find(|&o| self.nearest(o) >= i).unwrap_or(self.out);
                let end = (begin..self.out).find(|&o| self.nearest(o) > i).unwrap_or(self.out);
                begin..end
            }
            // (o + 1/2) in / out - 1/2 in [i - 1, i + 1], or beyond the border.
            Resize::Bilinear => {
                let begin = ((2 * i).saturating_sub(1) * self.out / (2 * self.size)).saturating_sub(1);
                let end = ((2 * i + 3) * self.out / (2 * self.size) + 1).min(self.out);
                (if i == 0 { 0 } else { begin })..(if i + 1 == self.size { self.out } else { end })
            }
        }
    }
}

vectorized! {
    /// One pixel between four, `down` of the way from the upper two, `across` from the left ones.
    fn mix(y: &mut [T], upper: [&[T]; 2], lower: [&[T]; 2], down: T, across: T) {
        let one = T::from_f64(1.0);
        let all = upper[0].iter().zip(upper[1]).zip(lower[0].iter().zip(lower[1]));
        for (y, ((&a, &b), (&c, &d))) in y.iter_mut().zip(all) {
            let (above, below) = (across.mul_add(b, (one - across) * a), across.mul_add(d, (one - across) * c));
            *y = down.mul_add(below, (one - down) * above);
        }
    }
}

vectorized! {
    /// to += share from.
    pub(super) fn add_scaled(to: &mut [T], from: &[T], share: T) {
        to.iter_mut().zip(from).for_each(|(to, &from)| *to = from.mul_add(share, *to));
    }
}
