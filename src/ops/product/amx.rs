//! Products by AMX tiles: two tiles of rows times two of columns into four accumulators, for 32 steps of k at a time.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use std::arch::asm;

use crate::device::packed::{LANES, Line};

/// What the loop is given in memory, the configuration of the tiles first.
#[repr(C, align(64))]
struct Arguments {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, by tile.
    row_bytes: [u16; 16],
    /// Rows, by tile.
    rows: [u8; 16],
    /// Where the accumulators go.
    out: [*mut f32; 4],
    /// Bytes from a row of an accumulator to the next.
    out_stride: usize,
}

/// Numbers from the accumulators of the first panel to where those of a second go that nobody asked for.
const SPARE: usize = 512;

/// out [rows, P 16] = a b; see [`super::Kernel::multiply`].
///
/// # Safety
/// The processor has AMX-TILE and AMX-BF16 and the system lets this process use them. `a` holds whole rows, `b` `panels`
/// panels of as many lines, `rows` is 1 to 32, `panels` 1 or 2, `out` holds 1024 numbers.
pub(super) unsafe fn multiply(a: &[Line], rows: usize, b: &[Line], panels: usize, out: &mut [f32]) {
    let lines = a.len() / rows;
    // Two tiles of rows in any case: a single row is its own companion.
    let upper = rows.div_ceil(2);
    let lower = (rows - upper).max(1);
    let (a0, a1) = (a.as_ptr(), a[rows - lower..].as_ptr());
    let (b0, b1) = (b.as_ptr(), b[(panels - 1) * lines * LANES..].as_ptr());
    let stride = panels * LANES;
    let at = |row: usize, panel: usize| row * stride + if panels == 2 { panel * LANES } else { panel * SPARE };
    let out = [at(0, 0), at(0, 1), at(upper, 0), at(upper, 1)].map(|first| out[first..].as_mut_ptr());
    let (upper, lower) = (upper as u8, lower as u8);
    let mut arguments = Arguments {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
        out,
        out_stride: stride * size_of::<f32>(),
    };
    arguments.row_bytes[..8].fill(size_of::<Line>() as u16);
    arguments.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, LANES as u8, LANES as u8]);
    // SAFETY: line l of the operands begins `l` times their step behind their start, a tile reads as many rows of it as its
    // configuration says, and the accumulators end within `out`; the caller has the instructions.
    unsafe {
        asm!(
            "ldtilecfg [{arguments}]",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {stride}*1]",
            "tileloadd tmm6, [{b0} + {stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b1} + {stride}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a1} + {stride}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, {step}",
            "add {a1}, {step}",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {lines}",
            "jnz 2b",
            "mov {stride}, [{arguments} + 96]",
            "mov {a0}, [{arguments} + 64]",
            "mov {a1}, [{arguments} + 72]",
            "mov {b0}, [{arguments} + 80]",
            "mov {b1}, [{arguments} + 88]",
            "tilestored [{a0} + {stride}*1], tmm0",
            "tilestored [{a1} + {stride}*1], tmm1",
            "tilestored [{b0} + {stride}*1], tmm2",
            "tilestored [{b1} + {stride}*1], tmm3",
            "tilerelease",
            arguments = in(reg) &raw const arguments,
            a0 = inout(reg) a0 => _,
            a1 = inout(reg) a1 => _,
            b0 = inout(reg) b0 => _,
            b1 = inout(reg) b1 => _,
            stride = inout(reg) size_of::<Line>() => _,
            step = in(reg) rows * size_of::<Line>(),
            lines = inout(reg) lines => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

const _: () = assert!(
    std::mem::offset_of!(Arguments, row_bytes) == 16
        && std::mem::offset_of!(Arguments, rows) == 48
        && std::mem::offset_of!(Arguments, out) == 64
        && std::mem::offset_of!(Arguments, out_stride) == 96
);

#[cfg(all(test, target_os = "linux"))]
mod emulated;
