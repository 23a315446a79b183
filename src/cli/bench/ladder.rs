//! What each technique is worth: the same images with one technique after another switched on.

use arclet::device::Device;
use arclet::device::cuda::Cuda;
use arclet::error::{Error, Result};
use arclet::models::config::NetworkConfig;
use arclet::nn::norm::Layers;
use arclet::tensor::DType;

use super::measure::{Plan, Subject};
use super::row::Row;
use super::{Measure, Session, system};

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// Type of weights and activations.
    dtype: DType,
    /// How far the operations of a block are fused.
    layers: Layers,
    /// Products on the kernels for Hopper's tensor cores, or on those that run on every GPU.
    hopper_tiles: bool,
    /// The whole loop is one graph; without it the host launches each kernel.
    graph: bool,
    /// Kernels start before the one in front of them has ended.
    dependent: bool,
}

/// The plainest way, where the ladder begins.
const FIRST: Way =
    Way { dtype: DType::F32, layers: Layers::Unfused, hopper_tiles: false, graph: false, dependent: false };

/// One technique, by its name and what it changes.
type Rung = (&'static str, fn(&mut Way));

/// From the plainest way to run a model to the one that is used, one technique at a time.
const RUNGS: [Rung; 7] = [
    ("f32, launch by launch", |_| {}),
    ("f16", |way| way.dtype = DType::F16),
    ("fused attention", |way| way.layers = Layers::Separate),
    ("fused layers", |way| way.layers = Layers::Fused),
    ("Hopper tiles", |way| way.hopper_tiles = true),
    ("one graph", |way| way.graph = true),
    ("dependent launch", |way| way.dependent = true),
];

impl Way {
    /// Makes `cuda` launch this way, as far as it can, and returns what of it makes a difference: only a transformer has layers to
    /// fuse and products for Hopper's tiles.
    fn set(self, cuda: &Cuda, transformer: bool) -> Self {
        cuda.set_hopper_tiles(self.hopper_tiles);
        cuda.set_dependent_launch(self.dependent);
        Self {
            layers: if transformer { self.layers } else { FIRST.layers },
            hopper_tiles: transformer && cuda.hopper_tiles(),
            dependent: cuda.dependent_launch(),
            ..self
        }
    }
}

impl Session<'_> {
    /// One row per rung, the images of each checked before; rungs that the GPU cannot take or that change nothing are left out.
    pub(super) fn ladder(&mut self) -> Result<()> {
        let Device::Cuda(cuda) = self.device else {
            return Err(Error::usage("a ladder needs a GPU"));
        };
        let before = (cuda.hopper_tiles(), cuda.dependent_launch());
        let climbed = self.climb(cuda);
        cuda.set_hopper_tiles(before.0);
        cuda.set_dependent_launch(before.1);
        climbed
    }

    fn climb(&mut self, cuda: &Cuda) -> Result<()> {
        let transformer = matches!(self.weights.config().network, NetworkConfig::FlowVit(_) | NetworkConfig::Dit(_));
        let mut way = FIRST;
        for (i, (name, technique)) in RUNGS.into_iter().enumerate() {
            let mut next = way;
            technique(&mut next);
            let next = next.set(cuda, transformer);
            if i == 0 || next != way {
                self.rung(name, next)?;
            }
            way = next;
        }
        Ok(())
    }

    fn rung(&mut self, name: &str, way: Way) -> Result<()> {
        let (args, batch, guidance) = (self.args, self.args.batch as usize, self.args.guidance_scale);
        let plan = Plan::exactly(args.warmup as usize, args.iterations as usize);
        let mut loaded = self.load(way.dtype)?;
        loaded.model.layers = way.layers;
        loaded.reference = self.reference(way.dtype, &self.schedule, guidance)?;
        let gate = loaded.check(batch)?;
        let state = system::gpu_state(self.device);
        let mut subject = Subject::new(&loaded.model, &self.schedule, batch, guidance, self.noise, way.graph)?;
        let times = plan.times(|| subject.device_time())?;
        subject.check_images()?;
        let row = self.row(Measure::Ladder, &loaded, batch, guidance);
        let row = Row { name: format!("{} {name}", row.name), warm_ups: plan.warm_ups, gate, ..row };
        let row = self.finish(row, &times, state);
        let before = self.rows.last().filter(|r| r.measure == row.measure);
        let speedup = before.map(|before| before.p50_ms / row.p50_ms);
        self.rows.push(Row { speedup, ..row });
        Ok(())
    }
}
