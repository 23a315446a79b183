//! `arclet data`: check, stats, convert.

use serde_json::json;

use super::Desk;
use crate::common::data;

fn fixture(name: &str) -> String {
    data("data_sets").join(name).display().to_string()
}

/// Two splits, two classes, four images.
fn lenses(desk: &Desk) {
    for (path, value) in [("train/no/1", 0.0), ("train/no/2", 1.0), ("train/vort/1", 2.0), ("val/vort/1", 3.0)] {
        image(desk, path, 4, value);
    }
}

fn image(desk: &Desk, path: &str, side: usize, value: f32) {
    let path = desk.path(&format!("set/{path}.npy"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    arclet::io::write_npy_f32(path, &[side, side], &vec![value; side * side]).unwrap();
}

#[test]
fn check_counts_what_is_whole() {
    let desk = Desk::new();
    lenses(&desk);
    let about = desk.json("data check set --json");
    let part = |i: usize| &about["parts"][i];
    assert_eq!((&part(0)["split"], &part(1)["split"]), (&json!("train"), &json!("val")));
    assert_eq!(part(0)["classes"], json!([{"name": "no", "images": 2}, {"name": "vort", "images": 1}]));
    assert_eq!(part(0)["shapes"], json!([{"shape": [1, 4, 4], "images": 3}]));
    assert_eq!((&part(0)["broken"], &part(1)["images"]), (&json!([]), &json!(1)));
    let words = desk.ok("data check set").stdout;
    assert!(
        words.contains("3 images") && words.contains("no 2, vort 1") && words.contains("3 of 1 x 4 x 4"),
        "{words}"
    );
    let jets = desk.json(&format!("data check {} --json --channels 2,0", fixture("lzf.h5")));
    assert_eq!(jets["parts"][0]["classes"], json!([{"name": "quark", "images": 3}, {"name": "gluon", "images": 3}]));
    assert_eq!(jets["parts"][0]["shapes"][0]["shape"], json!([2, 10, 10]));
}

#[test]
fn check_names_every_broken_file_and_exits_with_3() {
    let desk = Desk::new();
    lenses(&desk);
    image(&desk, "train/no/3", 5, 0.0);
    image(&desk, "train/vort/7", 4, f32::NAN);
    std::fs::write(desk.path("set/val/vort/2.npy"), b"\x93NUMPY\x01\0").unwrap();
    let end = desk.run("data check set --json");
    assert_eq!(end.code, 3, "{}", end.stderr);
    assert!(
        end.stderr.contains("set: 3 of 7 images broken, the first") && end.stderr.contains("3.npy"),
        "{}",
        end.stderr
    );
    let about: serde_json::Value = serde_json::from_str(&end.stdout).unwrap();
    let broken: Vec<_> = (0..2).flat_map(|i| about["parts"][i]["broken"].as_array().unwrap().clone()).collect();
    let expected = [
        ("no/3.npy", "mixed sizes: found [1, 5, 5]"),
        ("vort/7.npy", "16 of 16 pixels not finite"),
        ("vort/2.npy", "truncated"),
    ];
    assert_eq!(broken.len(), 3);
    for (found, (file, reason)) in broken.iter().zip(expected) {
        let text = |key: &str| found[key].as_str().unwrap().to_owned();
        assert!(text("file").ends_with(file) && text("reason").contains(reason), "{found}");
    }
    assert_eq!(desk.run("data check set").stdout.matches("broken").count(), 3);

    std::fs::create_dir(desk.path("empty")).unwrap();
    for (arguments, part) in [
        ("data check empty", "found no images"),
        ("data check none", "none"),
        ("data check set --split trian", "did you mean \"train\"?"),
        (&format!("data check {}", fixture("no_labels.h5")), "X_jets"),
        (&format!("data check {}", fixture("bad_label.h5")), "label of row 2"),
    ] {
        let end = desk.run(arguments);
        assert!(end.code == 3 && end.stderr.contains(part), "{arguments}: {}", end.stderr);
    }
}

#[test]
fn stats_are_given_class_by_class() {
    let desk = Desk::new();
    lenses(&desk);
    std::fs::write(desk.path("t.toml"), "output_range = [-1, 1]\n").unwrap();
    let about = desk.json("data stats set --json");
    let no = &about["parts"][0]["classes"][0];
    assert_eq!(
        (&no["name"], &no["images"], &no["min"], &no["max"]),
        (&json!("no"), &json!(2), &json!(0.0), &json!(1.0))
    );
    assert_eq!((&no["mean"], &no["std"], &no["zeros"]), (&json!(0.5), &json!(0.5), &json!(0.5)));
    assert_eq!(no["percentiles"].as_array().unwrap().len(), 7);
    let scaled = desk.json("data stats set --split val --transform t.toml --json");
    assert_eq!(scaled["parts"][0]["classes"][0]["max"], json!(5.0));
    let words = desk.ok("data stats set").stdout;
    assert!(words.contains("train/no") && words.contains("0.500000 +- 0.500000, 50.00 % are 0"), "{words}");
    std::fs::write(desk.path("t.toml"), "resise = 3\n").unwrap();
    let end = desk.run("data stats set --transform t.toml");
    assert!(end.code == 3 && end.stderr.contains("did you mean \"resize\"?"), "{}", end.stderr);
}

#[test]
fn every_form_of_a_converted_set_is_the_set() {
    let desk = Desk::new();
    let jets = fixture("gzip.h5");
    let stats = |path: &str| desk.json(&format!("data stats {path} --json"))["parts"][0]["classes"].clone();
    let mut want = stats(&jets);
    for out in ["set.npy", "set.safetensors"] {
        desk.ok(&format!("data convert {jets} deep/{out} --quiet"));
        assert_eq!(stats(&format!("deep/{out}")), want, "{out}");
    }
    desk.ok(&format!("data convert {jets} jets --quiet"));
    want.as_array_mut().unwrap().reverse(); // folders are in the order of their names
    assert_eq!(stats("jets"), want);
    assert_eq!(desk.images("jets/gluon/3.npy").0, [3, 10, 10]);
    let (shape, images) = desk.images("deep/set.npy");
    assert_eq!((shape, &images[300..600]), (vec![6, 3, 10, 10], &desk.images("jets/gluon/1.npy").1[..]));

    lenses(&desk);
    std::fs::write(desk.path("t.toml"), "resize = 8\nrepeat_channels = 3\n").unwrap();
    let done = desk.json("data convert set out --transform t.toml --json");
    assert_eq!((&done["written"], &done["kept"]), (&json!(4), &json!(0)));
    assert_eq!(desk.images("out/val/vort/1.npy"), (vec![3, 8, 8], vec![3.0; 192]));
    assert!(!desk.path("out/val/no").exists());
    for (toml, arguments, code, part) in [
        ("rotate = 5.0", "data convert set out2 --transform t.toml", 2, "random"),
        ("", "data convert set all.npy", 2, "choose one with --split"),
        ("", "data convert set all.safetensors --split val --resume", 2, "--resume"),
        ("", "data convert set out", 5, "--resume goes on"),
    ] {
        std::fs::write(desk.path("t.toml"), toml).unwrap();
        let end = desk.run(arguments);
        assert!(end.code == code && end.stderr.contains(part), "{arguments}: {}", end.stderr);
    }
}

#[test]
fn a_conversion_goes_on_where_it_ended() {
    let desk = Desk::new();
    let jets = fixture("lzf.h5");
    desk.ok(&format!("data convert {jets} whole --quiet"));
    desk.ok(&format!("data convert {jets} whole.npy --quiet"));
    desk.ok(&format!("data convert {jets} again --quiet"));
    for gone in ["again/quark/2.npy", "again/gluon/3.npy"] {
        std::fs::remove_file(desk.path(gone)).unwrap();
    }
    let done = desk.json(&format!("data convert {jets} again --resume --json"));
    assert_eq!((&done["written"], &done["kept"]), (&json!(2), &json!(4)));
    for file in ["quark/1.npy", "quark/2.npy", "gluon/3.npy", "convert.json"] {
        assert_eq!(desk.bytes(&format!("again/{file}")), desk.bytes(&format!("whole/{file}")), "{file}");
    }
    let end = desk.run(&format!("data convert {jets} again --resume --channels 0"));
    assert!(end.code == 3 && end.stderr.contains("of another conversion: shape"), "{}", end.stderr);

    // Two and a half images of six were written when the power went.
    let bytes = desk.bytes("whole.npy");
    std::fs::write(desk.path("part.npy.part"), &bytes[..128 + 300 * 4 * 5 / 2]).unwrap();
    assert_eq!(desk.run(&format!("data convert {jets} part.npy")).code, 5);
    let done = desk.json(&format!("data convert {jets} part.npy --resume --json"));
    assert_eq!((&done["written"], &done["kept"]), (&json!(4), &json!(2)));
    assert!(desk.bytes("part.npy") == bytes && !desk.path("part.npy.part").exists());
    assert_eq!(desk.bytes("part.labels.npy"), desk.bytes("whole.labels.npy"));
}

/// Names of classes come from files: one that is a path must not be written to.
#[test]
fn classes_that_are_paths_are_refused() {
    let desk = Desk::new();
    for name in ["../up", "a/b", "..", ".hidden", ""] {
        let end = desk
            .command("data convert")
            .args([&fixture("gzip.h5"), "out", "--classes", &format!("{name},b")])
            .output()
            .unwrap();
        assert_eq!(end.status.code(), Some(3), "{name}");
        assert!(desk.listing().is_empty(), "{name}: {:?}", desk.listing());
    }
}
