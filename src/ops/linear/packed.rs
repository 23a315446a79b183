//! Products on the CPU on packed operands: x is packed once, through the layer norm in front of the product if there is one,
//! and what follows the product is done tile by tile.

use rayon::prelude::*;

use super::epilogue::Epilogue;
use super::{Geometry, Operands, Residual, Workspace, too_small};
use crate::device::cpu::Cpu;
use crate::device::packed::{Element, Line, PackedMatrix};
use crate::error::{Error, Result};
use crate::ops::layernorm::RowNormaliser;
use crate::ops::product::{Kernel, cut, cut_packed, pack_row, pack_rows_of};
use crate::tensor::{DType, Tensor};

pub(super) fn linear(
    device: &Cpu,
    element: Element,
    g: Geometry,
    operands: &Operands,
    y: &mut Tensor,
    workspace: &mut Workspace,
) -> Result<()> {
    let kernel = &Kernel::new(device, element);
    let epilogue = Epilogue::<f32>::new(g, operands)?;
    let packed_now;
    let weight = match operands.weight.packed() {
        Some(packed) => packed,
        // A weight that may change between products is packed for each.
        None => {
            packed_now = PackedMatrix::pack(kernel.element(), g.n, g.k, operands.weight.host::<f32>()?);
            &packed_now
        }
    };
    if weight.element() != kernel.element() {
        return Err(Error::Runtime("linear: the weight was packed for another device".into()));
    }
    let rows = g.images * g.rows;
    let rounded_to = Some(y.dtype()).filter(|dtype| dtype.rounds_on(device));
    let panels = |first, count| weight.group(first, count);
    let (x, packed_y) = (operands.x.packed_rows(), y.packed_rows_mut());
    if x.is_some() && operands.row_norm.is_some() || packed_y.is_some() && !matches!(operands.residual, Residual::None)
    {
        return Err(Error::Runtime("linear: packed rows are neither normalised nor added to".into()));
    }
    let a = match x {
        Some(x) if (x.element(), x.tile_rows()) == (kernel.element(), kernel.tile_rows(rows)) => x.lines(),
        Some(_) => return Err(Error::Runtime("linear: the rows of x were packed for another product".into())),
        None => {
            let a = workspace.lines.get_mut(..rows * kernel.lines(g.k)).ok_or_else(too_small)?;
            pack(kernel, g, operands, rounded_to, a)?;
            a
        }
    };
    match packed_y {
        Some(y) => {
            let kernel = kernel.for_packed_results();
            let blocks = cut_packed(y, kernel.parts([rows, g.n, g.k]), kernel.width());
            kernel
                .products((a, rows), panels, blocks, |first, v, stride, y| epilogue.finish_packed(first, v, stride, y));
        }
        None => {
            let blocks = cut(y.host_mut::<f32>()?, g.n, kernel.parts([rows, g.n, g.k]), kernel.width());
            kernel.products((a, rows), panels, blocks, |first, v, stride, y| epilogue.finish(first, v, stride, y));
        }
    }
    Ok(())
}

/// The rows of x, normalised where there is a norm, as tiles of packed rows.
fn pack(kernel: &Kernel, g: Geometry, operands: &Operands, rounded_to: Option<DType>, to: &mut [Line]) -> Result<()> {
    let x = operands.x.host::<f32>()?;
    let norm = operands.row_norm.map(|n| RowNormaliser::<f32>::new(operands.x, n.affine, n.eps, rounded_to));
    let norm = norm.transpose()?;
    let (lines, tile_rows) = (kernel.lines(g.k), kernel.tile_rows(g.images * g.rows));
    to.par_chunks_mut(tile_rows * lines).enumerate().for_each(|(tile, to)| {
        let mut normed = vec![0.0; if norm.is_some() { g.k } else { 0 }];
        pack_rows_of(to, to.len() / lines, |row, packed| {
            let row = tile * tile_rows + row;
            let x = &x[row * g.k..][..g.k];
            match &norm {
                Some(norm) => {
                    norm.apply(row, x, &mut normed);
                    pack_row(kernel.element(), &normed, packed);
                }
                None => pack_row(kernel.element(), x, packed),
            }
        });
    });
    Ok(())
}
