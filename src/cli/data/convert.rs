//! `arclet data convert`: a set of images, written again in plain form.

use std::path::PathBuf;

use arclet::data::convert::{self, Target};
use arclet::error::{Error, Result};
use clap::Args;
use serde_json::json;

use super::args::{SourceArgs, progress, read_transform};
use crate::cli::options::ReportArgs;
use crate::cli::{interrupt, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet data convert jets.h5 jets/ --channels 2,0,1 --resume
  arclet data convert lenses/ lenses.npy --split train --transform vit.toml";

/// Writes a set of images as class folders of f32 .npy, or as one file with labels.
///
/// OUT is a folder (CLASS/N.npy, below the name of the split if the input has several), a .npy (labels in
/// OUT.labels.npy, class names in OUT.json), or a .safetensors (tensors images and labels).
#[derive(Args, Debug)]
pub struct ConvertArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Folder, or file that ends in .npy or .safetensors
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Apply the transform in this TOML file, which must not be random
    #[arg(long, value_name = "FILE.toml")]
    transform: Option<PathBuf>,
    /// Go on where an interrupted run ended
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    report: ReportArgs,
}

/// Converts.
///
/// # Errors
/// [`Error::Usage`] for a random transform or several splits to one file; [`Error::Input`] for a broken image;
/// [`Error::Output`]; [`Error::Interrupted`].
pub fn run(args: &ConvertArgs) -> Result<()> {
    interrupt::listen()?;
    let transform = args.transform.as_deref().map(read_transform).transpose()?.unwrap_or_default();
    if transform.is_random() {
        return Err(Error::usage(
            "--transform: rotation and flips are random, a conversion that gives the same each time expected",
        ));
    }
    let pool = args.source.pool()?;
    let parts = args.source.open()?;
    let target = Target::new(&args.out);
    if parts.len() > 1 && !matches!(target, Target::Folder(_)) {
        let names: Vec<_> = parts.iter().filter_map(|p| p.split.clone()).collect();
        return Err(Error::usage(format!(
            "{}: one file for the splits {}; choose one with --split",
            args.out.display(),
            names.join(", ")
        )));
    }
    let several = parts.len() > 1;
    let (mut written, mut kept) = (0, 0);
    for part in parts {
        let set = part.set.transformed(transform.clone())?;
        let target = match (&target, part.split.filter(|_| several)) {
            (Target::Folder(folder), Some(split)) => Target::Folder(folder.join(split)),
            (target, _) => target.clone(),
        };
        let mut go_on = progress(args.report.quiet, set.len());
        let done = pool.install(|| convert::convert(&set, &target, args.resume, &mut go_on)).map_err(|e| match e {
            Error::Interrupted(what) if !matches!(target, Target::Safetensors(_)) => {
                Error::Interrupted(format!("{what}; --resume goes on from there"))
            }
            other => other,
        })?;
        written += done.written;
        kept += done.kept;
    }
    if args.report.json {
        report::print_json(&json!({ "out": args.out, "written": written, "kept": kept }))?;
    }
    let before = if kept > 0 { format!(" ({kept} were there)") } else { String::new() };
    report::note(args.report.quiet, format!("{} to {}{before}", report::counted(written, "image"), args.out.display()));
    Ok(())
}
