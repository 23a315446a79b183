//! Training examples: each image with noise, a time and perhaps without its class.
//!
//! Image number k of the loader's sequence gets the same noise and time whatever the batch, and however often the run was
//! resumed: all of it follows from (seed, k).

use crate::models::training::Examples;
use crate::rng::{normals, philox4x32_10};
use crate::train::config::{FlowSection, TimeDensity};

/// Streams of the random numbers of one seed; those of starting weights are in [`crate::models::training`].
const NOISE: u32 = 0x5452_0010;
const CHOICES: u32 = 0x5452_0011;
const LOGIT: u32 = 0x5452_0012;

/// How examples are made.
#[derive(Clone, Debug)]
pub struct ExampleRule {
    /// Of all random numbers.
    pub seed: u64,
    /// Density of times and the probability of no class.
    pub flow: FlowSection,
    /// Number that stands for "no class"; none for an unconditional model.
    pub null: Option<u32>,
}

/// Examples on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostExamples {
    /// (1 - t) data + t noise, [B, C, H, W].
    pub x: Vec<f32>,
    /// noise - data, [B, C, H, W].
    pub target: Vec<f32>,
    /// `[B]`.
    pub times: Vec<f64>,
    /// `[B]`.
    pub labels: Vec<u32>,
    /// Normalised continuous parameters, [B, P], of a model that takes some: [`crate::train::parameters`].
    pub parameters: Vec<f32>,
    /// Which examples have them, `[B]`.
    pub given: Vec<bool>,
}

impl HostExamples {
    /// As a training step takes them.
    pub fn borrow(&self) -> Examples<'_> {
        Examples {
            x: &self.x,
            target: &self.target,
            times: &self.times,
            labels: &self.labels,
            parameters: &self.parameters,
            given: &self.given,
        }
    }
}

impl ExampleRule {
    /// Examples of the images [B, C, H, W] of these `labels`, the first of them number `first` of the sequence.
    pub fn examples(&self, images: &[f32], labels: &[u32], first: u64) -> HostExamples {
        let per_image = images.len() / labels.len().max(1);
        let mut to = HostExamples { target: vec![0.0; images.len()], ..HostExamples::default() };
        to.x.reserve(images.len());
        let rows = images.chunks_exact(per_image.max(1)).zip(to.target.chunks_exact_mut(per_image.max(1)));
        for ((image, (data, noise)), &label) in (first..).zip(rows).zip(labels) {
            let [time, drop] = self.choices(image);
            normals(self.seed, image, NOISE, noise);
            let (near, far) = ((1.0 - time) as f32, time as f32);
            for (velocity, &data) in noise.iter_mut().zip(data) {
                to.x.push(near * data + far * *velocity);
                *velocity -= data;
            }
            to.times.push(time);
            to.labels.push(match self.null {
                Some(null) if drop < self.flow.label_dropout => null,
                Some(_) => label,
                None => 0,
            });
        }
        to
    }

    /// The time of image number `image`, and a uniform number that decides about its class.
    fn choices(&self, image: u64) -> [f64; 2] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let words = philox4x32_10([image as u32, (image >> 32) as u32, 0, CHOICES], key);
        let [uniform, drop] = [words[0], words[1]].map(|word| (f64::from(word) + 0.5) / 4_294_967_296.0);
        let time = match self.flow.time {
            TimeDensity::Uniform => uniform,
            TimeDensity::LogitNormal => {
                let mut normal = [0.0];
                normals(self.seed, image, LOGIT, &mut normal);
                1.0 / (1.0 + (-(self.flow.logit_mean + self.flow.logit_std * f64::from(normal[0]))).exp())
            }
        };
        [time, drop]
    }
}
