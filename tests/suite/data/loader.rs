//! The loader: the same sequence whatever the threads and the batch, resumed exactly, with bounded memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arclet::data::random::{Draw, permutation};
use arclet::data::{Batch, DataSet, Loader, LoaderState, TransformConfig};
use arclet::error::Result;

use super::{assert_refused, fixture, open, write_image};

const AUGMENTED: &str = "rotate = 90.0\nhorizontal_flip = 0.5\nvertical_flip = 0.5\noutput_range = [-1, 1]";

fn lenses() -> Arc<DataSet> {
    let transform = TransformConfig::from_table(&AUGMENTED.parse().unwrap()).unwrap();
    Arc::new(open(fixture("stored.npz")).unwrap().transformed(transform).unwrap())
}

fn take(loader: &mut Loader, batches: usize) -> Vec<Batch> {
    loader.take(batches).map(|b| b.unwrap()).collect()
}

/// Images, labels and indices, one after the other.
fn joined(batches: &[Batch]) -> (Vec<f32>, Vec<u32>, Vec<u32>) {
    let images = batches.iter().flat_map(|b| b.images.clone()).collect();
    let labels = batches.iter().flat_map(|b| b.labels.clone()).collect();
    (images, labels, batches.iter().flat_map(|b| b.indices.clone()).collect())
}

#[test]
fn the_sequence_depends_on_the_seed_alone() {
    let reference = take(&mut Loader::new(lenses(), 4, 7, 1).unwrap(), 15);
    assert_eq!(reference[0].shape, [4, 1, 8, 8]);
    assert_eq!(reference.iter().map(|b| b.epoch).collect::<Vec<_>>(), [0, 0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 9, 10, 11]);
    for threads in [2, 5] {
        assert_eq!(take(&mut Loader::new(lenses(), 4, 7, threads).unwrap(), 15), reference, "{threads} threads");
    }
    assert_eq!(joined(&take(&mut Loader::new(lenses(), 6, 7, 2).unwrap(), 10)), joined(&reference));
    let (images, labels, indices) = joined(&reference);
    for epoch in indices.chunks(5) {
        let mut all = epoch.to_vec();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3, 4], "every image once an epoch");
    }
    assert!(indices.chunks(5).any(|e| e != &indices[..5]), "epochs differ");
    assert!(labels.iter().zip(&indices).all(|(&l, &i)| l == [0, 2, 1, 0, 2][i as usize]));
    assert_ne!(joined(&take(&mut Loader::new(lenses(), 4, 8, 1).unwrap(), 15)).2, indices, "seeds differ");
    // Each image is augmented anew: the first one is not the same in all twelve epochs.
    let of_zero = |i: usize| (indices[i] == 0).then(|| &images[i * 64..(i + 1) * 64]);
    let views: Vec<_> = (0..indices.len()).filter_map(of_zero).collect();
    assert!(views.len() == 12 && views.iter().any(|v| v != &views[0]));
}

