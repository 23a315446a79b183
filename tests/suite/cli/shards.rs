//! `--shard` and `merge`: the parts make the whole, and nothing else passes for it.

use super::{Desk, small_sample};

/// Draws the three shards of a run into `folder`.
fn three_shards(desk: &Desk, folder: &str, more: &str) {
    for index in 1..=3 {
        desk.ok(&small_sample(&format!("{more} --shard {index}/3 --out {folder}")));
    }
}

#[test]
fn merged_shards_are_the_whole_run_byte_for_byte() {
    let desk = Desk::new();
    // Seven images: shards of 2, 2 and 3, whose classes go on in turn across them.
    desk.ok(&small_sample("--n 7 --out whole"));
    three_shards(&desk, "parts", "--n 7");
    let rows: Vec<usize> = (1..=3).map(|i| desk.images(&format!("parts/samples-{i}of3.npy")).0[0]).collect();
    assert_eq!(rows, [2, 2, 3]);
    assert_eq!(desk.recipe("parts/samples-2of3.json")["first_image"], 2);
    // In any order.
    desk.ok("merge parts/samples-3of3.npy parts/samples-1of3.npy parts/samples-2of3.npy --out merged");
    for file in ["samples.npy", "samples.json", "samples.png"] {
        assert!(desk.bytes(&format!("whole/{file}")) == desk.bytes(&format!("merged/{file}")), "{file} differs");
    }
}

#[test]
fn shards_of_given_noise_take_their_own_rows() {
    let desk = Desk::new();
    let noise: Vec<f32> = (0..3 * 256).map(|i| (i as f32 * 0.37).sin()).collect();
    arclet::io::write_npy_f32(desk.path("noise.npy"), &[3, 1, 16, 16], &noise).unwrap();
    desk.ok(&small_sample("--noise noise.npy --out whole"));
    three_shards(&desk, "parts", "--noise noise.npy --out x");
    desk.ok("merge parts/samples-1of3.npy parts/samples-2of3.npy parts/samples-3of3.npy --out merged");
    assert!(desk.bytes("whole/samples.npy") == desk.bytes("merged/samples.npy"));
    assert!(desk.bytes("whole/samples.json") == desk.bytes("merged/samples.json"));
}

#[test]
fn empty_shards_are_valid_files_and_merge() {
    let desk = Desk::new();
    desk.ok(&small_sample("--n 2 --out whole.safetensors"));
    for index in 1..=3 {
        desk.ok(&small_sample(&format!("--n 2 --shard {index}/3 --out part.safetensors")));
    }
    assert_eq!(desk.recipe("part-1of3.json")["shape"], serde_json::json!([0, 1, 16, 16]));
    assert!(!desk.path("part-1of3.png").exists(), "there is nothing to preview");
    desk.ok("merge part-1of3.safetensors part-2of3.safetensors part-3of3.safetensors --out all.safetensors");
    assert!(desk.bytes("all.safetensors") == desk.bytes("whole.safetensors"));
    desk.ok(&small_sample("--n 2 --shard 1/3 --out part.npy"));
    assert_eq!(desk.images("part-1of3.npy").0, [0, 1, 16, 16]);
}

#[test]
fn what_is_no_complete_set_of_shards_is_refused() {
    let desk = Desk::new();
    three_shards(&desk, "p", "--n 6");
    three_shards(&desk, "other", "--n 6 --seed 1");
    desk.ok(&small_sample("--n 6 --shard 2/4 --out four"));
    desk.ok(&small_sample("--n 6 --shard 2/3 --shift 0.5 --out shifted"));
    desk.ok(&small_sample("--n 6 --out whole"));
    let refused = |shards: &[&str], code: i32, parts: &[&str]| {
        let before = desk.listing();
        let end = desk.run(&format!("merge {} --out merged", shards.join(" ")));
        assert_eq!(end.code, code, "{shards:?}: {}", end.stderr);
        assert!(parts.iter().all(|p| end.stderr.contains(p)), "{shards:?}: {}", end.stderr);
        assert_eq!(desk.listing(), before, "{shards:?} left files behind");
    };
    let [one, two, three] = ["p/samples-1of3.npy", "p/samples-2of3.npy", "p/samples-3of3.npy"];
    refused(&[one, three], 3, &["1 of the 3 shards", "missing: 2/3"]);
    refused(&[one, two, two, three], 3, &["2/3 is given twice"]);
    refused(&[one, "other/samples-2of3.npy", three], 3, &["another run", "seed is 1, but 0"]);
    refused(&[one, "shifted/samples-2of3.npy", three], 3, &["another run", "time_shift is 0.5, but 1.0"]);
    refused(&[one, "four/samples-2of4.npy", three], 3, &["2/4", "1/3"]);
    refused(&["whole/samples.npy"], 3, &["found a whole run"]);
    refused(&["p/samples-9of3.npy"], 3, &["samples-9of3.json"]);
    refused(&["p/samples-1of3.json"], 3, &[".json"]);

    // Damage of each kind: a flipped bit, a short file, a recipe that claims another place, an unfinished shard.
    let original = desk.bytes(two);
    let mut flipped = original.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(desk.path(two), &flipped).unwrap();
    refused(&[one, two, three], 3, &[two, "damaged"]);
    std::fs::write(desk.path(two), &original[..original.len() - 4]).unwrap();
    refused(&[one, two, three], 3, &[two, "damaged"]);
    std::fs::write(desk.path(two), &original).unwrap();
    let recipe = String::from_utf8(desk.bytes("p/samples-2of3.json")).unwrap();
    let change = |from: &str, to: &str| {
        assert!(recipe.contains(from));
        std::fs::write(desk.path("p/samples-2of3.json"), recipe.replace(from, to)).unwrap();
    };
    change("\"first_image\": 2", "\"first_image\": 3");
    refused(&[one, two, three], 3, &["from image 3", "holds images 2 up to 4"]);
    change("\"complete\": true", "\"complete\": false");
    refused(&[one, two, three], 3, &["interrupted after 2 of 2"]);
    change("\"n\": 2", "\"n\": 2, \"n\": 2");
    refused(&[one, two, three], 3, &["duplicate key"]);
    change("\"seed\": 0", "\"sed\": 0");
    refused(&[one, two, three], 3, &["sed"]);
    std::fs::write(desk.path("p/samples-2of3.json"), recipe).unwrap();
    desk.ok(&format!("merge {one} {two} {three} --out merged"));
}
