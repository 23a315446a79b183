//! Checkpoints come back as they were saved, the last few are kept, and a failed save costs nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use arclet::io::sha256_hex;
use arclet::train::checkpoint::{Checkpoint, NamedTensor, newest, save};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::listing;

/// Two groups whose numbers follow from the step.
pub fn sample(step: u64, elements: usize) -> Checkpoint<'static> {
    let values = |salt: u64| (0..elements as u64).map(|i| (step * 31 + salt + i % 1000) as f32).collect::<Vec<f32>>();
    let group = |salt: u64| {
        let bias = NamedTensor::new("a.bias", &[2], vec![step as f32, f32::MIN_POSITIVE / 2.0]);
        vec![bias, NamedTensor::new("a.weight", &[elements], values(salt))]
    };
    let groups = BTreeMap::from([("ema".to_owned(), group(5)), ("weights".to_owned(), group(7))]);
    Checkpoint { state: json!({ "step": step, "best": 0.1 * step as f64 }), groups }
}

/// The newest checkpoint, which must be that of its step; returns the step.
#[track_caller]
pub fn newest_whole(run: &Path, elements: usize) -> u64 {
    let found = newest(run).unwrap().expect("a checkpoint");
    assert_eq!(found.warnings, [""; 0]);
    assert!(found.checkpoint == sample(found.step, elements), "step {} came back different", found.step);
    found.step
}

#[test]
fn the_last_ones_are_kept_and_the_newest_is_found() {
    let run = tempfile::tempdir().unwrap();
    assert!(newest(run.path()).unwrap().is_none());
    let home = run.path().join("checkpoints");
    for step in [1, 2, 30, 100_000_000] {
        let path = save(run.path(), step, &sample(step, 10), 2).unwrap();
        assert_eq!(path, home.join(format!("step-{step:08}")));
        assert_eq!(newest_whole(run.path(), 10), step);
    }
    assert_eq!(listing(&home), ["step-00000030", "step-100000000"]);
    let files = ["SHA256SUMS", "ema.safetensors", "state.json", "weights.safetensors"];
    assert_eq!(listing(&home.join("step-00000030")), files);

    // The step again: another name, then the first goes.
    let mut again = sample(30, 10);
    again.state = Value::Null;
    save(run.path(), 30, &again, 2).unwrap();
    assert_eq!(listing(&home), ["step-00000030.2", "step-100000000"], "a later step is not this run's to remove");
    fs::remove_dir_all(home.join("step-100000000")).unwrap();
    assert_eq!(newest(run.path()).unwrap().unwrap().checkpoint, again);
    save(run.path(), 31, &sample(31, 10), 0).unwrap();
    assert_eq!(listing(&home), ["step-00000031"], "one is kept at the least");
}

#[test]
fn the_digests_are_for_sha256sum() {
    let run = tempfile::tempdir().unwrap();
    let path = save(run.path(), 3, &sample(3, 10), 1).unwrap();
    let line = |name: &str| format!("{}  {name}\n", sha256_hex(&fs::read(path.join(name)).unwrap()));
    let expected = ["ema.safetensors", "weights.safetensors", "state.json"].map(line).concat();
    assert_eq!(fs::read_to_string(path.join("SHA256SUMS")).unwrap(), expected);
    let state: Value = serde_json::from_str(&fs::read_to_string(path.join("state.json")).unwrap()).unwrap();
    assert_eq!(state["groups"], json!(["ema", "weights"]));
    assert_eq!((&state["step"], &state["format"]), (&json!(3), &json!("arclet-checkpoint/1")));
    let weights = arclet::io::Checkpoint::open(path.join("weights.safetensors")).unwrap();
    assert_eq!(weights.shape("a.weight"), Some(&[10][..]));
}

