//! Random numbers of the loader: words of Philox under the run's seed, so that order and augmentation are functions of
//! (seed, epoch) and (seed, epoch, index) and of nothing else.

use crate::rng::philox4x32_10;

/// Streams of their own (fourth counter word); sampling noise takes the lowest ones.
const SHUFFLE: u32 = 0x5348_5546;
const AUGMENT: u32 = 0x4155_474d;

fn words(seed: u64, a: u32, b: u32, c: u32, stream: u32) -> [u32; 4] {
    philox4x32_10([a, b, c, stream], [seed as u32, (seed >> 32) as u32])
}

/// A permutation of `0..n` by Fisher and Yates; a number from `0..k` is the upper half of a 64-bit word times `k`,
/// whose bias is below k / 2^64. `n` must fit 32 bits, as labels and indices do.
pub fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for last in (1..n).rev() {
        let [a, b, ..] = words(seed, last as u32, epoch as u32, (epoch >> 32) as u32, SHUFFLE);
        let word = u64::from(a) << 32 | u64::from(b);
        let pick = (u128::from(word) * (last as u128 + 1)) >> 64;
        order.swap(last, pick as usize);
    }
    order
}

/// What one image of one epoch is augmented by: three uniform numbers in [0, 1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Draw {
    /// Decides the angle.
    pub rotation: f64,
    /// Decides the mirror image, left to right.
    pub horizontal: f64,
    /// Decides the mirror image, top to bottom.
    pub vertical: f64,
}

impl Draw {
    /// The draw of image `index` in `epoch`.
    pub fn new(seed: u64, epoch: u64, index: u32) -> Self {
        let [a, b, c, _] = words(seed, index, epoch as u32, (epoch >> 32) as u32, AUGMENT);
        let unit = |word: u32| f64::from(word) / 4_294_967_296.0;
        Self { rotation: unit(a), horizontal: unit(b), vertical: unit(c) }
    }
}
