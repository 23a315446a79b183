//! One evaluation phase by phase: what each launch takes, and how much of the GPU it uses.

use arclet::device::Device;
use arclet::device::cuda::Cuda;
use arclet::device::gpus::{self, Gpu};
use arclet::device::probe::{PhaseTimes, phase_times};
use arclet::device::trace::{Phase, Work, kinds};
use arclet::error::{Error, Result};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::models::Model;
use serde::Serialize;

use super::measure::Plan;
use super::row::summary;

/// Launches of a kind, one after another in one graph, that are timed together.
pub const REPEATS: usize = 200;
/// Empty kernels behind each other that show what a phase costs: about as many as an evaluation has.
const EMPTY_PHASES: usize = 60;

/// The phases of one evaluation by kind.
#[derive(Clone, Debug, Serialize)]
pub struct Phases {
    /// Launches of one evaluation.
    pub count: usize,
    /// What a phase takes that does nothing, in microseconds, if it starts when the one in front has ended.
    pub overhead_us: f64,
    /// The same if its start overlaps with the end of the one in front, on GPUs that can.
    pub dependent_overhead_us: Option<f64>,
    /// The sum of all phases, in microseconds; the whole loop takes less per evaluation where phases overlap, and more
    /// where they push each other's data out of the cache.
    pub sum_us: f64,
    /// Each kind, in order of its first launch.
    pub kinds: Vec<Kind>,
}

/// Launches of one kernel on operands of one shape.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// Launches of one evaluation.
    pub count: usize,
    /// The first of them.
    #[serde(flatten)]
    pub phase: Phase,
    /// Microseconds of one launch behind another.
    pub us: f64,
    /// 10^9 bytes per second that it cannot do without.
    pub gb_per_s: f64,
    /// 10^12 operations of matrix products per second.
    pub tflops: f64,
    /// Share of the GPU's memory bandwidth, where that is known; above 1 if the cache holds the operands.
    pub bandwidth_share: Option<f64>,
    /// Share of the GPU's tensor peak, where that is known.
    pub peak_share: Option<f64>,
}

impl Kind {
    fn new(kind: &[&Phase], us: f64, gpu: Option<&Gpu>) -> Self {
        let Work { flops, bytes, .. } = kind[0].work;
        let (gb_per_s, tflops) = (bytes as f64 / us / 1e3, flops as f64 / us / 1e6);
        Self {
            count: kind.len(),
            phase: kind[0].clone(),
            us,
            gb_per_s,
            tflops,
            bandwidth_share: gpu.map(|g| gb_per_s / g.gb_per_s),
            peak_share: gpu.map(|g| tflops / g.tflops),
        }
    }
}

/// One evaluation's launches of `model`, which draws `batch` images, and the sampler on whose buffers they were
/// traced; on a GPU that runs them they ran once.
///
/// # Errors
/// [`Error::Usage`] on the CPU, which launches nothing; the sampler's and the device's.
pub fn trace(model: &Model, batch: usize, guidance: f32) -> Result<(Cuda, Sampler<'_>, Vec<Phase>)> {
    let Device::Cuda(cuda) = &model.device else {
        return Err(Error::usage("the CPU launches no kernels: a GPU expected"));
    };
    let one = Schedule::new(Solver::Euler, 1, TimeConvention::Train)
        .ok_or_else(|| Error::Runtime("a schedule of one step holds none".into()))?;
    let mut sampler = Sampler::with_graphs_of(None, model, &one, batch, SamplerOptions { guidance, clamp: true })?;
    sampler.draw_noise(0, 0)?;
    reset(model, &mut sampler)?;
    let phases = cuda.trace(|| sampler.enqueue())?;
    Ok((cuda.clone(), sampler, phases))
}

