//! What follows a product on the CPU, on any rectangle of it while it is in the cache.

use super::norm::{Moments, all_moments};
use super::{Activation, Columns, Geometry, Norm, Operands, Residual};
use crate::error::Result;
use crate::ops::condition_rows;
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

    /// The columns from `first` on of row `row` of y, from the products `v`.
    #[inline]
    pub(super) fn finish(&self, row: usize, first: usize, v: &mut [T], y: &mut [T]) {
        finish(self, row, first, v, y);
    }
}

/// What some columns of one row have beside their products and y.
struct Segment<'a, T> {
    /// Mean, inverse deviation and the sums of the weight.
    norm: Option<(T, T, &'a [T])>,
    bias: Option<&'a [T]>,
    act: Activation,
    added: Added<'a, T>,
}

/// [`Addend`] in these columns.
enum Added<'a, T> {
    None,
    InPlace,
    Row(&'a [T]),
    Gated(&'a [T]),
}

vectorized! {
    /// y = residual + gate * act(norm(v) + bias) in the columns from `first` on of one row.
    fn finish(e: &Epilogue<T>, row: usize, first: usize, v: &mut [T], y: &mut [T]) {
        let condition = e.conditions[row / e.rows];
        let segment = Segment {
            norm: e.norm.as_ref().map(|(moments, sums)| {
                let (mean, rstd) = moments[row];
                (mean, rstd, &sums.row(condition)[first..])
            }),
            bias: e.bias.as_ref().map(|bias| &bias.row(condition)[first..]),
            act: e.act,
            added: match &e.addend {
                Addend::None => Added::None,
                Addend::InPlace => Added::InPlace,
                Addend::Rows(rows, count) => Added::Row(&rows[row % count * e.n..][first..]),
                Addend::Gated(gate) => Added::Gated(&gate.row(condition)[first..]),
            },
        };
        // By vectors of a known length: a tile has few columns, and a loop of unknown length is cut for many.
        let (whole, rest) = v.as_chunks_mut::<16>();
        let (y_whole, y_rest) = y.as_chunks_mut::<16>();
        let at = 16 * whole.len();
        for (i, (v, y)) in whole.iter_mut().zip(y_whole).enumerate() {
            finish_chunk(&segment, 16 * i, v, y);
        }
        for (i, (v, y)) in rest.iter_mut().zip(y_rest).enumerate() {
            finish_chunk(&segment, at + i, std::array::from_mut(v), std::array::from_mut(y));
        }
    }
}

/// W columns of a segment, from its column `at` on.
#[inline(always)]
fn finish_chunk<T: Real, const W: usize>(s: &Segment<T>, at: usize, v: &mut [T; W], y: &mut [T; W]) {
    let chunk = |columns: &[T]| -> [T; W] { std::array::from_fn(|i| columns[at..][..W][i]) };
    if let Some((mean, rstd, sums)) = s.norm {
        for (v, sum) in v.iter_mut().zip(chunk(sums)) {
            *v = rstd * (-mean).mul_add(sum, *v);
        }
    }
    if let Some(bias) = s.bias {
        v.iter_mut().zip(chunk(bias)).for_each(|(v, b)| *v += b);
    }
    match s.act {
        Activation::None => {}
        Activation::Gelu => v.iter_mut().for_each(|v| *v = gelu(*v)),
        Activation::GeluTanh => v.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
        Activation::Silu => v.iter_mut().for_each(|v| *v = silu(*v)),
        Activation::Relu => v.iter_mut().for_each(|v| *v = relu(*v)),
    }
    match s.added {
        Added::None => *y = *v,
        Added::InPlace => y.iter_mut().zip(v).for_each(|(y, v)| *y += *v),
        Added::Row(row) => {
            for ((y, v), r) in y.iter_mut().zip(v).zip(chunk(row)) {
                *y = *v + r;
            }
        }
        Added::Gated(gate) => {
            for ((y, v), gate) in y.iter_mut().zip(v).zip(chunk(gate)) {
                *y = gate.mul_add(*v, *y);
            }
        }
    }
}

/// x Phi(x).
#[inline(always)]
pub(in crate::ops) fn gelu<T: Real>(x: T) -> T {
    let half = T::from_f64(0.5);
    half * x * (T::from_f64(1.0) + (x * T::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf())
}

/// The tanh approximation of GELU.
#[inline(always)]
pub(in crate::ops) fn gelu_tanh<T: Real>(x: T) -> T {
    let sqrt_2_over_pi = T::from_f64(0.797_884_560_802_865_4);
    let inner = sqrt_2_over_pi * (x + T::from_f64(0.044715) * x * x * x);
    T::from_f64(0.5) * x * (T::from_f64(1.0) + inner.tanh())
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
