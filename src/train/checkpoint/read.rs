//! Reading a checkpoint: digests first, then what the files say. The bytes that were digested are the ones that are read.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::{Checkpoint, FORMAT, NamedTensor, STATE, SUFFIX, SUMS, is_group};
use crate::error::{Error, Result};
use crate::io::header::read_header;
use crate::io::json::parse_strict;
use crate::io::{FileDType, map_file, quoted, read_text, sha256_hex, try_with_capacity};

/// Largest `SHA256SUMS` and `state.json`, in bytes.
const MAX_SUMS: u64 = 1 << 16;
const MAX_STATE: usize = 1 << 26;

/// The checkpoint of `step` in the folder `path`.
///
/// # Errors
/// [`Error::Input`] that names the file for whatever is not as it was saved; [`Error::Runtime`] without memory.
pub(super) fn read(path: &Path, step: u64) -> Result<Checkpoint<'static>> {
    let sums_path = path.join(SUMS);
    let sums = parse_sums(&read_text(&sums_path, MAX_SUMS)?).map_err(|reason| Error::input(&sums_path, reason))?;
    let mut state = None;
    let mut groups = BTreeMap::new();
    for (name, sum) in &sums {
        let file = path.join(name);
        let bytes = map_file(&file)?;
        let found = sha256_hex(&bytes);
        if found != *sum {
            return Err(Error::input(file, format!("damaged: its SHA-256 is {found}, {SUMS} says {sum}")));
        }
        match name.strip_suffix(SUFFIX) {
            Some(group) => drop(groups.insert(group.to_owned(), tensors(&file, &bytes)?)),
            None => state = Some(parse_state(&bytes, step).map_err(|reason| Error::input(&file, reason))?),
        }
    }
    let Some((state, expected)) = state else {
        return Err(Error::input(sums_path, format!("{STATE} is missing")));
    };
    if !expected.iter().map(String::as_str).eq(groups.keys().map(String::as_str)) {
        let found: Vec<&str> = groups.keys().map(String::as_str).collect();
        let (found, expected) = (found.join(", "), expected.join(", "));
        return Err(Error::input(sums_path, format!("found the groups {found}; {STATE} says {expected}")));
    }
    Ok(Checkpoint { state, groups })
}

/// Digest by name of file, from lines of a digest, two blanks and a name.
fn parse_sums(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut sums = BTreeMap::new();
    for line in text.split_terminator('\n') {
        let (sum, name) = line.split_once("  ").ok_or_else(|| format!("no digest and name in {}", quoted(line)))?;
        if sum.len() != 64 || !sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(format!("{} is no SHA-256", quoted(sum)));
        }
        if name != STATE && !name.strip_suffix(SUFFIX).is_some_and(is_group) {
            return Err(format!("{} is no file of a checkpoint", quoted(name)));
        }
        if sums.insert(name.to_owned(), sum.to_owned()).is_some() {
            return Err(format!("{name} stands there twice"));
        }
    }
    Ok(sums)
}

/// What the caller saved, and the sorted names of the groups.
fn parse_state(bytes: &[u8], step: u64) -> Result<(Value, Vec<String>), String> {
    if bytes.len() > MAX_STATE {
        return Err(format!("found {} bytes, at most {MAX_STATE} expected", bytes.len()));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    let mut json = parse_strict(text)?;
    if json["format"] != FORMAT {
        return Err(format!("field \"format\": {FORMAT:?} expected"));
    }
    if json["step"] != step {
        return Err(format!("field \"step\": found {}, the folder says {step}", json["step"]));
    }
    let names = json["groups"].as_array().map(|names| names.iter().map(|n| n.as_str().map(String::from)).collect());
    let mut names: Vec<String> = names.flatten().ok_or("field \"groups\": a list of names expected")?;
    names.sort_unstable();
    Ok((json["state"].take(), names))
}

/// The tensors of a safetensors file, all of them f32.
fn tensors(path: &Path, bytes: &[u8]) -> Result<Vec<NamedTensor<'static>>> {
    let mut tensors = Vec::new();
    for (name, entry) in read_header(path, bytes)?.tensors {
        if entry.dtype != FileDType::F32 {
            let reason = format!("tensor {}: found {}, expected F32", quoted(&name), entry.dtype);
            return Err(Error::input(path, reason));
        }
        let bytes = &bytes[entry.range];
        let mut values: Vec<f32> = try_with_capacity(bytes.len() / 4)
            .ok_or_else(|| Error::Runtime(format!("tensor {}: no memory for {} bytes", quoted(&name), bytes.len())))?;
        values.extend(bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)));
        tensors.push(NamedTensor { name, shape: entry.shape, values: values.into() });
    }
    Ok(tensors)
}
