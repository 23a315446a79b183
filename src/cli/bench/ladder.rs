//! What each technique is worth: the same images with one technique after another switched on.

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::nn::norm::Layers;
use arclet::tensor::DType;

use super::measure::{Plan, Subject};
use super::row::Row;
use super::{Measure, Session, system};

/// How a model is run.
#[derive(Clone, Copy, Debug)]
struct Rung {
    /// What is new.
    name: &'static str,
    /// Type of weights and activations.
    dtype: DType,
    /// How layer norms are computed.
    layers: Layers,
    /// The whole loop is one graph; without it the host launches each kernel.
    graph: bool,
    /// Kernels start before the one in front of them has ended; left out where the GPU cannot.
    dependent: bool,
}

/// From the plainest way to run a model to the one that is used, one technique at a time.
const RUNGS: [Rung; 5] = [
    FIRST,
    Rung { name: "f16", ..HALF },
    Rung { name: "fused layers", layers: Layers::Fused, ..HALF },
    Rung { name: "one graph", layers: Layers::Fused, graph: true, ..HALF },
    Rung { name: "dependent launch", layers: Layers::Fused, graph: true, dependent: true, ..HALF },
];
const FIRST: Rung =
    Rung { name: "f32, launch by launch", dtype: DType::F32, layers: Layers::Separate, graph: false, dependent: false };
const HALF: Rung = Rung { dtype: DType::F16, ..FIRST };

impl Session<'_> {
    /// One row per rung, the images of each checked before.
    pub(super) fn ladder(&mut self) -> Result<()> {
        let Device::Cuda(cuda) = self.device else {
            return Err(Error::usage("a ladder needs a GPU"));
        };
        let dependent = cuda.dependent_launch();
        let climbed = RUNGS.into_iter().try_for_each(|rung| {
            cuda.set_dependent_launch(rung.dependent);
            // Switched on without effect where the GPU cannot.
            if rung.dependent == cuda.dependent_launch() { self.rung(rung) } else { Ok(()) }
        });
        cuda.set_dependent_launch(dependent);
        climbed
    }

    fn rung(&mut self, rung: Rung) -> Result<()> {
        let (args, batch, guidance) = (self.args, self.args.batch as usize, self.args.guidance_scale);
        let plan = Plan::exactly(args.warmup as usize, args.iterations as usize);
        let mut loaded = self.load(rung.dtype)?;
        loaded.model.layers = rung.layers;
        loaded.reference = self.reference(rung.dtype, &self.schedule, guidance)?;
        let gate = loaded.check(batch)?;
        let state = system::gpu_state(self.device);
        let mut subject = Subject::new(&loaded.model, &self.schedule, batch, guidance, self.noise, rung.graph)?;
        let times = plan.times(|| subject.device_time())?;
        subject.check_images()?;
        let row = self.row(Measure::Ladder, &loaded, batch, guidance);
        let row = Row { name: format!("{} {}", row.name, rung.name), warm_ups: plan.warm_ups, gate, ..row };
        let row = self.finish(row, &times, state);
        let before = self.rows.last().filter(|r| r.measure == row.measure);
        let speedup = before.map(|before| before.p50_ms / row.p50_ms);
        self.rows.push(Row { speedup, ..row });
        Ok(())
    }
}
