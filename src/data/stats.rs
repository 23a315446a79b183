//! Numbers about the values of a data set, class by class, in one pass and constant memory.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::data::check::{BLOCK, ShapeCount};
use crate::data::image::Image;
use crate::data::set::DataSet;
use crate::error::Result;

/// Percentiles that are given.
pub const PERCENTS: [f64; 7] = [0.1, 1.0, 25.0, 50.0, 75.0, 99.0, 99.9];
/// Bits of a value that the histogram leaves out: the other 20 tell a value to within 2^-11 of itself.
const DROPPED: u32 = 12;

/// Values of all pixels of a class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassStats {
    /// Name of the class.
    pub name: String,
    /// Images.
    pub images: usize,
    /// How many images have which shape.
    pub shapes: Vec<ShapeCount>,
    /// Least and greatest value.
    pub min: f32,
    /// Greatest value.
    pub max: f32,
    /// Mean.
    pub mean: f64,
    /// Standard deviation (of the population).
    pub std: f64,
    /// Share of pixels that are exactly 0.
    pub zeros: f64,
    /// Percentiles, within 0.05 % of the value.
    pub percentiles: Vec<Percentile>,
}

/// A percentile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentile {
    /// Percent of the values that are not above it.
    pub percent: f64,
    /// The value.
    pub value: f32,
}

/// Number of values, their mean, and the sum of their squared distances from it.
#[derive(Clone, Copy)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

/// Sums over the pixels of a class.
struct Sums {
    images: usize,
    shapes: BTreeMap<[usize; 3], usize>,
    min: f32,
    max: f32,
    moments: Moments,
    zeros: u64,
    histogram: Vec<u64>,
}

/// Statistics of each class with images. Reads on the threads of the current rayon pool and sums in the order of the
/// set, so the result does not depend on the threads. `go_on` is asked between blocks; `None` if it said no.
///
/// # Errors
/// Those of [`DataSet::take`]: the first broken image ends it.
pub fn stats(set: &DataSet, go_on: &mut (dyn FnMut(usize) -> bool + Send)) -> Result<Option<Vec<ClassStats>>> {
    let mut sums: Vec<Option<Sums>> = set.classes().iter().map(|_| None).collect();
    let indices: Vec<usize> = (0..set.len()).collect();
    for block in indices.chunks(BLOCK) {
        if !go_on(block[0]) {
            return Ok(None);
        }
        let read: Vec<Result<(Image, Moments)>> = block
            .par_iter()
            .map(|&i| {
                let image = set.take(i, None)?;
                let moments = Moments::of(&image.pixels);
                Ok((image, moments))
            })
            .collect();
        for (&i, item) in block.iter().zip(read) {
            let (image, moments) = item?;
            sums[set.labels()[i] as usize].get_or_insert_with(Sums::new).add(&image, moments);
        }
    }
    let named = set.classes().iter().zip(sums);
    Ok(Some(named.filter_map(|(name, sums)| Some(sums?.finish(name))).collect()))
}

impl Sums {
    fn new() -> Self {
        Self {
            images: 0,
            shapes: BTreeMap::new(),
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            moments: Moments { count: 0.0, mean: 0.0, squares: 0.0 },
            zeros: 0,
            histogram: vec![0; 1 << (32 - DROPPED)],
        }
    }

    fn add(&mut self, image: &Image, moments: Moments) {
        self.images += 1;
        *self.shapes.entry(image.shape).or_default() += 1;
        for &value in &image.pixels {
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            self.zeros += u64::from(value == 0.0);
            self.histogram[(key(value) >> DROPPED) as usize] += 1;
        }
        self.moments = self.moments.with(moments);
    }

    fn finish(self, name: &str) -> ClassStats {
        let Moments { count, mean, squares } = self.moments;
        let mut shapes: Vec<_> = self.shapes.iter().map(|(&shape, &images)| ShapeCount { shape, images }).collect();
        shapes.sort_by_key(|s| std::cmp::Reverse(s.images));
        ClassStats {
            name: name.to_owned(),
            images: self.images,
            shapes,
            min: self.min,
            max: self.max,
            mean,
            std: (squares / count).sqrt(),
            zeros: self.zeros as f64 / count,
            percentiles: PERCENTS.map(|percent| Percentile { percent, value: self.percentile(percent) }).to_vec(),
        }
    }

    /// The value at the nearest rank, cut towards zero to the bits that the histogram keeps.
    fn percentile(&self, percent: f64) -> f32 {
        let rank = (percent / 100.0 * (self.moments.count - 1.0)).round() as u64;
        let mut below = 0;
        let bin = self.histogram.iter().position(|&count| {
            below += count;
            below > rank
        });
        let value = bin.map_or(self.max, |bin| value_of((bin as u32) << DROPPED));
        value.clamp(self.min, self.max)
    }
}

impl Moments {
    fn of(pixels: &[f32]) -> Self {
        let count = pixels.len() as f64;
        let mean = pixels.iter().map(|&v| f64::from(v)).sum::<f64>() / count;
        Self { count, mean, squares: pixels.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum() }
    }

    /// Both sets of values together (Chan, Golub & LeVeque 1979).
    fn with(self, other: Self) -> Self {
        let (count, delta) = (self.count + other.count, other.mean - self.mean);
        Self {
            count,
            mean: self.mean + delta * other.count / count,
            squares: self.squares + other.squares + delta * delta * self.count * other.count / count,
        }
    }
}

/// Bits of a value, in an order that is that of the values. -0 counts as 0.
fn key(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The value nearest to zero among those whose key starts like `bin`.
fn value_of(bin: u32) -> f32 {
    f32::from_bits(if bin >> 31 == 1 { bin & !(1 << 31) } else { !(bin | ((1 << DROPPED) - 1)) })
}
