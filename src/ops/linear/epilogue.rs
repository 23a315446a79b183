//! What follows a product on the CPU, on any rectangle of it while it is in the cache.

use std::ops::Range;

use super::norm::{Moments, all_moments};
use super::{Activation, Columns, Geometry, Norm, Operands, Residual};
use crate::device::packed::{Element, LANES};
use crate::error::Result;
use crate::math::phi_for_bf16;
use crate::ops::condition_rows;
use crate::ops::product::{Block, Destination, MAX_WIDTH as WIDTH, PackedBlock, pack_tile};
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

    /// The block's columns of y in the rows from `first` on, from their products `v` [.., stride], whole vectors.
    #[inline]
    pub(super) fn finish(&self, first: usize, v: &mut [T], stride: usize, y: &mut Block<T>) {
        shift(self, first, y.columns.clone(), v, stride);
        activate(self.act, v);
        put(self, first, v, stride, y);
    }

    /// A whole row of y from its products `v`.
    pub(super) fn finish_row(&self, row: usize, v: &[T], y: &mut [T]) {
        for (first, (v, y)) in v.chunks(WIDTH).zip(y.chunks_mut(WIDTH)).enumerate() {
            let mut tile = [T::default(); WIDTH];
            tile[..v.len()].copy_from_slice(v);
            self.finish(row, &mut tile, WIDTH, &mut Block::of_row(row, first * WIDTH, y));
        }
    }

    /// Rows from `first` on, as many as `count`, by image: what of them belongs to it, counted from `first`, and its condition.
    #[inline(always)]
    fn images(&self, first: usize, count: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
        let (mut row, end) = (first, first + count);
        std::iter::from_fn(move || {
            (row < end).then(|| {
                let (image, start) = (row / self.rows, row);
                row = end.min((image + 1) * self.rows);
                (start - first..row - first, self.conditions[image])
            })
        })
    }
}

impl Epilogue<'_, f32> {
    /// [`Self::finish`], packed for the product behind it.
    ///
    /// PRECOND: nothing is added.
    #[inline]
    pub(super) fn finish_packed(&self, first: usize, v: &mut [f32], stride: usize, y: &mut PackedBlock) {
        let columns = y.columns();
        shift(self, first, columns.clone(), v, stride);
        match self.act {
            Activation::Gelu if y.element() == Element::Bf16Pair => gelu_for_bf16(v),
            act => activate(act, v),
        }
        pack_tile(y.element(), v, stride, columns.len(), y.tile(first));
    }
}

/// Numbers for the columns of a tile, by vectors: zeros where it has more columns than the matrix.
type ColumnVectors<T> = [[T; LANES]; WIDTH / LANES];

#[inline(always)]
fn vectors<T: Real>(values: &[T]) -> ColumnVectors<T> {
    let mut vectors = [[T::default(); LANES]; WIDTH / LANES];
    vectors.as_flattened_mut()[..values.len()].copy_from_slice(values);
    vectors
}

vectorized! {
    /// v = norm(v) + bias in rows of `stride`, from row `first` of y on: of its `columns`, and zeros behind them.
    fn shift(e: &Epilogue<T>, first: usize, columns: Range<usize>, v: &mut [T], stride: usize) {
        for (rows, condition) in e.images(first, v.len() / stride) {
            let of = |values: &HostColumns<T>| vectors(&values.row(condition)[columns.clone()]);
            let v = v[rows.start * stride..rows.end * stride].chunks_exact_mut(stride);
            match (&e.norm, &e.bias) {
                (None, None) => {}
                (None, Some(bias)) => {
                    let bias = of(bias);
                    for v in v {
                        combine(v, bias.as_flattened(), bias.as_flattened(), |v, bias, _| v + bias);
                    }
                }
                (Some((moments, sums)), bias) => {
                    let (sums, bias) = (of(sums), bias.as_ref().map_or_else(|| vectors(&[]), of));
                    for (v, &(mean, rstd)) in v.zip(&moments[first + rows.start..]) {
                        combine(v, sums.as_flattened(), bias.as_flattened(), |v, sum, bias| {
                            rstd * (-mean).mul_add(sum, v) + bias
                        });
                    }
                }
            }
        }
    }
}

vectorized! {
    /// v = act(v), all of a tile at once: row by row it would be no vector code.
    fn activate(act: Activation, v: &mut [T]) {
        match act {
            Activation::None => {}
            Activation::Gelu => v.iter_mut().for_each(|v| *v = gelu(*v)),
            Activation::GeluTanh => v.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
            Activation::Silu => v.iter_mut().for_each(|v| *v = silu(*v)),
            Activation::Relu => v.iter_mut().for_each(|v| *v = relu(*v)),
        }
    }
}

vectorized! { plain
    /// v = gelu(v), as accurate as what is rounded to bf16 has to be.
    fn gelu_for_bf16(v: &mut [f32]) {
        v.iter_mut().for_each(|v| *v *= phi_for_bf16(*v));
    }
}

vectorized! {
    /// y = residual + gate * v in the block's columns of the rows from `first` on, of v [.., stride].
    fn put(e: &Epilogue<T>, first: usize, v: &[T], stride: usize, y: &mut Block<T>) {
        let columns = y.columns.clone();
        for (rows, condition) in e.images(first, v.len() / stride) {
            let v = &v[rows.start * stride..rows.end * stride];
            macro_rules! each_row {
                (|$row:ident, $y:ident, $v:ident| $put:expr) => {
                    for ($row, $v) in (first + rows.start..).zip(v.chunks_exact(stride)) {
                        let $y = y.row($row);
                        $put
                    }
                };
            }
            match &e.addend {
                Addend::None => each_row!(|row, y, v| combine(y, v, v, |_, v, _| v)),
                Addend::InPlace => each_row!(|row, y, v| combine(y, v, v, |y, v, _| y + v)),
                Addend::Rows(added, count) => each_row!(|row, y, v| {
                    combine(y, v, &added[row % count * e.n..][columns.clone()], |_, v, r| v + r)
                }),
                Addend::Gated(gate) => {
                    let gate = vectors(&gate.row(condition)[columns.clone()]);
                    let gate = gate.as_flattened();
                    each_row!(|row, y, v| combine(y, v, gate, |y, v, gate| gate.mul_add(v, y)));
                }
            }
        }
    }
}

/// y = f(y, v, other).
#[inline(always)]
fn combine<T: Real>(y: &mut [T], v: &[T], other: &[T], f: impl Fn(T, T, T) -> T) {
    // By vectors of a known length: a tile has few columns, and a loop of unknown length is cut for many.
    let (y, y_rest) = y.as_chunks_mut::<LANES>();
    let whole = y.len() * LANES;
    for ((y, v), other) in y.iter_mut().zip(v.as_chunks::<LANES>().0).zip(other.as_chunks::<LANES>().0) {
        *y = std::array::from_fn(|i| f(y[i], v[i], other[i]));
    }
    if !y_rest.is_empty() {
        for ((y, &v), &other) in y_rest.iter_mut().zip(&v[whole..]).zip(&other[whole..]) {
            *y = f(*y, v, other);
        }
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
