//! The one error type of the library, and the exit code that each kind maps to.

use std::path::{Path, PathBuf};

/// Result of every fallible library call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, by who can mend it. Every message names what was found and what was expected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request contradicts itself or the model: mend the flags (exit 2).
    #[error("{0}")]
    Usage(String),
    /// A weights, data or configuration file is missing, malformed or does not fit (exit 3).
    #[error("{}: {reason}", path.display())]
    Input {
        /// The offending file or folder.
        path: PathBuf,
        /// Field, what was found, what was expected.
        reason: String,
    },
    /// No usable device, no kernels for it, or a driver call failed (exit 4).
    #[error("{0}")]
    Device(String),
    /// The device has too little memory; the process may go on (exit 4).
    #[error("out of {device} memory: asked for {asked} bytes, {free} bytes free")]
    OutOfMemory {
        /// Device as the user names it, for instance `cuda:0`.
        device: String,
        /// Bytes asked for by the failed allocation.
        asked: usize,
        /// Bytes the driver reports free.
        free: usize,
    },
    /// An output could not be written (exit 5).
    #[error("cannot write {}: {source}", path.display())]
    Output {
        /// The file or folder to be written.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The user interrupted the run; finished work was kept (exit 130).
    #[error("interrupted: {0}")]
    Interrupted(String),
    /// Anything else that fails at run time (exit 1).
    #[error("{0}")]
    Runtime(String),
}

impl Error {
    /// A usage error (exit 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }

    /// A bad input file (exit 3).
    pub fn input(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Input { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    /// A device failure (exit 4).
    pub fn device(message: impl Into<String>) -> Self {
        Self::Device(message.into())
    }

    /// A failed write (exit 5).
    pub fn output(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Output { path: path.as_ref().to_path_buf(), source }
    }

    /// Process exit code of this kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Runtime(_) => 1,
            Self::Usage(_) => 2,
            Self::Input { .. } => 3,
            Self::Device(_) | Self::OutOfMemory { .. } => 4,
            Self::Output { .. } => 5,
            Self::Interrupted(_) => 130,
        }
    }
}
