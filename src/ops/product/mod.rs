//! Products of the CPU on packed operands: a tile of rows times a group of panels of 16 columns, summed over the whole of k
//! in registers and handed on while it is in the cache.
//!
//! The sum of an element runs over k in one order that depends on nothing else: not on the other rows, the tile or the
//! threads. Geometry and blocking follow BLIS (Van Zee and van de Geijn 2015) without its loop over k: the operands of a
//! transformer fit the second-level cache whole.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx;
mod blocks;
pub mod ceilings;
mod pack;
mod panels;
mod portable;
mod store;

use std::ops::Range;

use rayon::prelude::*;

use crate::device::cpu::Cpu;
use crate::device::level::Level;
use crate::device::packed::{Element, LANES, Line};

pub use blocks::{Block, Destination, PackedBlock, cut, cut_packed};
pub use pack::{
    RowLines, pack_columns, pack_columns_as_rows, pack_exponentials, pack_row, pack_row_panels, pack_rows_of, pack_tile,
};
pub use panels::{panels_of_columns, panels_of_rows};
pub use store::{add_tile, put_tile};

/// Most numbers of a tile: 32 rows by two panels.
const MAX_TILE: usize = 1024;

/// Most columns of a tile.
pub const MAX_WIDTH: usize = 3 * LANES;

/// Lines of the rows of a part at most: 1 MiB.
const PART_LINES: usize = 1 << 14;

/// A tile of results [rows, stride], in a cache line of its own.
#[repr(align(64))]
pub struct Tile([f32; MAX_TILE], Registers);

impl Default for Tile {
    fn default() -> Self {
        Self([0.0; MAX_TILE], Registers)
    }
}

/// What a thread that multiplies holds: it gives the tile registers back when it is dropped.
pub struct Registers;

impl Drop for Registers {
    fn drop(&mut self) {
        #[cfg(target_arch = "x86_64")]
        amx::release();
    }
}

/// The instructions of a product and the tiles that suit them.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    code: Code,
    element: Element,
    /// Most rows of a tile.
    rows: usize,
    /// Most panels of a group.
    panels: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Amx,
}

impl Kernel {
    /// The kernel for operands of `element` on `cpu`: that of its level, in portable code where this machine lacks it.
    pub fn new(cpu: &Cpu, element: Element) -> Self {
        let bf16 = element == Element::Bf16Pair;
        // Accumulators fill the registers: 24 of 32, 12 of 16, 4 tiles of 8.
        let (level, rows, panels) = match cpu.level() {
            Level::Amx if bf16 => (Level::Amx, 32, 2),
            Level::Amx | Level::Avx512Bf16 if bf16 => (Level::Avx512Bf16, 8, 3),
            Level::Amx | Level::Avx512Bf16 | Level::Avx512 => (Level::Avx512, 8, 3),
            Level::Avx2 | Level::Portable => (Level::Avx2, 6, 1),
        };
        Self { code: Code::of(level), element, rows, panels }
    }

    /// What it multiplies.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Most panels that [`Self::multiply`] takes.
    pub fn panels(&self) -> usize {
        self.panels
    }

    /// Lines that k numbers of a row take.
    pub fn lines(&self, k: usize) -> usize {
        self.element.lines(k)
    }

    /// Rows of the tiles that `rows` rows are cut into; the last tile may have fewer.
    pub fn tile_rows(&self, rows: usize) -> usize {
        rows.div_ceil(rows.div_ceil(self.rows).max(1)).max(1)
    }

