//! Where numbers live and who computes on them: the CPU, or an NVIDIA GPU through its driver.

pub mod cpu;
pub mod cuda;
pub mod gpus;
pub mod images;
mod launch;
pub mod level;
pub mod packed;
pub mod probe;
pub mod trace;

use crate::error::{Error, Result};
use cpu::Cpu;
use cuda::{Cuda, CudaGraph};

/// A place to hold tensors and run operations. Cloning shares the same device.
#[derive(Clone)]
pub enum Device {
    /// Rayon threads and the widest instructions that there are.
    Cpu(Cpu),
    /// One GPU, one stream, our own kernels.
    Cuda(Cuda),
}

/// Memory of a tensor. On the CPU f16 and bf16 tensors are held widened to f32, but for packed weights.
pub enum Buffer {
    /// Host memory, f32.
    F32(Vec<f32>),
    /// Host memory, f64 (tests and reference loops).
    F64(Vec<f64>),
    /// Host memory, 32-bit integers: labels, counters, step tables.
    U32(Vec<u32>),
    /// Host memory, a matrix as the products of the CPU read it.
    Packed(packed::PackedMatrix),
    /// Host memory, activations as the products of the CPU read them.
    Rows(packed::PackedRows),
    /// Device memory, elements as the tensor's type says.
    Cuda(cuda::DeviceBuffer),
}

/// Work recorded once by [`Device::capture`] and run as often as wanted.
pub enum Graph {
    /// A CUDA graph.
    Cuda(CudaGraph),
}

impl Graph {
    /// Enqueues the whole recorded work.
    pub fn launch(&self) -> Result<()> {
        match self {
            Self::Cuda(graph) => graph.launch(),
        }
    }
}

impl Device {
    /// The name that users give and recipes record: `cpu` or `cuda:0`.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(_) => "cpu".into(),
            Self::Cuda(cuda) => cuda.name(),
        }
    }

    /// One line about the hardware that decides the last bits of a result: CPU model (its cache sizes decide how `gemm`
    /// blocks its sums) and dispatch level, or GPU model.
    pub fn description(&self) -> String {
        match self {
            Self::Cpu(cpu) => cpu.description(),
            Self::Cuda(cuda) => cuda.description(),
        }
    }

    /// Runs `work` where this device's threads are: rayon loops inside use the device's own pool.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self {
            Self::Cpu(cpu) => cpu.install(work),
            Self::Cuda(_) => work(),
        }
    }

    /// Whether work can be recorded and replayed.
    pub fn has_graphs(&self) -> bool {
        matches!(self, Self::Cuda(_))
    }

    /// Records what `work` enqueues instead of running it. `None` where the device has no graphs (the CPU): then
    /// the caller runs the work itself. Inside `work` nothing may allocate, copy from the host or synchronise.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Graph>> {
        match self {
            Self::Cpu(_) => Ok(None),
            Self::Cuda(cuda) => cuda.capture(work).map(Graph::Cuda).map(Some),
        }
    }

    /// Waits until everything enqueued is done; reports errors of kernels that ran.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            Self::Cuda(cuda) => cuda.synchronize(),
        }
    }
}

/// A mismatch between the place of a tensor and the device that an operation runs on.
pub(crate) fn wrong_place() -> Error {
    Error::Runtime("a tensor lives on another device than the operation".into())
}
