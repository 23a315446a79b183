//! What a run was trained on, so that other images of the same name are noticed.

use std::fmt::Write;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::DataSet;
use crate::error::{Error, Result};
use crate::io::digest::sha256_of_parts;
use crate::io::sha256_file;

/// Most bytes whose content is digested.
const MAX_CONTENT: u64 = 1 << 30;

/// A set of images.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecord {
    /// Folder or file, as it was given.
    pub path: String,
    /// Number of images.
    pub images: u64,
    /// Images of each class, by the class's number.
    pub classes: Vec<(String, u64)>,
    /// Channels, height and width after the transform.
    pub shape: [usize; 3],
    /// What the digest is of.
    pub hashed: Hashed,
    /// SHA-256 over the files in order (name below `path`, size, and the digest of the content where it counts), the
    /// names of the classes, the label of each image as four little-endian bytes, and, where the model takes some, the
    /// parameters of each image as eight of each.
    pub sha256: String,
}

/// What is digested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hashed {
    /// Names, sizes, labels and every byte of the files.
    Content,
    /// Names, sizes and labels: the files have more than a gibibyte.
    Listing,
}

impl DataRecord {
    /// Describes `set`; reads its files on the threads of the current rayon pool if they have up to a gibibyte together.
    ///
    /// # Errors
    /// [`Error::Input`] for a file that cannot be read.
    pub fn of(set: &DataSet) -> Result<Self> {
        let mut files: Vec<&Path> = Vec::new();
        for index in 0..set.len() {
            let (path, _) = set.place(index);
            if files.last() != Some(&path) {
                files.push(path);
            }
        }
        let size = |path: &&Path| {
            let found = std::fs::metadata(path).map_err(|e| Error::input(path, format!("cannot be read: {e}")))?;
            Ok(found.len())
        };
        let sizes: Vec<u64> = files.iter().map(size).collect::<Result<_>>()?;
        let total = sizes.iter().fold(0u64, |sum, &size| sum.saturating_add(size));
        let hashed = if total <= MAX_CONTENT { Hashed::Content } else { Hashed::Listing };
        let digests: Vec<String> = match hashed {
            Hashed::Content => files.par_iter().map(sha256_file).collect::<Result<_>>()?,
            Hashed::Listing => vec![String::from("-"); files.len()],
        };
        let mut listing = String::new();
        for ((path, size), digest) in files.iter().zip(&sizes).zip(&digests) {
            let name = path.strip_prefix(set.path()).unwrap_or(path);
            // Writing to a string cannot fail.
            let _ = writeln!(listing, "{digest} {size} {:?}", name.to_string_lossy());
        }
        let _ = writeln!(listing, "{:?}", set.classes());
        let labels: Vec<u8> = set.labels().iter().flat_map(|label| label.to_le_bytes()).collect();
        let parameters = set.parameters().map_or(&[][..], |table| table.values());
        let parameters: Vec<u8> = parameters.iter().flat_map(|value| value.to_le_bytes()).collect();

        let mut classes: Vec<(String, u64)> = set.classes().iter().map(|name| (name.clone(), 0)).collect();
        for &label in set.labels() {
            classes[label as usize].1 += 1;
        }
        Ok(Self {
            path: set.path().display().to_string(),
            images: set.len() as u64,
            classes,
            shape: set.shape()?,
            hashed,
            sha256: sha256_of_parts([listing.as_bytes(), &labels, &parameters]),
        })
    }

    /// How the images `found` now differ from those that the record is of, if they do; wherever they lie.
    pub fn difference(&self, found: &Self) -> Option<String> {
        let moved = Self { path: self.path.clone(), ..found.clone() };
        (moved != *self).then(|| {
            let what = if self.images != found.images {
                format!("found {} images, the run began with {}", found.images, self.images)
            } else if self.classes != found.classes {
                "the classes are not those that the run began with".into()
            } else if self.shape != found.shape {
                format!("images are {:?} now, {:?} when the run began", found.shape, self.shape)
            } else {
                "the files are not those that the run began with, or their parameters are others".into()
            };
            format!("{}: {what}", found.path)
        })
    }
}
