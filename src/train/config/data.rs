//! `[data]`: which images, how they are read, and which are kept for validation.

use super::section::{Section, section, within};
use crate::data::{SourceOptions, TransformConfig};

section! {
    /// Where images come from. Paths are relative to the folder that training is started in.
    DataSection, "data" {
        /// Folder or file of images.
        path: Option<String> = None,
        /// Part of the folder to train on; by default `train` where there is one.
        split: Option<String> = None,
        /// Name of the array of images in a file.
        images: Option<String> = None,
        /// Name of the array of labels in a file.
        labels: Option<String> = None,
        /// Names of the classes, in the order that they are numbered in.
        classes: Option<Vec<String>> = None,
        /// Stored channels to take, in this order.
        channels: Option<Vec<usize>> = None,
        /// Whether channels come last in a file of images.
        channels_last: Option<bool> = None,
        /// Part of the folder to validate on; by default `val` where there is one.
        validation_split: Option<String> = None,
        /// Another folder or file to validate on.
        validation_path: Option<String> = None,
        /// Images of a step.
        batch_size: usize = 32,
        /// Threads that read and transform.
        threads: usize = 2,
        /// What images go through; values have to end in the range that the model is to draw.
        transform: TransformConfig = TransformConfig::default(),
    }
}

impl DataSection {
    /// From the table `[data]`.
    pub(super) fn parse(table: &toml::Table) -> Result<Self, String> {
        // Before the rest, for reasons that name the key.
        if let Some(toml::Value::Table(transform)) = table.get("transform") {
            TransformConfig::from_table(transform).map_err(|reason| format!("transform: {reason}"))?;
        }
        Self::from_table(table)
    }

    fn check(&self) -> Result<(), String> {
        within("batch_size", self.batch_size, 1..=65_536)?;
        within("threads", self.threads, 1..=256)?;
        for (key, path) in [("path", &self.path), ("validation_path", &self.validation_path)] {
            if path.as_ref().is_some_and(String::is_empty) {
                return Err(format!("{key} is empty, a folder or file expected"));
            }
        }
        self.transform.validate().map_err(|reason| format!("transform: {reason}"))
    }

    /// How the images to train on are opened.
    pub fn source(&self) -> SourceOptions {
        SourceOptions {
            split: self.split.clone(),
            images: self.images.clone(),
            labels: self.labels.clone(),
            classes: self.classes.clone(),
            channels: self.channels.clone(),
            channels_last: self.channels_last,
        }
    }

    /// How the images to validate on are opened, which are held to the `classes` that are trained on.
    pub fn validation_source(&self, classes: &[String]) -> SourceOptions {
        SourceOptions { split: self.validation_split.clone(), classes: Some(classes.to_vec()), ..self.source() }
    }

    /// The images as a training step sees them, of this range: what the transform ends in, [-1, 1] where it does not say.
    pub fn value_range(&self) -> (f32, f32) {
        self.transform.output_range.map_or((-1.0, 1.0), |[low, high]| (low, high))
    }
}
