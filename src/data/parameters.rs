//! Continuous parameters of images: columns of the `params.csv` beside the class folders, as `arclet data simulate` writes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::data::set::DataSet;
use crate::error::{Error, Result};
use crate::io::{known, quoted, read_text};

/// Name of the table.
pub const PARAMETERS: &str = "params.csv";
/// Column that says which image a row is about: a path from the table's folder.
const FILE: &str = "file";
/// Largest table, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// Some columns of `params.csv` for every image of a set.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterTable {
    names: Vec<String>,
    /// [images, names].
    values: Vec<f64>,
}

impl ParameterTable {
    /// Names of the columns.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The numbers of image `index`; a field that is empty is not a number.
    pub fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.names.len()..][..self.names.len()]
    }

    /// The numbers of column `at`, image by image.
    pub fn column(&self, at: usize) -> impl Iterator<Item = f64> {
        self.values.iter().skip(at).step_by(self.names.len()).copied()
    }

    /// All numbers, image by image.
    pub fn values(&self) -> &[f64] {
        &self.values
    }
}

/// The columns called `names`, of which there is one at least, for the images of `set`. The table lies in the set's folder,
/// or in the one above it where the set is a split.
///
/// # Errors
/// [`Error::Input`]: no table, a column or a row that it lacks, a field that is no finite number.
pub(super) fn read(set: &DataSet, names: &[String]) -> Result<ParameterTable> {
    let (folder, path) = find(set.path())?;
    let text = read_text(&path, MAX_BYTES)?;
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let header = lines.next().map_or("", |(_, line)| line.trim_start_matches('\u{feff}'));
    let header: Vec<&str> = header.split(',').map(str::trim).collect();
    let find = |name: &str| {
        let at = header.iter().position(|column| *column == name);
        at.ok_or_else(|| Error::input(&path, known::unknown("column", name, header.iter().copied())))
    };
    let file = find(FILE)?;
    let columns: Vec<usize> = names.iter().map(|name| find(name)).collect::<Result<_>>()?;

    let mut rows: HashMap<&str, (usize, Vec<&str>)> = HashMap::new();
    for (number, line) in lines {
        let refuse = |reason: String| Err(Error::input(&path, format!("line {}: {reason}", number + 1)));
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        if fields.len() != header.len() {
            return refuse(format!("{} fields found, {} expected as in line 1", fields.len(), header.len()));
        }
        let wanted = columns.iter().map(|&at| fields[at]).collect();
        if let Some((other, _)) = rows.insert(fields[file], (number, wanted)) {
            return refuse(format!("{} has a row already, line {}", quoted(fields[file]), other + 1));
        }
    }
    let mut values = Vec::with_capacity(set.len() * names.len());
    for index in 0..set.len() {
        let (image, row) = set.place(index);
        if row.is_some() {
            let reason = "holds many images; parameters are read for folders of one .npy file an image";
            return Err(Error::input(image, reason));
        }
        let below = image.strip_prefix(&folder).unwrap_or(image);
        let below = below.components().map(|c| c.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/");
        let Some((number, fields)) = rows.get(below.as_str()) else {
            return Err(Error::input(&path, format!("no row for the image {}", quoted(&below))));
        };
        for (name, field) in names.iter().zip(fields) {
            values.push(parse(field).ok_or_else(|| {
                let found = quoted(field);
                Error::input(&path, format!("line {}: {name} is {found}, a finite number expected", number + 1))
            })?);
        }
    }
    Ok(ParameterTable { names: names.to_vec(), values })
}

/// The table and its folder.
fn find(set: &Path) -> Result<(PathBuf, PathBuf)> {
    let above = set.parent();
    let folders = [Some(set), above].into_iter().flatten();
    let found = folders.map(|folder| (folder.to_path_buf(), folder.join(PARAMETERS))).find(|(_, path)| path.is_file());
    found.ok_or_else(|| {
        let reason =
            format!("found no {PARAMETERS}, in which parameters are looked up; `arclet data simulate` writes one");
        Error::input(set, reason)
    })
}

/// A field: a finite number, or nothing.
fn parse(field: &str) -> Option<f64> {
    if field.is_empty() {
        return Some(f64::NAN);
    }
    field.parse().ok().filter(|value: &f64| value.is_finite())
}
