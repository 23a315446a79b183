//! Training examples: each image with noise, a time and perhaps without its class.
//!
//! Image number k of the loader's sequence gets the same noise and time whatever the batch, and however often the run was
//! resumed: all of it follows from (seed, k).

use std::sync::Arc;

use crate::flow::diffusion::alphas;
use crate::models::config::{ModelConfig, Prediction};
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
    /// What becomes of an image, and what of it is learned.
    pub noising: Noising,
    /// Number that stands for "no class"; none for an unconditional model.
    pub null: Option<u32>,
}

/// The path from data to noise, and what the network learns to say about a place on it.
#[derive(Clone, Debug, PartialEq)]
pub enum Noising {
    /// x = (1 - t) data + t noise, of which noise - data is learned.
    Flow,
    /// x = sqrt(a) data + sqrt(1 - a) noise at a whole timestep, a falling with it.
    Diffusion {
        /// What is learned; no velocity.
        prediction: Prediction,
        /// a of each timestep.
        shares: Arc<[f64]>,
    },
}

/// A time, and the factors of data and noise in x and in what is learned.
struct Mixture {
    time: f64,
    x: [f32; 2],
    target: [f32; 2],
}

impl Noising {
    /// That of a model.
    pub fn of(model: &ModelConfig) -> Self {
        match model.prediction {
            Prediction::Velocity => Self::Flow,
            prediction => Self::Diffusion { prediction, shares: alphas(&model.sampling.diffusion).into() },
        }
    }

    /// At the part `part` of the way, from 0 to below 1.
    fn at(&self, part: f64) -> Mixture {
        let Self::Diffusion { prediction, shares } = self else {
            return Mixture { time: part, x: [(1.0 - part) as f32, part as f32], target: [-1.0, 1.0] };
        };
        let step = ((part * shares.len() as f64) as usize).min(shares.len() - 1);
        let (data, noise) = (shares[step].sqrt() as f32, (1.0 - shares[step]).sqrt() as f32);
        let target = match prediction {
            Prediction::V => [-noise, data],
            Prediction::Sample => [1.0, 0.0],
            Prediction::Epsilon | Prediction::Velocity => [0.0, 1.0],
        };
        Mixture { time: step as f64, x: [data, noise], target }
    }
}

/// Examples on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostExamples {
    /// Data with noise, [B, C, H, W].
    pub x: Vec<f32>,
    /// What is learned, [B, C, H, W].
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
            let [part, drop] = self.choices(image);
            normals(self.seed, image, NOISE, noise);
            let Mixture { time, x, target } = self.noising.at(part);
            for (noise, &data) in noise.iter_mut().zip(data) {
                to.x.push(x[0] * data + x[1] * *noise);
                *noise = target[0] * data + target[1] * *noise;
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

    /// Which part of the way image number `image` has gone, and a uniform number that decides about its class.
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
