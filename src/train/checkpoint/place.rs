//! Names of checkpoint folders: which there are, which is next, and which have to go.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// What hidden names begin and end with.
const HIDDEN: [&str; 2] = [".step-", ".tmp"];

/// Distinguishes hidden folders of one process.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A checkpoint's step, and which of those saved at this step it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub step: u64,
    /// From 1.
    pub serial: u64,
}

impl Place {
    /// Name of the folder.
    pub fn name(self) -> String {
        match self {
            Self { step, serial: 1 } => format!("step-{step:08}"),
            Self { step, serial } => format!("step-{step:08}.{serial}"),
        }
    }

    /// The place of a folder called `name`; none for any other spelling.
    fn parse(name: &str) -> Option<Self> {
        let rest = name.strip_prefix("step-")?;
        let (step, serial) = rest.split_once('.').unwrap_or((rest, "1"));
        let place = Self { step: step.parse().ok()?, serial: serial.parse().ok().filter(|&s| s > 0)? };
        (place.name() == name).then_some(place)
    }

    /// Where a checkpoint of `step` goes.
    pub fn free(home: &Path, step: u64) -> Result<Self> {
        let taken = list(home)?.into_iter().filter(|place| place.step == step).map(|place| place.serial).max();
        Ok(Self { step, serial: taken.unwrap_or(0).saturating_add(1) })
    }
}

/// The checkpoints in folder `home`, oldest first; none if it is missing.
pub(super) fn list(home: &Path) -> Result<Vec<Place>> {
    let entries = match fs::read_dir(home) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::input(home, format!("cannot be listed: {e}")))?,
    };
    let mut places = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::input(home, format!("cannot be listed: {e}")))?;
        places.extend(entry.file_name().to_str().and_then(Place::parse));
    }
    places.sort_unstable();
    Ok(places)
}

/// Removes what is older than the newest `keep` steps up to `saved`, and earlier ones of the same step. Failures are left
/// for the next time: the checkpoint that was saved is safe.
pub(super) fn retire(home: &Path, saved: Place, keep: usize) {
    let mut kept = vec![saved.step];
    for place in list(home).unwrap_or_default().into_iter().rev().filter(|&place| place < saved) {
        if !kept.contains(&place.step) && kept.len() < keep {
            kept.push(place.step);
            continue;
        }
        // In one move, so that no half of it is ever taken for a checkpoint.
        let hidden = home.join(hidden_name(place.step));
        if fs::rename(home.join(place.name()), &hidden).is_ok() {
            remove(&hidden);
        }
    }
}

/// Removes what a killed process left.
pub(super) fn sweep(home: &Path) {
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let [start, end] = HIDDEN;
        if name.to_str().is_some_and(|name| name.starts_with(start) && name.ends_with(end)) {
            remove(&entry.path());
        }
    }
}

fn hidden_name(step: u64) -> String {
    let [start, end] = HIDDEN;
    format!("{start}{step:08}.{}-{}{end}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed))
}

fn remove(path: &Path) {
    // What cannot be removed is swept at the next save; a link is removed, not what it leads to.
    let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
}

/// A folder under a hidden name that is removed when dropped; after the rename there is nothing left to remove.
pub(super) struct HiddenFolder(PathBuf);

impl HiddenFolder {
    pub fn create(home: &Path, step: u64) -> Result<Self> {
        let path = home.join(hidden_name(step));
        fs::create_dir(&path).map_err(|e| Error::output(&path, e))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for HiddenFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
