//! The launches of `kernels/linear.cu` and `kernels/linear_hopper.cu`.

use super::{ForNorm, Geometry, Norm, Operands, Plan, Residual, Workspace, too_small};
use crate::device::cuda::{Cuda, Launch, TensorMap};
use crate::device::trace::Work;
use crate::error::{Error, Result};
use crate::ops::{Columns, spec, to_i32, to_u32};
use crate::tensor::{DType, Tensor};

spec! {
    /// Geometry of `linear_fwd_*`.
    LinearSpec {
        m: i32, n: i32, k: i32, act: i32, residual: i32, residual_rows: i32, rows_per_image: i32, conditions: i32,
        bias_stride: i32, sums_stride: i32, gate_stride: i32, scale_stride: i32, norm: i32, eps: f32, splits: i32,
        k_per_split: i32,
    }
}
pub(in crate::ops) const LAYOUT: crate::ops::SpecLayout = LinearSpec::LAYOUT;

/// Address and stride of numbers that may not be there.
fn columns(columns: Option<Columns>) -> Result<(u64, i32)> {
    columns.map_or(Ok((0, 0)), |c| Ok((c.tensor().address(0)?, to_i32(c.stride())?)))
}

pub(super) fn launch(
    cuda: &Cuda,
    g: Geometry,
    plan: Plan,
    operands: Operands,
    y: &mut Tensor,
    next: Option<ForNorm>,
    workspace: &mut Workspace,
) -> Result<()> {
    let Operands { x, weight, norm, row_norm, bias, act, residual, select } = operands;
    if row_norm.is_some() {
        return Err(Error::Runtime("linear: on a GPU a norm is folded or an operation of its own".into()));
    }
    let (m, dtype, tile) = (g.images * g.rows, y.dtype(), plan.tile);
    let need = plan.workspace(m, g.n);
    if workspace.sums.len() < need.sums || workspace.counters.len() < need.counters {
        return Err(too_small());
    }
    let address = |t: &Tensor| t.address(0);
    let optional = |t: Option<&Tensor>| t.map_or(Ok(0), address);
    let y_address = y.address(0)?;
    let (kind, res, residual_rows, gate) = match residual {
        Residual::None => (0, 0, m, None),
        Residual::InPlace => (1, y_address, m, None),
        Residual::Rows(rows) => (1, rows.address(0)?, rows.dim(0), None),
        Residual::Gated(gate) => (2, y_address, m, Some(gate)),
    };
    let work = work(g, &operands, y, next.as_ref());
    let (bias, bias_stride) = columns(bias)?;
    let (sums, sums_stride) = columns(norm.map(|n: Norm| n.sums))?;
    let (gate, gate_stride) = columns(gate)?;
    let (stats, scaled) = next.map_or((None, None), |next| (Some(&*next.stats), next.scaled));
    let (scale, scale_stride) = columns(scaled.as_ref().map(|s| s.0))?;
    let spec = LinearSpec {
        m: to_i32(m)?,
        n: to_i32(g.n)?,
        k: to_i32(g.k)?,
        act: act.code(),
        residual: kind,
        residual_rows: to_i32(residual_rows)?,
        rows_per_image: to_i32(g.rows)?,
        conditions: to_i32(select.map_or(0, |s| s.conditions))?,
        bias_stride,
        sums_stride,
        gate_stride,
        scale_stride,
        norm: norm.is_some().into(),
        eps: norm.map_or(0.0, |n| n.eps as f32),
        splits: to_i32(plan.splits)?,
        k_per_split: to_i32(plan.k_per_split)?,
    };
    let common = [
        bias,
        sums,
        optional(norm.map(|n| n.stats))?,
        optional(select.map(|s| s.counter))?,
        optional(select.map(|s| s.rows))?,
        res,
        gate,
        scale,
        y_address,
        optional(scaled.as_ref().map(|s| &*s.1))?,
        optional(stats)?,
    ];
    let (x, weight, blocks) = (address(x)?, address(weight)?, if plan.spread { plan.splits } else { 1 });
    let (mut pointers, mut maps) = (common.to_vec(), Vec::new());
    if tile.is_hopper() {
        let bf16 = dtype == DType::BF16;
        maps.push(TensorMap::new(x, bf16, m, g.k, tile.rows)?);
        maps.push(TensorMap::new(weight, bf16, g.n, g.k, tile.cols)?);
    } else {
        pointers.splice(0..0, [x, weight]);
        let spread = |t: &Tensor| if plan.spread { t.address(0) } else { Ok(0) };
        pointers.extend([spread(&workspace.sums)?, spread(&workspace.counters)?]);
    }
    let (module, kernel) = tile.kernel(dtype);
    cuda.launch(&Launch {
        module,
        kernel,
        grid: [to_u32(g.n.div_ceil(tile.cols))?, to_u32(m.div_ceil(tile.rows))?, to_u32(blocks)?],
        threads: tile.threads(dtype),
        shared_bytes: tile.shared_bytes(),
        pointers: &pointers,
        spec: bytemuck::bytes_of(&spec),
        work,
        maps: &maps,
        cluster: if tile.is_hopper() { to_u32(blocks)? } else { 1 },
    })
}

fn work(g: Geometry, operands: &Operands, y: &Tensor, next: Option<&ForNorm>) -> Work {
    let Operands { x, weight, norm, bias, residual, .. } = operands;
    let columns = |c: Option<Columns>| c.map_or(0, |c| c.bytes(g.images, g.n));
    let residual = match residual {
        Residual::None => 0,
        Residual::InPlace => y.bytes(),
        Residual::Rows(rows) => rows.bytes(),
        Residual::Gated(gate) => y.bytes() + columns(Some(*gate)),
    };
    let norm = norm.map_or(0, |n| n.stats.bytes() + columns(Some(n.sums)));
    let scaled = |(scale, z): &(Columns, &mut Tensor)| columns(Some(*scale)) + z.bytes();
    let next = next.map_or(0, |next| next.stats.bytes() + next.scaled.as_ref().map_or(0, scaled));
    let bytes = x.bytes() + weight.bytes() + norm + columns(*bias) + residual + y.bytes() + next;
    Work { flops: 2 * (g.images * g.rows * g.n * g.k) as u64, bytes: bytes as u64, weights: weight.bytes() as u64 }
}
