//! Backward of y = x weight^T + bias. What follows the product (activation, gate, residual) has a backward of its own,
//! [`crate::ops::activation`], which makes the gradient of the product out of that of y.

mod packed;

use gemm::Parallelism;
use rayon::prelude::*;

use super::product::matmul_add;
use super::sums::add_columns;
use crate::device::Device;
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::ops::linear::matmul;
use crate::ops::product::Kernel;
use crate::ops::simd::vectorized;
use crate::ops::{SpecLayout, expect, round_on, spec, to_i32, to_u32, with_real};
use crate::tensor::{Real, Tensor};

spec! {
    /// Geometry of `linear_dx_bwd_*` and `linear_dw_bwd_*`.
    LinearBackwardSpec { rows: i32, cols: i32, depth: i32 }
}
pub(in crate::ops) const LAYOUT: SpecLayout = LinearBackwardSpec::LAYOUT;

/// Products of fewer rows per image take our own sums: `gemm` branches on the shape, and packing a weight costs as much as
/// they do.
const MIN_GEMM_ROWS: usize = 16;
/// Rows and columns of a block's tile in `linear_backward.cu`.
const TILE: usize = 64;

/// dx [B, .., K] = dy [B, .., N] weight [N, K]; dw [N, K] += dy^T x; db `[N]` += the sum of the rows of dy.
///
/// No dx: nobody asks for the gradient of a model's input. dw, db and `scratch` are of the wide type; `scratch` has at
/// least B N elements where there is a db.
///
/// # Errors
/// [`Error::Runtime`] if types or shapes do not fit.
#[allow(clippy::too_many_arguments)]
pub fn linear_backward(
    device: &Device,
    x: &Tensor,
    weight: &Tensor,
    dy: &Tensor,
    dx: Option<&mut Tensor>,
    dw: &mut Tensor,
    db: Option<&mut Tensor>,
    scratch: &mut Tensor,
) -> Result<()> {
    let (n, k, dtype, images) = (weight.dim(0), weight.last_dim(), dy.dtype(), x.dim(0));
    expect("linear weight", weight, dtype, &[n, k])?;
    expect("linear x", x, dtype, x.shape())?;
    expect("linear dw", dw, dtype.wide(), &[n, k])?;
    dx.as_ref().map_or(Ok(()), |dx| expect("linear dx", dx, dtype, x.shape()))?;
    let fits = x.last_dim() == k && dy.last_dim() == n && dy.dim(0) == images;
    if x.is_empty() || n == 0 || !fits || x.len() / k != dy.len() / n {
        let (x, w, dy) = (x.shape(), weight.shape(), dy.shape());
        return Err(Error::Runtime(format!("linear backward: x {x:?}, weight {w:?} and dy {dy:?} do not fit")));
    }
    if let Some(db) = db {
        add_columns(device, dy, db, scratch)?;
    }
    let rows = x.len() / k;
    match device {
        Device::Cpu(cpu) => {
            let kernel = dtype.packing(cpu).map(|element| Kernel::new(cpu, element));
            if let Some(dx) = dx {
                match &kernel {
                    Some(kernel) if rows / images >= MIN_GEMM_ROWS => {
                        packed::inputs(kernel, dy.host()?, weight.host()?, dx.host_mut()?, [n, k]);
                    }
                    _ => with_real!(dtype, T => {
                        inputs(rows / images, dy.host::<T>()?, weight.host::<T>()?, dx.host_mut::<T>()?, [n, k]);
                    }),
                }
                round_on(cpu, dx)?;
            }
            match &kernel {
                Some(kernel) => packed::weights(kernel, dy.host()?, x.host()?, dw.host_mut()?, [n, k]),
                None => with_real!(dtype, T => {
                    let (dy, x) = ((dy.host::<T>()?, 1, n), (x.host::<T>()?, k, 1));
                    matmul_add([n, k, rows], (dw.host_mut::<T>()?, k), dy, x, Parallelism::Rayon(0));
                }),
            }
            Ok(())
        }
        Device::Cuda(cuda) => {
            if let Some(dx) = dx {
                launch(cuda, "linear_dx_bwd", [dy, weight], dx, [rows, k, n])?;
            }
            launch(cuda, "linear_dw_bwd", [dy, x], dw, [n, k, rows])
        }
    }
}

/// dx = dy w, image by image.
fn inputs<T: Real>(rows: usize, dy: &[T], w: &[T], dx: &mut [T], [n, k]: [usize; 2]) {
    if rows < MIN_GEMM_ROWS {
        dx.par_chunks_mut(k).zip(dy.par_chunks(n)).for_each(|(dx, dy)| {
            dx.par_chunks_mut(128).enumerate().for_each(|(chunk, dx)| combine(dx, dy, &w[chunk * 128..], k));
        });
        return;
    }
    let image = |(dx, dy): (&mut [T], &[T]), parallelism| {
        let w = (w, k as isize, 1);
        matmul(rows, k, n, (dx, k as isize), (dy, n as isize, 1), w, T::from_f64(1.0), parallelism);
    };
    let images = dx.len() / (rows * k);
    if images >= rayon::current_num_threads() {
        let pairs = dx.par_chunks_mut(rows * k).zip(dy.par_chunks(rows * n));
        pairs.for_each(|pair| image(pair, Parallelism::None));
    } else {
        let pairs = dx.chunks_mut(rows * k).zip(dy.chunks(rows * n));
        pairs.for_each(|pair| image(pair, Parallelism::Rayon(0)));
    }
}

vectorized! {
    /// dx = the rows of w, `stride` apart, each times its number of dy.
    fn combine(dx: &mut [T], dy: &[T], w: &[T], stride: usize) {
        dx.fill(T::default());
        for (row, &dy) in dy.iter().enumerate() {
            let w = &w[row * stride..][..dx.len()];
            dx.iter_mut().zip(w).for_each(|(dx, &w)| *dx = dy.mul_add(w, *dx));
        }
    }
}

/// One product of `depth` terms into `to` [rows, cols].
fn launch(cuda: &Cuda, name: &str, from: [&Tensor; 2], to: &Tensor, [rows, cols, depth]: [usize; 3]) -> Result<()> {
    let spec = LinearBackwardSpec { rows: to_i32(rows)?, cols: to_i32(cols)?, depth: to_i32(depth)? };
    let dtype = from[0].dtype();
    let bytes = from[0].bytes() + from[1].bytes() + to.bytes();
    cuda.launch(&Launch {
        module: "linear_backward",
        kernel: format!("{name}_{dtype}"),
        grid: [to_u32(cols.div_ceil(TILE))?, to_u32(rows.div_ceil(TILE))?, 1],
        threads: 128,
        pointers: &[from[0].address(0)?, from[1].address(0)?, to.address(0)?],
        spec: bytemuck::bytes_of(&spec),
        work: Work { flops: 2 * (rows * cols * depth) as u64, bytes: bytes as u64, weights: 0 },
        ..Launch::default()
    })
}
