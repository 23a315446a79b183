//! A damaged checkpoint is never believed: the one before it is taken, and a warning says why.

use std::fs;
use std::path::{Path, PathBuf};

use arclet::io::sha256_hex;
use arclet::train::checkpoint::{newest, save};

use super::checkpoint::sample;
use crate::assert_refused;

const FILES: [&str; 4] = ["SHA256SUMS", "ema.safetensors", "state.json", "weights.safetensors"];

/// A run with checkpoints of steps 1 and 2; returns the folder of the second.
fn two(run: &Path) -> PathBuf {
    save(run, 1, &sample(1, 10), 5).unwrap();
    save(run, 2, &sample(2, 10), 5).unwrap()
}

/// The first checkpoint must be found, with one warning that has every one of `parts`.
#[track_caller]
fn falls_back(run: &Path, parts: &[&str]) {
    let found = newest(run).unwrap().expect("the older one");
    assert_eq!(found.step, 1);
    assert!(found.checkpoint == sample(1, 10));
    assert_eq!(found.warnings.len(), 1);
    let warning = &found.warnings[0];
    assert!(parts.iter().all(|part| warning.contains(part)), "{parts:?} are not in: {warning}");
    assert!(!warning.contains('\n'), "{warning}");
}

#[test]
fn every_flipped_bit_is_noticed() {
    let run = tempfile::tempdir().unwrap();
    let path = two(run.path());
    for name in FILES {
        let file = path.join(name);
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&file, damaged).unwrap();
            falls_back(run.path(), &["checkpoint left out", "step-00000002"]);
        }
        fs::write(&file, whole).unwrap();
    }
    assert_eq!(newest(run.path()).unwrap().unwrap().step, 2);
}

#[test]
fn what_is_cut_or_missing_is_noticed() {
    let run = tempfile::tempdir().unwrap();
    let path = two(run.path());
    for name in FILES {
        let file = path.join(name);
        let whole = fs::read(&file).unwrap();
        for length in [0, 1, 64, whole.len() / 2, whole.len() - 1] {
            fs::write(&file, &whole[..length]).unwrap();
            // The last line break of the digests is the only byte that nothing depends on.
            if name != "SHA256SUMS" || length + 1 < whole.len() {
                falls_back(run.path(), &["step-00000002", name]);
            }
        }
        fs::write(&file, [&whole[..], b"more"].concat()).unwrap();
        falls_back(run.path(), &["step-00000002", name]);
        fs::remove_file(&file).unwrap();
        falls_back(run.path(), &[name, "cannot be opened"]);
        fs::create_dir(&file).unwrap();
        falls_back(run.path(), &[name, "found a folder"]);
        fs::remove_dir(&file).unwrap();
        fs::write(&file, whole).unwrap();
    }
    fs::remove_dir_all(&path).unwrap();
    fs::write(&path, b"a file").unwrap();
    falls_back(run.path(), &["SHA256SUMS"]);
    for name in FILES {
        fs::write(run.path().join("checkpoints/step-00000001").join(name), b"x").unwrap();
    }
    assert_refused(newest(run.path()), &["checkpoints", "none of 2 can be read", "step-00000002"]);
}

/// Files whose digests agree: what they say is held to be hostile all the same.
#[test]
fn digests_of_nonsense_do_not_make_it_sense() {
    let run = tempfile::tempdir().unwrap();
    let path = two(run.path());
    let original = FILES.map(|name| fs::read_to_string(path.join(name)).unwrap_or_default());
    let [sums, _, state, _] = &original;
    let tensor = |dtype: &str| format!("{{\"a\":{{\"dtype\":\"{dtype}\",\"shape\":[4],\"data_offsets\":[0,8]}}}}");
    let file = |header: String| crate::raw_safetensors(&header, &[0; 8]);
    let with_ema = |content: Vec<u8>| {
        let old = &sums[..64];
        fs::write(path.join("ema.safetensors"), &content).unwrap();
        sums.replace(old, &sha256_hex(&content))
    };
    let with_state = |content: String| {
        fs::write(path.join("state.json"), &content).unwrap();
        let old = sha256_hex(state.as_bytes());
        sums.replace(&old, &sha256_hex(content.as_bytes()))
    };
    let good_ema = fs::read(path.join("ema.safetensors")).unwrap();
    let check = |sums: String, parts: &[&str]| {
        fs::write(path.join("SHA256SUMS"), sums).unwrap();
        falls_back(run.path(), parts);
        fs::write(path.join("ema.safetensors"), &good_ema).unwrap();
        fs::write(path.join("state.json"), state).unwrap();
    };
    check(with_ema(file(tensor("F16"))), &["ema.safetensors", "tensor \"a\": found F16, expected F32"]);
    check(with_ema(file(tensor("F32"))), &["ema.safetensors", "data_offsets"]);
    check(with_ema(b"no tensors".to_vec()), &["ema.safetensors"]);
    check(with_state("[]".into()), &["state.json", "format"]);
    check(with_state("{".into()), &["state.json", "line 1"]);
    check(with_state("[".repeat(100_000)), &["state.json", "recursion"]);
    check(with_state(state.replacen("\"step\": 2", "\"step\": 3", 1)), &["found 3, the folder says 2"]);
    check(with_state(state.replace("arclet-checkpoint/1", "arclet-checkpoint/2")), &["format", "arclet-checkpoint/1"]);
    check(with_state(state.replace("\"groups\"", "\"group\"")), &["groups"]);
    check(with_state(state.replace("\"ema\"", "\"second\"")), &["found the groups ema, weights"]);
    // A group that is left out of the digests, a stranger in them, the same twice, none at all.
    let line = |n: usize| sums.split_inclusive('\n').nth(n).unwrap().to_owned();
    check(line(1) + &line(2), &["SHA256SUMS", "found the groups weights; state.json says ema, weights"]);
    check(sums.clone() + &line(0), &["ema.safetensors stands there twice"]);
    check(line(0) + &line(1), &["state.json is missing"]);
    check(sums.replace("ema.safetensors", "../ema.safetensors"), &["is no file of a checkpoint"]);
    check(sums.replace("ema.safetensors", "/etc/passwd"), &["is no file of a checkpoint"]);
    check(sums.to_uppercase(), &["SHA256SUMS"]);
    check(String::new(), &["state.json is missing"]);
    check("x".repeat(1 << 17), &["SHA256SUMS", "more than 65536 bytes"]);
    fs::write(path.join("SHA256SUMS"), sums).unwrap();
    assert_eq!(newest(run.path()).unwrap().unwrap().step, 2);
}
