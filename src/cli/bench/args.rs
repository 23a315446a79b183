//! The flags of `arclet bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::super::options::{DTypeChoice, DeviceChoice, ReportArgs, TimeChoice, parse_shift};
use super::against::Against;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Measure {
    /// The loop alone on a GPU, noise and images on the device, between two events
    Latency,
    /// One call from noise to images in host memory, one after another
    Calls,
    /// Batches of several sizes, timed like latency on a GPU and like calls on the CPU
    Throughput,
    /// From the start of a process to its first image in host memory
    Cold,
    /// On a GPU each launch of an evaluation by itself, beside the whole loop
    Phases,
    /// On a GPU the loop alone with one technique after another switched on; in types of its own
    Ladder,
    /// The traditional method: `data simulate` on the CPU, one row a class, whatever the model; no files
    Simulator,
}

impl Measure {
    /// The name in rows and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Calls => "calls",
            Self::Throughput => "throughput",
            Self::Cold => "cold",
            Self::Phases => "phases",
            Self::Ladder => "ladder",
            Self::Simulator => "simulator",
        }
    }

    /// Everything about a model.
    pub const OF_MODELS: [Self; 6] =
        [Self::Latency, Self::Calls, Self::Throughput, Self::Cold, Self::Phases, Self::Ladder];

    /// Whether it is about launches and events, which the CPU has not.
    pub fn needs_gpu(self) -> bool {
        matches!(self, Self::Latency | Self::Phases | Self::Ladder)
    }
}

/// Measures how long a model takes to draw images.
///
/// On a GPU the velocity and the final image are compared with the CPU's in f32 first, and wrong ones are not timed. On
/// the CPU the model's matrix products alone, through the same library on the same threads, are measured in turn with
/// it; the ratio of the medians is what everything else costs. Times are milliseconds, gflops count two operations per
/// multiply-add of the matrix products, NFE are function evaluations per image.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Weights file, model folder, or built-in model: lens-dit-s, vit-b16, nanodit or unetpp-r34 (the latter three of full
    /// size, with made-up weights)
    #[arg(long, value_name = "PATH|NAME", default_value = "vit-b16")]
    pub(super) model: PathBuf,
    /// What to measure [default: calls on the CPU, everything but the simulator on a GPU]
    #[arg(long, value_enum, value_name = "A,B,..", value_delimiter = ',')]
    pub(super) measure: Vec<Measure>,
    /// Euler steps of a measurement [default: 1 on the CPU, 50 on a GPU]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) steps: Option<u32>,
    /// Times that the model is asked at
    #[arg(long, value_enum, default_value = "train")]
    pub(super) time: TimeChoice,
    /// Shift of the time grid, t' = S t / (1 + (S - 1) t): below 1 steps are shorter near the data, above 1 near the noise
    /// [default: the model's time_shift, else 1]
    #[arg(long, value_name = "S", value_parser = parse_shift, allow_negative_numbers = true, conflicts_with = "against")]
    pub(super) shift: Option<f64>,
    /// Classifier-free guidance scale; 1 is off
    #[arg(long, visible_alias = "cfg-scale", value_name = "G", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(super) guidance_scale: f32,
    /// Images at a time for latency, calls, cold and simulator
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) batch: u32,
    /// Images at a time for throughput, one row each, until memory ends; a model with classes also gets one guided image
    #[arg(long, value_name = "B,..", value_delimiter = ',', default_value = "1,2,4,8,32,128", value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(super) batches: Vec<u32>,
    /// Runs before the measured ones for latency, and for calls on a GPU
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) warmup: u32,
    /// Measured runs for latency
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) iterations: u32,
    /// Measured calls [default: 1024 on a GPU; on the CPU as many as fit into --seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) calls: Option<u32>,
    /// Measured processes for cold
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) starts: u32,
    /// Seconds to measure for, at least, where no number of runs is given: calls on the CPU, each batch of throughput, each class of the simulator
    #[arg(long, value_name = "T", default_value_t = 6.0)]
    pub(super) seconds: f64,
    /// Starting noise of latency and calls from a .npy file of shape (batch, channels, height, width) instead of random
    /// noise
    #[arg(long, value_name = "FILE.npy")]
    pub(super) noise: Option<PathBuf>,
    /// Where to compute: auto takes a GPU if there is one that this program has kernels for, else the CPU, and says which
    #[arg(long, value_name = "auto|cpu|cuda|cuda:N", default_value = "auto")]
    pub(super) device: DeviceChoice,
    /// Types of weights and activations, rows for each: auto is f16 on a GPU, bf16 on a CPU that multiplies it, else f32
    #[arg(long, value_enum, value_name = "A,B,..", value_delimiter = ',', default_value = "auto")]
    pub(super) dtype: Vec<DTypeChoice>,
    /// Threads of the CPU [default: as many as there are]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// Measure other programs in turns with this one, same weights, noise and times, instead of anything else; takes a
    /// built-in model and a clone of the repository, whose benches/peers says what to install
    #[arg(long, value_enum, value_name = "peers", conflicts_with_all = ["measure", "follow", "first_image", "noise", "tune"])]
    pub(super) against: Option<Against>,
    /// Run as often as each line of stdin says and answer each with a line of times: for comparison in turns
    #[arg(long, hide = true)]
    pub(super) follow: bool,
    /// Draw one batch and say how long the parts took: what cold starts
    #[arg(long, hide = true, conflicts_with = "follow")]
    pub(super) first_image: bool,
    /// Measure every tile and split of the model's products on a GPU and write the fastest into this table
    /// (kernels/tiles.tsv, which the build takes in), and nothing else
    #[arg(long, value_name = "FILE.tsv", conflicts_with_all = ["measure", "follow", "first_image"])]
    pub(super) tune: Option<PathBuf>,
    /// Print what one evaluation launches on a GPU of the driver's kind, or write into the table of --tune what it would
    /// choose, and run none of it
    #[arg(long, hide = true, conflicts_with_all = ["follow", "first_image"])]
    pub(super) launches: bool,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}
