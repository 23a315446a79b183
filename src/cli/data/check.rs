//! `arclet data check`: what is there, and which file is broken and why.

use arclet::data::check::{self, Survey};
use arclet::error::{Error, Result};
use clap::Args;
use serde_json::{Value, json};

use super::args::{SourceArgs, progress};
use crate::cli::options::ReportArgs;
use crate::cli::{interrupt, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet data check lenses/
  arclet data check jets.h5 --classes quark,gluon --json";

/// Reads every image and says which are broken.
///
/// Broken are files that are damaged or hold something else, pixels that are not finite, and images of another size
/// than most. If there are any, the exit code is 3.
#[derive(Args, Debug)]
pub struct CheckArgs {
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Checks.
///
/// # Errors
/// [`Error::Input`] if anything is broken.
pub fn run(args: &CheckArgs) -> Result<()> {
    interrupt::listen()?;
    let pool = args.source.pool()?;
    let mut parts = Vec::new();
    for part in args.source.open()? {
        let mut go_on = progress(args.report.quiet, part.set.len());
        let survey = pool.install(|| check::check(&part.set, &mut go_on));
        let survey = survey.ok_or_else(|| Error::Interrupted("the check was not finished".into()))?;
        parts.push((part.split, survey));
    }
    if args.report.json {
        report::print_json(
            &json!({ "path": args.source.path(), "parts": parts.iter().map(as_json).collect::<Vec<_>>() }),
        )?;
    } else {
        parts.iter().try_for_each(|(split, survey)| show(split.as_deref(), survey))?;
    }
    let broken: Vec<_> = parts.iter().flat_map(|(_, survey)| &survey.broken).collect();
    match broken.first() {
        None => Ok(()),
        Some(first) => {
            let images: usize = parts.iter().map(|(_, survey)| survey.images).sum();
            let row = first.row.map_or(String::new(), |row| format!(" row {row}"));
            let reason = format!(
                "{} of {} broken, the first {}{row}: {}",
                broken.len(),
                report::counted(images, "image"),
                first.file,
                first.reason
            );
            Err(Error::input(args.source.path(), reason))
        }
    }
}

fn as_json((split, survey): &(Option<String>, Survey)) -> Value {
    json!({
        "split": split, "images": survey.images, "classes": survey.classes, "shapes": survey.shapes,
        "broken": survey.broken,
    })
}

fn show(split: Option<&str>, survey: &Survey) -> Result<()> {
    let name = split.unwrap_or("images");
    let classes: Vec<String> = survey.classes.iter().map(|c| format!("{} {}", c.name, c.images)).collect();
    let shapes: Vec<String> = survey
        .shapes
        .iter()
        .map(|s| format!("{} of {}", s.images, s.shape.map(|n| n.to_string()).join(" x ")))
        .collect();
    report::print(format!("{name:<10} {}", report::counted(survey.images, "image")))?;
    report::print(format!("  {:<8} {}", "classes", classes.join(", ")))?;
    report::print(format!("  {:<8} {}", "shapes", shapes.join(", ")))?;
    for finding in &survey.broken {
        let row = finding.row.map_or(String::new(), |row| format!(" row {row}"));
        report::print(format!("  {:<8} {}{row}: {}", "broken", finding.file, finding.reason))?;
    }
    Ok(())
}