    /// out [rows, P 16] = a [rows, K] times the columns of b, P panels: the first `rows P 16` numbers of `out`. `a` is one
    /// tile of [`pack_rows_of`].
    ///
    /// PRECOND: P is 1 to the most of the kernel, `rows` is at most what [`Self::tile_rows`] gives.
    ///
    /// # Panics
    /// If the operands do not fit each other.
    #[inline]
    pub fn multiply<'t>(&self, a: &[Line], rows: usize, b: &[Line], out: &'t mut Tile) -> &'t mut [f32] {
        let stride = b.len() / (a.len() / rows.max(1)).max(1);
        self.multiply_ahead(a, rows, b, &[], &mut out.0, stride);
        &mut out.0[..rows * stride]
    }

    /// The rows of `out`, `stride` apart, begin with those of `a` times all panels of `b`; operands as those of
    /// [`Self::multiply`].
    ///
    /// # Panics
    /// If the operands do not fit each other.
    pub fn multiply_all(&self, a: &[Line], rows: usize, b: &[Line], out: &mut [f32], stride: usize, _: &Registers) {
        let per_panel = a.len() / rows.max(1) * LANES;
        for (group, panels) in b.chunks(self.panels * per_panel).enumerate() {
            self.multiply_ahead(a, rows, panels, &[], &mut out[group * self.width()..], stride);
        }
    }

    /// [`Self::multiply`] to rows that are `stride` apart, while `ahead`, what is needed next, is fetched from memory.
    #[inline]
    fn multiply_ahead(&self, a: &[Line], rows: usize, b: &[Line], ahead: &[Line], out: &mut [f32], stride: usize) {
        let lines = a.len() / rows.max(1);
        let panels = b.len() / (lines * LANES).max(1);
        assert!(
            (1..=self.rows).contains(&rows)
                && (1..=self.panels).contains(&panels)
                && a.len() == lines * rows
                && b.len() == panels * lines * LANES
                && stride >= panels * LANES
                && out.len() >= (rows - 1) * stride + panels * LANES,
            "packed operands fit each other, the kernel and the results"
        );
        #[cfg(not(target_arch = "x86_64"))]
        let _ = ahead;
        match self.code {
            Code::Portable => portable::multiply(self.element, a, rows, b, panels, out, stride),
            #[cfg(target_arch = "x86_64")]
            Code::Avx2 => {
                prefetch(ahead);
                // SAFETY: this code is chosen on machines with these instructions only; sizes were checked above.
                unsafe { avx::multiply_avx2(a, rows, b, out, stride) }
            }
            #[cfg(target_arch = "x86_64")]
            Code::Avx512 => {
                prefetch(ahead);
                // SAFETY: as above.
                unsafe { avx::multiply_avx512(self.element, a, rows, b, panels, out, stride) }
            }
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Code::Amx => unsafe { amx::multiply(a, rows, b, panels, ahead, out, stride) },
        }
    }

    /// This kernel with groups of panels whose results fill whole lines of [`crate::device::packed::PackedRows`].
    pub fn for_packed_results(self) -> Self {
        let per_word = self.element.per_word();
        Self { panels: (self.panels / per_word).max(1) * per_word, ..self }
    }

    /// Columns of the blocks that [`Self::products`] takes; the last of a row may be narrower.
    pub fn width(&self) -> usize {
        self.panels * LANES
    }

    /// Rows of the blocks that [`Self::products`] takes of a product [rows, n] over `k`: whole tiles, in order.
    pub fn parts(&self, [rows, n, k]: [usize; 3]) -> impl Iterator<Item = Range<usize>> + use<> {
        let (tile_rows, groups) = (self.tile_rows(rows), n.div_ceil(self.width()).max(1));
        let tiles = rows.div_ceil(tile_rows);
        // Where there are few groups for the threads, the rows are shared out too.
        let threads = rayon::current_num_threads();
        let parts = if groups >= 2 * threads { 1 } else { (4 * threads).div_ceil(groups) };
        // Those of a part are read for each group of its panels: they have to stay in the second-level cache.
        let parts = parts.max((rows * self.lines(k)).div_ceil(PART_LINES)).min(tiles).max(1);
        let per_part = tiles.div_ceil(parts) * tile_rows;
        (0..parts).map(move |i| (i * per_part).min(rows)..((i + 1) * per_part).min(rows))
    }

    /// Multiplies the rows `a` [rows, K], tiles of [`pack_rows_of`], with a matrix of which `b(first, count)` are panels. Each of
    /// the `blocks`, [`Self::parts`] by [`Self::width`], is a task; `finish(first, products, stride, block)` is given rows
    /// of it from `first` on, [.., stride], to write to it.
    ///
    /// Groups of panels are spread over the threads, so that each weight is read from memory once.
    pub fn products<'b, D: Destination>(
        &self,
        (a, rows): (&[Line], usize),
        b: impl Fn(usize, usize) -> &'b [Line] + Sync,
        blocks: Vec<D>,
        finish: impl Fn(usize, &mut [f32], usize, &mut D) + Sync,
    ) {
        let (lines, tile_rows) = (a.len() / rows.max(1), self.tile_rows(rows));
        blocks.into_par_iter().for_each(|mut block| {
            let (group, rows) = (block.columns().start / self.width(), block.rows());
            let panels = b(group * self.panels, self.panels);
            let ahead = b((group + 1) * self.panels, self.panels);
            let share = ahead.len().div_ceil(rows.len().div_ceil(tile_rows).max(1));
            let stride = panels.len() / (lines * LANES).max(1) * LANES;
            // The instructions of a product are few and take long: those that finish the tile before are done beside them.
            let (out, before) = (&mut Tile::default(), &mut Tile::default());
            let (mut out, mut before) = (out, before);
            let mut unfinished = None;
            for (i, first) in rows.clone().step_by(tile_rows).enumerate() {
                let ahead = ahead.get(i * share..).map_or(&[][..], |rest| &rest[..share.min(rest.len())]);
                let height = tile_rows.min(rows.end - first);
                let a = &a[first * lines..][..height * lines];
                self.multiply_ahead(a, height, panels, ahead, &mut out.0, stride);
                if let Some((first, height)) = unfinished.replace((first, height)) {
                    finish(first, &mut before.0[..height * stride], stride, &mut block);
                }
                block.fetch(first..first + height);
                std::mem::swap(&mut out, &mut before);
            }
            if let Some((first, height)) = unfinished {
                finish(first, &mut before.0[..height * stride], stride, &mut block);
            }
        });
    }
}

impl Code {
    /// That of `level` if this machine has it.
    fn of(level: Level) -> Self {
        #[cfg(target_arch = "x86_64")]
        if Level::detect() >= level {
            match level {
                Level::Amx => return Self::Amx,
                Level::Avx512 | Level::Avx512Bf16 => return Self::Avx512,
                Level::Avx2 => return Self::Avx2,
                Level::Portable => {}
            }
        }
        let _ = level;
        Self::Portable
    }
}

/// Asks for memory that will be read soon: the weights of the next group, or rows of the output.
#[inline]
fn prefetch<T>(memory: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in memory.chunks((64 / size_of::<T>()).max(1)) {
        // SAFETY: a hint; it reads nothing.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}
