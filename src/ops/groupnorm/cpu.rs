//! Norms over the pixels and some channels of images, on the CPU: group norms, and batch norms as those of one image with a
//! group a channel.

use rayon::prelude::*;

use super::GroupNorm;
use crate::error::Result;
use crate::ops::activation::silu_slope;
use crate::ops::backward::sums::accumulate;
use crate::ops::channels::Sizes;
use crate::ops::linear::silu;
use crate::ops::simd::vectorized;
use crate::tensor::{Real, Tensor};

/// A norm with its statistics.
pub(in crate::ops) struct ChannelNorm<'a, T> {
    pub sizes: Sizes,
    /// Channels of a group.
    pub group: usize,
    pub silu: bool,
    pub x: &'a [T],
    pub weight: &'a [T],
    pub bias: &'a [T],
    /// Of the group of each channel of each image, [B, C]: mean, and 1 / sqrt(var + eps).
    pub mean: Vec<T>,
    pub rstd: Vec<T>,
}

/// What a row of an image is normalised by.
struct Row<'a, T> {
    x: &'a [T],
    mean: &'a [T],
    rstd: &'a [T],
    weight: &'a [T],
    bias: &'a [T],
    silu: bool,
}

impl<'a, T: Real> ChannelNorm<'a, T> {
    pub(super) fn of_group_norm(x: &'a Tensor, sizes: Sizes, norm: GroupNorm<'a>) -> Result<Self> {
        let (x, group) = (x.host::<T>()?, sizes.channels / norm.groups);
        let (mean, var) = moments(x, sizes, group);
        let (eps, one) = (T::from_f64(norm.eps), T::from_f64(1.0));
        let rstd = var.iter().map(|&var| one / (var + eps).sqrt()).collect();
        let (weight, bias) = (norm.weight.host::<T>()?, norm.bias.host::<T>()?);
        Ok(Self { sizes, group, silu: norm.silu, x, weight, bias, mean, rstd })
    }

    /// y of x.
    pub fn normalise(&self, y: &mut [T]) {
        let rows = y.par_chunks_mut(self.sizes.channels).enumerate().with_min_len(self.sizes.rows_per_task());
        rows.for_each(|(row, y)| normalise(y, self.row(row)));
    }

    fn row(&self, row: usize) -> Row<'_, T> {
        let (c, at) = (self.sizes.channels, row / self.sizes.pixels * self.sizes.channels);
        let (mean, rstd) = (&self.mean[at..][..c], &self.rstd[at..][..c]);
        Row { x: &self.x[row * c..][..c], mean, rstd, weight: self.weight, bias: self.bias, silu: self.silu }
    }

    /// dx `=`, dweight and dbias `+=`.
    pub fn backward(&self, dy: &[T], dx: &mut [T], dweight: &mut [T], dbias: &mut [T]) {
        let c = self.sizes.channels;
        let sums = self.sizes.sums(2 * c, |row, sums| gather(sums, self.row(row), &dy[row * c..][..c]));
        let n = T::from_f64((self.sizes.pixels * self.group) as f64);
        // Means of g and g n over each group, from the sums of du and du n of its channels.
        let mut means = sums.clone();
        for means in means.chunks_exact_mut(c) {
            means.iter_mut().zip(self.weight).for_each(|(mean, &w)| *mean = *mean * w);
            share(means, self.group, |sum| sum / n);
        }
        dx.par_chunks_mut(c).enumerate().with_min_len(self.sizes.rows_per_task()).for_each(|(row, dx)| {
            let means = &means[row / self.sizes.pixels * 2 * c..][..2 * c];
            differentiate(dx, self.row(row), &dy[row * c..][..c], means);
        });
        for sums in sums.chunks_exact(2 * c) {
            accumulate(dbias, &sums[..c]);
            accumulate(dweight, &sums[c..]);
        }
    }
}

/// Mean and biased variance of the group of each channel of each image, [B, C] each: two passes.
pub(in crate::ops) fn moments<T: Real>(x: &[T], sizes: Sizes, group: usize) -> (Vec<T>, Vec<T>) {
    let (c, n) = (sizes.channels, T::from_f64((sizes.pixels * group) as f64));
    let mut mean = sizes.sums(c, |row, sums| accumulate(sums, &x[row * c..][..c]));
    share(&mut mean, group, |sum| sum / n);
    let of_image = |row: usize| &mean[row / sizes.pixels * c..][..c];
    let mut var = sizes.sums(c, |row, sums| add_squares(sums, &x[row * c..][..c], of_image(row)));
    share(&mut var, group, |sum| sum / n);
    (mean, var)
}

/// Replaces what the channels of each group have by `finish` of its sum.
fn share<T: Real>(values: &mut [T], group: usize, finish: impl Fn(T) -> T) {
    for values in values.chunks_exact_mut(group) {
        let sum = values.iter().fold(T::default(), |sum, &v| sum + v);
        values.fill(finish(sum));
    }
}

vectorized! {
    /// sums += (x - mean)^2.
    fn add_squares(sums: &mut [T], x: &[T], mean: &[T]) {
        for ((sum, &x), &mean) in sums.iter_mut().zip(x).zip(mean) {
            *sum = (x - mean).mul_add(x - mean, *sum);
        }
    }
}

/// n and u of channel i of a row.
#[inline(always)]
fn normed<T: Real>(row: &Row<T>, i: usize) -> (T, T) {
    let n = (row.x[i] - row.mean[i]) * row.rstd[i];
    (n, n.mul_add(row.weight[i], row.bias[i]))
}

vectorized! {
    /// One row of y.
    fn normalise(y: &mut [T], row: Row<T>) {
        let row = row.of_length(y.len());
        // Loops and no closures: what is not inlined would be compiled for the oldest processor.
        for (i, y) in y.iter_mut().enumerate() {
            *y = normed(&row, i).1;
        }
        if row.silu {
            for y in y {
                *y = silu(*y);
            }
        }
    }
}

vectorized! {
    /// What one row adds to the sums of du and of du n.
    fn gather(sums: &mut [T], row: Row<T>, dy: &[T]) {
        let (dadd, dmul) = sums.split_at_mut(dy.len());
        let (row, dadd, dmul) = (row.of_length(dy.len()), &mut dadd[..dy.len()], &mut dmul[..dy.len()]);
        for i in 0..dy.len() {
            let (n, u) = normed(&row, i);
            let du = if row.silu { dy[i] * silu_slope(u) } else { dy[i] };
            dadd[i] += du;
            dmul[i] = du.mul_add(n, dmul[i]);
        }
    }
}

vectorized! {
    /// One row of dx; `means` of g, then of g n.
    fn differentiate(dx: &mut [T], row: Row<T>, dy: &[T], means: &[T]) {
        let len = dx.len();
        let (row, dy, mean_g, mean_gn) = (row.of_length(len), &dy[..len], &means[..len], &means[len..][..len]);
        for i in 0..len {
            let (n, u) = normed(&row, i);
            let du = if row.silu { dy[i] * silu_slope(u) } else { dy[i] };
            dx[i] = row.rstd[i] * (du * row.weight[i] - mean_g[i] - n * mean_gn[i]);
        }
    }
}

impl<T> Row<'_, T> {
    /// Slices of one length, which loops need not check.
    #[inline(always)]
    fn of_length(&self, len: usize) -> Self {
        let [x, mean, rstd] = [self.x, self.mean, self.rstd].map(|v| &v[..len]);
        Self { x, mean, rstd, weight: &self.weight[..len], bias: &self.bias[..len], silu: self.silu }
    }
}
