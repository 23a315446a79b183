//! Data sets: folders and files of many images, their classes and their order.

use std::time::{Duration, Instant};

use arclet::data::set::{SOURCE_KEYS, splits};
use arclet::data::{DataSet, SourceOptions};
use arclet::io::{FileDType, TensorBytes, write_npy_u32, write_safetensors};

use super::{assert_refused, fixture, lens, open, write_image};

fn names(set: &DataSet) -> Vec<&str> {
    set.classes().iter().map(String::as_str).collect()
}

/// First pixel of each image.
fn firsts(set: &DataSet) -> Vec<f32> {
    (0..set.len()).map(|i| set.read(i).unwrap().pixels[0]).collect()
}

#[test]
fn class_folders_are_sorted_and_numbered_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (path, value) in
        [("vort/10.npy", 5.0), ("vort/9.npy", 4.0), ("no/2.npy", 1.0), ("no/1.npy", 0.0), ("sphere/a.npy", 3.0)]
    {
        write_image(folder.path().join("train").join(path), 4, value);
    }
    write_image(folder.path().join("val/sphere/1.npy"), 4, 7.0);
    std::fs::write(folder.path().join("train/no/notes.txt"), "no image").unwrap();
    std::fs::write(folder.path().join("train/params.csv"), "no image").unwrap();
    std::fs::write(folder.path().join("train/no/.hidden.npy"), "no image").unwrap();
    std::fs::create_dir(folder.path().join("train/empty")).unwrap();

    assert_eq!(splits(folder.path()).unwrap(), ["train", "val"]);
    let train = open(folder.path()).unwrap();
    assert_eq!((names(&train), train.labels()), (vec!["no", "sphere", "vort"], &[0, 0, 1, 2, 2][..]));
    assert_eq!(firsts(&train), [0.0, 1.0, 3.0, 4.0, 5.0]);
    assert!(train.place(4).0.ends_with("train/vort/10.npy") && train.place(4).1.is_none());
    assert_eq!((train.shape().unwrap(), train.len()), ([1, 4, 4], 5));
    assert_eq!(names(&open(folder.path().join("train")).unwrap()), ["no", "sphere", "vort"]);

    // The validation set has one class only; by name it keeps its number.
    let classes = Some(train.classes().to_vec());
    let val = SourceOptions { split: Some("val".into()), classes, ..SourceOptions::default() };
    let val = DataSet::open(folder.path(), &val).unwrap();
    assert_eq!((names(&val), val.labels()), (vec!["no", "sphere", "vort"], &[1][..]));

    let with = |split: &str, classes: &[&str]| {
        let classes = classes.iter().map(|c| c.to_string()).collect();
        DataSet::open(
            folder.path(),
            &SourceOptions { split: Some(split.into()), classes: Some(classes), ..SourceOptions::default() },
        )
    };
    assert_refused(with("val", &["no", "sphre"]), &["unknown class \"sphere\", did you mean \"sphre\"?"]);
    assert_refused(with("vall", &[]), &["unknown split \"vall\", did you mean \"val\"?"]);
}

#[test]
fn folders_that_are_no_set_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_refused(open(folder.path()), &["found no images", "train/CLASS/*.npy"]);
    std::fs::create_dir_all(folder.path().join("train/no")).unwrap();
    assert_refused(open(folder.path()), &["train", "found no images"]);
    assert_refused(open(folder.path().join("none")), &["none", "no such file or folder"]);
    write_image(folder.path().join("loose/1.npy"), 4, 0.0);
    assert_eq!(names(&open(folder.path().join("loose")).unwrap()), ["loose"]);
    write_image(folder.path().join("loose/no/1.npy"), 4, 0.0);
    assert_refused(open(folder.path().join("loose")), &["1 .npy files beside class folders"]);
    std::fs::write(folder.path().join("a.txt"), "text").unwrap();
    assert_refused(open(folder.path().join("a.txt")), &["a.txt", "expected a .npy, .npz, .h5 or .safetensors"]);
}

