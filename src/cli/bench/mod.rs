//! `arclet bench`: how long a model takes, and how that compares with its matrix products alone.

mod products;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::tensor::DType;
use clap::Args;
use serde::Serialize;

use super::model::Source;
use super::options::{ComputeArgs, ReportArgs};
use super::{device, report};
use products::{Baseline, flops};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet bench --model vit-b16 --device cpu
  arclet bench --model lens-dit-s --steps 50 --batch 4 --json";

/// Measurements that are thrown away.
const WARM_UPS: usize = 2;
/// Fewest measurements, however long one takes.
const LEAST: usize = 5;

/// Measures how long a model takes to draw images.
///
/// A measurement is one call from noise to images in host memory. On the CPU the model's matrix products alone, through
/// the same library on the same threads, are measured in turn with it; the ratio of the medians is what everything else
/// costs. Times are milliseconds, gflops count two operations per multiply-add of the matrix products.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Weights file, model folder, or built-in model: lens-dit-s, vit-b16 or nanodit (the latter two of full size, with
    /// made-up weights)
    #[arg(long, value_name = "PATH|NAME", default_value = "vit-b16")]
    model: PathBuf,
    /// Euler steps of a measurement [default: 1 on the CPU, 50 on a GPU]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    steps: Option<u32>,
    /// Images at a time
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
    /// Seconds to measure for, at least
    #[arg(long, value_name = "T", default_value_t = 6.0)]
    seconds: f64,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// One row of the result.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    device: String,
    dtype: String,
    threads: Option<usize>,
    batch: usize,
    steps: usize,
    evaluations: usize,
    runs: usize,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    min_ms: f64,
    ms_per_evaluation: f64,
    gflops: f64,
    /// Median of this row over the median of the matrix products alone, measured in turn.
    ratio_to_products: Option<f64>,
    load_ms: Option<f64>,
    /// Largest memory of the process so far, before the products' own operands.
    peak_rss_mb: Option<f64>,
}

