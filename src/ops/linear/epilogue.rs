//! What follows a product on the CPU, on any rectangle of it while it is in the cache.

use super::norm::{Moments, all_moments};
use super::{Activation, Columns, Geometry, Norm, Operands, Residual};
use crate::error::Result;
use crate::ops::condition_rows;
use crate::ops::product::{Block, Destination, PackedBlock, pack_tile};
use crate::ops::simd::vectorized;
use crate::tensor::Real;

/// Numbers for the columns, per condition or not.
#[derive(Clone, Copy)]
pub(super) struct HostColumns<'a, T> {
    values: &'a [T],
    stride: usize,
    n: usize,
}

impl<'a, T: Real> HostColumns<'a, T> {
    pub(super) fn new(columns: Columns<'a>, n: usize) -> Result<Self> {
        Ok(Self { values: columns.tensor().host::<T>()?, stride: columns.stride(), n })
    }

    #[inline(always)]
    pub(super) fn row(&self, condition: usize) -> &'a [T] {
        &self.values[condition * self.stride..][..self.n]
    }
}

/// What is added, on the host.
#[derive(Clone, Copy)]
enum Addend<'a, T> {
    None,
    InPlace,
    /// Rows of N, as many as the number says.
    Rows(&'a [T], usize),
    Gated(HostColumns<'a, T>),
}

/// y = residual + gate * act(norm(v) + bias).
pub(super) struct Epilogue<'a, T> {
    /// Rows of an image.
    rows: usize,
    /// Columns of y.
    n: usize,
    /// Of each image.
    conditions: Vec<usize>,
    /// Mean and inverse deviation of each row, and the sums of the weight.
    norm: Option<(Vec<Moments<T>>, HostColumns<'a, T>)>,
    bias: Option<HostColumns<'a, T>>,
    act: Activation,
    addend: Addend<'a, T>,
}

impl<'a, T: Real> Epilogue<'a, T> {
    pub(super) fn new(g: Geometry, operands: &Operands<'a>) -> Result<Self> {
        let host = |c: Columns<'a>| HostColumns::<T>::new(c, g.n);
        let tables = [operands.norm.map(|n| n.sums), operands.bias, operands.residual.gate()];
        let rows = tables.into_iter().flatten().map(|c| c.rows()).min().unwrap_or(usize::MAX);
        let norm = |n: Norm<'a>| Ok((all_moments(n.stats.host::<T>()?, g.k, n.eps), host(n.sums)?));
        Ok(Self {
            rows: g.rows,
            n: g.n,
            conditions: condition_rows(operands.select, g.images, rows)?,
            norm: operands.norm.map(norm).transpose()?,
            bias: operands.bias.map(host).transpose()?,
            act: operands.act,
            addend: match operands.residual {
                Residual::None => Addend::None,
                Residual::InPlace => Addend::InPlace,
                Residual::Rows(rows) => Addend::Rows(rows.host::<T>()?, rows.dim(0)),
                Residual::Gated(gate) => Addend::Gated(host(gate)?),
            },
        })
    }

    /// The block's columns of y in the rows from `first` on, from their products `v` [.., stride].
    #[inline]
    pub(super) fn finish(&self, first: usize, v: &mut [T], stride: usize, y: &mut Block<T>) {
        activate(self, first, y.columns.start, v, stride, y.columns.len());
        put(self, first, v, stride, y);
    }

    /// The columns from `column` on of one row of y, from their products `v`.
    #[inline]
    pub(super) fn finish_row(&self, row: usize, column: usize, v: &mut [T], y: &mut [T]) {
        let stride = v.len();
        self.finish(row, v, stride, &mut Block::of_row(row, column, y));
    }
}

impl Epilogue<'_, f32> {
    /// [`Self::finish`], packed for the product behind it.
    ///
    /// PRECOND: nothing is added.
    #[inline]
    pub(super) fn finish_packed(&self, first: usize, v: &mut [f32], stride: usize, y: &mut PackedBlock) {
        let columns = y.columns();
        activate(self, first, columns.start, v, stride, columns.len());
        pack_tile(y.element(), v, stride, columns.len(), y.tile(first));
    }
}

