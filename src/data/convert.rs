//! Writing a data set again in plain form: class folders of f32 `.npy`, or one array with a column of labels.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value, json};

use crate::data::image::Image;
use crate::data::set::DataSet;
use crate::error::{Error, Result};
use crate::io::json::parse_strict;
use crate::io::{FileDType, NpyPart, TensorBytes, write_atomic, write_npy_f32, write_npy_u32, write_safetensors};

/// What a folder was made from; a later run goes on only if it is the same.
const MANIFEST: &str = "convert.json";
/// Images that are read together.
const BLOCK: usize = 64;

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `DIR/CLASS/N.npy`, N from 1 in each class.
    Folder(PathBuf),
    /// One array (N, C, H, W), labels in `STEM.labels.npy`, names of the classes in `STEM.json`.
    Npy(PathBuf),
    /// Tensors `images` and `labels`, names of the classes in the metadata.
    Safetensors(PathBuf),
}

impl Target {
    /// What the path of an output means: a file if it ends like one, else a folder.
    pub fn new(path: &Path) -> Self {
        match path.extension().and_then(|e| e.to_str()) {
            Some("npy") => Self::Npy(path.to_path_buf()),
            Some("safetensors") => Self::Safetensors(path.to_path_buf()),
            _ => Self::Folder(path.to_path_buf()),
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Images written now.
    pub written: usize,
    /// Images that an earlier run had written.
    pub kept: usize,
}

/// Writes all images of `set` after the parts of its transform that do not depend on chance. With `resume`, goes on
/// where an earlier run of the same set ended. `go_on` is asked between blocks with the number done.
///
/// # Errors
/// [`Error::Input`] for a broken image, images of several sizes in one array, or the remains of another run;
/// [`Error::Output`] for an output that is there already or cannot be written; [`Error::Interrupted`] if `go_on` said
/// no, with finished images kept where the target allows; [`Error::Usage`] to resume a safetensors file.
pub fn convert(
    set: &DataSet,
    target: &Target,
    resume: bool,
    go_on: &mut (dyn FnMut(usize) -> bool + Send),
) -> Result<Converted> {
    match target {
        Target::Folder(folder) => to_folder(set, folder, resume, go_on),
        Target::Npy(path) => to_npy(set, path, resume, go_on),
        Target::Safetensors(path) => {
            if resume {
                return Err(Error::usage(
                    "--resume: a .safetensors file is written whole; a folder or a .npy can be resumed",
                ));
            }
            to_safetensors(set, path, go_on)
        }
    }
}

/// Runs `use_it` on every image from `first` on, in order; images are read in parallel.
fn for_each(
    set: &DataSet,
    indices: &[usize],
    go_on: &mut (dyn FnMut(usize) -> bool + Send),
    mut use_it: impl FnMut(&[(usize, Image)]) -> Result<()>,
) -> Result<()> {
    let done_before = set.len() - indices.len();
    for (i, block) in indices.chunks(BLOCK).enumerate() {
        let done = done_before + i * BLOCK;
        if !go_on(done) {
            return Err(Error::Interrupted(format!("{done} of {} images converted", set.len())));
        }
        let images: Vec<(usize, Image)> =
            block.par_iter().map(|&i| Ok((i, set.take(i, None)?))).collect::<Result<_>>()?;
        use_it(&images)?;
    }
    Ok(())
}

fn to_folder(
    set: &DataSet,
    folder: &Path,
    resume: bool,
    go_on: &mut (dyn FnMut(usize) -> bool + Send),
) -> Result<Converted> {
    for class in set.classes() {
        refuse_as_folder(set.path(), class)?;
    }
    let manifest = describe(set)?;
    begin(folder, &manifest, resume)?;
    let mut numbers = vec![0usize; set.classes().len()];
    let path_of = |label: u32| {
        let number = &mut numbers[label as usize];
        *number += 1;
        folder.join(&set.classes()[label as usize]).join(format!("{number}.npy"))
    };
    let paths: Vec<PathBuf> = set.labels().iter().copied().map(path_of).collect();
    // Files appear whole or not at all, so one that is there is done.
    let missing: Vec<usize> = (0..set.len()).filter(|&i| !paths[i].is_file()).collect();
    for class in set.classes() {
        let path = folder.join(class);
        std::fs::create_dir_all(&path).map_err(|e| Error::output(&path, e))?;
    }
    for_each(set, &missing, go_on, |images| {
        images.par_iter().try_for_each(|(i, image)| {
            let [c, h, w] = image.shape;
            let shape = if c == 1 { vec![h, w] } else { vec![c, h, w] };
            write_npy_f32(&paths[*i], &shape, &image.pixels)
        })
    })?;
    Ok(Converted { written: missing.len(), kept: set.len() - missing.len() })
}

/// Names of classes come from files: as folders they must be names and not paths.
fn refuse_as_folder(path: &Path, class: &str) -> Result<()> {
    let plain = Path::new(class).components().count() == 1
        && matches!(Path::new(class).components().next(), Some(std::path::Component::Normal(_)))
        && !class.starts_with('.')
        && !class.contains(['/', '\\', '\0']);
    if plain { Ok(()) } else { Err(Error::input(path, format!("class {class:?}: cannot be the name of a folder"))) }
}

/// What the conversion is of: sets that differ in any of this give other files.
fn describe(set: &DataSet) -> Result<Value> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    set.labels().iter().for_each(|&label| *counts.entry(&set.classes()[label as usize]).or_default() += 1);
    let transform = serde_json::to_value(set.transform()).map_err(|e| Error::Runtime(format!("JSON: {e}")))?;
    let source = set.path().file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    Ok(json!({
        "source": source, "images": set.len(), "shape": set.shape()?, "class_names": set.classes(), "counts": counts,
        "transform": transform,
    }))
}

/// Makes the folder, or makes sure that it holds the beginning of the same conversion.
fn begin(folder: &Path, manifest: &Value, resume: bool) -> Result<()> {
    let path = folder.join(MANIFEST);
    let occupied = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if occupied && !resume {
        let reason =
            std::io::Error::new(std::io::ErrorKind::AlreadyExists, "the folder is not empty; --resume goes on with it");
        return Err(Error::output(folder, reason));
    }
    if occupied {
        let text = std::fs::read_to_string(&path).map_err(|e| Error::input(&path, format!("cannot be read: {e}")))?;
        let found = parse_strict(&text).map_err(|reason| Error::input(&path, format!("JSON: {reason}")))?;
        let fields = manifest.as_object().into_iter().flatten();
        if let Some((field, ours)) = fields.into_iter().find(|(field, ours)| found[field.as_str()] != **ours) {
            let theirs = &found[field.as_str()];
            return Err(Error::input(&path, format!("of another conversion: {field} is {theirs}, expected {ours}")));
        }
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::output(folder, e))?;
    write_json(&path, manifest)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::Runtime(format!("JSON: {e}")))?;
    write_atomic(path, (text + "\n").as_bytes())
}

