//! Pooling on the CPU: a task writes one row of an image, whose pixels read windows in the order of rows, then columns.

use std::ops::Range;

use rayon::prelude::*;

use super::{Average, Shape};
use crate::ops::backward::sums::accumulate;
use crate::ops::simd::vectorized;
use crate::ops::upsample::add_scaled;
use crate::tensor::Real;

impl Shape {
    /// Inputs that window `o` covers, of rows (`axis` 0) or columns (1).
    fn window(&self, axis: usize, o: usize) -> Range<usize> {
        let (size, outputs) = (self.input[1 + axis], self.output[1 + axis]);
        match self.average {
            Average::Adaptive(_) => o * size / outputs..((o + 1) * size).div_ceil(outputs),
            Average::Windows(w, _) => {
                let end = (o * w.stride[axis] + w.kernel[axis]).saturating_sub(w.padding[axis]).min(size);
                (o * w.stride[axis]).saturating_sub(w.padding[axis])..end
            }
        }
    }

    /// Windows that cover input `i`.
    fn windows(&self, axis: usize, i: usize) -> Range<usize> {
        let (size, outputs) = (self.input[1 + axis], self.output[1 + axis]);
        match self.average {
            Average::Adaptive(_) => i * outputs / size..((i + 1) * outputs).div_ceil(size),
            Average::Windows(w, _) => {
                let at = i + w.padding[axis];
                let first = (at + 1).saturating_sub(w.kernel[axis]).div_ceil(w.stride[axis]);
                first..(at / w.stride[axis] + 1).min(outputs)
            }
        }
    }

    /// What a sum over a window is multiplied by.
    fn share<T: Real>(&self, rows: &Range<usize>, cols: &Range<usize>) -> T {
        let inside = rows.len() * cols.len();
        let by = match self.average {
            Average::Windows(w, true) => w.kernel[0] * w.kernel[1],
            _ => inside,
        };
        T::from_f64(1.0) / T::from_f64(by as f64)
    }

    /// Runs `work` for each pixel of images of `size`: number of the image, row, column, and the pixel's channels.
    fn each<T: Real>(&self, size: [usize; 4], to: &mut [T], work: impl Fn(usize, usize, usize, &mut [T]) + Sync) {
        let [_, height, width, c] = size;
        to.par_chunks_mut(width * c).enumerate().for_each(|(line, to)| {
            for (col, to) in to.chunks_exact_mut(c).enumerate() {
                work(line / height, line % height, col, to);
            }
        });
    }
}

/// The channels of a pixel.
fn pixel<T>(from: &[T], size: [usize; 4], image: usize, row: usize, col: usize) -> &[T] {
    &from[((image * size[1] + row) * size[2] + col) * size[3]..][..size[3]]
}

pub(super) fn max_pool<T: Real>(shape: &Shape, x: &[T], y: &mut [T]) {
    shape.each(shape.output, y, |image, row, col, y| {
        y.fill(T::from_f64(f64::NEG_INFINITY));
        for row in shape.window(0, row) {
            for col in shape.window(1, col) {
                raise(y, pixel(x, shape.input, image, row, col));
            }
        }
    });
}

pub(super) fn max_pool_backward<T: Real>(shape: &Shape, x: &[T], dy: &[T], dx: &mut [T]) {
    shape.each(shape.input, dx, |image, row, col, dx| {
        dx.fill(T::default());
        let mine = pixel(x, shape.input, image, row, col);
        // Whether the pixel is what its window takes, channel by channel.
        let mut taken = vec![true; mine.len()];
        for out_row in shape.windows(0, row) {
            for out_col in shape.windows(1, col) {
                taken.fill(true);
                for other_row in shape.window(0, out_row) {
                    for other_col in shape.window(1, out_col) {
                        let other = pixel(x, shape.input, image, other_row, other_col);
                        match (other_row, other_col).cmp(&(row, col)) {
                            std::cmp::Ordering::Less => yield_to_earlier(&mut taken, mine, other),
                            std::cmp::Ordering::Equal => {}
                            std::cmp::Ordering::Greater => yield_to_later(&mut taken, mine, other),
                        }
                    }
                }
                let dy = pixel(dy, shape.output, image, out_row, out_col);
                dx.iter_mut().zip(dy).zip(&taken).for_each(|((dx, &dy), &t)| *dx += if t { dy } else { T::default() });
            }
        }
    });
}

pub(super) fn average_pool<T: Real>(shape: &Shape, x: &[T], y: &mut [T]) {
    shape.each(shape.output, y, |image, row, col, y| {
        let (rows, cols) = (shape.window(0, row), shape.window(1, col));
        let share = shape.share::<T>(&rows, &cols);
        y.fill(T::default());
        for row in rows {
            for col in cols.clone() {
                accumulate(y, pixel(x, shape.input, image, row, col));
            }
        }
        y.iter_mut().for_each(|y| *y = *y * share);
    });
}

pub(super) fn average_pool_backward<T: Real>(shape: &Shape, dy: &[T], dx: &mut [T]) {
    shape.each(shape.input, dx, |image, row, col, dx| {
        dx.fill(T::default());
        for row in shape.windows(0, row) {
            for col in shape.windows(1, col) {
                let share = shape.share::<T>(&shape.window(0, row), &shape.window(1, col));
                add_scaled(dx, pixel(dy, shape.output, image, row, col), share);
            }
        }
    });
}

/// `Real` has no test for NaN, and one through f64 would keep the loop below from becoming vector instructions.
#[inline(always)]
#[allow(clippy::eq_op)]
fn is_nan<T: Real>(x: T) -> bool {
    x != x
}

vectorized! {
    /// y = the larger of y and x; a NaN stays.
    fn raise(y: &mut [T], x: &[T]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x > *y || is_nan(x) { x } else { *y });
    }
}

vectorized! {
    /// The first maximum is taken: what comes earlier and is as large goes before. A NaN yields to no number.
    fn yield_to_earlier(taken: &mut [bool], mine: &[T], other: &[T]) {
        for ((taken, &mine), &other) in taken.iter_mut().zip(mine).zip(other) {
            *taken &= is_nan(mine) || mine > other;
        }
    }
}

vectorized! {
    /// Later numbers have to be larger; a later NaN is taken always.
    fn yield_to_later(taken: &mut [bool], mine: &[T], other: &[T]) {
        for ((taken, &mine), &other) in taken.iter_mut().zip(mine).zip(other) {
            *taken &= !is_nan(other) && (is_nan(mine) || mine >= other);
        }
    }
}