vectorized! {
    /// v = act(norm(v) + bias) in `width` columns of rows of `stride`, from row `first` and column `column` of y on.
    fn activate(e: &Epilogue<T>, first: usize, column: usize, v: &mut [T], stride: usize, width: usize) {
        if e.norm.is_some() || e.bias.is_some() {
            for (row, v) in (first..).zip(v.chunks_exact_mut(stride)) {
                let condition = e.conditions[row / e.rows];
                let v = &mut v[..width];
                if let Some((moments, sums)) = &e.norm {
                    let ((mean, rstd), sums) = (moments[row], &sums.row(condition)[column..][..width]);
                    update(v, sums, |v, sum| rstd * (-mean).mul_add(sum, v));
                }
                if let Some(bias) = &e.bias {
                    update(v, &bias.row(condition)[column..][..width], |v, b| v + b);
                }
            }
        }
        // All of the tile at once, the columns behind the last one too.
        match e.act {
            Activation::None => {}
            Activation::Gelu => v.iter_mut().for_each(|v| *v = gelu(*v)),
            Activation::GeluTanh => v.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
            Activation::Silu => v.iter_mut().for_each(|v| *v = silu(*v)),
            Activation::Relu => v.iter_mut().for_each(|v| *v = relu(*v)),
        }
    }
}

vectorized! {
    /// y = residual + gate * v in the block's columns of the rows from `first` on, of v [.., stride].
    fn put(e: &Epilogue<T>, first: usize, v: &[T], stride: usize, y: &mut Block<T>) {
        let columns = y.columns.clone();
        for (row, v) in (first..).zip(v.chunks_exact(stride)) {
            let (v, y) = (&v[..columns.len()], y.row(row));
            match &e.addend {
                Addend::None => combine(y, v, v, |_, v, _| v),
                Addend::InPlace => combine(y, v, v, |y, v, _| y + v),
                Addend::Rows(rows, count) => {
                    combine(y, v, &rows[row % count * e.n..][columns.clone()], |_, v, r| v + r);
                }
                Addend::Gated(gate) => {
                    let gate = &gate.row(e.conditions[row / e.rows])[columns.clone()];
                    combine(y, v, gate, |y, v, gate| gate.mul_add(v, y));
                }
            }
        }
    }
}

/// y = f(y, other), by vectors as [`combine`].
#[inline(always)]
fn update<T: Real>(y: &mut [T], other: &[T], f: impl Fn(T, T) -> T) {
    let ((y, y_rest), (other, other_rest)) = (y.as_chunks_mut::<16>(), other.as_chunks::<16>());
    for (y, other) in y.iter_mut().zip(other) {
        *y = std::array::from_fn(|i| f(y[i], other[i]));
    }
    y_rest.iter_mut().zip(other_rest).for_each(|(y, &other)| *y = f(*y, other));
}

/// y = f(y, v, other).
#[inline(always)]
fn combine<T: Real>(y: &mut [T], v: &[T], other: &[T], f: impl Fn(T, T, T) -> T) {
    // By vectors of a known length: a tile has few columns, and a loop of unknown length is cut for many.
    let ((y, y_rest), (v, v_rest)) = (y.as_chunks_mut::<16>(), v.as_chunks::<16>());
    let (other, other_rest) = other.as_chunks::<16>();
    for ((y, v), other) in y.iter_mut().zip(v).zip(other) {
        *y = std::array::from_fn(|i| f(y[i], v[i], other[i]));
    }
    for ((y, &v), &other) in y_rest.iter_mut().zip(v_rest).zip(other_rest) {
        *y = f(*y, v, other);
    }
}

/// x Phi(x).
#[inline(always)]
pub(in crate::ops) fn gelu<T: Real>(x: T) -> T {
    let half = T::from_f64(0.5);
    half * x * (T::from_f64(1.0) + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// The tanh approximation of GELU: x (1 + tanh u) / 2 = x s(2 u), s the logistic function.
#[inline(always)]
pub(in crate::ops) fn gelu_tanh<T: Real>(x: T) -> T {
    let minus_twice_sqrt_2_over_pi = T::from_f64(-1.595_769_121_605_730_7);
    let cubic = T::from_f64(0.044715) * x * x;
    x / (T::from_f64(1.0) + (minus_twice_sqrt_2_over_pi * cubic.mul_add(x, x)).exp())
}

/// x / (1 + e^-x).
#[inline(always)]
pub(in crate::ops) fn silu<T: Real>(x: T) -> T {
    x / (T::from_f64(1.0) + (-x).exp())
}

/// max(x, 0); NaN stays NaN.
#[inline(always)]
pub(in crate::ops) fn relu<T: Real>(x: T) -> T {
    if x < T::default() { T::default() } else { x }
}