#[test]
fn files_of_many_images_have_their_labels_inside() {
    for name in ["stored.npz", "deflated.npz", "fortran.npz"] {
        let set = open(fixture(name)).unwrap();
        assert_eq!((names(&set), set.labels()), (vec!["0", "1", "2"], &[0, 2, 1, 0, 2][..]), "{name}");
        assert_eq!((set.read(4).unwrap().pixels, set.place(4).1), (lens(4, 8), Some(4)));
    }
    let table = open(fixture("flat_table.npy")).unwrap();
    assert_eq!((names(&table), table.labels()), (vec!["0", "1"], &[1, 0, 1][..]));
    assert_eq!((table.read(2).unwrap().pixels, table.read(2).unwrap().number), (lens(2, 16), Some(1.0)));
    let one = open(fixture("plain.npy")).unwrap();
    assert_eq!((one.len(), names(&one), one.read(0).unwrap().pixels), (1, vec!["plain"], lens(0, 8)));
    assert_eq!(open(fixture("image_mass.npy")).unwrap().read(0).unwrap().number, Some(-22.5));
}

#[test]
fn arrays_with_labels_beside_or_as_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let (npy, tensors) = (folder.path().join("set.npy"), folder.path().join("set.safetensors"));
    let images: Vec<f32> = (0..3).flat_map(|i| lens(i, 8)).collect();
    arclet::io::write_npy_f32(&npy, &[3, 1, 8, 8], &images).unwrap();
    assert_eq!(names(&open(&npy).unwrap()), ["set"]);
    write_npy_u32(folder.path().join("set.labels.npy"), &[1, 0, 1]).unwrap();
    std::fs::write(folder.path().join("set.json"), r#"{"class_names": ["no", "vort"]}"#).unwrap();
    let labels: Vec<u8> = [1u32, 0, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
    let labels = TensorBytes { name: "labels".into(), dtype: FileDType::U32, shape: vec![3], bytes: labels.into() };
    let metadata = [("class_names".to_owned(), r#"["no", "vort"]"#.to_owned())].into();
    let pixels = TensorBytes::from_f32("images", &[3, 1, 8, 8], &images);
    write_safetensors(&tensors, [pixels, labels], &metadata).unwrap();
    for path in [&npy, &tensors] {
        let set = open(path).unwrap();
        assert_eq!((names(&set), set.labels()), (vec!["no", "vort"], &[1, 0, 1][..]));
        assert_eq!(set.read(2).unwrap().pixels, lens(2, 8));
    }
    write_npy_u32(folder.path().join("set.labels.npy"), &[1, 0, 2]).unwrap();
    assert_refused(open(&npy), &["set.npy", "label of row 2: found 2, expected 0 to 1 (no, vort)"]);
    write_npy_u32(folder.path().join("set.labels.npy"), &[1, 0]).unwrap();
    assert_refused(open(&npy), &["labels: found shape [2], expected (3,)"]);
}

#[test]
fn one_archive_a_class() {
    let folder = tempfile::tempdir().unwrap();
    for (file, class) in [("stored.npz", "train_no"), ("deflated.npz", "train_vort"), ("stored.npz", "val_no")] {
        std::fs::copy(fixture(file), folder.path().join(format!("{class}.npz"))).unwrap();
    }
    let set = open(folder.path()).unwrap();
    assert_eq!((names(&set), set.labels()), (vec!["no", "vort"], &[0, 0, 0, 0, 0, 1, 1, 1, 1, 1][..]));
    assert_eq!((set.read(7).unwrap().pixels, set.place(7).1), (lens(2, 8), Some(2)));
    assert_eq!(splits(folder.path()).unwrap(), ["train", "val"]);
}

#[test]
fn jets_are_channels_first_with_channels_as_asked() {
    let jet = |n: usize, c: usize, y: usize, x: usize| {
        if (y * 7 + x * 3 + c * 5 + n).is_multiple_of(11) { (n + 1) as f32 * (c as f32 + 0.5) } else { 0.0 }
    };
    for name in ["gzip.h5", "lzf.h5", "contiguous.h5"] {
        for channels in [vec![0, 1, 2], vec![2, 0, 1], vec![1]] {
            let options = SourceOptions { channels: Some(channels.clone()), ..SourceOptions::default() };
            let set = DataSet::open(fixture(name), &options).unwrap();
            assert_eq!((names(&set), set.labels()), (vec!["quark", "gluon"], &[0, 1, 0, 1, 0, 1][..]));
            let image = set.read(4).unwrap();
            assert_eq!(image.shape, [channels.len(), 10, 10]);
            let all = channels.iter().flat_map(|&c| (0..100).map(move |i| jet(4, c, i / 10, i % 10)));
            assert_eq!(image.pixels, all.collect::<Vec<_>>(), "{name} {channels:?}");
        }
    }
    let options = |o: SourceOptions| DataSet::open(fixture("gzip.h5"), &o);
    let swapped = options(SourceOptions { classes: Some(vec!["gluon".into(), "quark".into()]), ..Default::default() });
    assert_eq!(names(&swapped.unwrap()), ["gluon", "quark"]);
    let weighed = options(SourceOptions { labels: Some("m0".into()), ..Default::default() });
    assert_refused(weighed, &["gzip.h5", "label of row 0: found 20", "quark, gluon"]);
    let channels = options(SourceOptions { channels: Some(vec![3]), ..Default::default() });
    assert_refused(channels, &["channels [3]", "0 to 2"]);
}

#[test]
fn hdf5_that_does_not_fit_is_refused() {
    for (name, parts) in [
        ("no_labels.h5", &["no_labels.h5", "images: found none of X_jets", "the file has m0"][..]),
        ("wrong_shapes.h5", &["labels: found shape [5], expected (6,)"]),
        ("bad_label.h5", &["bad_label.h5", "label of row 2: found 2, expected 0 to 1 (quark, gluon)"]),
        ("absurd_chunk.h5", &["chunks of [1, 16384, 16384, 3]"]),
        ("absurd_count.h5", &["expected at most 67108864"]),
        ("text.h5", &["text.h5", "expected floats"]),
    ] {
        assert_refused(open(fixture(name)), parts);
    }
}

/// The bound of 10,000 files in 2 s, at a tenth of the size and of the time.
#[test]
fn many_files_open_quickly() {
    let folder = tempfile::tempdir().unwrap();
    let image = std::fs::read(fixture("plain.npy")).unwrap();
    for class in ["a", "b"] {
        std::fs::create_dir(folder.path().join(class)).unwrap();
        (0..500).for_each(|i| std::fs::write(folder.path().join(class).join(format!("{i}.npy")), &image).unwrap());
    }
    let times = (0..3).map(|_| {
        let start = Instant::now();
        assert_eq!(open(folder.path()).unwrap().len(), 1000);
        start.elapsed()
    });
    assert!(times.min().unwrap() < Duration::from_millis(200));
}

#[test]
fn options_come_from_settings_too() {
    let full = SourceOptions {
        split: Some("val".into()),
        images: Some("x".into()),
        labels: Some("m0".into()),
        classes: Some(vec!["a".into()]),
        channels: Some(vec![2, 0]),
        channels_last: Some(true),
    };
    let table = toml::Table::try_from(&full).unwrap();
    assert!(table.len() == SOURCE_KEYS.len() && SOURCE_KEYS.iter().all(|k| table.contains_key(*k)));
    assert_eq!(SourceOptions::from_table(&table).unwrap(), full);
    for (toml, reason) in
        [("chanels = [1]", "unknown key \"chanels\", did you mean \"channels\"?"), ("split = 3", "key \"split\"")]
    {
        let error = SourceOptions::from_table(&toml.parse().unwrap()).unwrap_err();
        assert!(error.contains(reason), "{toml}: {error}");
    }
}
