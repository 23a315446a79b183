//! Depthwise convolutions on the CPU: sums of 16 channels of some neighbouring pixels in registers.

use std::ops::Range;

use rayon::prelude::*;

use super::Geometry;
use super::patches::Source;
use super::taps::{Axis, Phase};
use crate::ops::simd::vectorized;
use crate::tensor::Real;

/// Pixels whose sums are in registers.
const PIXELS: usize = 8;

/// A depthwise convolution, or a transposed one.
pub(super) struct Depthwise<'a, T> {
    /// Channels follow each other, all of each tensor.
    pub sources: Vec<Source<'a, T>>,
    /// [taps, C], taps of the whole kernel.
    pub weight: Vec<T>,
    /// Of the input.
    pub size: [usize; 2],
    /// Of the output.
    pub output: [usize; 2],
    /// Columns of the kernel.
    pub kernel_columns: usize,
    pub phases: Vec<Phase>,
    pub channels: usize,
}

/// [C, taps] as [taps, C].
pub(super) fn by_taps<T: Real>(weight: &[T], channels: usize) -> Vec<T> {
    let taps = weight.len() / channels;
    (0..weight.len()).map(|i| weight[i % channels * taps + i / channels]).collect()
}

impl<T: Real> Depthwise<'_, T> {
    /// With the sizes of `g`; of nothing yet.
    pub fn of(g: &Geometry) -> Self {
        let (size, output, channels) = (g.size, g.output, g.channels);
        let (kernel_columns, phases) = (g.spec.kernel[1], g.phases());
        Self { sources: Vec::new(), weight: Vec::new(), size, output, kernel_columns, phases, channels }
    }

    /// y [B, OH, OW, C]; `finish(row, column, sums, y)` for each pixel.
    pub fn run(&self, y: &mut [T], finish: impl Fn(usize, usize, &mut [T], &mut [T]) + Sync) {
        let width = self.output[1];
        y.par_chunks_mut(width * self.channels).enumerate().for_each(|(line, y)| {
            let mut sums = vec![T::default(); y.len()];
            for phase in &self.phases {
                sum_line(self, line, phase, &mut sums);
            }
            let pixels = sums.chunks_exact_mut(self.channels).zip(y.chunks_exact_mut(self.channels));
            pixels.enumerate().for_each(|(x, (sums, y))| finish(line * width + x, 0, sums, y));
        });
    }
}

vectorized! {
    /// The sums of the pixels of one phase in a line of the output.
    fn sum_line(d: &Depthwise<T>, line: usize, phase: &Phase, sums: &mut [T]) {
        let [rows, columns] = phase;
        let (image, at) = (line / d.output[0], line % d.output[0]);
        let Some(y) = rows.base(at) else { return };
        let count = (d.output[1] + columns.every - 1).saturating_sub(columns.first) / columns.every;
        let inside = inside(columns, count, d.size[1]);
        let mut channel = 0;
        for source in &d.sources {
            let place = (image, y);
            for x in (0..inside.start).chain(inside.end..count) {
                strips::<T, 1, true>(d, source, place, phase, x, channel, sums);
            }
            for x in inside.clone().step_by(PIXELS) {
                // The last strip begins so early that it is whole; where there is none, pixel by pixel.
                match (x + PIXELS <= inside.end, inside.len() >= PIXELS) {
                    (true, _) => strips::<T, PIXELS, false>(d, source, place, phase, x, channel, sums),
                    (_, true) => strips::<T, PIXELS, false>(d, source, place, phase, inside.end - PIXELS, channel, sums),
                    _ => (x..inside.end).for_each(|x| strips::<T, 1, true>(d, source, place, phase, x, channel, sums)),
                }
            }
            channel += source.count;
        }
    }
}

/// The outputs of a line whose taps all read pixels of an input line of `width`.
#[inline(always)]
fn inside(axis: &Axis, count: usize, width: usize) -> Range<usize> {
    let (Some(low), Some(high)) = (axis.taps.first(), axis.taps.last()) else { return 0..0 };
    let first = usize::try_from(-low.offset).unwrap_or(0).div_ceil(axis.stride).min(count);
    let room = usize::try_from(width as isize - high.offset).unwrap_or(0);
    first..room.div_ceil(axis.stride).clamp(first, count)
}

/// All channels of a source for P outputs of a line.
#[inline(always)]
fn strips<T: Real, const P: usize, const CHECKED: bool>(
    d: &Depthwise<T>,
    source: &Source<T>,
    place: (usize, isize),
    phase: &Phase,
    first: usize,
    channel: usize,
    sums: &mut [T],
) {
    let mut c = 0;
    if P == 1 {
        // One pixel has too few sums to wait for each other.
        while c + 64 <= source.count {
            strip::<T, 64, P, CHECKED>(d, source, place, phase, first, [c, channel + c], sums);
            c += 64;
        }
    }
    while c + 16 <= source.count {
        strip::<T, 16, P, CHECKED>(d, source, place, phase, first, [c, channel + c], sums);
        c += 16;
    }
    while c < source.count {
        strip::<T, 1, P, CHECKED>(d, source, place, phase, first, [c, channel + c], sums);
        c += 1;
    }
}

/// W channels of P outputs of a line; `CHECKED`: some taps may lie outside.
#[inline(always)]
fn strip<T: Real, const W: usize, const P: usize, const CHECKED: bool>(
    d: &Depthwise<T>,
    source: &Source<T>,
    (image, y): (usize, isize),
    [rows, columns]: &Phase,
    first: usize,
    [from, channel]: [usize; 2],
    sums: &mut [T],
) {
    let [height, width] = d.size;
    let mut acc = [[T::default(); W]; P];
    for row in &rows.taps {
        let at = y + row.offset;
        if at < 0 || at >= height as isize {
            continue;
        }
        let line = (image * height + at as usize) * width;
        for column in &columns.taps {
            let x = (first * columns.stride) as isize + column.offset;
            if CHECKED && (x < 0 || x >= width as isize) {
                continue;
            }
            let tap = row.index * d.kernel_columns + column.index;
            let weight: &[T; W] = d.weight[tap * d.channels + channel..][..W].try_into().expect("W weights");
            let values = &source.values[(line + x as usize) * source.channels + from..];
            for (p, acc) in acc.iter_mut().enumerate() {
                let values: &[T; W] =
                    values[p * columns.stride * source.channels..][..W].try_into().expect("W channels");
                for (acc, (&v, &w)) in acc.iter_mut().zip(values.iter().zip(weight)) {
                    *acc = v.mul_add(w, *acc);
                }
            }
        }
    }
    for (p, acc) in acc.iter().enumerate() {
        let pixel = columns.first + columns.every * (first + p);
        sums[pixel * d.channels + channel..][..W].copy_from_slice(acc);
    }
}
