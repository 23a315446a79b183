//! One row of the result, and how rows are printed.

use serde::Serialize;
use serde_json::Value;

/// One row of the result. Times are milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Model, and what of it if not all.
    pub name: String,
    /// What the time is of: see [`super::Measure`].
    pub measure: &'static str,
    /// GPU model or CPU dispatch level.
    pub device: String,
    /// Type of weights and activations.
    pub dtype: String,
    /// Threads of the CPU.
    pub threads: Option<usize>,
    /// Images at a time.
    pub batch: usize,
    /// Guidance scale; 1 is off, anything else doubles the work of an evaluation.
    pub guidance: f32,
    /// Euler steps as asked for.
    pub steps: usize,
    /// Which times the model is asked at.
    pub time: &'static str,
    /// Shift of the time grid; 1 is equal steps.
    pub shift: f64,
    /// Function evaluations of one trajectory (NFE).
    pub evaluations: usize,
    /// Runs before the measured ones.
    pub warm_ups: usize,
    /// Measured runs.
    pub runs: usize,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Least.
    pub min_ms: f64,
    /// Median per function evaluation.
    pub ms_per_evaluation: f64,
    /// Images per second at the median.
    pub images_per_s: f64,
    /// 10^9 operations of the matrix products per second, two per multiply-add, at the median.
    pub gflops: f64,
    /// Median of this row over the median of the matrix products alone, measured in turn.
    pub ratio_to_products: Option<f64>,
    /// What the CPU could do at best, measured in the same run.
    pub ceilings: Option<Ceilings>,
    /// Median of the rung before over the median of this one, in a ladder.
    pub speedup: Option<f64>,
    /// One evaluation phase by phase.
    pub phases: Option<super::phases::Phases>,
    /// Time to read, convert and place the weights.
    pub load_ms: Option<f64>,
    /// Time to open the device: on a GPU the driver and its context.
    pub open_ms: Option<f64>,
    /// Device memory of the weights, in 10^6 bytes, counted at each allocation.
    pub weights_mb: Option<f64>,
    /// All device memory that was allocated while this row was measured, in 10^6 bytes.
    pub device_mb: Option<f64>,
    /// Largest memory of the measured process, in 10^6 bytes.
    pub peak_rss_mb: Option<f64>,
    /// Size of this program, in 10^6 bytes.
    pub binary_mb: Option<f64>,
    /// What the results were compared with before they were timed.
    pub gate: Option<super::gate::Gate>,
    /// Clocks, power, temperature and throttling of the GPU before and after, as `nvidia-smi` tells.
    pub gpu_state: Option<[Value; 2]>,
}

/// The two limits of an evaluation on the CPU, and how much of each the median reaches.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceilings {
    /// 10^9 operations per second of products that stay in the first-level cache, all threads.
    pub gflops: f64,
    /// 10^9 bytes per second read from memory, all threads.
    pub gb_per_s: f64,
    /// Packed weights that an evaluation reads, in 10^6 bytes.
    pub weights_mb: f64,
    /// Share of the arithmetic limit.
    pub of_gflops: f64,
    /// Share of the limit of streaming the weights.
    pub of_gb_per_s: f64,
}

impl Row {
    /// Fills in what follows from `times`, of which there is at least one, and `operations` of one run.
    pub fn with_times(mut self, times: &[f64], operations: f64) -> Self {
        let [p50, p90, p99, min] = summary(times);
        self.runs = times.len();
        (self.p50_ms, self.p90_ms, self.p99_ms, self.min_ms) = (p50, p90, p99, min);
        self.ms_per_evaluation = p50 / self.evaluations as f64;
        self.images_per_s = self.batch as f64 / p50 * 1e3;
        self.gflops = operations / p50 / 1e6;
        self
    }
}

/// Median, 90th and 99th percentile (nearest rank) and least.
pub fn summary(times: &[f64]) -> [f64; 4] {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = |p: f64| sorted[((p * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1];
    [rank(0.5), rank(0.9), rank(0.99), sorted[0]]
}

/// The rows as text: a table, and what is the same or notable below it.
pub fn table(rows: &[Row]) -> String {
    let mut lines = vec![format!(
        "{:<11} {:<32} {:>5} {:>5} {:>5} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "measure",
        "name",
        "dtype",
        "batch",
        "guide",
        "NFE",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "min ms",
        "ms/eval",
        "images/s",
        "GFLOP/s"
    )];
    for r in rows {
        lines.push(format!(
            "{:<11} {:<32} {:>5} {:>5} {:>5} {:>5} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>9.3} {:>9.2} {:>9.1}",
            r.measure,
            r.name,
            r.dtype,
            r.batch,
            r.guidance,
            r.evaluations,
            r.p50_ms,
            r.p90_ms,
            r.p99_ms,
            r.min_ms,
            r.ms_per_evaluation,
            r.images_per_s,
            r.gflops
        ));
    }
    for (i, r) in rows.iter().enumerate() {
        let first = i == 0 || rows[i - 1].dtype != r.dtype || rows[i - 1].device != r.device;
        lines.extend(remarks(r, first));
    }
    lines.join("\n")
}

/// What a row says beyond its numbers; `first` of its device and type.
fn remarks(r: &Row, first: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if first {
        let threads =
            r.threads.map_or_else(String::new, |t| format!(", {}", super::super::report::counted(t, "thread")));
        lines.push(format!("{}{threads}, {}", r.device, r.dtype));
    }
    let which = format!("  {}, batch {}, {} evaluations: ", r.measure, r.batch, r.evaluations);
    let mut say = |text: String| lines.push(format!("{which}{text}"));
    say(format!("{} runs after {} warm-up runs", r.runs, r.warm_ups));
    if let Some(ratio) = r.ratio_to_products {
        say(format!("{ratio:.2} x the time of the matrix products alone"));
    }
    if let Some(c) = r.ceilings {
        say(format!(
            "{:.0} % of {:.0} GFLOP/s in the cache; weights of {:.1} MB streamed at {:.0} % of {:.1} GB/s",
            1e2 * c.of_gflops,
            c.gflops,
            c.weights_mb,
            1e2 * c.of_gb_per_s,
            c.gb_per_s
        ));
    }
    if let Some(speedup) = r.speedup {
        say(format!("{speedup:.2} x as fast as the rung before"));
    }
    if let Some(gate) = &r.gate {
        say(gate.to_string());
    }
    if let (Some(open), Some(load)) = (r.open_ms, r.load_ms) {
        say(format!("device opened in {open:.0} ms, weights loaded in {load:.0} ms"));
    }
    let memory = [
        ("device", r.device_mb),
        ("of it weights", r.weights_mb),
        ("host peak", r.peak_rss_mb),
        ("program", r.binary_mb),
    ];
    let memory: Vec<String> =
        memory.iter().filter_map(|(what, mb)| mb.map(|mb| format!("{what} {mb:.1} MB"))).collect();
    if !memory.is_empty() {
        say(memory.join(", "));
    }
    if let Some([before, after]) = &r.gpu_state {
        say(format!("before {before}"));
        say(format!("after {after}"));
    }
    if let Some(phases) = &r.phases {
        lines.extend(phases.lines(r.ms_per_evaluation * 1e3));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(summary(&times), [50.0, 90.0, 99.0, 1.0]);
        assert_eq!(summary(&[7.0]), [7.0; 4]);
    }
}
