//! Projections into the heads of an attention and out of them. Heads are made as long as the attention takes them with zeros,
//! which change no product; a factor on the queries makes up for the longer head in the scale of the scores.

use crate::device::Device;
use crate::error::Result;
use crate::nn::linear::Linear;
use crate::nn::params::Loader;
use crate::ops::attention::MIN_GPU_HEAD;

/// Sizes of heads that the attention takes are multiples of this ...
const HEAD_STEP: usize = 8;
/// ... up to this, and on a GPU from [`MIN_GPU_HEAD`] on.
const MAX_HEAD: usize = 128;

/// Channels cut into heads.
#[derive(Clone, Copy)]
pub struct HeadSizes {
    channels: usize,
    /// How many heads.
    pub heads: usize,
    head: usize,
    padded: usize,
}

impl HeadSizes {
    /// `heads` heads of `channels` channels, whose projections lie below the loader's path.
    ///
    /// # Errors
    /// [`crate::error::Error::Input`] for heads that are too large.
    pub fn new(loader: &Loader, channels: usize, heads: usize) -> Result<Self> {
        let head = channels / heads;
        if head > MAX_HEAD {
            let reason = format!("found heads of {head} channels, at most {MAX_HEAD} expected");
            return Err(loader.refusal("to_q.weight", reason));
        }
        let least = match loader.device() {
            Device::Cpu(_) => HEAD_STEP,
            Device::Cuda(_) => MIN_GPU_HEAD,
        };
        Ok(Self { channels, heads, head, padded: head.next_multiple_of(HEAD_STEP).max(least) })
    }

    /// Channels of all heads, as the attention takes them.
    pub fn width(self) -> usize {
        self.padded * self.heads
    }

    /// Where channel `c` is among them.
    fn at(self, c: usize) -> usize {
        c / self.head * self.padded + c % self.head
    }

    /// The projections `parts` of `k` inputs as one layer, side by side; `biased`: they have biases.
    ///
    /// # Errors
    /// The loader's.
    pub fn into(self, loader: &Loader, parts: &[&str], k: usize, biased: bool) -> Result<Linear> {
        let width = self.width();
        let n = parts.len() * width;
        let (mut weight, mut bias) = (vec![0.0; n * k], vec![0.0; n]);
        for (i, &part) in parts.iter().enumerate() {
            let at = loader.at(part);
            let rows = at.read("weight")?;
            let offsets = if biased { at.read("bias")? } else { vec![0.0; self.channels] };
            let factor = if part == "to_q" { (self.padded as f64 / self.head as f64).sqrt() } else { 1.0 };
            for c in 0..self.channels {
                let row = i * width + self.at(c);
                bias[row] = f64::from(offsets[c]) * factor;
                let to = weight[row * k..][..k].iter_mut();
                to.zip(&rows[c * k..][..k]).for_each(|(to, &w)| *to = f64::from(w) * factor);
            }
        }
        let first = loader.at(parts[0]);
        Ok(Linear {
            weight: first.computed_matrix("weight", n, k, &weight)?,
            bias: first.computed("bias", &[n], &bias)?,
        })
    }

    /// The projection `to_out.0` of what the heads give.
    ///
    /// # Errors
    /// The loader's.
    pub fn out_of(self, loader: &Loader) -> Result<Linear> {
        let (at, channels, width) = (loader.at("to_out.0"), self.channels, self.width());
        let mut weight = vec![0.0; channels * width];
        for (i, &w) in at.read("weight")?.iter().enumerate() {
            weight[i / channels * width + self.at(i % channels)] = f64::from(w);
        }
        Ok(Linear {
            weight: at.computed_matrix("weight", channels, width, &weight)?,
            bias: at.tensor("bias", &[channels])?,
        })
    }
}
