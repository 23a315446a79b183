//! The products in plain Rust: what the vector and tile instructions do, in their order.

use crate::device::packed::{Element, LANES, Line};

/// out [rows, P 16] = a b, rows `stride` apart; see [`super::Kernel::multiply`].
pub(super) fn multiply(
    element: Element,
    a: &[Line],
    rows: usize,
    b: &[Line],
    panels: usize,
    out: &mut [f32],
    stride: usize,
) {
    let lines = a.len() / rows;
    for row in 0..rows {
        for panel in 0..panels {
            let mut sums = [0f32; LANES];
            for (step, columns) in b[panel * lines * LANES..][..lines * LANES].iter().enumerate() {
                let word = a[step / LANES * rows + row].0[step % LANES];
                match element {
                    Element::F32 => add(&mut sums, f32::from_bits(word), |c| f32::from_bits(columns.0[c])),
                    Element::Bf16Pair => {
                        add(&mut sums, low(word), |c| low(columns.0[c]));
                        add(&mut sums, high(word), |c| high(columns.0[c]));
                    }
                }
            }
            out[row * stride + panel * LANES..][..LANES].copy_from_slice(&sums);
        }
    }
}

#[inline(always)]
fn add(sums: &mut [f32; LANES], x: f32, w: impl Fn(usize) -> f32) {
    for (column, sum) in sums.iter_mut().enumerate() {
        *sum += x * w(column);
    }
}

/// The number of the smaller k of a pair.
#[inline(always)]
pub(super) fn low(word: u32) -> f32 {
    f32::from_bits(word << 16)
}

/// The number of the larger k of a pair.
#[inline(always)]
pub(super) fn high(word: u32) -> f32 {
    f32::from_bits(word & 0xffff_0000)
}
