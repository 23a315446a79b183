//! `arclet data stats`: numbers about the values of a set.

use std::path::PathBuf;

use arclet::data::stats::{self, ClassStats};
use arclet::error::{Error, Result};
use clap::Args;
use serde_json::json;

use super::args::{SourceArgs, progress, read_transform};
use crate::cli::options::ReportArgs;
use crate::cli::{interrupt, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet data stats lenses/ --split train
  arclet data stats jets.h5 --transform jets.toml --json";

/// Counts, sizes, value ranges, mean, deviation and percentiles, class by class.
#[derive(Args, Debug)]
pub struct StatsArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// Measure after the transform in this TOML file, without its random steps
    #[arg(long, value_name = "FILE.toml")]
    transform: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Measures.
///
/// # Errors
/// [`Error::Input`] for the first broken image.
pub fn run(args: &StatsArgs) -> Result<()> {
    interrupt::listen()?;
    let pool = args.source.pool()?;
    let transform = args.transform.as_deref().map(read_transform).transpose()?.unwrap_or_default();
    let mut parts = Vec::new();
    for part in args.source.open()? {
        let set = part.set.transformed(transform.clone())?;
        let mut go_on = progress(args.report.quiet, set.len());
        let classes = pool.install(|| stats::stats(&set, &mut go_on))?;
        let classes = classes.ok_or_else(|| Error::Interrupted("the statistics were not finished".into()))?;
        parts.push((part.split, classes));
    }
    if args.report.json {
        let parts: Vec<_> =
            parts.iter().map(|(split, classes)| json!({ "split": split, "classes": classes })).collect();
        return report::print_json(&json!({ "path": args.source.path(), "parts": parts }));
    }
    for (split, classes) in &parts {
        for class in classes {
            show(split.as_deref(), class)?;
        }
    }
    Ok(())
}

fn show(split: Option<&str>, class: &ClassStats) -> Result<()> {
    let name = split.map_or(class.name.clone(), |s| format!("{s}/{}", class.name));
    let shapes: Vec<String> = class
        .shapes
        .iter()
        .map(|s| format!("{} of {}", s.images, s.shape.map(|n| n.to_string()).join(" x ")))
        .collect();
    let percentiles: Vec<String> =
        class.percentiles.iter().map(|p| format!("{} %: {:.4}", p.percent, p.value)).collect();
    report::print(format!("{name:<16} {}", report::counted(class.images, "image")))?;
    report::print(format!("  {:<12} {}", "shapes", shapes.join(", ")))?;
    let spread = format!("{:.6} +- {:.6}, {:.2} % are 0", class.mean, class.std, 100.0 * class.zeros);
    report::print(format!("  {:<12} {} to {}, mean {spread}", "values", class.min, class.max))?;
    report::print(format!("  {:<12} {}", "percentiles", percentiles.join(", ")))
}
