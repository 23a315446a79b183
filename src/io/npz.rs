//! NumPy `.npz` archives: named arrays of numbers, stored or deflated.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::mapped::{Bytes, map_file};
use crate::io::npy::{Npy, parse_npy};
use crate::io::rows::Rows;
use crate::io::zip::{self, Member};

/// An open archive. Arrays are read when asked for.
pub struct Npz {
    path: PathBuf,
    bytes: Arc<Bytes>,
    members: Vec<Member>,
}

impl std::fmt::Debug for Npz {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Npz").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Npz {
    /// Reads the directory of an archive. [`Error::Input`] for a damaged file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = Arc::new(map_file(path)?);
        let members = zip::members(&bytes).map_err(|reason| Error::input(path, reason))?;
        Ok(Self { path: path.to_path_buf(), bytes, members })
    }

    /// Names of the arrays, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().filter_map(|m| m.name.strip_suffix(".npy"))
    }

    /// Whether there is an array of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }

    /// An array. [`Error::Input`] if it is missing, damaged or no array of numbers.
    pub fn read(&self, name: &str) -> Result<Npy> {
        let content = self.member(name).and_then(|m| zip::content(&self.bytes, m));
        content.and_then(|c| parse_npy(&c)).map_err(|reason| self.refuse(name, &reason))
    }

    /// An array, to be read row by row: from the file where it is stored, from memory where it is deflated.
    /// [`Error::Input`] as for [`Npz::read`].
    pub fn rows(&self, name: &str) -> Result<Rows> {
        let open = |member: &Member| match zip::content(&self.bytes, member)? {
            std::borrow::Cow::Owned(bytes) => Rows::owned(&self.path, bytes),
            std::borrow::Cow::Borrowed(_) => Rows::mapped(&self.path, self.bytes.clone(), member.range.clone()),
        };
        self.member(name).and_then(open).map_err(|reason| self.refuse(name, &reason))
    }

    fn member(&self, name: &str) -> Result<&Member, String> {
        let found = self.members.iter().find(|m| m.name.strip_suffix(".npy") == Some(name));
        found.ok_or_else(|| format!("missing; the file has {}", self.names().collect::<Vec<_>>().join(", ")))
    }

    fn refuse(&self, name: &str, reason: &str) -> Error {
        Error::input(&self.path, format!("array {}: {reason}", crate::io::quoted(name)))
    }
}

/// Content of an array in the bytes of an archive; the error lacks the file's name.
pub fn parse_npz(bytes: &[u8]) -> Result<Vec<(String, Npy)>, String> {
    let mut out = Vec::new();
    for member in zip::members(bytes)? {
        if let Some(name) = member.name.strip_suffix(".npy") {
            out.push((name.to_owned(), parse_npy(&zip::content(bytes, &member)?)?));
        }
    }
    Ok(out)
}
