//! The kernel files and a digest of what each is made of.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// `kernels/*.cu`, sorted by name.
pub fn kernels(root: &Path) -> Result<Vec<PathBuf>, String> {
    let folder = root.join("kernels");
    let entries = fs::read_dir(&folder).map_err(|e| format!("cannot list {}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "cu")).collect();
    files.sort();
    Ok(files)
}

/// Digest of a kernel file and of every header it includes with `#include "..."`, directly or not.
pub fn digest(kernel: &Path) -> Result<Fnv128, String> {
    let mut seen = BTreeSet::new();
    let mut digest = Fnv128::new();
    add(kernel, &mut seen, &mut digest)?;
    Ok(digest)
}

fn add(file: &Path, seen: &mut BTreeSet<PathBuf>, digest: &mut Fnv128) -> Result<(), String> {
    if !seen.insert(file.to_path_buf()) {
        return Ok(());
    }
    let text = fs::read_to_string(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    digest.update(text.as_bytes());
    let folder = file.parent().unwrap_or(Path::new(""));
    for line in text.lines() {
        let Some(rest) = line.trim_start().strip_prefix('#') else { continue };
        let Some(rest) = rest.trim_start().strip_prefix("include") else { continue };
        let Some((name, _)) = rest.trim_start().strip_prefix('"').and_then(|r| r.split_once('"')) else { continue };
        let header = folder.join(name);
        // The emulation's headers stand behind CUDA_EMU, which nvcc never sees.
        if !name.starts_with("emu/") && header.is_file() {
            add(&header, seen, digest)?;
        }
    }
    Ok(())
}

/// 128-bit FNV-1a over length-prefixed pieces: names cache entries, protects against nothing but accident.
#[derive(Clone)]
pub struct Fnv128(u128);

impl Fnv128 {
    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    /// Adds one piece; its length keeps neighbouring pieces apart.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
        }
    }

    /// The digest so far.
    pub fn value(&self) -> u128 {
        self.0
    }
}
