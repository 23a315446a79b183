//! Folders of images: `CLASS/*.npy` with or without `train/`, `val/` above, and folders of one array file per class.

use std::cmp::Ordering;
use std::fs::FileType;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Names of the parts of a data set, in the order they are listed.
pub const SPLITS: [&str; 5] = ["train", "val", "valid", "validation", "test"];
/// Kinds of files that hold many images.
const TABLES: [&str; 4] = ["npz", "h5", "hdf5", "safetensors"];

/// Image files and the classes they are of.
#[derive(Clone, Debug, PartialEq)]
pub enum Listing {
    /// One image a file, each with the name of its class.
    Images(Vec<(PathBuf, String)>),
    /// Files of many images of one class.
    Tables(Vec<(PathBuf, String)>),
}

/// The splits that a folder has: sub-folders of those names, or files `SPLIT_CLASS.npz`.
pub fn splits(root: &Path) -> Result<Vec<String>> {
    let entries = entries(root)?;
    let here = |split: &&&str| {
        entries.iter().any(|e| {
            (e.folder && e.name == ***split)
                || (!e.folder && table_class(&e.path).is_some_and(|(s, _)| s == Some(**split)))
        })
    };
    Ok(SPLITS.iter().filter(here).map(|s| (*s).to_owned()).collect())
}

/// The images of `root`, or of its split. Classes in order of their names, files in order of their numbers.
/// [`Error::Input`] for a folder without images, or with images both in class folders and beside them.
pub fn list(root: &Path, split: Option<&str>) -> Result<Listing> {
    if let Some(split) = split {
        let tables: Vec<_> = class_tables(root)?.into_iter().filter(|(_, s, _)| s.as_deref() == Some(split)).collect();
        if !tables.is_empty() && !root.join(split).is_dir() {
            return Ok(Listing::Tables(tables.into_iter().map(|(path, _, class)| (path, class)).collect()));
        }
        return list(&root.join(split), None);
    }
    let entries = entries(root)?;
    let loose: Vec<PathBuf> = entries.iter().filter(|e| !e.folder && is_npy(&e.path)).map(|e| e.path.clone()).collect();
    let mut images = Vec::new();
    for class in entries.iter().filter(|e| e.folder) {
        let files = self::entries(&class.path)?.into_iter().filter(|e| !e.folder && is_npy(&e.path));
        images.extend(files.map(|e| (e.path, class.name.clone())));
    }
    match (images.is_empty(), loose.is_empty()) {
        (false, true) => return Ok(Listing::Images(images)),
        (true, false) => {
            let class = root.file_name().map_or_else(|| "images".into(), |n| n.to_string_lossy().into_owned());
            return Ok(Listing::Images(loose.into_iter().map(|path| (path, class.clone())).collect()));
        }
        (false, false) => {
            let reason = format!("found {} .npy files beside class folders, expected one or the other", loose.len());
            return Err(Error::input(root, reason));
        }
        (true, true) => {}
    }
    let tables: Vec<_> = class_tables(root)?.into_iter().filter(|(_, split, _)| split.is_none()).collect();
    if tables.is_empty() {
        let reason = "found no images, expected CLASS/*.npy, train/CLASS/*.npy or CLASS.npz";
        return Err(Error::input(root, reason));
    }
    Ok(Listing::Tables(tables.into_iter().map(|(path, _, class)| (path, class)).collect()))
}

struct Entry {
    path: PathBuf,
    name: String,
    folder: bool,
}

/// Visible entries of a folder in natural order.
fn entries(folder: &Path) -> Result<Vec<Entry>> {
    let failed = |e: std::io::Error| Error::input(folder, format!("cannot be listed: {e}"));
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        // Only a link costs a look at what it points to.
        let folder = if FileType::is_symlink(&kind) { path.is_dir() } else { kind.is_dir() };
        out.push(Entry { path, name, folder });
    }
    out.sort_by(|a, b| natural(&a.name, &b.name));
    Ok(out)
}

fn has_extension(path: &Path, known: &[&str]) -> bool {
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| known.contains(&e.to_ascii_lowercase().as_str()))
}

fn is_npy(path: &Path) -> bool {
    has_extension(path, &["npy"])
}

/// Split and class that the name of a file of many images tells.
fn table_class(path: &Path) -> Option<(Option<&'static str>, String)> {
    let stem = path.file_stem()?.to_str().filter(|_| has_extension(path, &TABLES))?;
    let split = SPLITS.iter().find_map(|split| Some((*split, stem.strip_prefix(split)?.strip_prefix('_')?)));
    Some(match split {
        Some((split, class)) => (Some(split), class.to_owned()),
        None => (None, stem.to_owned()),
    })
}

fn class_tables(root: &Path) -> Result<Vec<(PathBuf, Option<String>, String)>> {
    let files = entries(root)?.into_iter().filter(|e| !e.folder);
    Ok(files
        .filter_map(|e| {
            let (split, class) = table_class(&e.path)?;
            Some((e.path, split.map(str::to_owned), class))
        })
        .collect())
}

/// Order of names in which runs of digits count as numbers: 2.npy before 10.npy.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (na, nb) = (digits(a), digits(b));
        let order = if na > 0 && nb > 0 {
            let (x, y) = (a[..na].trim_start_matches('0'), b[..nb].trim_start_matches('0'));
            let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y)).then(na.cmp(&nb));
            (a, b) = (&a[na..], &b[nb..]);
            order
        } else {
            let (mut ca, mut cb) = (a.chars(), b.chars());
            let order = ca.next().cmp(&cb.next());
            if a.is_empty() && b.is_empty() {
                return Ordering::Equal;
            }
            (a, b) = (ca.as_str(), cb.as_str());
            order
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_ordered_by_their_numbers() {
        let mut names = ["10.npy", "2.npy", "a10b", "a2b", "", "1.npy", "a", "02.npy", "é3", "é20"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["", "1.npy", "2.npy", "02.npy", "10.npy", "a", "a2b", "a10b", "é3", "é20"]);
    }
}
