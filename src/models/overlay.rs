//! A configuration laid over what the shapes of the weights say: it may add what they cannot tell, but not contradict.

use std::path::{Component, Path};

use serde_json::{Map, Value};

use super::config::{Architecture, Classes, ModelConfig, NetworkConfig, Prediction, Task};
use super::fields::{Fields, agree, compare};
use super::parameters::Parameter;

/// Names of the size of images.
pub(super) const SIZES: [&str; 4] = ["image_size", "img_size", "input_size", "sample_size"];
/// Channels of the images that timm's encoders were trained on.
const TIMM_CHANNELS: usize = 3;

/// The fields of `given`, with what timm's own `config.json` keeps under `model_args` beside them.
///
/// # Errors
/// One line: a field that stands in both and differs.
pub(super) fn flatten(given: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut fields = given.clone();
    if let Some(Value::Object(arguments)) = given.get("model_args").filter(|_| is_timm(given)) {
        for (name, value) in arguments {
            let other = fields.entry(name.clone()).or_insert_with(|| value.clone());
            if other != value {
                return Err(format!("{name} is {other}, but model_args.{name} is {value}"));
            }
        }
    }
    Ok(fields)
}

/// Whether the configuration names an architecture, but none of ours: then it is one of timm's models.
fn is_timm(given: &Map<String, Value>) -> bool {
    let name = given.get("architecture").and_then(Value::as_str);
    name.is_some_and(|name| Architecture::ALL.iter().all(|ours| ours.name() != name))
}

/// Image size that `given` states for images of any of `channels`.
///
/// # Errors
/// One line: no size, or two that differ.
pub(super) fn image_size(
    given: &Map<String, Value>,
    channels: &[usize],
) -> Result<Option<(&'static str, usize)>, String> {
    Fields(given).image_size(&SIZES, channels)
}

impl ModelConfig {
    /// Takes from `given` (see [`flatten`]) what shapes cannot tell, and compares what they can.
    ///
    /// # Errors
    /// One line: the field, what was found, what was expected.
    pub(super) fn overlay(&mut self, given: &Map<String, Value>) -> Result<(), String> {
        let fields = Fields(given);
        let ours = self.architecture().name();
        let other = fields.text("architecture")?.filter(|(_, name)| *name != ours && !is_timm(given));
        if let Some((field, name)) = other {
            return Err(format!("{field} is {name}, but the keys of the weights say {ours}"));
        }
        // Beside a flow-matching ViT there may be the configuration of its encoder.
        let encoder = if self.architecture() == Architecture::FlowVit { TIMM_CHANNELS } else { self.in_channels };
        if let Some((class, given)) = self.architecture().diffusers_class().zip(fields.text("_class_name")?)
            && given.1 != class
        {
            return Err(format!("_class_name is {}, but the keys of the weights say {class}", given.1));
        }
        let size = image_size(given, &[self.in_channels, encoder])?;
        fields.compare(&["in_channels"], self.in_channels)?;
        match &mut self.network {
            NetworkConfig::FlowVit(t) | NetworkConfig::Dit(t) | NetworkConfig::Vit(t) => {
                compare(size, self.image_size)?;
                t.overlay(&fields)?;
            }
            NetworkConfig::Smp(smp) => smp.overlay(&fields, self.out_channels)?,
            NetworkConfig::Unet2d(unet) => {
                fields.compare(&["out_channels"], self.out_channels)?;
                unet.overlay(&fields, &mut self.time)?;
            }
            NetworkConfig::AutoencoderKl(vae) => {
                fields.compare(&["out_channels"], self.out_channels)?;
                vae.overlay(&fields)?;
            }
            NetworkConfig::ConvNextV2(convnext) => convnext.overlay(&fields)?,
            NetworkConfig::ResNet(resnet) => resnet.overlay(&fields)?,
            NetworkConfig::EfficientNet(efficientnet) => efficientnet.overlay(&fields)?,
        }
        // The weights of a convolutional network fit images of any size.
        if let Some((_, size)) = size {
            self.image_size = size;
        }
        if let Some((name, given)) = fields.text("prediction")? {
            let found = Prediction::ALL.into_iter().find(|p| p.name() == given);
            self.prediction = found.ok_or_else(|| {
                let known: Vec<String> = Prediction::ALL.iter().map(|p| format!("{:?}", p.name())).collect();
                format!("{name} is {given:?}, one of {} expected", known.join(", "))
            })?;
            if self.prediction != Prediction::Velocity {
                // Diffusion models are asked at timesteps as they are, unless told otherwise.
                self.time.scale = 1.0;
            }
        }
        if self.architecture().task() == Task::Generate {
            self.overlay_time(&fields)?;
        }
        let learns = self.out_channels != self.in_channels;
        if let Some((name, given)) = fields.flag("learn_sigma")?.filter(|(_, given)| *given != learns) {
            return Err(format!("{name} is {given}, but the last layer has {} channels", self.out_channels));
        }
        self.overlay_classes(&fields)?;
        self.overlay_parameters(&fields)?;
        if let Some((name, folder)) = fields.text("autoencoder")? {
            let mut parts = Path::new(folder).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(format!("{name} is {folder:?}, the name of a folder beside the weights expected"));
            }
            self.autoencoder = Some(folder.to_owned());
        }
        if let Some(range) = given.get("value_range") {
            let ends: Option<Vec<f32>> =
                range.as_array().and_then(|ends| ends.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
            self.value_range = match ends.as_deref() {
                Some(&[lo, hi]) if lo < hi && lo.is_finite() && hi.is_finite() => (lo, hi),
                _ => return Err(format!("value_range is {range}, two rising numbers of f32 expected")),
            };
        }
        self.sampling.overlay(&fields, self.prediction, learns)
    }

