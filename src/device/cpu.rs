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

    /// The dispatch level of this CPU, for instance `cpu (avx2+fma)`.
    pub fn description(&self) -> String {
        format!("cpu ({})", dispatch_level())
    }
}

/// Bytes of memory that new work can take without swapping, where the system tells (Linux).
pub fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Name of the vector extension that the loops and `gemm` use on this machine.
pub fn dispatch_level() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "avx2+fma";
        }
        "sse2"
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