fn to_npy(
    set: &DataSet,
    path: &Path,
    resume: bool,
    go_on: &mut (dyn FnMut(usize) -> bool + Send),
) -> Result<Converted> {
    let whole @ [c, h, w] = set.shape()?;
    make_parent(path)?;
    let mut part = NpyPart::open(path, &[set.len(), c, h, w], resume)?;
    let kept = part.rows();
    let rest: Vec<usize> = (kept..set.len()).collect();
    for_each(set, &rest, go_on, |images| {
        for (i, image) in images {
            refuse_other_size(set, *i, image.shape, whole)?;
            part.push(&image.pixels)?;
        }
        Ok(())
    })?;
    write_npy_u32(path.with_extension("labels.npy"), set.labels())?;
    write_json(&path.with_extension("json"), &describe(set)?)?;
    part.finish()?;
    Ok(Converted { written: set.len() - kept, kept })
}

fn to_safetensors(set: &DataSet, path: &Path, go_on: &mut (dyn FnMut(usize) -> bool + Send)) -> Result<Converted> {
    let whole @ [c, h, w] = set.shape()?;
    let mut values: Vec<f32> = Vec::new();
    let total = set.len().saturating_mul(c * h * w);
    let full = |_| Error::Runtime(format!("no memory for {total} values at once; write a folder or a .npy instead"));
    values.try_reserve_exact(total).map_err(full)?;
    let all: Vec<usize> = (0..set.len()).collect();
    for_each(set, &all, go_on, |images| {
        for (i, image) in images {
            refuse_other_size(set, *i, image.shape, whole)?;
            values.extend_from_slice(&image.pixels);
        }
        Ok(())
    })?;
    make_parent(path)?;
    let labels: Vec<u8> = set.labels().iter().flat_map(|v| v.to_le_bytes()).collect();
    let tensors = [
        TensorBytes::from_f32("images", &[set.len(), c, h, w], &values),
        TensorBytes { name: "labels".into(), dtype: FileDType::U32, shape: vec![set.len()], bytes: labels.into() },
    ];
    let names = json!(set.classes()).to_string();
    write_safetensors(path, tensors, &BTreeMap::from([("class_names".to_owned(), names)]))?;
    Ok(Converted { written: set.len(), kept: 0 })
}

fn refuse_other_size(set: &DataSet, index: usize, found: [usize; 3], expected: [usize; 3]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let (path, _) = set.place(index);
    let reason =
        format!("mixed sizes: found {found:?} (channels, height, width), expected {expected:?} as in the first image");
    Err(Error::input(path, reason))
}

fn make_parent(path: &Path) -> Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => std::fs::create_dir_all(parent).map_err(|e| Error::output(parent, e)),
        None => Ok(()),
    }
}
