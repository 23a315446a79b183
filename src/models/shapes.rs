//! What the recognition of a checkpoint looks at: shapes by name, and the configuration beside them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::io::Checkpoint;

/// Most blocks, and largest side of a shape, that a checkpoint may claim.
const MAX_DEPTH: usize = 1024;
const MAX_DIM: usize = 1 << 20;

/// Something, or one line of what was found and what was expected.
pub(super) type Told<T> = Result<T, String>;

/// Shapes by stripped name, and the configuration.
pub(super) struct Shapes<'a> {
    /// The file.
    pub checkpoint: &'a Checkpoint,
    /// Names without wrappers -> names in the file.
    pub names: &'a BTreeMap<String, String>,
    /// The configuration beside the weights, flat.
    pub given: &'a Map<String, Value>,
}

impl Shapes<'_> {
    /// The shape of `name`, of known rank and with bounded dimensions.
    pub fn get<const RANK: usize>(&self, name: &str) -> Told<[usize; RANK]> {
        let file_name = self.names.get(name).ok_or_else(|| format!("missing key {name}"))?;
        let shape = self.checkpoint.shape(file_name).unwrap_or_default();
        let fixed: [usize; RANK] =
            shape.try_into().map_err(|_| format!("{file_name} is {shape:?}, {RANK} dimensions expected"))?;
        if fixed.iter().any(|&d| d == 0 || d > MAX_DIM) {
            return Err(format!("{file_name} is {shape:?}, dimensions from 1 to {MAX_DIM} expected"));
        }
        Ok(fixed)
    }

    /// Whether there is a tensor called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Dimensions of `name`; 0 if there is none.
    pub fn rank(&self, name: &str) -> usize {
        self.names.get(name).and_then(|file_name| self.checkpoint.shape(file_name)).map_or(0, <[usize]>::len)
    }

    /// How many parts there are whose names `numbered` makes from 0, 1, ...
    ///
    /// # Errors
    /// None or too many; `what` names them.
    pub fn count(&self, what: &str, numbered: impl Fn(usize) -> String) -> Told<usize> {
        let count = (0..=MAX_DEPTH).take_while(|&i| self.has(&numbered(i))).count();
        if (1..=MAX_DEPTH).contains(&count) {
            Ok(count)
        } else {
            Err(format!("{count} {what} found, 1 to {MAX_DEPTH} expected"))
        }
    }
}
