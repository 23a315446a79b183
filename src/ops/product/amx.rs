//! Products by AMX tiles: two tiles of rows times two of columns into four accumulators, for 32 steps of k at a time.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use std::arch::asm;
use std::cell::Cell;

use crate::device::packed::{LANES, Line};

/// The operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, by tile.
    row_bytes: [u16; 16],
    /// Rows, by tile.
    rows: [u8; 16],
}

/// Where the loop puts its results.
#[repr(C)]
struct Destination {
    /// Of the accumulators.
    out: [*mut f32; 4],
    /// Bytes from a row of an accumulator to the next.
    stride: usize,
}

thread_local! {
    /// Rows of the upper and the lower tiles that this thread's registers are configured for, 0 for none: to configure
    /// them takes as long as three lines of a product.
    static CONFIGURED: Cell<[u8; 2]> = const { Cell::new([0; 2]) };
}

/// Configures the registers for tiles of `rows` if they are not.
///
/// # Safety
/// As for [`multiply`].
#[inline]
unsafe fn configure(rows: [u8; 2]) {
    if CONFIGURED.replace(rows) == rows {
        return;
    }
    let [upper, lower] = rows;
    let mut configuration =
        Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    configuration.row_bytes[..8].fill(size_of::<Line>() as u16);
    configuration.rows[..8].copy_from_slice(&[upper, upper, lower, lower, upper, lower, LANES as u8, LANES as u8]);
    // SAFETY: a configuration of palette 1 with tiles of at most 16 rows of 64 bytes; the caller has the instruction.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack)) };
}

/// Gives the registers back, if this thread has configured them: the system need not save what is in them any more.
#[inline]
pub(super) fn release() {
    if CONFIGURED.replace([0; 2]) != [0; 2] {
        // SAFETY: the processor has tiles, or they would not be configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// out [rows, P 16] = a b, rows `stride` apart; see [`super::Kernel::multiply_ahead`].
///
/// # Safety
/// The processor has AMX-TILE and AMX-BF16 and the system lets this process use them. `a` holds whole rows, `b` `panels`
/// panels of as many lines, `rows` is 1 to 32, `panels` 1 or 2, and `out` holds that many rows.
pub(super) unsafe fn multiply(
    a: &[Line],
    rows: usize,
    b: &[Line],
    panels: usize,
    ahead: &[Line],
    out: &mut [f32],
    stride: usize,
) {
    let lines = a.len() / rows;
    // Two tiles of rows and two panels in any case: a single one is its own companion, and gives the same results twice.
    let upper = rows.div_ceil(2);
    let lower = (rows - upper).max(1);
    let (a0, a1) = (a.as_ptr(), a[rows - lower..].as_ptr());
    let (b0, b1) = (b.as_ptr(), b[(panels - 1) * lines * LANES..].as_ptr());
    let at = |row: usize, panel: usize| row * stride + panel * LANES;
    let (below, beside) = (rows - lower, panels - 1);
    let out = [at(0, 0), at(0, beside), at(below, 0), at(below, beside)].map(|first| out[first..].as_mut_ptr());
    let destination = Destination { out, stride: stride * size_of::<f32>() };
    // SAFETY: line l of the operands begins `l` times their step behind their start, a tile reads as many rows of it as its
    // configuration says, and the accumulators end within `out`; the caller has the instructions.
    unsafe {
        configure([upper as u8, lower as u8]);
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tileloadd tmm4, [{a0} + {stride}*1]",
            "tileloadd tmm6, [{b0} + {stride}*1]",
            "tileloadd tmm7, [{b1} + {stride}*1]",
            "tileloadd tmm5, [{a1} + {stride}*1]",
            "2:",
            "mov {i}, {each}",
            "test {i}, {i}",
            "jz 4f",
            "3:",
            "prefetcht1 [{ahead}]",
            "add {ahead}, 64",
            "dec {i}",
            "jnz 3b",
            "4:",
            "dec {lines}",
            "jz 6f",
            "add {a0}, {step}",
            "add {a1}, {step}",
            "add {b0}, 1024",
            "add {b1}, 1024",
            // Each is loaded for the next step as soon as it was last used: a core that runs two threads has too few registers
            // behind those that have names to load beside the products otherwise.
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm6, [{b0} + {stride}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm4, [{a0} + {stride}*1]",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "tileloadd tmm7, [{b1} + {stride}*1]",
            "tileloadd tmm5, [{a1} + {stride}*1]",
            "jmp 2b",
            "6:",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "mov {stride}, [{destination} + 32]",
            "mov {a0}, [{destination}]",
            "mov {a1}, [{destination} + 8]",
            "mov {b0}, [{destination} + 16]",
            "mov {b1}, [{destination} + 24]",
            "tilestored [{a0} + {stride}*1], tmm0",
            "tilestored [{a1} + {stride}*1], tmm1",
            "tilestored [{b0} + {stride}*1], tmm2",
            "tilestored [{b1} + {stride}*1], tmm3",
            destination = in(reg) &raw const destination,
            a0 = inout(reg) a0 => _,
            a1 = inout(reg) a1 => _,
            b0 = inout(reg) b0 => _,
            b1 = inout(reg) b1 => _,
            stride = inout(reg) size_of::<Line>() => _,
            step = in(reg) rows * size_of::<Line>(),
            lines = inout(reg) lines => _,
            // Spread over the steps: all at once they would wait for each other, and the tiles for them.
            each = in(reg) ahead.len().div_ceil(lines),
            ahead = inout(reg) ahead.as_ptr() => _,
            i = out(reg) _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

const _: () = assert!(
    std::mem::offset_of!(Configuration, row_bytes) == 16
        && std::mem::offset_of!(Configuration, rows) == 48
        && std::mem::offset_of!(Destination, stride) == 32
);

#[cfg(all(test, target_os = "linux"))]
mod emulated;
