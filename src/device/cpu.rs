//! The CPU: a thread pool of its own and run-time dispatch to the widest vector instructions.

use std::sync::Arc;

use crate::error::{Error, Result};

/// A pool of worker threads. Results of operations do not depend on how many there are.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
}

impl Cpu {
    /// A pool of `threads` workers; 0 takes as many as the machine offers.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the operating system refuses the threads.
    pub fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("arclet-{i}"))
            .build()
            .map_err(|e| Error::Runtime(format!("cannot start {threads} threads: {e}")))?;
        Ok(Self { pool: Arc::new(pool) })
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
            Some(model) => format!("cpu ({}, {model})", dispatch_level()),
            None => format!("cpu ({})", dispatch_level()),
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

/// Vector extensions that the loops are compiled for, beside what every x86-64 has.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vectors {
    /// AVX-512 F, BW, DQ and VL, and [`Self::Avx2`].
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// SSE2.
    Sse2,
}

/// The widest that this machine has.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn vectors() -> Vectors {
    if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
        Vectors::Sse2
    } else if is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
    {
        Vectors::Avx512
    } else {
        Vectors::Avx2
    }
}

/// Name of the vector extension that the loops use on this machine.
pub fn dispatch_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        match vectors() {
            Vectors::Avx512 => "avx512",
            Vectors::Avx2 => "avx2+fma",
            Vectors::Sse2 => "sse2",
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        "neon"
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        "portable"
    }
}
