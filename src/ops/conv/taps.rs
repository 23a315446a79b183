//! Which input pixels an output pixel reads. A transposed convolution of stride s is s ordinary ones each way: the output
//! pixels that are alike modulo s read the same taps.

use super::ConvSpec;

/// One of the taps that some outputs read along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tap {
    /// Which of the kernel.
    pub index: usize,
    /// Where it reads for the first of the outputs; negative in the padding.
    pub offset: isize,
}

/// Output q of these, pixel `first + every q`, reads pixel `stride q + offset` of the input for each tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub first: usize,
    pub every: usize,
    pub stride: usize,
    /// In the order of their offsets.
    pub taps: Vec<Tap>,
}

impl Axis {
    /// Where output pixel `at` reads its offsets from, if it is one of these.
    pub fn base(&self, at: usize) -> Option<isize> {
        let behind = at.checked_sub(self.first).filter(|behind| behind.is_multiple_of(self.every))?;
        Some((behind / self.every * self.stride) as isize)
    }

    /// Whether its taps are neighbours in the input.
    pub fn is_dense(&self) -> bool {
        self.taps.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1)
    }
}

/// Output pixels that read the same taps: rows and columns.
pub(super) type Phase = [Axis; 2];

/// Of a convolution: one phase, all outputs.
pub(super) fn forward(spec: &ConvSpec) -> Phase {
    [0, 1].map(|axis| {
        let offset = |index: usize| (index * spec.dilation[axis]) as isize - spec.padding[axis][0] as isize;
        let taps = (0..spec.kernel[axis]).map(|index| Tap { index, offset: offset(index) }).collect();
        Axis { first: 0, every: 1, stride: spec.stride[axis], taps }
    })
}

/// Of a transposed convolution, or of the gradient of a convolution's input.
pub(super) fn transposed(spec: &ConvSpec) -> Vec<Phase> {
    let [rows, columns] = [0, 1].map(|axis| {
        let every = spec.stride[axis];
        (0..every).map(move |first| {
            let reach =
                |index: usize| (first + spec.padding[axis][0]) as isize - (index * spec.dilation[axis]) as isize;
            let read = (0..spec.kernel[axis]).rev().filter(move |&index| reach(index).rem_euclid(every as isize) == 0);
            let taps = read.map(|index| Tap { index, offset: reach(index).div_euclid(every as isize) }).collect();
            Axis { first, every, stride: 1, taps }
        })
    });
    rows.flat_map(|row| columns.clone().map(move |column| [row.clone(), column])).collect()
}
