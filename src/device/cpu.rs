//! The CPU: a thread pool of its own and run-time dispatch to the widest vector instructions.

use std::sync::Arc;

use super::level::Level;
use crate::error::{Error, Result};

/// A pool of worker threads. Results of operations do not depend on how many there are.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
    level: Level,
}

impl Cpu {
    /// A pool of `threads` workers; 0 takes as many as the machine offers.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the operating system refuses the threads.
    pub fn new(threads: usize) -> Result<Self> {
        Self::at(threads, Level::detect())
    }

    /// The same with the products of `level`. Where this machine lacks its instructions, portable loops do in their stead
    /// what they would, in the same layout and order.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the operating system refuses the threads.
    pub fn at(threads: usize, level: Level) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("arclet-{i}"))
            .build()
            .map_err(|e| Error::Runtime(format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { pool: Arc::new(pool), level })
    }

    /// Which instructions the products use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Number of worker threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on the pool.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Dispatch level and, where the system tells, model of this CPU, for instance `cpu (avx2+fma, AMD EPYC 7B13)`.
    pub fn description(&self) -> String {
        match model_name() {
            Some(model) => format!("cpu ({}, {model})", self.level.name()),
            None => format!("cpu ({})", self.level.name()),
        }
    }
}

/// Bytes of memory that new work can take without swapping, where the system tells (Linux).
pub fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Marketing name of the CPU, where the system tells (Linux on x86).
fn model_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
