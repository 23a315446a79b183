//! `arclet convert`: a checkpoint trained elsewhere, written in our own layout.

use std::path::{Path, PathBuf};

use arclet::error::{Error, Result};
use arclet::io::{Checkpoint, FileDType, TensorBytes};
use arclet::models::export::write_model;
use arclet::models::import::Import;
use arclet::models::specs;
use arclet::tensor::DType;
use clap::{Args, ValueEnum};
use half::{bf16, f16};
use serde_json::json;

use super::model::{Source, Weights};
use super::options::ReportArgs;
use super::report;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet convert checkpoint.safetensors model
  arclet convert hub-snapshot/ model-f16 --dtype f16";

/// Writes a checkpoint in arclet's own layout.
///
/// The folder gets `model.safetensors`, with the configuration in its metadata, and `config.json`. Names lose the
/// wrappers of training scripts, shards become one file, keys that the model does not use are left out.
#[derive(Args, Debug)]
pub struct ConvertArgs {
    /// Weights file, model folder or built-in model
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// Folder to write
    #[arg(value_name = "OUT_DIR")]
    output: PathBuf,
    /// Type of the written numbers
    #[arg(long, value_enum, default_value = "f32")]
    dtype: StoredType,
    /// Write into a folder that is not empty
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StoredType {
    F32,
    F16,
    Bf16,
}

impl StoredType {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
            Self::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        }
    }
}

/// Converts.
///
/// # Errors
/// [`Error::Input`] for weights that do not fit or overflow the type; [`Error::Output`] for a folder that is not empty
/// or cannot be written.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let source = Source::open(Some(&args.input))?;
    let weights = source.weights(args.report.quiet)?;
    refuse_occupied(&args.output, args.force)?;
    let tensors = tensors(&weights, args.dtype)?;

    let count = tensors.len();
    // Before the model that names it.
    if let Some(folder) = &weights.config().autoencoder {
        let autoencoder = Source::open(Some(&source.home().join(folder)))?;
        let autoencoder = autoencoder.weights(args.report.quiet)?;
        write(&args.output.join(folder), &autoencoder, self::tensors(&autoencoder, args.dtype)?)?;
    }
    let written = write(&args.output, &weights, tensors)?;

    let unused = match &weights {
        Weights::Import(import) => import.unused.clone(),
        Weights::Hash(_) => Vec::new(),
    };
    let dtype = args.dtype.dtype();
    if args.report.json {
        report::print_json(&json!({
            "out": args.output, "tensors": count, "dtype": dtype.name(), "bytes": written.total_bytes(),
            "sha256": written.sha256(), "left_out": unused,
        }))?;
    }
    let what = report::counted(count, "tensor");
    let left_out = if unused.is_empty() { String::new() } else { format!("; {} unused left out", unused.len()) };
    report::note(args.report.quiet, format!("{what} in {dtype} to {}{left_out}", args.output.display()));
    Ok(())
}

/// Writes a model into `folder` and reads it back.
fn write(folder: &Path, weights: &Weights, tensors: Vec<TensorBytes>) -> Result<Checkpoint> {
    std::fs::create_dir_all(folder).map_err(|e| Error::output(folder, e))?;
    write_model(folder, weights.config(), tensors)?;
    let written = Checkpoint::open(folder)?;
    if Import::new(&written)?.config != *weights.config() {
        return Err(Error::Runtime(format!("{} reads back as another model", folder.display())));
    }
    Ok(written)
}

/// Every parameter under our name.
fn tensors(weights: &Weights, stored: StoredType) -> Result<Vec<TensorBytes<'static>>> {
    let source = weights.source();
    let dtype = stored.dtype();
    let one = |spec: arclet::nn::params::ParamSpec| {
        let values = source.read(&spec.name)?;
        if let Some(value) = values.iter().find(|&&v| !dtype.round(v).is_finite()) {
            return Err(Error::input(source.origin(), format!("{}: {value:e} is too large for {dtype}", spec.name)));
        }
        let bytes = stored.bytes(&values).into();
        Ok(TensorBytes { name: spec.name.into(), dtype: FileDType::from(dtype), shape: spec.shape, bytes })
    };
    specs(weights.config()).into_iter().map(one).collect()
}

/// Nothing is overwritten unless that was asked for.
///
/// # Errors
/// [`Error::Output`] for a folder that is not empty and was not forced, or cannot be read.
pub fn refuse_occupied(folder: &Path, force: bool) -> Result<()> {
    let occupied = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::output(folder, e)),
    };
    if occupied && !force {
        let reason = "the folder is not empty; --force writes into it all the same";
        return Err(Error::output(folder, std::io::Error::new(std::io::ErrorKind::AlreadyExists, reason)));
    }
    Ok(())
}
