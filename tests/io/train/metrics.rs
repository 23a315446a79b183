//! Metrics are one rising record, also after a crash; curves show them.

use std::fs;

use arclet::train::curve::{svg, write_curve};
use arclet::train::metrics::{Losses, Metrics, Record};

use crate::{assert_refused, listing};

fn train(step: u64, loss: f64) -> Record {
    Record::Train {
        step,
        images: 32 * step,
        loss,
        learning_rate: 1e-3,
        gradient_norm: 0.5,
        images_per_s: 100.0,
        seconds: 0.32 * step as f64,
        loss_scale: None,
    }
}

#[test]
fn a_resumed_record_goes_on_from_its_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let mut metrics = Metrics::create(&path).unwrap();
    for step in [10, 20, 30, 40] {
        metrics.append(&train(step, 1.0 / step as f64)).unwrap();
    }
    metrics.append(&Record::Validation { step: 40, images: 9, loss: 0.5, best: true }).unwrap();
    assert_eq!(metrics.append(&train(39, 1.0)).unwrap_err().exit_code(), 1);
    // Nothing is held back: the lines are there before the file is closed.
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 5);
    let first = "{\"kind\":\"train\",\"step\":10,\"images\":320,\"loss\":0.1,\"learning_rate\":0.001,\"gradient_norm\":0.5,\
                 \"images_per_s\":100.0,\"seconds\":3.2}";
    assert_eq!(text.lines().next(), Some(first));
    drop(metrics);

    // Killed in the middle of a line.
    fs::write(&path, text.clone() + "{\"kind\":\"train\",\"step\":20,\"lo").unwrap();
    let (mut metrics, dropped) = Metrics::resume(&path, 30).unwrap();
    assert_eq!(dropped, 3);
    let kept: String = text.split_inclusive('\n').take(3).collect();
    assert_eq!(fs::read_to_string(&path).unwrap(), kept, "kept lines stay as they were");
    assert_eq!(metrics.append(&train(29, 1.0)).unwrap_err().exit_code(), 1);
    metrics.append(&Record::Event { step: 30, message: "resumed".into() }).unwrap();
    metrics.append(&train(50, 0.25)).unwrap();
    let losses = Losses::read(&path).unwrap();
    assert_eq!(losses.training, [(10, 0.1), (20, 0.05), (30, 1.0 / 30.0), (50, 0.25)]);
    assert_eq!(losses.validation, []);
    assert_eq!(listing(folder.path()), ["metrics.jsonl"]);
    assert_eq!(Metrics::create(&path).unwrap_err().exit_code(), 5, "a record is not written over");
}

#[test]
fn damaged_lines_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    let good = "{\"kind\":\"validation\",\"step\":5,\"loss\":2.0}\n";
    let lines = [
        good.as_bytes(),
        b"\n[]\n{\"step\":-1}\n{\"step\":\"5\"}\n{}\n\xff\xfe\n",
        b"{\"step\":5,\"step\":6}\n",
        // Back in time.
        b"{\"kind\":\"validation\",\"step\":4,\"loss\":9.0}\n",
        &[b'x'; 3 << 20],
        b"\n",
        good.as_bytes(),
        b"{\"kind\":\"train\",\"step\":6,\"loss\":null}\n",
    ];
    fs::write(&path, lines.concat()).unwrap();
    assert_eq!(Losses::read(&path).unwrap().validation, [(5, 2.0), (4, 9.0), (5, 2.0)]);
    let (_, dropped) = Metrics::resume(&path, 6).unwrap();
    assert!(dropped >= 9, "{dropped}");
    let kept = format!("{good}{good}{{\"kind\":\"train\",\"step\":6,\"loss\":null}}\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), kept);
    let losses = Losses::read(&path).unwrap();
    assert_eq!((losses.training.len(), losses.validation.len()), (0, 2), "null is no loss");
}

#[test]
fn missing_and_unreadable_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metrics.jsonl");
    assert_eq!(Losses::read(&path).unwrap(), Losses::default());
    let (mut metrics, dropped) = Metrics::resume(&path, 3).unwrap();
    metrics.append(&train(4, f64::NAN)).unwrap();
    assert_eq!((dropped, fs::read_to_string(&path).unwrap().contains("\"loss\":null")), (0, true));
    assert_refused(Losses::read(folder.path()), &["directory"]);
    assert_eq!(Metrics::resume(folder.path(), 3).unwrap_err().exit_code(), 5);
}

#[test]
fn curves_are_drawn_on_a_logarithmic_axis() {
    let training: Vec<(u64, f64)> = (1..=5000).map(|i| (10 * i, 1.0 / i as f64)).collect();
    let losses = Losses { training, validation: vec![(10_000, 1e-2), (50_000, 1e-3)] };
    let picture = svg(&losses);
    assert!(picture.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\"") && picture.ends_with("</svg>\n"));
    assert!(picture.len() < 40_000, "{} bytes", picture.len());
    for part in
        [">step<", ">loss (log scale)<", ">training<", ">training, smoothed<", ">validation<", ">0.1<", ">0.001<"]
    {
        assert!(picture.contains(part), "{part} is not in the picture");
    }
    assert_eq!(picture.matches("<polyline").count(), 3);
    assert_eq!(picture.matches("<circle").count(), 2);
    // Two decades of equal height: the grid lines of 1, 0.1 and 0.01.
    let y = |label: &str| {
        let head = picture.split(&format!(">{label}<")).next().unwrap();
        head.rsplit("y=\"").next().unwrap().split('"').next().unwrap().parse::<f64>().unwrap()
    };
    assert!((y("0.01") - y("0.1") - (y("0.1") - y("1"))).abs() < 0.25, "{} {} {}", y("1"), y("0.1"), y("0.01"));
    let balance: i64 = picture.matches('<').count() as i64 - picture.matches('>').count() as i64;
    assert_eq!((balance, picture.matches("<text").count()), (0, picture.matches("</text>").count()));
}

#[test]
fn curves_of_little_or_nonsense_are_pictures_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("curve.svg");
    for training in [
        vec![],
        vec![(1, 0.5)],
        vec![(1, 0.5), (2, 0.5)],
        vec![(1, 0.5), (2, 0.5000001)],
        vec![(1, f64::NAN), (2, f64::INFINITY), (3, -1.0), (4, 0.0)],
        vec![(0, 1e-300), (u64::MAX, 1e300)],
        vec![(0, 1e-29), (u64::MAX, 1e29)],
    ] {
        write_curve(&path, &Losses { training: training.clone(), validation: training }).unwrap();
        let picture = fs::read_to_string(&path).unwrap();
        assert!(!picture.contains("NaN") && !picture.contains("inf"), "{picture}");
        assert!((12..40).contains(&picture.matches("<text").count()), "{picture}");
    }
    assert_eq!(listing(folder.path()), ["curve.svg"]);
    assert_eq!(write_curve(folder.path().join("none/curve.svg"), &Losses::default()).unwrap_err().exit_code(), 5);
}
