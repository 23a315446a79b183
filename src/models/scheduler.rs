//! The `scheduler_config.json` that diffusers keeps beside a model: what it says about noise and sampler, as keys of a model's own
//! configuration.

use serde_json::{Map, Value, json};

use super::diffusion::{Diffusion, KEYS};
use super::fields::Fields;
use crate::io::known::unknown;

/// What the model predicts.
const PREDICTION: &str = "prediction_type";
/// Schedulers whose noise schedule is computed here, and whether theirs clip unless told otherwise.
const CLASSES: [(&str, bool); 3] = [("DDIMScheduler", true), ("DDPMScheduler", true), ("PNDMScheduler", false)];
/// Switches that have to be off: what they do is not computed here.
const OFF: [&str; 2] = ["thresholding", "rescale_betas_zero_snr"];
/// Keys that mean something beside an `OFF` switch or to PNDM's own steps only.
const IDLE: [&str; 3] = ["dynamic_thresholding_ratio", "sample_max_value", "skip_prk_steps"];
const BETAS: &str = "trained_betas";

/// A scheduler's settings.
pub(super) struct Scheduler {
    /// Its class.
    pub class: String,
    /// What the model predicts, if the file says.
    prediction: Option<String>,
    /// As the object `diffusion` of a configuration holds them.
    diffusion: Map<String, Value>,
}

impl Scheduler {
    /// Reads `given`; `learned` tells whether the model has channels for a variance.
    ///
    /// # Errors
    /// One line: the field, what was found, what was expected.
    pub fn read(given: &Map<String, Value>, learned: bool) -> Result<Self, String> {
        let fields = Fields(given);
        let (class, clips) = match fields.text("_class_name")? {
            None => CLASSES[1],
            Some((name, found)) => *CLASSES.iter().find(|(class, _)| *class == found).ok_or_else(|| {
                format!("{name} is {found:?}, one of {} expected", CLASSES.map(|(class, _)| class).join(", "))
            })?,
        };
        OFF.into_iter().try_for_each(|name| fields.only(name, &[json!(false)]))?;
        fields.only(BETAS, &[])?;
        let mut diffusion = Map::from_iter([("clip_sample".to_string(), clips.into())]);
        if class == "PNDMScheduler" {
            diffusion.insert("set_alpha_to_one".into(), false.into());
        }
        // Keys with an underscore are notes of diffusers to itself; null stands for what is not given.
        for (key, value) in given.iter().filter(|(key, value)| !key.starts_with('_') && !value.is_null()) {
            let key = key.as_str();
            if KEYS.contains(&key) {
                diffusion.insert(key.into(), value.clone());
            } else if key != PREDICTION && !OFF.contains(&key) && !IDLE.contains(&key) {
                let known = KEYS.into_iter().chain([PREDICTION, BETAS]).chain(OFF).chain(IDLE);
                return Err(unknown("key", key, known));
            }
        }
        Diffusion::default().overlay(&diffusion, learned)?;
        let prediction = fields.text(PREDICTION)?.map(|(_, found)| found.to_string());
        if let Some(found) = prediction.as_deref().filter(|p| !["epsilon", "v_prediction", "sample"].contains(p)) {
            return Err(format!("{PREDICTION} is {found:?}, one of epsilon, v_prediction, sample expected"));
        }
        Ok(Self { class: class.into(), prediction, diffusion })
    }

    /// Adds it to the configuration of a model.
    ///
    /// # Errors
    /// One line, if that says that something else is predicted.
    pub fn add_to(self, given: &mut Map<String, Value>) -> Result<(), String> {
        if let Some(found) = self.prediction {
            let known = given.entry("prediction").or_insert_with(|| found.clone().into());
            if *known != found {
                return Err(format!("{PREDICTION} is {found:?}, but prediction of config.json is {known}"));
            }
        }
        given.insert("diffusion".into(), self.diffusion.into());
        Ok(())
    }
}
