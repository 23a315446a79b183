//! The launch of `kernels/linear.cu`.

use super::{Activation, ForNorm, Geometry, Norm, Operands, Plan, Residual, Workspace, too_small};
use crate::device::cuda::{Cuda, Launch};
use crate::device::trace::Work;
use crate::error::Result;
use crate::ops::{Columns, spec, to_i32, to_u32};
use crate::tensor::Tensor;

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
    let Operands { x, weight, norm, bias, act, residual, select } = operands;
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
        act: match act {
            Activation::None => 0,
            Activation::Gelu => 1,
            Activation::GeluTanh => 2,
            Activation::Silu => 3,
        },
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
    let pointers = [
        address(x)?,
        address(weight)?,
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
        if plan.spread { workspace.sums.address(0)? } else { 0 },
        if plan.spread { workspace.counters.address(0)? } else { 0 },
    ];
    cuda.launch(&Launch {
        module: "linear",
        kernel: format!("linear_fwd_{dtype}_{}", tile.name()),
        grid: [
            to_u32(g.n.div_ceil(tile.cols))?,
            to_u32(m.div_ceil(tile.rows))?,
            if plan.spread { to_u32(plan.splits)? } else { 1 },
        ],
        threads: tile.threads(dtype),
        shared_bytes: tile.shared_bytes(),
        pointers: &pointers,
        spec: bytemuck::bytes_of(&spec),
        work,
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
