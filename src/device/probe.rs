//! How long the GPU takes from one kernel to the next: the floor under every model that is a chain of kernels.

use super::cuda::{Cuda, Launch};
use crate::error::Result;

/// Microseconds per phase of a graph of empty kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PhaseTimes {
    /// Each kernel starts when the one in front has ended.
    pub plain: f64,
    /// Each may start early and waits by itself; `None` where the GPU or its kernels cannot.
    pub dependent: Option<f64>,
}

/// Records `phases` empty kernels of one block per multiprocessor in a graph, and launches it `runs` times: the median run.
///
/// # Errors
/// Those of the device. [`Cuda::set_dependent_launch`] is left as it was.
///
/// # Panics
/// If `phases` or `runs` is 0.
pub fn phase_times(cuda: &Cuda, phases: usize, runs: usize) -> Result<PhaseTimes> {
    assert!(phases > 0 && runs > 0, "a time is measured");
    let before = cuda.dependent_launch();
    cuda.set_dependent_launch(false);
    let plain = time(cuda, phases, runs);
    cuda.set_dependent_launch(true);
    let dependent = cuda.dependent_launch().then(|| time(cuda, phases, runs));
    cuda.set_dependent_launch(before);
    Ok(PhaseTimes { plain: plain?, dependent: dependent.transpose()? })
}

fn time(cuda: &Cuda, phases: usize, runs: usize) -> Result<f64> {
    let grid = [cuda.multiprocessors() as u32, 1, 1];
    let launch = Launch { module: "probe", kernel: "empty_phase".into(), grid, threads: 128, ..Launch::default() };
    cuda.launch(&launch)?; // loads the module, which a capture forbids
    let graph = cuda.capture(|| (0..phases).try_for_each(|_| cuda.launch(&launch)))?;
    graph.launch()?;
    let (start, end) = (cuda.event()?, cuda.event()?);
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        cuda.record(&start)?;
        graph.launch()?;
        cuda.record(&end)?;
        times.push(cuda.elapsed_ms(&start, &end)? * 1e3 / phases as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[runs / 2])
}
