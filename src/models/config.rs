//! What a model is: read from weights' shapes, then from `config.json` or metadata, which may add but not contradict.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::ops::embed::Sinusoid;
use crate::ops::linear::Activation;

/// Kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Flow-matching ViT of the lensing notebooks.
    FlowVit,
    /// Diffusion transformer with adaLN-zero.
    Dit,
    /// Plain timm ViT classifier.
    Vit,
}

impl Architecture {
    /// Name in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::FlowVit => "flow_vit",
            Self::Dit => "dit",
            Self::Vit => "vit",
        }
    }

    /// What it is, in a few words.
    pub fn description(self) -> &'static str {
        match self {
            Self::FlowVit => "flow-matching ViT: a timm encoder with a time embedding behind it",
            Self::Dit => "diffusion transformer with adaLN-zero (DiT)",
            Self::Vit => "plain timm ViT classifier",
        }
    }
}

/// What the network's output means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// noise - data, for x_t = (1 - t) data + t noise.
    Velocity,
    /// The noise of a diffusion step.
    Epsilon,
}

/// Classes of a conditional model.
#[derive(Clone, Debug, PartialEq)]
pub struct Classes {
    /// Name of each class, by number.
    pub names: Vec<String>,
    /// Other names for them.
    pub aliases: BTreeMap<String, String>,
    /// Number that stands for "no class", the row behind the classes.
    pub null: usize,
}

impl Classes {
    /// Number of the class that the user calls `name`: a number, a name or an alias.
    pub fn find(&self, name: &str) -> Option<usize> {
        if let Ok(id) = name.parse::<usize>() {
            return (id < self.names.len()).then_some(id);
        }
        let name = self.aliases.get(name).map_or(name, String::as_str);
        self.names.iter().position(|n| n == name)
    }
}

/// Why a plain ViT cannot be sampled.
pub(super) const CLASSIFIER: &str =
    "found a plain ViT, which classifies images; expected a velocity model (flow-matching ViT or DiT)";

/// Everything that decides a model's shapes and arithmetic.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Kind of network.
    pub architecture: Architecture,
    /// Height and width in pixels.
    pub image_size: usize,
    /// Height and width of a patch.
    pub patch_size: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output: twice the input's where the model also learns a variance.
    pub out_channels: usize,
    /// D.
    pub hidden_size: usize,
    /// Number of blocks.
    pub depth: usize,
    /// NH.
    pub num_heads: usize,
    /// Width of the feed-forward layers.
    pub mlp_hidden: usize,
    /// Added to the variance in norms.
    pub norm_eps: f64,
    /// GELU by its tanh approximation instead of the error function.
    pub gelu_tanh: bool,
    /// Time embedding.
    pub time: Sinusoid,
    /// Classes, for a conditional model.
    pub classes: Option<Classes>,
    /// Outputs of the classifier head (plain ViT only).
    pub head_size: usize,
    /// Range of the pixel values that the model was trained on.
    pub value_range: (f32, f32),
    /// What the output means.
    pub prediction: Prediction,
}

