//! The rows of the matrix that a convolution is a product with: what the taps of an output pixel read, in the order
//! (row, column, channel). No such matrix is made; a few rows are written at a time.

use std::ops::Range;

use super::taps::Phase;
use crate::device::packed::{Element, LANES};
use crate::ops::product::{RowLines, pack_row};
use crate::tensor::Real;

/// Some neighbouring channels of a tensor [B, H, W, C].
#[derive(Clone, Copy)]
pub(super) struct Source<'a, T> {
    pub values: &'a [T],
    /// C.
    pub channels: usize,
    /// The first of them.
    pub first: usize,
    /// How many.
    pub count: usize,
}

/// The channels `wanted` of tensors whose channels follow each other.
pub(super) fn sources<'a, T>(tensors: &[(&'a [T], usize)], wanted: Range<usize>) -> Vec<Source<'a, T>> {
    let mut found = Vec::new();
    let mut before = 0;
    for &(values, channels) in tensors {
        let first = wanted.start.max(before) - before;
        let end = wanted.end.min(before + channels).saturating_sub(before);
        if first < end {
            found.push(Source { values, channels, first, count: end - first });
        }
        before += channels;
    }
    found
}

/// Rows of one phase of a convolution.
pub(super) struct Patches<'a, T> {
    sources: Vec<Source<'a, T>>,
    /// Of the input.
    size: [usize; 2],
    /// Of the output.
    output: [usize; 2],
    phase: Phase,
    /// Channels of all sources.
    channels: usize,
    /// Whether the columns of a row of taps are neighbours in memory.
    dense: bool,
}

impl<'a, T: Real> Patches<'a, T> {
    pub fn new(sources: Vec<Source<'a, T>>, size: [usize; 2], output: [usize; 2], phase: Phase) -> Self {
        let whole = matches!(sources.as_slice(), [one] if one.count == one.channels);
        let (channels, dense) = (sources.iter().map(|s| s.count).sum(), whole && phase[1].is_dense());
        Self { sources, size, output, phase, channels, dense }
    }

    /// Numbers of a row.
    pub fn k(&self) -> usize {
        self.phase[0].taps.len() * self.phase[1].taps.len() * self.channels
    }

    /// Those of the output's pixels `rows`, counted over all images, that are of this phase.
    pub fn rows(&self, rows: Range<usize>) -> Vec<usize> {
        if self.phase.iter().all(|axis| axis.every == 1) {
            return rows.collect();
        }
        rows.filter(|&row| self.place(row).is_some()).collect()
    }

    /// Image, and where the offsets of the taps begin.
    fn place(&self, row: usize) -> Option<(usize, [isize; 2])> {
        let [height, width] = self.output;
        let y = self.phase[0].base(row / width % height)?;
        let x = self.phase[1].base(row % width)?;
        Some((row / width / height, [y, x]))
    }

    /// The pieces that row `row` is made of, in their order: numbers, or the length of zeros.
    #[inline]
    fn pieces(&self, row: usize, mut piece: impl FnMut(Result<&'a [T], usize>)) {
        let Some((image, [y, x])) = self.place(row) else { return };
        let [height, width] = self.size;
        let [rows, columns] = &self.phase;
        let inside = |at: isize, end: usize| usize::try_from(at).ok().filter(|&at| at < end);
        let (Some(first), Some(last)) = (columns.taps.first(), columns.taps.last()) else { return };
        let whole = inside(x + first.offset, width).filter(|_| inside(x + last.offset, width).is_some());
        for tap in &rows.taps {
            let Some(y) = inside(y + tap.offset, height) else {
                piece(Err(columns.taps.len() * self.channels));
                continue;
            };
            let line = (image * height + y) * width;
            if let (true, Some(x)) = (self.dense, whole) {
                let len = columns.taps.len() * self.channels;
                piece(Ok(&self.sources[0].values[(line + x) * self.channels..][..len]));
                continue;
            }
            for tap in &columns.taps {
                match inside(x + tap.offset, width) {
                    Some(x) => {
                        for s in &self.sources {
                            piece(Ok(&s.values[(line + x) * s.channels + s.first..][..s.count]));
                        }
                    }
                    None => piece(Err(self.channels)),
                }
            }
        }
    }

    /// Writes row `row`, [`Self::k`] numbers.
    pub fn gather(&self, row: usize, to: &mut [T]) {
        let mut at = 0;
        self.pieces(row, |piece| match piece {
            Ok(values) => {
                to[at..][..values.len()].copy_from_slice(values);
                at += values.len();
            }
            Err(zeros) => {
                to[at..][..zeros].fill(T::default());
                at += zeros;
            }
        });
    }
}

impl Patches<'_, f32> {
    /// Whether every piece fills whole lines of `element`.
    pub fn is_aligned(&self, element: Element) -> bool {
        self.sources.iter().all(|s| s.count.is_multiple_of(LANES * element.per_word()))
    }

    /// Packs row `row`; `scratch` holds [`Self::k`] numbers, or none where [`Self::is_aligned`].
    pub fn pack(&self, element: Element, row: usize, mut to: RowLines, scratch: &mut [f32]) {
        if !scratch.is_empty() {
            self.gather(row, scratch);
            return pack_row(element, scratch, to);
        }
        let mut line = 0;
        self.pieces(row, |piece| match piece {
            Ok(values) => {
                pack_row(element, values, to.from(line));
                line += element.lines(values.len());
            }
            Err(zeros) => {
                to.from(line).clear(element.lines(zeros));
                line += element.lines(zeros);
            }
        });
    }
}
