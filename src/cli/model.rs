//! From the name or path of a model to its weights.

use std::path::{Path, PathBuf};

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::io::Checkpoint;
use arclet::models::Model;
use arclet::models::builtin::{self, HashWeights};
use arclet::models::config::ModelConfig;
use arclet::models::import::Import;
use arclet::nn::params::WeightSource;
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
    Hash(Box<HashWeights>),
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
            return Ok(Self::Hash(Box::new(hash)));
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

    /// The folder that what a model names lies in: the model's own, or that of its file.
    pub fn home(&self) -> PathBuf {
        match self {
            Self::Checkpoint { checkpoint, .. } if checkpoint.path().is_dir() => checkpoint.path().to_path_buf(),
            Self::Checkpoint { checkpoint, .. } => checkpoint.path().parent().unwrap_or(Path::new("")).to_path_buf(),
            Self::Hash(_) => PathBuf::new(),
        }
    }

    /// SHA-256 of the weights; hashed weights follow from their name.
    pub fn sha256(&self) -> Option<String> {
        match self {
            Self::Checkpoint { checkpoint, .. } => Some(checkpoint.sha256()),
            Self::Hash(_) => None,
        }
    }

    /// Recognises the model and says what had to be guessed and how much is unused.
    ///
    /// # Errors
    /// [`Error::Input`] if the keys fit no architecture.
    pub fn weights(&self, quiet: bool) -> Result<Weights<'_>> {
        match self {
            Self::Checkpoint { name, checkpoint } => {
                let import = Import::new(checkpoint)?;
                import.notes.iter().for_each(|n| report::note(quiet, format!("{name}: {n}")));
                if !import.unused.is_empty() {
                    let unused = report::counted(import.unused.len(), "key");
                    report::note(quiet, format!("{name}: {unused} unused: {}", report::some_of(&import.unused)));
                }
                Ok(Weights::Import(Box::new(import)))
            }
            Self::Hash(hash) => Ok(Weights::Hash(hash)),
        }
    }

    /// The same for a model to sample from.
    ///
    /// # Errors
    /// [`Error::Input`] too if the model cannot be sampled.
    pub fn sampled_weights(&self, quiet: bool) -> Result<Weights<'_>> {
        let weights = self.weights(quiet)?;
        match weights.config().sampling_problem() {
            Some(problem) => Err(Error::input(weights.source().origin(), problem)),
            None => Ok(weights),
        }
    }
}

/// Weights of a known architecture.
pub enum Weights<'a> {
    /// Of a checkpoint.
    Import(Box<Import<'a>>),
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

    /// The numbers.
    pub fn source(&self) -> &dyn WeightSource {
        match self {
            Self::Import(import) => &**import,
            Self::Hash(hash) => *hash,
        }
    }

    /// Puts the model on a device.
    ///
    /// # Errors
    /// [`Error::Input`] for numbers that are not finite; [`Error::OutOfMemory`].
    pub fn load(&self, device: &Device, dtype: DType) -> Result<Model> {
        Model::load(self.config().clone(), self.source(), device, dtype)
    }
}

/// The last part of a path, also of `..` and the like.
fn last_part(path: &Path) -> String {
    let full = path.canonicalize();
    full.as_deref().unwrap_or(path).file_name().map_or_else(|| "/".into(), |n| n.to_string_lossy().into_owned())
}
