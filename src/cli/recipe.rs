//! The recipe beside every file of samples: all that decides the images, and nothing else. No clock time, host or path,
//! so the same command gives the same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use arclet::error::{Error, Result};
use arclet::io::json::parse_strict;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Value of [`Recipe::format`].
pub const FORMAT: &str = "arclet-samples/1";

/// Largest recipe file, in bytes: classes of some ten million images.
const MAX_BYTES: u64 = 1 << 28;

/// How a file of samples came to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// [`FORMAT`].
    pub format: String,
    /// Version of arclet.
    pub version: String,
    /// The model.
    pub model: ModelRecipe,
    /// Images of the whole run, of which a shard holds a part.
    pub total: u64,
    /// Which part, as `I/N`; none for the whole run.
    pub shard: Option<String>,
    /// Index of the first image in the file.
    pub first_image: u64,
    /// Images in the file.
    pub n: u64,
    /// False if the run was interrupted before all images of the file were drawn.
    pub complete: bool,
    /// Shape of the array in the file: images, channels, height, width.
    pub shape: [usize; 4],
    /// Seed of the starting noise, unless that was given.
    pub seed: Option<u64>,
    /// SHA-256 of the file of starting noise, if it was given.
    pub noise_sha256: Option<String>,
    /// Class of each image; none for an unconditional model.
    pub classes: Option<Vec<String>>,
    /// Continuous parameters of all images, by name; none if they were not asked for by any.
    #[serde(default)]
    pub parameters: Option<BTreeMap<String, f64>>,
    /// Solver.
    pub solver: String,
    /// Solver steps.
    pub steps: usize,
    /// Function evaluations per image (NFE); a guided one runs the network twice.
    pub evaluations: usize,
    /// Time convention.
    pub time: String,
    /// Shift of the time grid; 1 is equal steps.
    #[serde(default = "equal_steps")]
    pub time_shift: f64,
    /// What a diffusion model's steps were computed from; none for a velocity model.
    #[serde(default)]
    pub diffusion: Option<Map<String, Value>>,
    /// Classifier-free guidance; 1 is off.
    pub guidance_scale: f32,
    /// Whether images were clamped to the value range.
    pub clamp: bool,
    /// Range of pixel values that the model was trained on.
    pub value_range: [f32; 2],
    /// Type of weights and activations.
    pub dtype: String,
    /// Kind of device: `cpu` or `cuda`.
    pub device: String,
    /// What decides the last bits: CPU dispatch level or GPU model.
    pub hardware: String,
    /// How the preview is coloured.
    pub preview: PreviewRecipe,
    /// SHA-256 of the file of samples; none in a recipe inside of that file.
    pub data_sha256: Option<String>,
}

/// The shift of recipes from before there was one.
fn equal_steps() -> f64 {
    1.0
}

/// Which model drew the samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecipe {
    /// Built-in name, or the last part of the path.
    pub name: String,
    /// Kind of network.
    pub architecture: String,
    /// SHA-256 of the weights; none for the hashed weights of a built-in network.
    pub sha256: Option<String>,
    /// SHA-256 of the weights of the auto-encoder that made images of the model's latents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoencoder_sha256: Option<String>,
}

/// Colour scale of the PNG.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreviewRecipe {
    /// Colour map of one-channel images.
    pub color_map: String,
    /// Values drawn as the darkest and the brightest colour.
    pub range: [f32; 2],
}

impl Recipe {
    /// Reads the recipe file at `path`.
    ///
    /// # Errors
    /// [`Error::Input`] if it is missing or no recipe.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |reason: String| Error::input(path, reason);
        let size = std::fs::metadata(path).map_err(|e| refuse(format!("recipe: {e}")))?.len();
        if size > MAX_BYTES {
            return Err(refuse(format!("recipe: found {size} bytes, expected at most {MAX_BYTES}")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| refuse(format!("recipe: {e}")))?;
        let json = parse_strict(&text).map_err(|e| refuse(format!("recipe: {e}")))?;
        if json.get("format").and_then(|f| f.as_str()) != Some(FORMAT) {
            return Err(refuse(format!("field \"format\": expected {FORMAT:?}, as `arclet sample` writes it")));
        }
        serde_json::from_value(json).map_err(|e| refuse(format!("recipe: {e}")))
    }
}
