//! Weights from files, folders, shards and embedded bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use arclet::io::{Checkpoint, FileDType, TensorBytes, sha256_hex, write_safetensors};
use half::{bf16, f16};
use serde_json::json;

use crate::{assert_refused, listing, raw_safetensors};

/// Writes f32 tensors of one axis.
fn write(path: &Path, tensors: &[(&str, &[f32])]) {
    let tensors = tensors.iter().map(|(name, values)| TensorBytes::from_f32(*name, &[values.len()], values));
    write_safetensors(path, tensors, &BTreeMap::new()).unwrap();
}

/// A file with one tensor "w" of the given type and bytes.
fn one(dtype: FileDType, bytes: &[u8]) -> Vec<u8> {
    let (len, end) = (bytes.len() / dtype.size(), bytes.len());
    raw_safetensors(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":[{len}],"data_offsets":[0,{end}]}}}}"#), bytes)
}

fn open_bytes(bytes: Vec<u8>) -> Checkpoint {
    Checkpoint::from_static("embedded", bytes.leak(), None).unwrap()
}

#[test]
fn every_float_type_is_widened() {
    let values = [0.0f32, -0.0, 1.5, -2.25, 65504.0, 6.0e-8, 3.140625];
    let bytes = |f: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|v| f(*v)).collect::<Vec<u8>>();
    let f16s = bytes(&|v| f16::from_f32(v).to_le_bytes().to_vec());
    let read = open_bytes(one(FileDType::F16, &f16s)).read_f32("w").unwrap();
    let expected = values.map(|v| f16::from_f32(v).to_f32());
    assert_eq!(read.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits));
    let bf16s = bytes(&|v| bf16::from_f32(v).to_le_bytes().to_vec());
    let read = open_bytes(one(FileDType::BF16, &bf16s)).read_f32("w").unwrap();
    assert_eq!(read, values.map(|v| bf16::from_f32(v).to_f32()));
    assert_eq!(open_bytes(one(FileDType::F32, &bytes(&|v| v.to_le_bytes().to_vec()))).read_f32("w").unwrap(), values);
    let f64s = open_bytes(one(FileDType::F64, &bytes(&|v| (f64::from(v) + 1e-12).to_le_bytes().to_vec())));
    assert_eq!(f64s.read_f32("w").unwrap(), values.map(|v| (f64::from(v) + 1e-12) as f32));
    assert_eq!(f64s.read_f64("w").unwrap(), values.map(|v| f64::from(v) + 1e-12));
}

#[test]
fn every_f16_is_widened_across_blocks() {
    let finite: Vec<u16> = (0..=u16::MAX).filter(|&bits| f16::from_bits(bits).is_finite()).collect();
    let bytes: Vec<u8> = finite.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let read = open_bytes(one(FileDType::F16, &bytes));
    let read = read.read_f32("w").unwrap();
    assert_eq!(read.len(), finite.len());
    for (value, bits) in read.iter().zip(&finite) {
        assert_eq!(value.to_bits(), f16::from_bits(*bits).to_f32().to_bits());
    }
}

#[test]
fn unaligned_tensors_are_read() {
    let header =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}}"#;
    let data: Vec<u8> = [7].into_iter().chain([1.0f32, -3.5].iter().flat_map(|v| v.to_le_bytes())).collect();
    let opened = open_bytes(raw_safetensors(header, &data));
    assert_eq!(opened.read_f32("w").unwrap(), [1.0, -3.5]);
    assert_eq!(opened.read_f64("w").unwrap(), [1.0, -3.5]);
    assert_eq!(opened.bytes("a").unwrap(), [7]);
    assert_eq!(opened.total_bytes(), 9);
}

#[test]
fn values_that_are_not_finite_are_refused_with_their_place() {
    let mut values = vec![1.0f32; 3000];
    values[2345] = f32::NAN;
    let with_nan = open_bytes(one(FileDType::F32, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()));
    assert_refused(with_nan.read_f32("w"), &["embedded", "\"w\"", "element 2345 is NaN"]);
    assert_refused(with_nan.read_f64("w"), &["element 2345 is NaN"]);
    let infinite = open_bytes(one(FileDType::F16, &f16::NEG_INFINITY.to_le_bytes()));
    assert_refused(infinite.read_f32("w"), &["element 0 is -inf"]);
    let infinite = open_bytes(one(FileDType::BF16, &bf16::INFINITY.to_le_bytes()));
    assert_refused(infinite.read_f32("w"), &["element 0 is inf"]);
    let huge =
        open_bytes(one(FileDType::F64, &[2.0f64, 1e300].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()));
    assert_refused(huge.read_f32("w"), &["element 1 is 1e300", "too large for f32"]);
    assert_eq!(huge.read_f64("w").unwrap(), [2.0, 1e300]);
    let nan = open_bytes(one(FileDType::F64, &f64::NAN.to_le_bytes()));
    assert_refused(nan.read_f64("w"), &["element 0 is NaN"]);
}