impl ModelConfig {
    /// T: tokens of an image.
    pub fn tokens(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Rows of the label table: the classes and "no class".
    pub fn label_rows(&self) -> usize {
        self.classes.as_ref().map_or(1, |c| c.names.len() + 1)
    }

    /// The feed-forward activation.
    pub fn activation(&self) -> Activation {
        if self.gelu_tanh { Activation::GeluTanh } else { Activation::Gelu }
    }

    /// Why images cannot be sampled from this model, if they cannot: what was found and what was expected.
    pub fn sampling_problem(&self) -> Option<String> {
        if self.architecture == Architecture::Vit {
            return Some(CLASSIFIER.into());
        }
        if self.prediction != Prediction::Velocity {
            return Some(
                "found a diffusion model that predicts epsilon (noise), expected one that predicts a velocity: the DDIM \
                 sampler that epsilon models need does not exist yet"
                    .into(),
            );
        }
        (self.out_channels != self.in_channels).then(|| {
            format!(
                "found {} output channels for {} image channels, expected as many",
                self.out_channels, self.in_channels
            )
        })
    }

    /// The configuration as `config.json` holds it.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "architecture": self.architecture.name(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "hidden_size": self.hidden_size,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_hidden as f64 / self.hidden_size as f64,
            "norm_eps": self.norm_eps,
            "gelu": if self.gelu_tanh { "tanh" } else { "erf" },
        });
        let map = json.as_object_mut().expect("a literal object");
        if self.architecture == Architecture::Vit {
            map.insert("num_classes".into(), self.head_size.into());
            return json;
        }
        map.insert(
            "time_embedding".into(),
            json!({
                "dim": self.time.dim,
                "order": if self.time.cos_first { "cos,sin" } else { "sin,cos" },
                "max_period": self.time.max_period,
                "half_shift": self.time.half_shift,
                "scale": self.time.scale,
            }),
        );
        map.insert("learn_sigma".into(), (self.out_channels != self.in_channels).into());
        if let Some(classes) = &self.classes {
            map.insert("num_classes".into(), classes.names.len().into());
            map.insert("class_names".into(), json!(classes.names));
            map.insert("class_aliases".into(), json!(classes.aliases));
            map.insert("null_class".into(), classes.null.into());
        }
        map.insert("value_range".into(), json!([self.value_range.0, self.value_range.1]));
        let prediction = match self.prediction {
            Prediction::Velocity => "velocity",
            Prediction::Epsilon => "epsilon",
        };
        map.insert("prediction".into(), prediction.into());
        json
    }

    /// Takes from `given` what shapes cannot tell, and compares what they can.
    ///
    /// # Errors
    /// One line: the field, what was found, what was expected.
    pub fn overlay(&mut self, given: &Map<String, Value>) -> Result<(), String> {
        let fields = Fields(given);
        fields.compare(&["image_size", "img_size", "input_size"], self.image_size)?;
        fields.compare(&["patch_size"], self.patch_size)?;
        fields.compare(&["hidden_size", "embed_dim"], self.hidden_size)?;
        fields.compare(&["depth"], self.depth)?;
        if self.architecture != Architecture::Vit {
            fields.compare(&["in_channels"], self.in_channels)?;
        }
        if let Some((_, heads)) = fields.integer(&["num_heads"])? {
            self.num_heads = heads;
        }
        if let Some((name, ratio)) = fields.number(&["mlp_ratio"])? {
            // The width is the product rounded down, give or take the last bit of a ratio like 5/3.
            let over = self.hidden_size as f64 * ratio - self.mlp_hidden as f64;
            if !(-1e-6..1.0).contains(&over) {
                let found = self.mlp_hidden as f64 / self.hidden_size as f64;
                return Err(format!("{name} is {ratio}, but the weights' feed-forward layers have ratio {found}"));
            }
        }
        if let Some((name, eps)) = fields.number(&["norm_eps", "ln_eps"])? {
            if !(eps > 0.0 && eps < 1.0) {
                return Err(format!("{name} is {eps}, a number between 0 and 1 expected"));
            }
            self.norm_eps = eps;
        }
        if let Some((name, gelu)) = fields.text("gelu")? {
            self.gelu_tanh = match gelu {
                "erf" | "none" => false,
                "tanh" => true,
                other => return Err(format!("{name} is {other:?}, \"erf\" or \"tanh\" expected")),
            };
        }
        if let Some((_, tanh)) = fields.flag("tanh_gelu")? {
            self.gelu_tanh = tanh;
        }
        self.overlay_time(&fields)?;
        let learns = self.out_channels != self.in_channels;
        if let Some((name, given)) = fields.flag("learn_sigma")?.filter(|(_, given)| *given != learns) {
            return Err(format!("{name} is {given}, but the last layer has {} channels", self.out_channels));
        }
        self.overlay_classes(&fields)?;
        if let Some(range) = given.get("value_range") {
            let pair = range.as_array().filter(|a| a.len() == 2).map(|a| (a[0].as_f64(), a[1].as_f64()));
            self.value_range = match pair {
                Some((Some(lo), Some(hi))) if lo < hi => (lo as f32, hi as f32),
                _ => return Err(format!("value_range is {range}, two rising numbers expected")),
            };
        }
        if let Some((name, prediction)) = fields.text("prediction")? {
            self.prediction = match prediction {
                "velocity" => Prediction::Velocity,
                "epsilon" => Prediction::Epsilon,
                other => return Err(format!("{name} is {other:?}, \"velocity\" or \"epsilon\" expected")),
            };
        }
        Ok(())
    }

    /// Whether the shapes can be computed with.
    ///
    /// # Errors
    /// One line: what was found, what was expected.
    pub fn check(&self) -> Result<(), String> {
        let (d, heads) = (self.hidden_size, self.num_heads);
        if heads == 0 || d % heads != 0 {
            return Err(format!("num_heads is {heads}, a divisor of the hidden size {d} expected"));
        }
        if (d / heads) % 8 != 0 || d / heads > 128 {
            return Err(format!("heads of {} channels ({d} / {heads}), a multiple of 8 up to 128 expected", d / heads));
        }
        Ok(())
    }

    fn overlay_time(&mut self, fields: &Fields) -> Result<(), String> {
        if let Some((_, scale)) = fields.number(&["t_scale", "freq_scale"])? {
            self.time.scale = scale;
        }
        fields.compare(&["freq_dim"], self.time.dim)?;
        let Some(time) = fields.0.get("time_embedding") else { return Ok(()) };
        let time = Fields(time.as_object().ok_or("time_embedding is no object")?);
        time.compare(&["dim"], self.time.dim)?;
        if let Some((_, order)) = time.text("order")? {
            self.time.cos_first = match order {
                "cos,sin" => true,
                "sin,cos" => false,
                other => return Err(format!("time_embedding.order is {other:?}, \"cos,sin\" or \"sin,cos\" expected")),
            };
        }
        if let Some((_, period)) = time.number(&["max_period"])? {
            if period <= 1.0 {
                return Err(format!("time_embedding.max_period is {period}, more than 1 expected"));
            }
            self.time.max_period = period;
        }
        if let Some((_, shift)) = time.number(&["half_shift"])? {
            if shift != 0.0 && shift != 1.0 {
                return Err(format!("time_embedding.half_shift is {shift}, 0 or 1 expected"));
            }
            self.time.half_shift = shift;
        }
        if let Some((_, scale)) = time.number(&["scale", "t_scale", "freq_scale"])? {
            self.time.scale = scale;
        }
        Ok(())
    }

    fn overlay_classes(&mut self, fields: &Fields) -> Result<(), String> {
        match (self.architecture, &mut self.classes) {
            (Architecture::Vit, _) => fields.compare(&["num_classes"], self.head_size),
            // The flow ViT keeps its encoder's classifier settings beside its own; they mean nothing to it.
            (Architecture::FlowVit, _) | (_, None) => Ok(()),
            (Architecture::Dit, Some(classes)) => {
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
                            None => {
                                return Err(format!("class_aliases.{alias} is {name}, one of class_names expected"));
                            }
                        };
                    }
                }
                Ok(())
            }
        }
    }
}

