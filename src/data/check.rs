//! What there is in a data set, and what of it is broken.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::data::set::DataSet;

/// Images that are read together.
pub(crate) const BLOCK: usize = 256;

/// Something broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// Row of the image, in a file of many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row: Option<usize>,
    /// What was found and what was expected.
    pub reason: String,
}

/// Result of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Survey {
    /// Images there are, broken ones included.
    pub images: usize,
    /// Images of each class, by its index.
    pub classes: Vec<ClassCount>,
    /// How many whole images have which shape (channels, height, width), most frequent first.
    pub shapes: Vec<ShapeCount>,
    /// Every broken image, in the order of the set.
    pub broken: Vec<Finding>,
}

/// Size of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCount {
    /// Name.
    pub name: String,
    /// Images.
    pub images: usize,
}

/// How often a shape occurs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShapeCount {
    /// Channels, height, width.
    pub shape: [usize; 3],
    /// Images.
    pub images: usize,
}

/// Reads every image, on the threads of the current rayon pool. Images of another shape than most count as broken, as
/// no batch can hold both. `go_on` is asked between blocks; `None` if it said no.
pub fn check(set: &DataSet, go_on: &mut (dyn FnMut(usize) -> bool + Send)) -> Option<Survey> {
    let mut shapes: BTreeMap<[usize; 3], usize> = BTreeMap::new();
    let mut found: Vec<Result<[usize; 3], String>> = Vec::with_capacity(set.len());
    while found.len() < set.len() {
        if !go_on(found.len()) {
            return None;
        }
        let block: Vec<usize> = (found.len()..set.len().min(found.len() + BLOCK)).collect();
        let read = |&i: &usize| set.read(i).map(|image| image.shape).map_err(|e| reason_of(&e));
        found.extend(block.par_iter().map(read).collect::<Vec<_>>());
    }
    found.iter().flatten().for_each(|shape| *shapes.entry(*shape).or_default() += 1);
    let mut shapes: Vec<_> = shapes.into_iter().map(|(shape, images)| ShapeCount { shape, images }).collect();
    shapes.sort_by_key(|s| std::cmp::Reverse(s.images));
    let usual = shapes.first().cloned();
    let mut broken = Vec::new();
    for (i, result) in found.into_iter().enumerate() {
        let reason = match (result, &usual) {
            (Ok(shape), Some(usual)) if shape != usual.shape => {
                format!(
                    "mixed sizes: found {shape:?} (channels, height, width), expected {:?} as {} have",
                    usual.shape, usual.images
                )
            }
            (Ok(_), _) => continue,
            (Err(reason), _) => reason,
        };
        let (path, row) = set.place(i);
        broken.push(Finding { file: path.display().to_string(), row, reason });
    }
    let mut classes: Vec<_> = set.classes().iter().map(|name| ClassCount { name: name.clone(), images: 0 }).collect();
    set.labels().iter().for_each(|&label| classes[label as usize].images += 1);
    Some(Survey { images: set.len(), classes, shapes, broken })
}

/// An error without the file that it names.
fn reason_of(error: &crate::error::Error) -> String {
    match error {
        crate::error::Error::Input { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}