#[test]
fn integers_and_absent_tensors_are_no_weights() {
    let opened = open_bytes(one(FileDType::I64, &[0; 16]));
    assert_refused(opened.read_f32("w"), &["\"w\"", "found I64", "expected F16, BF16, F32 or F64"]);
    assert_refused(opened.read_f32("v"), &["tensor \"v\" is missing"]);
    assert_refused(opened.bytes("v"), &["tensor \"v\" is missing"]);
    assert!(opened.contains("w") && !opened.contains("v"));
    assert_eq!((opened.shape("w"), opened.dtype("w")), (Some(&[2][..]), Some(FileDType::I64)));
    assert_eq!((opened.shape("v"), opened.dtype("v")), (None, None));
}

#[test]
fn a_file_is_read_with_its_metadata_and_digest() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    let metadata = [("config".to_owned(), r#"{"depth":2}"#.to_owned())].into();
    write_safetensors(&path, [TensorBytes::from_f32("w", &[1, 2], &[1.0, 2.0])], &metadata).unwrap();
    // A file of that name is not one of a model folder, so the neighbour is not its configuration.
    fs::write(folder.path().join("config.json"), r#"{"depth":9}"#).unwrap();
    let opened = Checkpoint::open(&path).unwrap();
    assert_eq!(opened.config_json(), Some(&json!({"depth": 2})));
    assert_eq!(opened.metadata(), &metadata);
    assert_eq!(opened.path(), path);
    assert_eq!(opened.sha256(), sha256_hex(&fs::read(&path).unwrap()));
    assert_eq!(opened.shape("w"), Some(&[1, 2][..]));
    assert!(format!("{opened:?}").contains("weights.safetensors"));
}

#[test]
fn a_config_key_that_is_no_object_is_only_metadata() {
    let with = |config: &str| {
        let header = json!({"__metadata__": {"config": config}}).to_string();
        Checkpoint::from_static("embedded", raw_safetensors(&header, &[]).leak(), None)
    };
    assert_eq!(with("configs/vit.yaml").unwrap().config_json(), None);
    assert_refused(with("{\"a\":1,\"a\":2}"), &["metadata key \"config\"", "duplicate key \"a\""]);
    assert_refused(with("{\"a\":"), &["metadata key \"config\""]);
    let bytes: &'static [u8] = raw_safetensors(r#"{"__metadata__":{"config":"{}"}}"#, &[]).leak();
    let given = Checkpoint::from_static("embedded", bytes, Some(r#"{"b":1}"#)).unwrap();
    assert_eq!(given.config_json(), Some(&json!({"b": 1})));
    assert_refused(Checkpoint::from_static("embedded", bytes, Some("{")), &["embedded", "config"]);
}

#[test]
fn folders_follow_the_habit() {
    for name in ["model.safetensors", "diffusion_pytorch_model.safetensors", "anything.safetensors"] {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join(name), &[("w", &[1.0])]);
        fs::write(folder.path().join("config.json"), r#"{"depth":3}"#).unwrap();
        let opened = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(opened.read_f32("w").unwrap(), [1.0]);
        assert_eq!(opened.config_json(), Some(&json!({"depth": 3})));
        let alone = Checkpoint::open(folder.path().join(name)).unwrap();
        assert_eq!(alone.config_json().is_some(), name != "anything.safetensors");
    }
}

#[test]
fn folders_without_clear_weights_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(Checkpoint::open(folder.path()), &["no weights", "model.safetensors"]);
    fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
    assert_refused(Checkpoint::open(folder.path()), &["pytorch_model.bin", "tools/pt2safetensors.py"]);
    write(&folder.path().join("a.safetensors"), &[("w", &[1.0])]);
    write(&folder.path().join("b.safetensors"), &[("w", &[2.0])]);
    assert_refused(Checkpoint::open(folder.path()), &["found 2", "a.safetensors", "b.safetensors"]);
    write(&folder.path().join("model.safetensors"), &[("w", &[3.0])]);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().read_f32("w").unwrap(), [3.0]);
    let deep = "[".repeat(1 << 19);
    for config in ["{\"a\":1,\"a\":1}", "[1]", "{", &deep] {
        fs::write(folder.path().join("config.json"), config).unwrap();
        assert_refused(Checkpoint::open(folder.path()), &["config.json", "JSON"]);
    }
    fs::write(folder.path().join("config.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert_refused(Checkpoint::open(folder.path()), &["config.json", "1048576"]);
}

/// A folder with two shards and an index that `change` may spoil.
fn sharded(
    change: impl FnOnce(&Path, &mut serde_json::Value),
) -> (tempfile::TempDir, arclet::error::Result<Checkpoint>) {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("model-1.safetensors"), &[("a", &[1.0, 2.0]), ("b", &[3.0])]);
    write(&folder.path().join("model-2.safetensors"), &[("c", &[4.0])]);
    let mut index = json!({
        "metadata": {"total_size": 16},
        "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"},
    });
    change(folder.path(), &mut index);
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let opened = Checkpoint::open(folder.path());
    (folder, opened)
}

#[test]
fn shards_are_one_checkpoint() {
    let (folder, opened) = sharded(|_, _| {});
    let opened = opened.unwrap();
    assert_eq!(opened.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(opened.read_f32("a").unwrap(), [1.0, 2.0]);
    assert_eq!(opened.read_f32("c").unwrap(), [4.0]);
    assert_eq!(opened.total_bytes(), 16);
    let shard = |name: &str| fs::read(folder.path().join(name)).unwrap();
    assert_eq!(opened.sha256(), sha256_hex(&[shard("model-1.safetensors"), shard("model-2.safetensors")].concat()));
    sharded(|_, index| index["metadata"]["total_size"] = json!(16.0)).1.unwrap();
    sharded(|_, index| drop(index.as_object_mut().unwrap().remove("metadata"))).1.unwrap();
}

#[test]
fn metadata_of_shards_is_what_they_agree_on() {
    let with = |first: &[(&str, &str)], second: &[(&str, &str)]| {
        let owned = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        sharded(|folder, _| {
            let first_shard = [TensorBytes::from_f32("a", &[2], &[1.0, 2.0]), TensorBytes::from_f32("b", &[1], &[3.0])];
            write_safetensors(folder.join("model-1.safetensors"), first_shard, &owned(first)).unwrap();
            let second_shard = [TensorBytes::from_f32("c", &[1], &[4.0])];
            write_safetensors(folder.join("model-2.safetensors"), second_shard, &owned(second)).unwrap();
        })
        .1
    };
    let merged = with(&[("format", "pt"), ("part", "1"), ("x", "1")], &[("format", "pt"), ("part", "2")]).unwrap();
    let expected = [("format", "pt"), ("x", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(merged.metadata(), &BTreeMap::from(expected));
    assert_refused(with(&[("config", "{}")], &[("config", "{\"a\":1}")]), &["metadata key \"config\" differs"]);
}

#[test]
fn an_index_that_lies_is_refused() {
    let set = |key: &'static str, value: serde_json::Value| {
        move |_: &Path, index: &mut serde_json::Value| {
            drop(index["weight_map"].as_object_mut().unwrap().insert(key.into(), value))
        }
    };
    assert_refused(
        sharded(set("d", json!("model-1.safetensors"))).1,
        &["index.json", "\"d\" is not in \"model-1.safetensors\""],
    );
    assert_refused(sharded(set("c", json!("model-1.safetensors"))).1, &["\"c\" is not in"]);
    assert_refused(
        sharded(|_, index| drop(index["weight_map"].as_object_mut().unwrap().remove("b"))).1,
        &["\"b\" of model-1.safetensors is not in the index"],
    );
    assert_refused(sharded(|_, index| index["weight_map"] = json!({})).1, &["weight_map", "no tensors"]);
    assert_refused(sharded(|_, index| *index = json!({})).1, &["weight_map", "missing"]);
    assert_refused(
        sharded(|_, index| index["metadata"]["total_size"] = json!(20)).1,
        &["total_size", "found 20", "16 bytes"],
    );
    assert_refused(sharded(|_, index| index["metadata"]["total_size"] = json!("16")).1, &["total_size"]);
    assert_refused(
        sharded(set("c", json!("model-3.safetensors"))).1,
        &["model-3.safetensors", "cannot be opened", "index.json"],
    );
    let twice = sharded(|folder, _| write(&folder.join("model-2.safetensors"), &[("c", &[4.0]), ("a", &[1.0, 2.0])]));
    assert_refused(twice.1, &["model-2.safetensors", "\"a\": already in", "model-1.safetensors"]);
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    for name in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "x/", "a\0b"] {
        let opened = sharded(|_, index| index["weight_map"]["c"] = json!(name)).1;
        assert_refused(opened, &["weight_map entry \"c\"", "plain name"]);
    }
    let number = sharded(|_, index| index["weight_map"]["c"] = json!(1)).1;
    assert_refused(number, &["weight_map entry \"c\"", "found \"1\""]);
}

#[test]
fn an_index_with_a_repeated_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let index = r#"{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_refused(Checkpoint::open(folder.path()), &["index.json", "duplicate key \"a\""]);
}

#[cfg(unix)]
#[test]
fn links_may_lead_to_the_cache_but_not_out_of_the_model() {
    use std::os::unix::fs::symlink;
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("c.safetensors");
    write(&outside, &[("c", &[4.0])]);
    let replace = |folder: &Path, target: &Path| {
        fs::remove_file(folder.join("model-2.safetensors")).unwrap();
        symlink(target, folder.join("model-2.safetensors")).unwrap();
    };
    assert_refused(sharded(|folder, _| replace(folder, &outside)).1, &["model-2.safetensors", "a link to"]);
    let inside = sharded(|folder, _| {
        write(&folder.join("real.safetensors"), &[("c", &[4.0])]);
        replace(folder, Path::new("real.safetensors"));
    });
    assert_eq!(inside.1.unwrap().read_f32("c").unwrap(), [4.0]);
    // The layout of the Hugging Face cache: snapshots/<revision>/NAME -> ../../blobs/<digest>.
    let cache = elsewhere.path().join("models--x");
    let (blobs, snapshot) = (cache.join("blobs"), cache.join("snapshots/abc"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    write(&blobs.join("1234"), &[("c", &[5.0])]);
    symlink("../../blobs/1234", snapshot.join("model-1.safetensors")).unwrap();
    fs::write(snapshot.join("model.safetensors.index.json"), r#"{"weight_map":{"c":"model-1.safetensors"}}"#).unwrap();
    assert_eq!(Checkpoint::open(&snapshot).unwrap().read_f32("c").unwrap(), [5.0]);
}

#[test]
fn other_formats_are_named_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let cases: [(&str, &[u8], &str); 12] = [
        ("a.pt", b"PK\x03\x04rest", "tools/pt2safetensors.py"),
        ("a.safetensors", b"PK\x03\x04rest of a torch archive", "tools/pt2safetensors.py"),
        ("b.safetensors", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "tools/pt2safetensors.py"),
        ("model", b"\x80\x04\x95rest of a pickle", "tools/pt2safetensors.py"),
        ("a.pth", b"anything", "tools/pt2safetensors.py"),
        ("a.CKPT", b"", "tools/pt2safetensors.py"),
        ("a.bin", b"(dp0\nS'w'\n.", "tools/pt2safetensors.py"),
        ("a.npz", b"PK\x03\x04rest", "safetensors.numpy"),
        ("a.h5", b"\x89HDF\r\n\x1a\n........", "HDF5"),
        ("a.gguf", b"GGUF\x03\0\0\0........", "GGUF"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("model.safetensors.index.json", b"{\"weight_map\":{}}", "give the folder"),
    ];
    for (name, bytes, hint) in cases {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_refused(Checkpoint::open(&path), &[name, hint]);
    }
    assert_eq!(listing(folder.path()).len(), cases.len());
}

#[test]
fn a_header_length_of_640_is_no_pickle() {
    let mut header = r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.to_owned();
    header.push_str(&" ".repeat(640 - header.len()));
    let bytes = raw_safetensors(&header, &[9]);
    assert_eq!(bytes[..2], [0x80, 0x02]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    fs::write(&path, bytes).unwrap();
    assert_eq!(Checkpoint::open(&path).unwrap().bytes("w").unwrap(), [9]);
}

#[test]
fn missing_empty_and_special_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(Checkpoint::open(folder.path().join("none.safetensors")), &["none.safetensors", "cannot be opened"]);
    let empty = folder.path().join("empty.safetensors");
    fs::write(&empty, b"").unwrap();
    assert_refused(Checkpoint::open(&empty), &["found 0 bytes"]);
    #[cfg(unix)]
    assert_refused(Checkpoint::open("/dev/zero"), &["/dev/zero", "expected a regular file"]);
}

#[test]
fn the_writer_refuses_what_it_could_not_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let tensor = |name: &'static str, shape: &[usize]| TensorBytes::from_f32(name, shape, &[1.0, 2.0]);
    for tensors in [
        vec![tensor("a", &[3])],
        vec![tensor("a", &[2]), tensor("a", &[2])],
        vec![tensor("__metadata__", &[2])],
        vec![tensor("a", &[usize::MAX, 2])],
        vec![TensorBytes { shape: [&[2][..], &[1; 16]].concat(), ..tensor("a", &[2]) }],
    ] {
        assert_eq!(write_safetensors(&path, tensors, &BTreeMap::new()).unwrap_err().exit_code(), 1);
    }
    assert!(listing(folder.path()).is_empty());
}
