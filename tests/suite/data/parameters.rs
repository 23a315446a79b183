//! Parameters of images, read from the table beside the class folders.

use std::path::Path;

use arclet::data::{DataSet, SourceOptions};
use arclet::error::Result;

use super::{assert_refused, fixture, open, write_image};

fn with(path: impl AsRef<Path>, names: &[&str]) -> Result<DataSet> {
    open(path)?.with_parameters(&names.iter().map(|&name| name.into()).collect::<Vec<String>>())
}

/// A set of two images to train on and one to validate on, with this table.
fn set(folder: &Path, table: &str) {
    for path in ["train/no/1.npy", "train/vort/1.npy", "val/no/1.npy"] {
        write_image(folder.join(path), 4, 0.0);
    }
    std::fs::write(folder.join("params.csv"), table).unwrap();
}

#[test]
fn rows_of_the_table_are_found_by_the_images_path() {
    let folder = tempfile::tempdir().unwrap();
    // Rows in any order, of images that are not there, with the line ends and the mark of a spreadsheet; a field without
    // a number.
    set(
        folder.path(),
        "\u{feff}class,file,mass,x\r\nno,val/no/1.npy,7,8\r\nvort,train/vort/1.npy,,-0.25\r\nno,train/no/9.npy,many,1\r\n\
         no,train/no/1.npy,1e-23,0.5\r\n",
    );
    let train = with(folder.path(), &["x", "mass"]).unwrap();
    let table = train.parameters().expect("parameters");
    assert_eq!((table.names(), table.row(0)), (&["x", "mass"].map(String::from)[..], &[0.5, 1e-23][..]));
    assert!(table.row(1)[0] == -0.25 && table.row(1)[1].is_nan());
    assert_eq!(table.column(0).collect::<Vec<_>>(), [0.5, -0.25]);
    // A split that is opened by itself has the table above it.
    let split = with(folder.path().join("val"), &["mass"]).unwrap();
    assert_eq!(split.parameters().expect("parameters").row(0), [7.0]);
    let val = SourceOptions { split: Some("val".into()), ..SourceOptions::default() };
    let val = DataSet::open(folder.path(), &val).unwrap().with_parameters(&["x".into()]).unwrap();
    assert_eq!(val.parameters().expect("parameters").row(0), [8.0]);
    assert!(with(folder.path(), &[]).unwrap().parameters().is_none());
}

#[test]
fn tables_that_lack_something_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |table: &str, parts: &[&str]| {
        set(folder.path(), table);
        assert_refused(with(folder.path(), &["mass"]), &[&["params.csv"], parts].concat());
    };
    let rows = "train/no/1.npy,1\ntrain/vort/1.npy,2\n";
    refused(&format!("file,masss\n{rows}"), &["unknown column \"mass\", did you mean \"masss\"?"]);
    refused(&format!("path,mass\n{rows}"), &["unknown column \"file\""]);
    refused("", &["unknown column \"file\""]);
    refused("file,mass\ntrain/no/1.npy,1\n", &["no row for the image \"train/vort/1.npy\""]);
    refused("file,mass\ntrain/no/1.npy,1,2\n", &["line 2", "3 fields found, 2 expected"]);
    refused(
        &format!("file,mass\n{rows}train/no/1.npy,3\n"),
        &["line 4", "\"train/no/1.npy\" has a row already, line 2"],
    );
    for number in ["heavy", "nan", "inf", "1e999"] {
        let table = format!("file,mass\ntrain/no/1.npy,1\ntrain/vort/1.npy,{number}\n");
        refused(&table, &["line 3", "mass is", number, "a finite number expected"]);
    }
    std::fs::remove_file(folder.path().join("params.csv")).unwrap();
    assert_refused(with(folder.path(), &["mass"]), &["found no params.csv", "arclet data simulate"]);
    std::fs::write(folder.path().join("params.csv"), "file,mass\n").unwrap();
    std::fs::copy(fixture("stored.npz"), folder.path().join("many.npz")).unwrap();
    assert_refused(with(folder.path().join("many.npz"), &["mass"]), &["many.npz", "holds many images"]);
}