#[test]
fn what_a_killed_process_left_is_swept_and_strangers_stay() {
    let run = tempfile::tempdir().unwrap();
    let home = run.path().join("checkpoints");
    for name in [".step-00000007.99-0.tmp", "notes", "step-7", "step-00000009.1", "step-0000000x", ".step-mine"] {
        fs::create_dir_all(home.join(name)).unwrap();
        fs::write(home.join(name).join("file"), b"x").unwrap();
    }
    assert!(newest(run.path()).unwrap().is_none(), "no such name is a checkpoint");
    save(run.path(), 8, &sample(8, 10), 1).unwrap();
    let left = [".step-mine", "notes", "step-00000008", "step-00000009.1", "step-0000000x", "step-7"];
    assert_eq!(listing(&home), left);
    assert_eq!(newest_whole(run.path(), 10), 8);
}

#[test]
fn what_cannot_be_stored_is_refused_and_leaves_nothing() {
    let run = tempfile::tempdir().unwrap();
    save(run.path(), 1, &sample(1, 10), 1).unwrap();
    let one = |group: &str, tensors: &[NamedTensor<'static>]| Checkpoint {
        state: Value::Null,
        groups: BTreeMap::from([(group.to_owned(), tensors.to_vec())]),
    };
    let tensor = |name: &str, shape: &[usize]| NamedTensor::new(name, shape, vec![1.0, 2.0]);
    for bad in [
        one("../ema", &[]),
        one("", &[]),
        one("EMA", &[]),
        one(&"e".repeat(65), &[]),
        one("ema", &[tensor("a", &[3])]),
        one("ema", &[tensor("a", &[2]), tensor("a", &[2])]),
        one("ema", &[tensor("__metadata__", &[2])]),
    ] {
        assert_eq!(save(run.path(), 2, &bad, 1).unwrap_err().exit_code(), 1, "{bad:?}");
    }
    assert_eq!(listing(&run.path().join("checkpoints")), ["step-00000001"]);
}

#[test]
fn an_unwritable_place_is_an_output_error() {
    let run = tempfile::tempdir().unwrap();
    fs::write(run.path().join("checkpoints"), b"a file").unwrap();
    assert_eq!(save(run.path(), 1, &sample(1, 10), 1).unwrap_err().exit_code(), 5);
    assert_eq!(newest(run.path()).unwrap_err().exit_code(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Names of any letters, bits of any kind, state of any JSON.
    #[test]
    fn everything_comes_back(
        names in proptest::collection::btree_set(".{0,12}", 0..5),
        group in "[a-z0-9_]{1,64}",
        bits in proptest::collection::vec(any::<u32>(), 0..9),
        number in any::<f64>().prop_filter("JSON has finite numbers", |x| x.is_finite()),
        (large, key, text) in (any::<u64>(), ".{0,9}", ".{0,9}"),
    ) {
        prop_assume!(!names.contains("__metadata__"));
        let values: Vec<f32> = bits.iter().map(|&b| f32::from_bits(b)).collect();
        let tensors = names.iter().map(|name| NamedTensor::new(name, &[values.len(), 1], &values[..])).collect();
        let state = json!({ "number": number, "large": large, "text": [text, { key: null }] });
        let saved = Checkpoint { state, groups: BTreeMap::from([(group.clone(), tensors)]) };
        let run = tempfile::tempdir().unwrap();
        save(run.path(), large, &saved, 1).unwrap();
        let found = newest(run.path()).unwrap().unwrap();
        prop_assert_eq!(found.step, large);
        prop_assert_eq!(&found.checkpoint.state, &saved.state);
        prop_assert_eq!(found.checkpoint.state["number"].as_f64().map(f64::to_bits), Some(number.to_bits()));
        let tensors = &found.checkpoint.groups[&group];
        prop_assert!(tensors.iter().map(|t| &t.name).eq(names.iter()));
        for tensor in tensors {
            prop_assert!(tensor.values.iter().map(|v| v.to_bits()).eq(bits.iter().copied()));
        }
    }
}