/// Measures and prints.
///
/// # Errors
/// [`Error::Device`] for a GPU that cannot be used; those of models.
pub fn run(args: &BenchArgs) -> Result<()> {
    let quiet = args.report.quiet;
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(Error::usage(format!("--seconds {}: a number from 0 expected", args.seconds)));
    }
    let source = Source::open(Some(&args.model))?;
    let weights = source.velocity_weights(quiet)?;
    let config = weights.config();
    let device = device::open(&args.compute, quiet)?;
    let dtype = args.compute.dtype.or(device::default_dtype(&device));
    let on_cpu = matches!(device, Device::Cpu(_));
    let steps = args.steps.unwrap_or(if on_cpu { 1 } else { 50 }) as usize;
    let batch = args.batch as usize;

    let start = Instant::now();
    let model = weights.load(&device, dtype)?;
    let load_ms = milliseconds(start.elapsed());
    let schedule = Schedule::new(Solver::Euler, steps, TimeConvention::Train)
        .ok_or_else(|| Error::usage("--steps 0: at least 1 expected"))?;
    let options = SamplerOptions { guidance: 1.0, clamp: true };
    let mut sampler = Sampler::new(&model, &schedule, batch, options)?;
    let classes: Vec<usize> = match &config.classes {
        Some(classes) => (0..batch).map(|i| i % classes.names.len()).collect(),
        None => Vec::new(),
    };
    let mut draw = |seed: u64| -> Result<Duration> {
        let start = Instant::now();
        sampler.draw_noise(seed, 0)?;
        sampler.run(&classes)?;
        let images = sampler.state()?;
        let elapsed = start.elapsed();
        match images.iter().all(|v| v.is_finite()) {
            true => Ok(elapsed),
            false => Err(Error::Runtime("the images hold values that are not finite".into())),
        }
    };
    for i in 0..WARM_UPS {
        draw(i as u64)?;
    }
    let peak_rss_mb = peak_memory_mb();

    // The products alone in f32, which is what the CPU computes every type in.
    let mut baseline = on_cpu.then(|| Baseline::new(config, batch));
    let mut alone = || match &mut baseline {
        Some(baseline) => {
            let start = Instant::now();
            device.run(|| (0..schedule.evaluations()).for_each(|_| baseline.run()));
            start.elapsed()
        }
        None => Duration::ZERO,
    };
    alone();
    let (mut whole, mut products) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    while whole.len() < LEAST || begin.elapsed().as_secs_f64() < args.seconds {
        // In turn, so that both see the same clock speed and the same neighbours.
        whole.push(draw(whole.len() as u64)?);
        products.push(alone());
    }

    let operations = flops(config) * (batch * schedule.evaluations()) as f64;
    let row = |name: String, dtype: DType, times: &[Duration]| {
        let [p50, p90, p99, min] = summary(times);
        Row {
            name,
            device: device.description(),
            dtype: dtype.name().into(),
            threads: match &device {
                Device::Cpu(cpu) => Some(cpu.threads()),
                Device::Cuda(_) => None,
            },
            batch,
            steps,
            evaluations: schedule.evaluations(),
            runs: times.len(),
            p50_ms: p50,
            p90_ms: p90,
            p99_ms: p99,
            min_ms: min,
            ms_per_evaluation: p50 / schedule.evaluations() as f64,
            gflops: operations / p50 / 1e6,
            ratio_to_products: None,
            load_ms: None,
            peak_rss_mb: None,
        }
    };
    let mut rows = vec![Row { load_ms: Some(load_ms), peak_rss_mb, ..row(source.name(), dtype, &whole) }];
    if on_cpu {
        let alone = row(format!("{} matrix products alone", source.name()), DType::F32, &products);
        rows[0].ratio_to_products = Some(rows[0].p50_ms / alone.p50_ms);
        rows.push(alone);
    }
    if args.report.json { report::print_json(&rows) } else { report::print(table(&rows)) }
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![format!(
        "{:<34} {:>5} {:>5} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8}",
        "name", "dtype", "batch", "evals", "p50 ms", "p90 ms", "p99 ms", "min ms", "ms/eval", "GFLOP/s"
    )];
    for r in rows {
        lines.push(format!(
            "{:<34} {:>5} {:>5} {:>5} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.3} {:>8.1}",
            r.name,
            r.dtype,
            r.batch,
            r.evaluations,
            r.p50_ms,
            r.p90_ms,
            r.p99_ms,
            r.min_ms,
            r.ms_per_evaluation,
            r.gflops
        ));
    }
    let first = &rows[0];
    let threads = first.threads.map_or_else(String::new, |t| format!(", {}", report::counted(t, "thread")));
    lines.push(format!("{}{threads}, {} runs", first.device, first.runs));
    if let Some(ratio) = first.ratio_to_products {
        lines.push(format!("{ratio:.2} x the time of the matrix products alone"));
    }
    if let (Some(load), Some(memory)) = (first.load_ms, first.peak_rss_mb) {
        lines.push(format!("weights loaded in {load:.0} ms, peak memory {memory:.0} MB"));
    }
    lines.join("\n")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Median, 90th and 99th percentile (nearest rank) and least, in milliseconds.
fn summary(times: &[Duration]) -> [f64; 4] {
    let mut sorted: Vec<f64> = times.iter().copied().map(milliseconds).collect();
    sorted.sort_by(f64::total_cmp);
    let rank = |p: f64| sorted[((p * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
    [rank(0.5), rank(0.9), rank(0.99), sorted[0]]
}

/// Largest resident memory of this process so far, in 10^6 bytes, where the system tells (Linux).
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(summary(&times), [50.0, 90.0, 99.0, 1.0]);
        assert_eq!(summary(&[Duration::from_millis(7)]), [7.0; 4]);
    }
}
