//! Numbers of a label column, turned into indices of classes.

use std::path::Path;

use crate::error::{Error, Result};

/// Most classes that a column without names may have.
const MAX_CLASSES: usize = 10_000;

/// Indices of `values`, which must be whole numbers from 0 to below the number of `classes`. Without names the classes
/// are called by their numbers. [`Error::Input`] names the row of a label outside them.
pub fn from_numbers(path: &Path, values: &[f32], classes: Option<Vec<String>>) -> Result<(Vec<u32>, Vec<String>)> {
    let limit = classes.as_ref().map_or(MAX_CLASSES, Vec::len);
    let mut highest = 0;
    let mut labels = Vec::with_capacity(values.len());
    for (row, &value) in values.iter().enumerate() {
        if value.fract() != 0.0 || !(0.0..limit as f32).contains(&value) {
            let expected = match &classes {
                Some(names) => format!("0 to {} ({})", limit.saturating_sub(1), names.join(", ")),
                None => format!("a whole number below {limit}"),
            };
            return Err(Error::input(path, format!("label of row {row}: found {value}, expected {expected}")));
        }
        highest = highest.max(value as usize);
        labels.push(value as u32);
    }
    let names = classes.unwrap_or_else(|| (0..=highest).map(|c| c.to_string()).collect());
    Ok((labels, names))
}