/// Typed access to a JSON object. Metadata holds strings only, so numbers and flags may be written as strings.
struct Fields<'a>(&'a Map<String, Value>);

impl<'a> Fields<'a> {
    fn first(&self, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        names.iter().find_map(|&name| self.0.get(name).map(|value| (name, value)))
    }

    fn number(&self, names: &[&'static str]) -> Result<Option<(&'static str, f64)>, String> {
        let Some((name, value)) = self.first(names) else { return Ok(None) };
        let number = value.as_f64().or_else(|| value.as_str().and_then(|s| s.parse().ok()));
        match number.filter(|n| n.is_finite()) {
            Some(number) => Ok(Some((name, number))),
            None => Err(format!("{name} is {value}, a number expected")),
        }
    }

    fn integer(&self, names: &[&'static str]) -> Result<Option<(&'static str, usize)>, String> {
        match self.number(names)? {
            Some((name, n)) if n.fract() == 0.0 && (0.0..=1e9).contains(&n) => Ok(Some((name, n as usize))),
            Some((name, n)) => Err(format!("{name} is {n}, a whole number expected")),
            None => Ok(None),
        }
    }

    fn compare(&self, names: &[&'static str], found: usize) -> Result<(), String> {
        match self.integer(names)? {
            Some((name, given)) if given != found => {
                Err(format!("{name} is {given}, but the shapes of the weights say {found}"))
            }
            _ => Ok(()),
        }
    }

    fn text(&self, name: &'static str) -> Result<Option<(&'static str, &'a str)>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some((name, text))),
            Some(other) => Err(format!("{name} is {other}, a string expected")),
        }
    }

    fn flag(&self, name: &'static str) -> Result<Option<(&'static str, bool)>, String> {
        match self.0.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some((name, *flag))),
            Some(Value::String(text)) if text == "true" || text == "True" => Ok(Some((name, true))),
            Some(Value::String(text)) if text == "false" || text == "False" => Ok(Some((name, false))),
            Some(other) => Err(format!("{name} is {other}, true or false expected")),
        }
    }
}
