//! The folder of a run: what a second run must not write over, and what the first can be repeated from.

use std::fs;
use std::path::Path;

use arclet::data::{DataSet, SourceOptions, TransformConfig};
use arclet::io::write_npy_f32;
use arclet::train::folder::{DataRecord, Hashed, InitRecord, RunRecord};
use arclet::train::{RunFolder, TrainConfig};

use crate::{assert_refused, listing};

/// Three images in two classes.
fn images(folder: &Path) -> DataSet {
    for (i, name) in ["no/1", "vort/1", "vort/2"].iter().enumerate() {
        let path = folder.join(name).with_extension("npy");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_npy_f32(path, &[4, 4], &[i as f32; 16]).unwrap();
    }
    let transform = TransformConfig { repeat_channels: Some(3), ..Default::default() };
    DataSet::open(folder, &SourceOptions::default()).unwrap().transformed(transform).unwrap()
}

fn record(data: &DataSet) -> RunRecord {
    let data = DataRecord::of(data).unwrap();
    let mut record = RunRecord::new(3, "bf16", "cpu", "a CPU", data.clone());
    record.validation = Some(data);
    record.init = Some(InitRecord { name: "lens-dit-s".into(), sha256: Some("00".into()) });
    record
}

#[test]
fn a_run_is_found_again_as_it_began() {
    let folder = tempfile::tempdir().unwrap();
    let data = images(&folder.path().join("data"));
    let (path, mut config) = (folder.path().join("a/run"), TrainConfig::default());
    config.run.seed = 3;
    let run = RunFolder::create(&path, &config, &record(&data)).unwrap();
    assert_eq!(listing(&path), [".lock", "config.toml", "run.json", "samples"]);
    assert_eq!(run.sample(100), path.join("samples/step-00000100.png"));

    let error = RunFolder::resume(&path).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("another process trains there"), "{error}");
    drop(run);
    let (run, again, found) = RunFolder::resume(&path).unwrap();
    assert_eq!((&again, &found), (&config, &record(&data)));
    config.run.steps = Some(77);
    run.write_config(&config).unwrap();
    drop(run);
    assert_eq!(RunFolder::resume(&path).unwrap().1.run.steps, Some(77));

    let error = RunFolder::create(&path, &config, &record(&data)).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("has a run already: --resume goes on with it"), "{error}");
}

#[test]
fn nothing_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let data = images(&folder.path().join("data"));
    let home = folder.path().join("model");
    for name in ["config.json", "model.safetensors", "samples", "checkpoints", "metrics.jsonl"] {
        fs::create_dir_all(&home).unwrap();
        fs::write(home.join(name), b"mine").unwrap();
        let error = RunFolder::create(&home, &TrainConfig::default(), &record(&data)).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(name), "{error}");
        let error = RunFolder::resume(&home).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("no run to go on with"), "{error}");
        assert_eq!(listing(&home), [name], "nothing is left of the attempt");
        fs::remove_dir_all(&home).unwrap();
    }
    // Other files are no reason.
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("notes.txt"), b"mine").unwrap();
    RunFolder::create(&home, &TrainConfig::default(), &record(&data)).unwrap();
    fs::write(folder.path().join("file"), b"x").unwrap();
    let error = RunFolder::create(folder.path().join("file/run"), &TrainConfig::default(), &record(&data));
    assert_eq!(error.unwrap_err().exit_code(), 5);
}

#[test]
fn damaged_records_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = images(&folder.path().join("data"));
    let path = folder.path().join("run");
    drop(RunFolder::create(&path, &TrainConfig::default(), &record(&data)).unwrap());
    let json = path.join("run.json");
    let whole = fs::read_to_string(&json).unwrap();
    for (text, part) in [
        (String::new(), "EOF"),
        (whole[..whole.len() / 2].to_owned(), "EOF"),
        ("[]".into(), "format"),
        (whole.replace("arclet-run/1", "arclet-run/9"), "arclet-run/1"),
        (whole.replace("\"seed\": 3", "\"seed\": -3"), "-3"),
        (whole.replace("\"seed\"", "\"sed\""), "sed"),
    ] {
        fs::write(&json, text).unwrap();
        assert_refused(RunFolder::resume(&path), &["run.json", part]);
    }
    fs::write(&json, whole).unwrap();
    fs::write(path.join("config.toml"), "[run]\nstep = 1").unwrap();
    assert_refused(RunFolder::resume(&path), &["config.toml", "did you mean \"steps\"?"]);
}

#[test]
fn other_images_are_noticed_wherever_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let began = DataRecord::of(&images(&here)).unwrap();
    assert_eq!(began.classes, [("no".to_owned(), 1), ("vort".to_owned(), 2)]);
    assert_eq!((began.images, began.shape, began.hashed), (3, [3, 4, 4], Hashed::Content));
    let moved = DataRecord::of(&images(&there)).unwrap();
    assert_eq!((began.difference(&moved), began.difference(&began)), (None, None));

    let difference = |set: &DataSet| began.difference(&DataRecord::of(set).unwrap()).unwrap();
    write_npy_f32(there.join("vort/2.npy"), &[4, 4], &[9.0; 16]).unwrap();
    let set = DataSet::open(&there, &SourceOptions::default()).unwrap();
    assert!(difference(&set).contains("images are [1, 4, 4] now, [3, 4, 4] when the run began"));
    let set = set.transformed(TransformConfig { repeat_channels: Some(3), ..Default::default() }).unwrap();
    assert!(difference(&set).contains("there: the files are not those"), "{}", difference(&set));
    fs::rename(there.join("vort/2.npy"), there.join("no/2.npy")).unwrap();
    let set = DataSet::open(&there, &SourceOptions::default()).unwrap();
    assert!(difference(&set).contains("the classes are not those"));
    fs::remove_file(there.join("no/2.npy")).unwrap();
    let set = DataSet::open(&there, &SourceOptions::default()).unwrap();
    assert!(difference(&set).contains("found 2 images, the run began with 3"));
}
