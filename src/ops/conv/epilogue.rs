//! What follows the sums of a convolution on the CPU, while they are in the cache.

use super::Residual;
use crate::error::Result;
use crate::ops::Columns;
use crate::ops::linear::{Activation, gelu, gelu_tanh, relu, silu};
use crate::ops::simd::vectorized;
use crate::tensor::Real;

/// y = after + act(v + bias + before).
pub(super) struct Epilogue<'a, T> {
    /// Pixels of an image.
    pixels: usize,
    n: usize,
    /// Numbers, and how many to those of the next image.
    bias: Option<(&'a [T], usize)>,
    before: Option<&'a [T]>,
    act: Activation,
    after: Option<&'a [T]>,
}

impl<'a, T: Real> Epilogue<'a, T> {
    pub fn new(
        [pixels, n]: [usize; 2],
        bias: Option<Columns<'a>>,
        act: Activation,
        residual: Residual<'a>,
    ) -> Result<Self> {
        let bias = bias.map(|b| Ok::<_, crate::error::Error>((b.tensor().host::<T>()?, b.stride()))).transpose()?;
        let (before, after) = match residual {
            Residual::None => (None, None),
            Residual::Before(r) => (Some(r.host::<T>()?), None),
            Residual::After(r) => (None, Some(r.host::<T>()?)),
        };
        Ok(Self { pixels, n, bias, before, act, after })
    }

    /// The channels from `first` on of pixel `row` of y, from the sums `v`.
    #[inline]
    pub fn finish(&self, row: usize, first: usize, v: &mut [T], y: &mut [T]) {
        let at = row * self.n + first;
        let bias = self.bias.map(|(bias, stride)| &bias[row / self.pixels * stride + first..][..v.len()]);
        let [before, after] = [self.before, self.after].map(|r| r.map(|r| &r[at..][..v.len()]));
        finish(v, y, bias, before, self.act, after);
    }
}

vectorized! {
    /// y = after + act(v + bias + before).
    fn finish(v: &mut [T], y: &mut [T], bias: Option<&[T]>, before: Option<&[T]>, act: Activation, after: Option<&[T]>) {
        // By vectors of a known length: a tile has few columns, and a loop of unknown length is cut for many.
        let whole = v.len() / 16 * 16;
        for at in (0..whole).step_by(16) {
            chunk::<T, 16>(at, v, y, bias, before, act, after);
        }
        for at in whole..v.len() {
            chunk::<T, 1>(at, v, y, bias, before, act, after);
        }
    }
}

/// W columns from `at` on.
#[inline(always)]
fn chunk<T: Real, const W: usize>(
    at: usize,
    v: &[T],
    y: &mut [T],
    bias: Option<&[T]>,
    before: Option<&[T]>,
    act: Activation,
    after: Option<&[T]>,
) {
    let of = |columns: &[T]| -> [T; W] { std::array::from_fn(|i| columns[at..][..W][i]) };
    let mut sums = of(v);
    for added in [bias, before].into_iter().flatten() {
        sums.iter_mut().zip(of(added)).for_each(|(v, b)| *v += b);
    }
    match act {
        Activation::None => {}
        Activation::Gelu => sums.iter_mut().for_each(|v| *v = gelu(*v)),
        Activation::GeluTanh => sums.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
        Activation::Silu => sums.iter_mut().for_each(|v| *v = silu(*v)),
        Activation::Relu => sums.iter_mut().for_each(|v| *v = relu(*v)),
    }
    if let Some(after) = after {
        sums.iter_mut().zip(of(after)).for_each(|(v, r)| *v += r);
    }
    y[at..][..W].copy_from_slice(&sums);
}
