//! `arclet merge`: the shards of one run, joined into what the whole run would have written.

use std::path::{Path, PathBuf};

use arclet::error::{Error, Result};
use arclet::io::{Checkpoint, NonFinite, read_npy_f32, sha256_file};
use clap::Args;
use serde_json::{Value, json};

use super::options::{ReportArgs, Shard};
use super::output::{SampleWriter, TENSOR, Target};
use super::recipe::Recipe;
use super::report;

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet merge run/samples-1of3.npy run/samples-2of3.npy run/samples-3of3.npy --out run
  arclet merge run/samples-*of100.npy --out run/all.safetensors";

/// Joins the shards of one run.
///
/// Checks that none is missing, given twice, damaged, unfinished or of another run. The result is what the run would
/// have written without --shard.
#[derive(Args, Debug)]
pub struct MergeArgs {
    /// Files that `arclet sample --shard` wrote (.npy or .safetensors), in any order; their recipes (.json) beside them
    #[arg(value_name = "SHARD", required = true)]
    shards: Vec<PathBuf>,
    /// Folder, or file that ends in .npy, .safetensors or .h5
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    #[command(flatten)]
    report: ReportArgs,
}

/// Joins the shards.
///
/// # Errors
/// [`Error::Input`] for shards that do not make one run; [`Error::Output`].
pub fn run(args: &MergeArgs) -> Result<()> {
    let target = Target::new(&args.out, None)?;
    let shards = ordered(&args.shards)?;
    for (path, recipe) in &shards {
        refuse_damaged(path, recipe)?;
    }
    let (_, first) = &shards[0];
    let [_, channels, height, width] = first.shape;
    let mut whole = run_of(first);
    let mut writer = SampleWriter::create(target.clone(), first.total as usize, [channels, height, width])?;
    for (path, recipe) in &shards {
        writer.push(&read(path, recipe)?)?;
        if let (Some(all), Some(some)) = (&mut whole.classes, &recipe.classes) {
            all.extend_from_slice(some);
        }
    }
    let whole = writer.finish(whole)?;
    if args.report.json {
        report::print_json(&json!({ "files": target, "shards": shards.len(), "recipe": whole }))?;
    }
    let images = report::counted(whole.n as usize, "image");
    report::note(args.report.quiet, format!("{images} of {} shards: {}", shards.len(), target.data.display()));
    Ok(())
}

/// What all shards of a run have in common, as the recipe of an empty whole.
fn run_of(recipe: &Recipe) -> Recipe {
    let [_, channels, height, width] = recipe.shape;
    Recipe {
        shard: None,
        first_image: 0,
        n: 0,
        shape: [0, channels, height, width],
        classes: recipe.classes.as_ref().map(|_| Vec::new()),
        data_sha256: None,
        ..recipe.clone()
    }
}

/// The shards with their recipes, from the first to the last, complete and of one run.
fn ordered(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Recipe)>> {
    let mut found: Vec<(Shard, PathBuf, Recipe)> = Vec::new();
    for path in paths {
        let recipe = Recipe::read(&path.with_extension("json"))?;
        let refuse = |reason: String| Err(Error::input(path, reason));
        let Some(shard) = recipe.shard.as_deref().and_then(|s| s.parse::<Shard>().ok()) else {
            return refuse("found a whole run, expected a shard of one".into());
        };
        let range = shard.range(recipe.total);
        if !recipe.complete {
            let wanted = range.end - range.start;
            return refuse(format!("interrupted after {} of {wanted} images; draw this shard again", recipe.n));
        }
        if (recipe.first_image, recipe.first_image.checked_add(recipe.n)) != (range.start, Some(range.end)) {
            let (first, n) = (recipe.first_image, recipe.n);
            return refuse(format!(
                "recipe: {n} images from image {first}, but shard {shard} holds images {} up to {}",
                range.start, range.end
            ));
        }
        if let Some((other, other_path, other_recipe)) = found.first() {
            let other_path = other_path.display();
            if other.count != shard.count {
                return refuse(format!("shard {shard}, but {other_path} is shard {other}"));
            }
            if let Some((field, ours, theirs)) = difference(&run_of(&recipe), &run_of(other_recipe))? {
                return refuse(format!("of another run: {field} is {ours}, but {theirs} in {other_path}"));
            }
        }
        if let Some((_, twice, _)) = found.iter().find(|(s, ..)| *s == shard) {
            return refuse(format!("shard {shard} is given twice, also as {}", twice.display()));
        }
        found.push((shard, path.clone(), recipe));
    }
    found.sort_by_key(|(shard, ..)| shard.index);
    let count = found.first().map_or(0, |(shard, ..)| shard.count);
    // Not more names than anybody reads, however large a count a recipe claims.
    let absent = (1..=count).filter(|&i| found.binary_search_by_key(&i, |(shard, ..)| shard.index).is_err());
    let missing: Vec<String> = absent.take(20).map(|i| format!("{i}/{count}")).collect();
    if !missing.is_empty() {
        let lacking = count - found.len() as u64;
        let which = missing.join(", ");
        return Err(Error::input(&paths[0], format!("{lacking} of the {count} shards of this run missing: {which}")));
    }
    Ok(found.into_iter().map(|(_, path, recipe)| (path, recipe)).collect())
}

/// The first field in which two recipes differ, with both values.
fn difference(ours: &Recipe, theirs: &Recipe) -> Result<Option<(String, Value, Value)>> {
    let json = |r: &Recipe| serde_json::to_value(r).map_err(|e| Error::Runtime(format!("recipe: {e}")));
    let (ours, theirs) = (json(ours)?, json(theirs)?);
    let fields = ours.as_object().into_iter().flatten();
    Ok(fields
        .map(|(field, value)| (field.clone(), value.clone(), theirs[field].clone()))
        .find(|(_, ours, theirs)| ours != theirs))
}

fn refuse_damaged(path: &Path, recipe: &Recipe) -> Result<()> {
    let found = sha256_file(path)?;
    match &recipe.data_sha256 {
        Some(expected) if *expected == found => Ok(()),
        expected => {
            let expected = expected.as_deref().unwrap_or("none");
            Err(Error::input(path, format!("damaged: found sha256 {found}, expected {expected} by its recipe")))
        }
    }
}

/// The images of one shard.
fn read(path: &Path, recipe: &Recipe) -> Result<Vec<f32>> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    let (shape, values) = match extension {
        "npy" => read_npy_f32(path, NonFinite::Allow)?,
        "safetensors" => {
            let file = Checkpoint::open(path)?;
            (file.shape(TENSOR).unwrap_or_default().to_vec(), file.read_f32(TENSOR)?)
        }
        _ => return Err(Error::input(path, format!("found .{extension}, expected a .npy or .safetensors file"))),
    };
    if shape != recipe.shape || shape[0] as u64 != recipe.n {
        return Err(Error::input(path, format!("found shape {shape:?}, expected {:?} by its recipe", recipe.shape)));
    }
    Ok(values)
}