    fn overlay_time(&mut self, fields: &Fields) -> Result<(), String> {
        let mut scale = fields.number(&["t_scale", "freq_scale"])?;
        fields.compare(&["freq_dim"], self.time.dim)?;
        if let Some(time) = fields.0.get("time_embedding") {
            let time = Fields(time.as_object().ok_or("time_embedding is no object")?);
            let inner = time.number(&["scale", "t_scale", "freq_scale"])?;
            scale = agree(scale, inner.map(|(_, scale)| ("time_embedding.scale", scale)))?;
            compare(time.integer(&["dim"])?.map(|(_, dim)| ("time_embedding.dim", dim)), self.time.dim)?;
            if let Some((_, order)) = time.text("order")? {
                self.time.cos_first = match order {
                    "cos,sin" => true,
                    "sin,cos" => false,
                    other => {
                        return Err(format!("time_embedding.order is {other:?}, \"cos,sin\" or \"sin,cos\" expected"));
                    }
                };
            }
            if let Some((_, period)) = time.number(&["max_period"])? {
                self.time.max_period = period;
            }
            if let Some((_, shift)) = time.number(&["half_shift"])? {
                self.time.half_shift = shift;
            }
        }
        if let Some((_, scale)) = scale {
            self.time.scale = scale;
        }
        Ok(())
    }

    fn overlay_classes(&mut self, fields: &Fields) -> Result<(), String> {
        match (&self.network, &mut self.classes) {
            (NetworkConfig::Vit(t), _) => fields.compare(&["num_classes"], t.head_size),
            // Of the others the network compares it.
            (NetworkConfig::Smp(_) | NetworkConfig::Unet2d(_) | NetworkConfig::AutoencoderKl(_), _) => Ok(()),
            (NetworkConfig::ConvNextV2(_) | NetworkConfig::ResNet(_) | NetworkConfig::EfficientNet(_), _) => Ok(()),
            // The flow ViT keeps its encoder's classifier settings beside its own; they mean nothing to it.
            (NetworkConfig::FlowVit(_), _) | (_, None) => Ok(()),
            (NetworkConfig::Dit(_), Some(classes)) => overlay_names(classes, fields),
        }
    }

    /// Names and normalisation of continuous parameters, as many as the weights take.
    fn overlay_parameters(&mut self, fields: &Fields) -> Result<(), String> {
        let Some(given) = fields.0.get("parameters").filter(|_| self.architecture() == Architecture::Dit) else {
            return Ok(());
        };
        let expected = self.parameters.len();
        let list = given.as_array().filter(|list| list.len() == expected).ok_or_else(|| {
            format!("parameters: a list of {expected} expected, as many as param_embed takes, found {given}")
        })?;
        let parse = |(i, value): (usize, &Value)| {
            serde_json::from_value::<Parameter>(value.clone()).map_err(|e| format!("parameters[{i}]: {e}"))
        };
        self.parameters = list.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
        Ok(())
    }
}

fn overlay_names(classes: &mut Classes, fields: &Fields) -> Result<(), String> {
    fields.compare(&["num_classes"], classes.names.len())?;
    fields.compare(&["null_class"], classes.null)?;
    if let Some(names) = fields.0.get("class_names") {
        let names: Option<Vec<String>> =
            names.as_array().and_then(|a| a.iter().map(|n| n.as_str().map(str::to_owned)).collect());
        classes.names = match names {
            Some(names) if names.len() == classes.names.len() => names,
            _ => return Err(format!("class_names: {} strings expected", classes.names.len())),
        };
    }
    if let Some(aliases) = fields.0.get("class_aliases") {
        let aliases = aliases.as_object().ok_or("class_aliases is no object")?;
        for (alias, name) in aliases {
            match name.as_str().filter(|n| classes.names.iter().any(|c| c == n)) {
                Some(name) => classes.aliases.insert(alias.clone(), name.to_owned()),
                None => return Err(format!("class_aliases.{alias} is {name}, one of class_names expected")),
            };
        }
    }
    Ok(())
}