#[test]
fn a_resumed_loader_goes_on_exactly() {
    let reference = take(&mut Loader::new(lenses(), 3, 11, 2).unwrap(), 12);
    let mut first = Loader::new(lenses(), 3, 11, 2).unwrap();
    take(&mut first, 5);
    let text = serde_json::to_string(&first.state()).unwrap();
    assert_eq!(text, r#"{"seed":11,"position":15,"images":5}"#);
    let state: LoaderState = serde_json::from_str(&text).unwrap();
    let mut resumed = Loader::new(lenses(), 3, 999, 1).unwrap();
    take(&mut resumed, 2);
    resumed.resume(state).unwrap();
    assert_eq!(take(&mut resumed, 7), reference[5..]);
    assert_eq!(resumed.state(), LoaderState { position: 36, ..state });
    // Halved in the middle: the same images, three by three and then one by one.
    first.set_batch(1).unwrap();
    let ones = take(&mut first, 21);
    assert_eq!((joined(&ones), ones[0].shape), (joined(&reference[5..]), [1, 1, 8, 8]));

    let other = resumed.resume(LoaderState { images: 6, ..state }).unwrap_err();
    assert!(other.exit_code() == 2 && other.to_string().contains("found 5 images, expected 6"), "{other}");
    for (batch, threads) in [(0, 1), (1, 0)] {
        assert_eq!(Loader::new(lenses(), batch, 0, threads).err().unwrap().exit_code(), 2);
    }
    assert_eq!(first.set_batch(0).unwrap_err().exit_code(), 2);
}

#[test]
fn a_pass_in_order_ends_with_a_smaller_batch() {
    let plain = Arc::new(open(fixture("stored.npz")).unwrap());
    for threads in [1, 3] {
        let batches: Vec<Batch> = Loader::in_order(plain.clone(), 2, threads).unwrap().map(|b| b.unwrap()).collect();
        assert_eq!(batches.iter().map(|b| b.indices.clone()).collect::<Vec<_>>(), [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(batches[2].shape, [1, 1, 8, 8]);
        assert_eq!(joined(&batches).0, (0..5).flat_map(|i| super::lens(i, 8)).collect::<Vec<_>>());
    }
    // Not augmented: what is drawn at random stays out.
    let batch = Loader::in_order(lenses(), 5, 1).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.images, (0..5).flat_map(|i| super::lens(i, 8)).map(|v| v * 2.0 - 1.0).collect::<Vec<_>>());
}

fn folder_of(count: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    (0..count).for_each(|i| write_image(folder.path().join(format!("no/{i}.npy")), 4, i as f32));
    folder
}

fn in_order(folder: &Path, batch: usize, threads: usize) -> Vec<Result<Batch>> {
    Loader::in_order(Arc::new(open(folder).unwrap()), batch, threads).unwrap().collect()
}

#[test]
fn broken_and_odd_images_are_errors_in_their_place() {
    let folder = folder_of(8);
    write_image(folder.path().join("no/3.npy"), 5, 0.0);
    std::fs::write(folder.path().join("no/5.npy"), "no array").unwrap();
    write_image(folder.path().join("no/6.npy"), 4, f32::NAN);
    let batches = in_order(folder.path(), 1, 2);
    assert_eq!(
        batches.iter().map(Result::is_ok).collect::<Vec<_>>(),
        [true, true, true, false, true, false, false, true]
    );
    let mut batches = batches.into_iter();
    let expected = ["no/3.npy", "found an image of [1, 5, 5]", "expected [1, 4, 4]", "no/0.npy", "\"resize\""];
    assert_refused(batches.nth(3).unwrap(), &expected);
    assert_refused(batches.nth(1).unwrap(), &["no/5.npy", "magic"]);
    assert_refused(batches.next().unwrap(), &["no/6.npy", "16 of 16 pixels not finite"]);
}

/// Workers that ran ahead without limit would have read all files before they are taken away.
#[test]
fn the_queue_is_bounded() {
    let (threads, batch) = (2, 3);
    let folder = folder_of(600);
    let mut loader = Loader::in_order(Arc::new(open(folder.path()).unwrap()), batch, threads).unwrap();
    loader.next().unwrap().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    std::fs::remove_dir_all(folder.path().join("no")).unwrap();
    let read = 1 + loader.filter(Result::is_ok).count();
    assert!(read <= 1 + 2 * threads + threads, "{read} batches were read");
}

#[test]
fn a_loader_ends_when_it_is_dropped() {
    for threads in [1, 4] {
        let mut loader = Loader::new(lenses(), 2, 0, threads).unwrap();
        take(&mut loader, 3);
        drop(loader);
        drop(Loader::new(lenses(), 2, 0, threads).unwrap());
    }
}

#[test]
fn permutations_are_fair_and_draws_uniform() {
    let mut counts: BTreeMap<Vec<u32>, u32> = BTreeMap::new();
    let epochs = 24_000;
    (0..epochs).for_each(|epoch| *counts.entry(permutation(3, epoch, 4)).or_default() += 1);
    assert_eq!(counts.len(), 24);
    // Chi-squared of 23 degrees of freedom: above 49.7 once in a thousand.
    let chi: f64 = counts.values().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
    assert!(chi < 49.7, "{chi}");
    assert!(permutation(3, 0, 0).is_empty());

    let draws: Vec<f64> = (0..10_000)
        .flat_map(|i| {
            let Draw { rotation, horizontal, vertical } = Draw::new(5, 2, i);
            [rotation, horizontal, vertical]
        })
        .collect();
    let mut bins = [0u32; 20];
    draws.iter().for_each(|&v| bins[(v * 20.0) as usize] += 1);
    let chi: f64 = bins.iter().map(|&n| (f64::from(n) - 1500.0).powi(2) / 1500.0).sum();
    assert!(chi < 43.8, "{chi}"); // 19 degrees of freedom
    assert_ne!(Draw::new(5, 2, 0), Draw::new(5, 3, 0));
    assert_ne!(Draw::new(5, 2, 0), Draw::new(6, 2, 0));
}
