//! Models written in our own layout, which is the Hugging Face habit: `model.safetensors` with the configuration in its
//! metadata, and `config.json` beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::{TensorBytes, write_atomic, write_safetensors};
use crate::models::config::ModelConfig;
use crate::nn::params::{ParamSpec, WeightSource};

/// Names of the two files.
pub const WEIGHTS: &str = "model.safetensors";
/// Of the configuration.
pub const CONFIG: &str = "config.json";

/// Writes the two files into `folder`, which exists, each whole or not at all.
///
/// # Errors
/// [`Error::Output`].
pub fn write_model<'a>(folder: &Path, config: &ModelConfig, tensors: Vec<TensorBytes<'a>>) -> Result<()> {
    let json = serde_json::to_string_pretty(&config.to_json()).map_err(|e| Error::Runtime(format!("JSON: {e}")))?;
    let metadata = BTreeMap::from([("config".to_owned(), json.clone()), ("format".to_owned(), "pt".to_owned())]);
    write_safetensors(folder.join(WEIGHTS), tensors, &metadata)?;
    write_atomic(folder.join(CONFIG), (json + "\n").as_bytes())
}

/// Parameters in memory.
pub struct Parameters {
    origin: PathBuf,
    values: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Parameters {
    /// Parameters with their elements, of a model that messages call `origin`.
    pub fn new(origin: impl Into<PathBuf>, values: Vec<(ParamSpec, Vec<f32>)>) -> Self {
        let values = values.into_iter().map(|(spec, values)| (spec.name, (spec.shape, values))).collect();
        Self { origin: origin.into(), values }
    }

    /// As [`write_model`] takes them, in f32.
    pub fn tensors(&self) -> Vec<TensorBytes<'_>> {
        self.values.iter().map(|(name, (shape, values))| TensorBytes::from_f32(name.as_str(), shape, values)).collect()
    }
}

impl WeightSource for Parameters {
    fn origin(&self) -> &Path {
        &self.origin
    }

    fn read(&self, name: &str) -> Result<Vec<f32>> {
        let (_, values) = self.values.get(name).ok_or_else(|| Error::Runtime(format!("no parameter {name}")))?;
        match values.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(Error::input(&self.origin, format!("parameter {name}: found {value}"))),
            None => Ok(values.clone()),
        }
    }
}
