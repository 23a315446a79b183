//! `metrics.jsonl`: what a run measured, one JSON object a line, by rising step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::AtomicFile;
use crate::io::json::parse_strict;

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// A line of the file. Numbers that are not finite are written as `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// Optimizer steps since the last such line.
    Train {
        /// Steps done.
        step: u64,
        /// Images seen.
        images: u64,
        /// Mean loss of those steps.
        loss: f64,
        /// Learning rate of the last one.
        learning_rate: f64,
        /// Length of its gradient before clipping.
        gradient_norm: f64,
        /// Images a second.
        images_per_s: f64,
        /// Seconds of training, those before a resume included.
        seconds: f64,
        /// Loss scale; f16 only.
        #[serde(skip_serializing_if = "Option::is_none")]
        loss_scale: Option<f64>,
    },
    /// A validation.
    Validation {
        /// Steps done.
        step: u64,
        /// Images that were looked at.
        images: u64,
        /// Mean loss of the averaged weights, or of the weights where none are averaged.
        loss: f64,
        /// Whether it is the best one so far.
        best: bool,
    },
    /// Anything worth knowing: a step that overflowed and was skipped, a batch that was halved, a resume.
    Event {
        /// Steps done.
        step: u64,
        /// What happened.
        message: String,
    },
}

impl Record {
    /// Steps done when it was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Train { step, .. } | Self::Validation { step, .. } | Self::Event { step, .. } => *step,
        }
    }
}

/// The file, open for more lines.
#[derive(Debug)]
pub struct Metrics {
    path: PathBuf,
    file: File,
    /// Step of the last line.
    last: u64,
}

impl Metrics {
    /// A new, empty file. [`Error::Output`] if there is one already, or it cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = OpenOptions::new().append(true).create_new(true).open(path).map_err(|e| Error::output(path, e))?;
        Ok(Self { path: path.to_path_buf(), file, last: 0 })
    }

    /// The file of a run that goes on from `step`: lines of later steps are dropped, and so is what a crash left of a
    /// line; a missing file is created. Returns how many lines were dropped, too.
    ///
    /// # Errors
    /// [`Error::Input`] if it cannot be read, [`Error::Output`] if it cannot be written; then it is as it was.
    pub fn resume(path: impl AsRef<Path>, step: u64) -> Result<(Self, usize)> {
        let path = path.as_ref();
        let mut kept = AtomicFile::create(path)?;
        let (mut dropped, mut last) = (0, 0);
        each_line(path, |line| {
            match line.filter(|json| (last..=step).contains(&step_of(json).unwrap_or(u64::MAX))) {
                None => dropped += 1,
                Some(json) => {
                    last = step_of(&json).unwrap_or(last);
                    kept.put(format!("{json}\n").as_bytes())?;
                }
            }
            Ok(())
        })?;
        kept.commit()?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::output(path, e))?;
        Ok((Self { path: path.to_path_buf(), file, last }, dropped))
    }

    /// Writes a line, which the system has when this returns.
    ///
    /// # Errors
    /// [`Error::Output`]; [`Error::Runtime`] for a step before that of the last line.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let (step, last) = (record.step(), self.last);
        if step < last {
            return Err(Error::Runtime(format!("metrics of step {step} after those of step {last}")));
        }
        let line = serde_json::to_string(record).map_err(|e| Error::Runtime(format!("metrics: {e}")))? + "\n";
        self.file.write_all(line.as_bytes()).map_err(|e| Error::output(&self.path, e))?;
        self.last = step;
        Ok(())
    }
}

/// Losses by step, from a file of metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// Of training.
    pub training: Vec<(u64, f64)>,
    /// Of validations.
    pub validation: Vec<(u64, f64)>,
}

impl Losses {
    /// The finite losses of the file at `path`; lines that cannot be read are passed over, and a missing file is an
    /// empty one. [`Error::Input`] if the file cannot be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let mut losses = Self::default();
        each_line(path.as_ref(), |line| {
            let Some(json) = line else { return Ok(()) };
            if let (Some(step), Some(loss)) = (step_of(&json), json["loss"].as_f64()) {
                match json["kind"].as_str() {
                    Some("train") => losses.training.push((step, loss)),
                    Some("validation") => losses.validation.push((step, loss)),
                    _ => {}
                }
            }
            Ok(())
        })?;
        Ok(losses)
    }
}

fn step_of(json: &Value) -> Option<u64> {
    json["step"].as_u64()
}

/// Calls `take` with the object of each line of a file, with nothing for a line that is none or not ended.
fn each_line(path: &Path, mut take: impl FnMut(Option<Value>) -> Result<()>) -> Result<()> {
    let mut reader = match File::open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        opened => BufReader::new(opened.map_err(|e| Error::input(path, e.to_string()))?),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(|e| Error::input(path, e.to_string()))? == 0 {
            return Ok(());
        }
        let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        take(text.and_then(|text| parse_strict(text).ok()).filter(Value::is_object))?;
    }
}