/// Times every kind of phase of one evaluation: `repeats` of them in one graph, over the buffers of all its layers in
/// turn, between two events.
///
/// # Errors
/// Those of [`trace`].
pub fn measure(model: &Model, batch: usize, guidance: f32, repeats: usize) -> Result<Phases> {
    let (cuda, mut sampler, phases) = trace(model, batch, guidance)?;
    let gpu = gpus::find(&cuda.model());
    let plan = Plan::exactly(super::FEW_WARM_UPS, super::LEAST);
    let mut timed = Vec::new();
    for kind in kinds(&phases) {
        // What ran before left the counter past the one step there is.
        reset(model, &mut sampler)?;
        let repeats = repeats.max(kind.len());
        let graph = cuda.capture(|| kind.iter().cycle().take(repeats).try_for_each(|phase| cuda.relaunch(phase)))?;
        let times = plan.times(|| {
            let (start, end) = (cuda.event()?, cuda.event()?);
            cuda.record(&start)?;
            graph.launch()?;
            cuda.record(&end)?;
            cuda.elapsed_ms(&start, &end)
        })?;
        timed.push(Kind::new(&kind, summary(&times)[0] * 1e3 / repeats as f64, gpu));
    }
    let PhaseTimes { plain, dependent } = phase_times(&cuda, EMPTY_PHASES, super::LEAST)?;
    Ok(Phases {
        count: phases.len(),
        overhead_us: plain,
        dependent_overhead_us: dependent,
        sum_us: timed.iter().map(|k| k.us * k.count as f64).sum(),
        kinds: timed,
    })
}

/// Sets the counter to the first step, with class 0 for every image.
fn reset(model: &Model, sampler: &mut Sampler) -> Result<()> {
    let classes = if model.config.classes.is_some() { vec![0; sampler.batch()] } else { Vec::new() };
    sampler.prepare(&classes)
}

impl Phases {
    /// The table for people; `loop_us` is what the whole loop takes per evaluation.
    pub fn lines(&self, loop_us: f64) -> Vec<String> {
        let share = |s: Option<f64>| s.map_or_else(|| "-".into(), |s| format!("{:.0}%", 100.0 * s));
        let mut lines = vec![format!(
            "    {:>3} {:<34} {:>14} {:>7} {:>8} {:>8} {:>8} {:>5} {:>8} {:>5}",
            "n", "kernel", "grid", "threads", "us", "n x us", "GB/s", "of", "TFLOP/s", "of"
        )];
        for kind in &self.kinds {
            let [x, y, z] = kind.phase.grid;
            lines.push(format!(
                "    {:>3} {:<34} {:>14} {:>7} {:>8.2} {:>8.1} {:>8.1} {:>5} {:>8.2} {:>5}",
                kind.count,
                kind.phase.kernel,
                format!("{x}x{y}x{z}"),
                kind.phase.threads,
                kind.us,
                kind.us * kind.count as f64,
                kind.gb_per_s,
                share(kind.bandwidth_share),
                kind.tflops,
                share(kind.peak_share)
            ));
        }
        let dependent = self.dependent_overhead_us.map_or_else(String::new, |us| format!(" ({us:.2} us dependent)"));
        lines.push(format!(
            "    {} phases, {:.1} us together; an empty phase takes {:.2} us{dependent}; the whole loop takes {loop_us:.1} us per \
             evaluation, {:.2} x the sum",
            self.count,
            self.sum_us,
            self.overhead_us,
            loop_us / self.sum_us
        ));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_what_the_gpu_can_do() {
        // In a microsecond half of what an H200 does.
        let mut phase = Phase::default();
        phase.work = Work { flops: 395_000_000, bytes: 2_150_000, weights: 0 };
        let half = Kind::new(&[&phase, &phase], 1.0, gpus::find("NVIDIA H200"));
        assert_eq!((half.count, half.gb_per_s, half.tflops), (2, 2150.0, 395.0));
        assert_eq!((half.bandwidth_share, half.peak_share), (Some(0.5), Some(0.5)));
        assert_eq!(Kind::new(&[&phase], 1.0, None).peak_share, None);
    }
}
