//! Flags that the subcommands of `arclet data` share.

use std::path::PathBuf;

use arclet::data::TransformConfig;
use arclet::data::set::{DataSet, SourceOptions, splits};
use arclet::device::cpu::Cpu;
use arclet::error::{Error, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::interrupt;

/// Which images.
#[derive(Args, Debug, Clone)]
pub struct SourceArgs {
    /// Folder (CLASS/*.npy, with or without train/ and val/ above; or CLASS.npz), or one .npy, .npz, .h5 or .safetensors file
    #[arg(value_name = "DIR|FILE")]
    path: PathBuf,
    /// Only this part of a folder, for instance train
    #[arg(long, value_name = "NAME")]
    split: Option<String>,
    /// Names of the classes: of labels 0, 1, ... in a file, or of the folders that there may be
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    classes: Option<Vec<String>>,
    /// Name of the array of images in a file [default: X_jets, images, x, ... whichever there is]
    #[arg(long, value_name = "KEY")]
    images: Option<String>,
    /// Name of the array of labels in a file [default: y, labels, ... whichever there is]
    #[arg(long, value_name = "KEY")]
    labels: Option<String>,
    /// Channels to take, in this order, for instance 2,0,1
    #[arg(long, value_name = "C,...", value_delimiter = ',')]
    channels: Option<Vec<usize>>,
    /// Threads that read [default: as many as there are]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// One part of what was asked for.
pub struct Part {
    /// Name, where there are several.
    pub split: Option<String>,
    /// Its images.
    pub set: DataSet,
}

impl SourceArgs {
    /// As it was given.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Every split, or the one that was asked for.
    ///
    /// # Errors
    /// Those of [`DataSet::open`].
    pub fn open(&self) -> Result<Vec<Part>> {
        let all = if self.split.is_some() { Vec::new() } else { splits(&self.path)? };
        if all.is_empty() {
            return Ok(vec![Part { split: self.split.clone(), set: self.open_split(self.split.clone())? }]);
        }
        all.into_iter().map(|s| Ok(Part { set: self.open_split(Some(s.clone()))?, split: Some(s) })).collect()
    }

    fn open_split(&self, split: Option<String>) -> Result<DataSet> {
        let options = SourceOptions {
            split,
            images: self.images.clone(),
            labels: self.labels.clone(),
            classes: self.classes.clone(),
            channels: self.channels.clone(),
            channels_last: None,
        };
        DataSet::open(&self.path, &options)
    }

    /// The threads to read with.
    ///
    /// # Errors
    /// [`Error::Runtime`] if the system refuses them.
    pub fn pool(&self) -> Result<Cpu> {
        Cpu::new(self.threads.unwrap_or(0).into())
    }
}

/// Settings of a transform from the file that `--transform` names.
///
/// # Errors
/// [`Error::Input`] that names the key that does not fit.
pub fn read_transform(path: &std::path::Path) -> Result<TransformConfig> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::input(path, format!("cannot be read: {e}")))?;
    TransformConfig::from_toml(path, &text)
}

/// A bar on a terminal that also hears Ctrl-C: the function says whether to go on.
pub fn progress(quiet: bool, total: usize) -> impl FnMut(usize) -> bool + Send {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(total as u64) };
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} images, {eta} left") {
        bar.set_style(style);
    }
    let bar = Cleared(bar);
    move |done| {
        bar.0.set_position(done as u64);
        !interrupt::requested()
    }
}

/// Removes the bar when it is dropped.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
