//! The folder of a run, with all that is needed to repeat it, to go on with it, and to sample from what it made.
//!
//! ```text
//! config.toml          every setting, the defaults too
//! run.json             version, seed, device, type, data and its digest
//! metrics.jsonl        losses and rates, a line each
//! curve.svg            the losses as a picture
//! samples/             step-00001000.png, ...: images of the same noise
//! checkpoints/         what training goes on from
//! autoencoder/         of a run in latents: the same for its first stage, but for settings and record
//! config.json          \ the exported model, which `arclet sample --model FOLDER` takes; its writer is the caller
//! model.safetensors    /
//! ```

mod data;
mod record;

pub use self::data::{DataRecord, Hashed};
pub use self::record::{InitRecord, RunRecord};

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::checkpoint;
use super::config::TrainConfig;
use crate::error::{Error, Result};
use crate::io::write_atomic;
use crate::models::autoencoder_kl;

const CONFIG: &str = "config.toml";
const RECORD: &str = "run.json";
const METRICS: &str = "metrics.jsonl";
const CURVE: &str = "curve.svg";
const SAMPLES: &str = "samples";
const MODEL_CONFIG: &str = "config.json";
const MODEL_WEIGHTS: &str = "model.safetensors";
const LOCK: &str = ".lock";

/// What a new run would write over.
const OWN: [&str; 9] =
    [CONFIG, RECORD, METRICS, CURVE, SAMPLES, MODEL_CONFIG, MODEL_WEIGHTS, checkpoint::FOLDER, autoencoder_kl::FOLDER];

/// The folder of a run, which no other process writes as long as this lives.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Held, not read: the system unlocks it with the end of the process, however that comes. Of a stage, the run's.
    _lock: Option<File>,
}

impl RunFolder {
    /// Why a new run cannot start in `path`, if it cannot; to be asked before anything expensive.
    ///
    /// # Errors
    /// [`Error::Usage`] that names what was found and what helps.
    pub fn refuse_occupied(path: &Path) -> Result<()> {
        let found = OWN.iter().find(|name| path.join(name).symlink_metadata().is_ok());
        let Some(found) = found else { return Ok(()) };
        let place = path.display();
        Err(Error::Usage(match is_run(path) {
            true => format!("{place} has a run already: --resume goes on with it, another --out starts a new one"),
            false => format!("{place} has a {found}, which a run would write over: another --out is needed"),
        }))
    }

    /// Makes the folder of a new run, with its settings and its record.
    ///
    /// # Errors
    /// As [`RunFolder::refuse_occupied`]; [`Error::Usage`] if another process trains there; [`Error::Output`].
    pub fn create(path: impl AsRef<Path>, config: &TrainConfig, record: &RunRecord) -> Result<Self> {
        let path = path.as_ref();
        Self::refuse_occupied(path)?;
        fs::create_dir_all(path).map_err(|e| Error::output(path, e))?;
        let folder = Self::lock(path)?;
        // Again: another process may have come and gone.
        Self::refuse_occupied(path)?;
        fs::create_dir(folder.samples()).map_err(|e| Error::output(folder.samples(), e))?;
        folder.write_record(record)?;
        // Last, because it makes the folder a run.
        folder.write_config(config)?;
        Ok(folder)
    }

    /// Opens the folder of a run to go on with it.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is no run, or another process trains there; [`Error::Input`] if settings or record are
    /// damaged.
    pub fn resume(path: impl AsRef<Path>) -> Result<(Self, TrainConfig, RunRecord)> {
        let path = path.as_ref();
        if !is_run(path) {
            return Err(Error::Usage(format!(
                "{} has no run to go on with: found no {CONFIG}; without --resume a new one starts",
                path.display()
            )));
        }
        let folder = Self::lock(path)?;
        let config = TrainConfig::read(&path.join(CONFIG))?;
        let record = RunRecord::read(&path.join(RECORD))?;
        Ok((folder, config, record))
    }

    fn lock(path: &Path) -> Result<Self> {
        let lock = path.join(LOCK);
        let file = File::options().write(true).create(true).truncate(false).open(&lock);
        let file = file.map_err(|e| Error::output(&lock, e))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                Err(Error::Usage(format!("{}: another process trains there", path.display())))
            }
            // Some file systems have no locks; then it is up to the user.
            Err(TryLockError::Error(_)) | Ok(()) => Ok(Self { path: path.to_path_buf(), _lock: Some(file) }),
        }
    }

    /// The folder of the first stage of a run in latents, made where it is missing. Settings, record and lock are the run's, which
    /// has to live as long.
    pub fn autoencoder(&self) -> Result<Self> {
        let stage = Self { path: self.path.join(autoencoder_kl::FOLDER), _lock: None };
        fs::create_dir_all(stage.samples()).map_err(|e| Error::output(stage.samples(), e))?;
        Ok(stage)
    }

    /// Replaces the settings, for a run that goes on with other ones: more steps, for instance.
    pub fn write_config(&self, config: &TrainConfig) -> Result<()> {
        write_atomic(self.path.join(CONFIG), config.to_toml()?.as_bytes())
    }

    /// Replaces the record, for a run that goes on elsewhere.
    pub fn write_record(&self, record: &RunRecord) -> Result<()> {
        write_atomic(self.path.join(RECORD), record.to_json()?.as_bytes())
    }

    /// The folder, which [`checkpoint::save`] and [`checkpoint::newest`] take.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// File of the metrics.
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }

    /// Picture of the losses.
    pub fn curve(&self) -> PathBuf {
        self.path.join(CURVE)
    }

    /// Folder of sample grids.
    pub fn samples(&self) -> PathBuf {
        self.path.join(SAMPLES)
    }

    /// Picture of the samples after `step` steps.
    pub fn sample(&self, step: u64) -> PathBuf {
        self.samples().join(format!("step-{step:08}.png"))
    }

    /// Configuration of the exported model.
    pub fn model_config(&self) -> PathBuf {
        self.path.join(MODEL_CONFIG)
    }

    /// Weights of the exported model.
    pub fn model_weights(&self) -> PathBuf {
        self.path.join(MODEL_WEIGHTS)
    }
}

fn is_run(path: &Path) -> bool {
    path.join(CONFIG).is_file()
}
