//! What was launched: each launch says how much work it is, and a trace keeps the launches in order, with enough to
//! launch each again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use super::cuda::{Launch, TensorMap};
use crate::error::{Error, Result};

/// The least that a launch has to do, whatever the kernel makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Work {
    /// Floating-point operations of matrix products and attention, two per multiply-add; 0 for everything else, which
    /// memory limits.
    pub flops: u64,
    /// Bytes of device memory, each operand read once and each output written once.
    pub bytes: u64,
    /// Those of them that are matrices of parameters: an evaluation reads each once, so they come from memory and not
    /// from a cache unless one holds the whole model.
    pub weights: u64,
}

/// One launch of a trace: a phase of the work, as everything in a stream waits for what is before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phase {
    /// Exported name.
    pub kernel: String,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads per block.
    pub threads: u32,
    /// Dynamic shared memory per block, in bytes.
    pub shared_bytes: u32,
    /// What it has to do.
    #[serde(flatten)]
    pub work: Work,
    /// The `.cu` file that holds the kernel, without its ending.
    pub module: &'static str,
    #[serde(skip)]
    pointers: Vec<u64>,
    #[serde(skip)]
    spec: Vec<u8>,
    #[serde(skip)]
    maps: Vec<TensorMap>,
    #[serde(skip)]
    cluster: u32,
}

impl Phase {
    fn new(launch: &Launch) -> Self {
        let Launch { module, ref kernel, grid, threads, shared_bytes, pointers, spec, maps, cluster, work } = *launch;
        let (kernel, pointers, spec, maps) = (kernel.clone(), pointers.to_vec(), spec.to_vec(), maps.to_vec());
        Self { kernel, grid, threads, shared_bytes, work, module, pointers, spec, maps, cluster }
    }

    pub(super) fn as_launch(&self) -> Launch<'_> {
        let Self { kernel, grid, threads, shared_bytes, work, module, pointers, spec, maps, cluster } = self;
        Launch {
            module,
            kernel: kernel.clone(),
            grid: *grid,
            threads: *threads,
            shared_bytes: *shared_bytes,
            pointers,
            spec,
            maps,
            cluster: *cluster,
            work: *work,
        }
    }

    /// Whether `other` is the same kernel on operands of the same shape, perhaps at other addresses.
    pub fn is_like(&self, other: &Self) -> bool {
        let geometry = |p: &Self| (p.grid, p.threads, p.shared_bytes, p.work);
        self.kernel == other.kernel && geometry(self) == geometry(other) && self.spec == other.spec
    }
}

/// The phases of a trace sorted into kinds, in order of their first: phases of a kind are alike.
pub fn kinds(phases: &[Phase]) -> Vec<Vec<&Phase>> {
    let mut kinds: Vec<Vec<&Phase>> = Vec::new();
    for phase in phases {
        match kinds.iter_mut().find(|kind| kind[0].is_like(phase)) {
            Some(kind) => kind.push(phase),
            None => kinds.push(vec![phase]),
        }
    }
    kinds
}

/// The launches of one device while somebody wants them noted.
#[derive(Default)]
pub(super) struct Recorder {
    phases: Mutex<Option<Vec<Phase>>>,
}

impl Recorder {
    /// Notes what is launched from now on.
    pub(super) fn start(&self) -> Result<()> {
        match &mut *self.lock() {
            Some(_) => Err(Error::device("a trace cannot be taken inside another")),
            idle => {
                *idle = Some(Vec::new());
                Ok(())
            }
        }
    }

    /// Notes `launch`, if somebody wants it.
    pub(super) fn note(&self, launch: &Launch) {
        if let Some(phases) = &mut *self.lock() {
            phases.push(Phase::new(launch));
        }
    }

    /// What was launched since [`Self::start`].
    pub(super) fn stop(&self) -> Vec<Phase> {
        self.lock().take().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Phase>>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
