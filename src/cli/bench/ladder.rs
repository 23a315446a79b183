//! What each technique is worth: the same images with one technique after another switched on.

use arclet::error::Result;
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
}

/// From the plainest way to run a model to the one that is used, one technique at a time.
const RUNGS: [Rung; 4] = [
    Rung { name: "f32, launch by launch", dtype: DType::F32, layers: Layers::Separate, graph: false },
    Rung { name: "f16", dtype: DType::F16, layers: Layers::Separate, graph: false },
    Rung { name: "fused layers", dtype: DType::F16, layers: Layers::Fused, graph: false },
    Rung { name: "one graph", dtype: DType::F16, layers: Layers::Fused, graph: true },
];

impl Session<'_> {
    /// One row per rung, the images of each checked before.
    pub(super) fn ladder(&mut self) -> Result<()> {
        let (args, batch, guidance) = (self.args, self.args.batch as usize, self.args.guidance_scale);
        let plan = Plan::exactly(args.warmup as usize, args.iterations as usize);
        let mut before: Option<f64> = None;
        for rung in RUNGS {
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
            let speedup = before.map(|before| before / row.p50_ms);
            before = Some(row.p50_ms);
            self.rows.push(Row { speedup, ..row });
        }
        Ok(())
    }
}
