//! `arclet inspect`: what a weights file or model folder holds.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use arclet::error::{Error, Result};
use arclet::io::Checkpoint;
use arclet::models::config::ModelConfig;
use arclet::models::import::{Import, KeyDifferences};
use arclet::models::parameters;
use clap::Args;
use serde_json::{Value, json};

use super::model::Source;
use super::report;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet inspect lens-dit-s
  arclet inspect checkpoint/model.safetensors --json";

/// Shows what a weights file or model folder holds.
///
/// Names the architecture, its configuration, the number of parameters, and the keys that are missing, unexpected,
/// mis-shaped or unused. Weights that do not fit their architecture are shown all the same, with exit code 3.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Weights file, model folder or built-in model
    #[arg(value_name = "PATH|NAME")]
    model: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints what there is.
///
/// # Errors
/// [`Error::Input`] for a damaged file, an unknown architecture or keys that do not fit.
pub fn run(args: &InspectArgs) -> Result<()> {
    match Source::open(Some(&args.model))? {
        Source::Hash(hash) => {
            let file = json!({ "name": hash.name(), "weights": "made up: a hash of name and index" });
            let model = describe_model(hash.config());
            show(args, &join([file, model]))
        }
        Source::Checkpoint { name, checkpoint } => {
            let file = describe_file(&name, &checkpoint);
            let (import, differences) = match Import::examine(&checkpoint) {
                Ok(examined) => examined,
                Err(error) => {
                    let reason = match &error {
                        Error::Input { reason, .. } => reason.clone(),
                        other => other.to_string(),
                    };
                    show(args, &join([file, json!({ "architecture": null, "problem": reason })]))?;
                    return Err(error);
                }
            };
            let problem = differences.describe();
            let mut keys = describe_keys(&import, &differences);
            if !args.json {
                // A network of fifty BatchNorms has fifty counters that nobody misses.
                keys["unused"] = report::some_of(&import.unused).into();
            }
            show(args, &join([file, describe_model(&import.config), keys]))?;
            match problem {
                None => Ok(()),
                Some(problem) => {
                    let architecture = import.config.architecture().name();
                    Err(Error::input(checkpoint.path(), format!("keys do not fit {architecture}: {problem}")))
                }
            }
        }
    }
}

fn describe_file(name: &str, checkpoint: &Checkpoint) -> Value {
    let mut dtypes: BTreeMap<&str, usize> = BTreeMap::new();
    for tensor in checkpoint.names() {
        if let Some(dtype) = checkpoint.dtype(tensor) {
            *dtypes.entry(dtype.name()).or_default() += 1;
        }
    }
    json!({
        "name": name,
        "sha256": checkpoint.sha256(),
        "tensors": checkpoint.names().len(),
        "dtypes": dtypes,
        "bytes": checkpoint.total_bytes(),
    })
}

fn describe_model(config: &ModelConfig) -> Value {
    let latents = config.autoencoder.as_ref().map(|folder| {
        let (channels, side) = (config.in_channels, config.image_size);
        format!("draws latents of {channels} x {side} x {side}, of which the auto-encoder in {folder}/ makes images")
    });
    let about = json!({ "latents": latents });
    let model = json!({
        "architecture": config.architecture().name(),
        "description": config.architecture().description(),
        "variant": config.network.variant(),
        "parameters": parameters(config),
        "samples": config.sampling_problem().is_none(),
        "config": config.to_json(),
    });
    if latents.is_some() { join([about, model]) } else { model }
}

fn describe_keys(import: &Import, differences: &KeyDifferences) -> Value {
    json!({
        "notes": import.notes,
        "unused": import.unused,
        "fits": differences.describe().is_none(),
        "missing": differences.missing,
        "unexpected": differences.unexpected,
        "misshaped": differences.misshaped,
    })
}

fn join<const N: usize>(parts: [Value; N]) -> Value {
    let entries = parts.into_iter().filter_map(|part| match part {
        Value::Object(map) => Some(map),
        _ => None,
    });
    Value::Object(entries.flatten().collect())
}

fn show(args: &InspectArgs, about: &Value) -> Result<()> {
    if args.json { report::print_json(about) } else { report::print(table(about, 0).trim_end()) }
}

/// One line per field, and per object of a list; objects are indented, empty lists left out.
fn table(about: &Value, indent: usize) -> String {
    let mut text = String::new();
    for (key, value) in about.as_object().into_iter().flatten() {
        let label = format!("{:indent$}{:<width$}", "", key.replace('_', " "), width = 16 - indent.min(4));
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let _ = write!(text, "{}\n{}", label.trim_end(), table(value, indent + 2));
            }
            Value::Array(items) if items.is_empty() => {}
            Value::Array(items) if items.iter().all(Value::is_object) => {
                let _ = writeln!(text, "{}", label.trim_end());
                for item in items {
                    let _ = writeln!(text, "{:indent$}  {}", "", in_words(item));
                }
            }
            Value::String(text) if text.is_empty() => {}
            Value::Null if key == "variant" => {}
            value => {
                let _ = writeln!(text, "{label}{}", in_words(value));
            }
        }
    }
    text
}

fn in_words(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(in_words).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name} {}", in_words(value)));
            fields.collect::<Vec<_>>().join(", ")
        }
        Value::Null => "unknown".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        other => other.to_string(),
    }
}
