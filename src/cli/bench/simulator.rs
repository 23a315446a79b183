//! The traditional method: how long `data simulate` takes for an image of each class, without writing it.

use std::cell::Cell;
use std::time::Instant;

use arclet::data::simulate::{Class, Distances, Population, Simulator, Split};
use arclet::device::cpu::Cpu;
use arclet::error::Result;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::args::{BenchArgs, Measure};
use super::measure::{Plan, milliseconds};
use super::row::Row;
use super::{FEW_WARM_UPS, LEAST, system};

/// Pixels of a side, as `data simulate` has them when nothing else is asked for.
const SIZE: usize = 64;

/// One row of each class: batches of images, each image on one thread.
///
/// # Errors
/// [`arclet::error::Error::Runtime`] if the system refuses the threads.
pub fn rows(args: &BenchArgs) -> Result<Vec<Row>> {
    let cpu = Cpu::new(args.threads.unwrap_or(0).into())?;
    let simulator = Simulator::new(Population::public_sets(Distances::PublicSets), 0, SIZE)?;
    let most = args.calls.map_or(usize::MAX, |n| n as usize);
    let least = args.calls.map_or(LEAST, |n| n as usize);
    let plan = Plan { warm_ups: FEW_WARM_UPS, least, most, seconds: args.seconds };
    Class::ALL.into_iter().map(|class| row(&simulator, &cpu, class, args.batch as usize, plan)).collect()
}

fn row(simulator: &Simulator, cpu: &Cpu, class: Class, batch: usize, plan: Plan) -> Result<Row> {
    let next = Cell::new(0);
    let times = plan.times(|| {
        let first = next.replace(next.get() + batch as u64);
        let start = Instant::now();
        let images: Vec<_> = cpu.install(|| {
            let indices = first..first + batch as u64;
            indices.into_par_iter().map(|i| simulator.image(class, Split::Train, i)).collect()
        });
        let elapsed = milliseconds(start);
        assert_eq!(images.len(), batch);
        Ok(elapsed)
    })?;
    let row = Row {
        name: format!("simulated lens, {}", class.name()),
        measure: Measure::Simulator.name(),
        device: cpu.description(),
        dtype: "f64".into(),
        threads: Some(cpu.threads()),
        batch,
        guidance: 1.0,
        // One pass of ray tracing; there is no trajectory.
        steps: 1,
        time: "none",
        evaluations: 1,
        warm_ups: plan.warm_ups,
        binary_mb: system::binary_mb(),
        ..Row::default()
    };
    // No matrix products.
    Ok(row.with_times(&times, 0.0))
}
