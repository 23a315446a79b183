//! `run.json`: where a run took place and on what.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::data::DataRecord;
use crate::error::{Error, Result};
use crate::io::json::parse_strict;
use crate::io::read_text;
use crate::models::parameters::Parameter;

/// Value of [`RunRecord::format`].
const FORMAT: &str = "arclet-run/1";

/// Largest file, in bytes.
const MAX_BYTES: u64 = 1 << 24;

/// What decides a run beside its settings. No clock time and no host, so that the same run has the same record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRecord {
    /// `arclet-run/1`.
    pub format: String,
    /// Version of arclet.
    pub version: String,
    /// Seed of all random numbers.
    pub seed: u64,
    /// Type of activations.
    pub dtype: String,
    /// `cpu` or `cuda:0`.
    pub device: String,
    /// What decides the last bits: CPU and dispatch level, or GPU model.
    pub hardware: String,
    /// Images to train on.
    pub data: DataRecord,
    /// Images to validate on, if there are any.
    pub validation: Option<DataRecord>,
    /// Model that the run went on from, if there is one.
    pub init: Option<InitRecord>,
    /// Continuous parameters that the model takes, normalised as the training set was when the run began.
    #[serde(default)]
    pub parameters: Vec<Parameter>,
}

/// A model that a run went on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InitRecord {
    /// Path or name, as in the settings.
    pub name: String,
    /// SHA-256 of its weights; none for weights that follow from a rule.
    pub sha256: Option<String>,
}

impl RunRecord {
    /// The record of a run of this version that starts anew on `data`, without a validation set. Device, type and hardware
    /// are as [`crate::device::Device::name`], [`crate::tensor::DType::name`] and
    /// [`crate::device::Device::description`] say.
    pub fn new(seed: u64, dtype: &str, device: &str, hardware: &str, data: DataRecord) -> Self {
        Self {
            format: FORMAT.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            seed,
            dtype: dtype.into(),
            device: device.into(),
            hardware: hardware.into(),
            data,
            validation: None,
            init: None,
            parameters: Vec::new(),
        }
    }

    /// The record as its file holds it.
    pub(super) fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Runtime(format!("run record: {e}")))?;
        Ok(text + "\n")
    }

    /// Reads the file at `path`. [`Error::Input`] if it is missing or no record.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::input(path, reason);
        let json = parse_strict(&read_text(path, MAX_BYTES)?).map_err(refuse)?;
        if json["format"] != FORMAT {
            return Err(refuse(format!("field \"format\": {FORMAT:?} expected, as `arclet train` writes it")));
        }
        serde_json::from_value(json).map_err(|e| refuse(e.to_string()))
    }
}
