//! Statistics against sums done plainly.

use arclet::data::stats::stats;
use arclet::io::write_npy_f32;

use super::open;

#[test]
fn statistics_are_those_of_the_values() {
    let folder = tempfile::tempdir().unwrap();
    // Heavy-tailed, of both signs, with zeros: what a histogram of equal bins would miss.
    let value = |i: usize| match i % 10 {
        0 => 0.0,
        1 => -((i * 37 % 101) as f32) * 1e-3,
        _ => ((i * 53 % 997) as f32 / 100.0).exp(),
    };
    let mut all = Vec::new();
    for file in 0..3 {
        let pixels: Vec<f32> = (0..400).map(|i| value(file * 400 + i)).collect();
        let class = folder.path().join("a");
        std::fs::create_dir_all(&class).unwrap();
        write_npy_f32(class.join(format!("{file}.npy")), &[20, 20], &pixels).unwrap();
        all.extend(pixels);
    }
    let set = open(folder.path()).unwrap();
    let found = stats(&set, &mut |_| true).unwrap().unwrap();
    let [class] = &found[..] else { panic!("one class") };
    all.sort_by(f32::total_cmp);
    let n = all.len() as f64;
    let mean = all.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let std = (all.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert_eq!((class.images, class.min, class.max), (3, all[0], all[1199]));
    assert!((class.mean / mean - 1.0).abs() < 1e-12 && (class.std / std - 1.0).abs() < 1e-12);
    assert_eq!(class.zeros, all.iter().filter(|v| **v == 0.0).count() as f64 / n);
    for p in &class.percentiles {
        let want = all[(p.percent / 100.0 * (n - 1.0)).round() as usize];
        assert!((p.value - want).abs() <= want.abs() / 2048.0, "{}: {} and {want}", p.percent, p.value);
    }
    assert!(stats(&set, &mut |_| false).unwrap().is_none());
}
