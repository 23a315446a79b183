//! Flags that several verbs share, and the types of their values.

use std::str::FromStr;

use arclet::error::{Error, Result};
use arclet::flow::schedule::{Solver, TimeConvention};
use arclet::models::diffusion::Spacing;
use arclet::models::sampling::{MAX_TIME_SHIFT, Sampling, is_time_shift};
use arclet::tensor::DType;
use clap::{Args, ValueEnum};

/// Where and in which precision to compute.
#[derive(Args, Debug, Clone)]
pub struct ComputeArgs {
    /// Where to compute: auto takes a GPU if there is one that this program has kernels for, else the CPU, and says which
    #[arg(long, value_name = "auto|cpu|cuda|cuda:N", default_value = "auto")]
    pub device: DeviceChoice,
    /// Type of weights and activations: auto is f16 on a GPU, bf16 on a CPU that multiplies it (AVX512-BF16, AMX), else f32
    #[arg(long, value_enum, default_value = "auto")]
    pub dtype: DTypeChoice,
    /// Threads of the CPU [default: as many as there are]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

/// How much to say.
#[derive(Args, Debug, Clone, Copy)]
pub struct ReportArgs {
    /// Print one JSON object about the run to stdout
    #[arg(long)]
    pub json: bool,
    /// Say nothing on stderr but errors
    #[arg(long)]
    pub quiet: bool,
}

/// Value of `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if possible, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number, or nothing.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let unknown = || "auto, cpu, cuda or cuda:N expected".to_owned();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

/// Value of `--dtype`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeChoice {
    /// What suits the device.
    Auto,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl DTypeChoice {
    /// The type, or `default` for `auto`.
    pub fn or(self, default: DType) -> DType {
        self.fixed().unwrap_or(default)
    }

    /// The type, if one was chosen.
    pub fn fixed(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::F16 => Some(DType::F16),
            Self::Bf16 => Some(DType::BF16),
        }
    }
}

/// Value of `--solver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SolverChoice {
    /// Forward Euler: one evaluation per step
    Euler,
    /// Heun's rule: two evaluations per step
    Heun,
    /// Explicit midpoint: two evaluations per step
    Midpoint,
    /// Two-step Adams-Bashforth: one evaluation per step
    Ab2,
    /// For diffusion models; the noise of --eta 0 is drawn once, at the start
    Ddim,
    /// For diffusion models: ancestral, noise at every step
    Ddpm,
}

impl From<Solver> for SolverChoice {
    fn from(solver: Solver) -> Self {
        match solver {
            Solver::Euler => Self::Euler,
            Solver::Heun => Self::Heun,
            Solver::Midpoint => Self::Midpoint,
            Solver::Ab2 => Self::Ab2,
        }
    }
}

/// Value of `--time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimeChoice {
    /// As in training: S steps from t = 1 (noise) to t = 0 (data)
    Train,
    /// As the published notebooks do: S points, so S - 1 steps, and t rising from 0 while noise becomes data
    Notebook,
}

impl From<TimeChoice> for TimeConvention {
    fn from(choice: TimeChoice) -> Self {
        match choice {
            TimeChoice::Train => Self::Train,
            TimeChoice::Notebook => Self::Notebook,
        }
    }
}

/// Value of `--spacing`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpacingChoice {
    /// Multiples of T / S (rounded down), plus the model's steps_offset
    Leading,
    /// Back from T - 1 in steps of T / S
    Trailing,
    /// From T - 1 to 0, both among them
    Linspace,
}

impl From<SpacingChoice> for Spacing {
    fn from(choice: SpacingChoice) -> Self {
        match choice {
            SpacingChoice::Leading => Self::Leading,
            SpacingChoice::Trailing => Self::Trailing,
            SpacingChoice::Linspace => Self::Linspace,
        }
    }
}

/// Value of `--shift`.
///
/// # Errors
/// What was expected instead.
pub fn parse_shift(text: &str) -> std::result::Result<f64, String> {
    let shift = text.parse().ok().filter(|s| is_time_shift(*s));
    shift.ok_or_else(|| format!("a number above 0 and up to {MAX_TIME_SHIFT} expected"))
}

/// Refuses a `shift` of times other than those of training.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_shift(shift: Option<f64>, time: TimeConvention) -> Result<()> {
    match shift.filter(|s| *s != 1.0 && time == TimeConvention::Notebook) {
        Some(shift) => Err(Error::usage(format!("--shift {shift}: not with --time notebook, whose steps are equal"))),
        None => Ok(()),
    }
}

/// The shift that was asked for, or else the model's, which is one of times as in training.
pub fn shift_or(asked: Option<f64>, time: TimeConvention, model: &Sampling) -> f64 {
    match time {
        TimeConvention::Train => asked.unwrap_or(model.time_shift),
        TimeConvention::Notebook => 1.0,
    }
}

/// Value of `--shard`: part `index` (from 1) of `count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part, from 1.
    pub index: u64,
    /// How many parts.
    pub count: u64,
}

impl Shard {
    /// Everything, as one part.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Images `start .. end` of `total` that are in this part.
    pub fn range(self, total: u64) -> std::ops::Range<u64> {
        // In 128 bits, where total * count cannot overflow.
        let bound = |i: u64| (u128::from(total) * u128::from(i) / u128::from(self.count)) as u64;
        bound(self.index - 1)..bound(self.index)
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if 1 <= index && index <= count => Ok(Self { index, count }),
            _ => Err("I/N with 1 <= I <= N expected, for instance 2/10".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_partition_every_run() {
        for (total, count) in [(9, 3), (10, 3), (2, 5), (0, 2), (u64::MAX, 7)] {
            let ranges: Vec<_> = (1..=count).map(|index| Shard { index, count }.range(total)).collect();
            assert_eq!((ranges[0].start, ranges[count as usize - 1].end), (0, total));
            assert!(ranges.windows(2).all(|w| w[0].end == w[1].start));
        }
        assert_eq!(Shard { index: 2, count: 3 }.range(10), 3..6);
    }

    #[test]
    fn shards_outside_their_count_are_refused() {
        for text in ["0/3", "4/3", "1", "1/0", "-1/2", "a/b", ""] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("2/10".parse(), Ok(Shard { index: 2, count: 10 }));
    }

    #[test]
    fn devices_are_named_as_documented() {
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        for text in ["gpu", "cuda:", "cuda:-1", "CPU"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }
}
