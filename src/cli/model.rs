//! From the name or path of a model to its weights.

use std::path::{Path, PathBuf};

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::io::Checkpoint;
use arclet::models::Model;
use arclet::models::builtin::{self, HashWeights};
use arclet::models::config::ModelConfig;
use arclet::models::import::Import;
use arclet::tensor::DType;

use super::{embedded, report};

/// Where weights come from. A built-in name goes before a path; `./NAME` is always a path.
pub enum Source {
    /// A file, a folder or the embedded model.
    Checkpoint {
        /// The name of a built-in model, or the last part of the path.
        name: String,
        /// Opened and checked.
        checkpoint: Box<Checkpoint>,
    },
    /// A network of full size whose weights are a hash.
    Hash(HashWeights),
}

impl Source {
    /// Opens the model called `name`, or the embedded one.
    ///
    /// # Errors
    /// [`Error::Input`] if there is no such file, or it is damaged or something else.
    pub fn open(name: Option<&Path>) -> Result<Self> {
        let Some(path) = name.filter(|n| *n != Path::new(embedded::NAME)) else {
            return Ok(Self::Checkpoint { name: embedded::NAME.into(), checkpoint: Box::new(embedded::checkpoint()?) });
        };
        if let Some(hash) = path.to_str().and_then(builtin::find) {
            return Ok(Self::Hash(hash));
        }
        if !path.exists() {
            let names = [&[embedded::NAME], &builtin::NAMES[..]].concat().join(", ");
            return Err(Error::input(path, format!("no such file or folder, and no built-in model ({names})")));
        }
        Ok(Self::Checkpoint { name: last_part(path), checkpoint: Box::new(Checkpoint::open(path)?) })
    }

    /// The name of a built-in model, or the last part of the path.
    pub fn name(&self) -> String {
        match self {
            Self::Checkpoint { name, .. } => name.clone(),
            Self::Hash(hash) => hash.name().into(),
        }
    }

    /// SHA-256 of the weights; hashed weights follow from their name.
    pub fn sha256(&self) -> Option<String> {
        match self {
            Self::Checkpoint { checkpoint, .. } => Some(checkpoint.sha256()),
            Self::Hash(_) => None,
        }
    }

    /// Recognises the model and checks that it is one to sample from; says what had to be guessed and what is unused.
    ///
    /// # Errors
    /// [`Error::Input`] if the keys fit no architecture, or the model predicts no velocity.
    pub fn weights(&self, quiet: bool) -> Result<Weights<'_>> {
        let (weights, path) = match self {
            Self::Checkpoint { checkpoint, .. } => {
                let import = Import::new(checkpoint)?;
                import.notes.iter().for_each(|n| report::note(quiet, n));
                (Weights::Import(import), checkpoint.path().to_path_buf())
            }
            Self::Hash(hash) => (Weights::Hash(hash), PathBuf::from(hash.name())),
        };
        match weights.config().sampling_problem() {
            Some(problem) => Err(Error::input(path, problem)),
            None => Ok(weights),
        }
    }
}

/// Weights of a known architecture.
pub enum Weights<'a> {
    /// Of a checkpoint.
    Import(Import<'a>),
    /// Made up.
    Hash(&'a HashWeights),
}

impl Weights<'_> {
    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        match self {
            Self::Import(import) => &import.config,
            Self::Hash(hash) => hash.config(),
        }
    }

    /// Puts the model on a device.
    ///
    /// # Errors
    /// [`Error::Input`] for numbers that are not finite; [`Error::OutOfMemory`].
    pub fn load(&self, device: &Device, dtype: DType) -> Result<Model> {
        match self {
            Self::Import(import) => Model::load(import.config.clone(), import, device, dtype),
            Self::Hash(hash) => Model::load(hash.config().clone(), *hash, device, dtype),
        }
    }
}

/// The last part of a path, also of `..` and the like.
fn last_part(path: &Path) -> String {
    let full = path.canonicalize();
    full.as_deref().unwrap_or(path).file_name().map_or_else(|| "/".into(), |n| n.to_string_lossy().into_owned())
}
