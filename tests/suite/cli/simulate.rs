//! `data simulate`: folders, parameters, threads, interruption and refusals; and the simulator's rows of `bench`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use arclet::data::simulate::{Class, Distances, Population, Split};

use super::refusals::refused;
use super::{Desk, ended};

/// The rows of a table, by file, with the columns by name.
fn table(desk: &Desk, name: &str) -> HashMap<String, HashMap<String, String>> {
    let text = String::from_utf8(desk.bytes(name)).expect("text");
    let mut lines = text.lines().map(|l| l.split(',').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().expect("a header");
    let rows = lines.map(|line| {
        assert_eq!(line.len(), header.len(), "{line:?}");
        (line[0].clone(), header.iter().cloned().zip(line).collect())
    });
    rows.collect()
}

/// Images below a folder of a set.
fn images(desk: &Desk, folder: &str) -> Vec<String> {
    let root = desk.path(folder);
    let all = desk.listing().into_iter().filter(|p| p.starts_with(&root) && p.extension().is_some_and(|e| e == "npy"));
    all.map(|p| p.strip_prefix(&root).expect("below").to_string_lossy().replace('\\', "/")).collect()
}

#[test]
fn a_simulated_set_has_folders_and_every_parameter() {
    let desk = Desk::new();
    let printed = desk.json("data simulate --n 11 --seed 5 --out d --json --quiet");
    assert_eq!((&printed["images"], &printed["recipe"]["complete"]), (&39.into(), &true.into()));
    assert_eq!(printed["recipe"], desk.recipe("d/simulation.json"));
    let rows = table(&desk, "d/params.csv");
    let files = images(&desk, "d");
    assert_eq!((files.len(), rows.len()), (39, 39));
    let population = Population::public_sets(Distances::PublicSets);
    for file in files {
        let row = &rows[&file];
        let (shape, image) = desk.images(&format!("d/{file}"));
        assert_eq!(shape, [64, 64]);
        let of = |f: fn(f32, f32) -> f32| image.iter().copied().reduce(f).unwrap();
        assert_eq!((of(f32::min), of(f32::max)), (0.0, 1.0), "{file}");
        let class = Class::ALL.into_iter().find(|c| c.name() == row["class"]).expect("a class");
        let split = Split::ALL.into_iter().find(|s| s.name() == row["split"]).expect("a part");
        let index: u64 = row["index"].parse().unwrap();
        assert_eq!(file, format!("{}/{}/{}.npy", row["split"], row["class"], index + 1));
        assert!(index < if split == Split::Train { 11 } else { 2 });
        // Every number reads back as the one that was used.
        let number = |key: &str| row[key].parse::<f64>().unwrap_or_else(|e| panic!("{key}: {e}"));
        let lens = population.lens(5, class, split, index);
        assert_eq!([number("source_x_arcsec"), number("source_y_arcsec")], lens.source);
        assert_eq!(number("exposure_s"), lens.exposure);
        assert_eq!(number("substructure_points"), lens.points.len() as f64);
        assert_eq!(number("substructure_mass_Msun"), lens.substructure_mass());
        assert_eq!(number("axion_mass_eV"), lens.axion_mass);
        assert_eq!(number("vortex_half_length_arcsec"), lens.vortex_half_length);
        assert_eq!(number("vortex_angle_rad"), lens.vortex_angle);
        assert_eq!((number("halo_mass_Msun"), number("sky_rms_counts_per_s")), (1e12, 0.01));
        assert_eq!((class == Class::Vort, class == Class::No), (lens.axion_mass > 0.0, lens.points.is_empty()));
        assert!(number("count_min") == 0.0 && number("count_max") > 100.0);
    }
}

#[test]
fn simulated_images_do_not_depend_on_threads_or_on_what_else_is_simulated() {
    let desk = Desk::new();
    desk.ok("data simulate --n 6 --seed 3 --threads 1 --out a");
    desk.ok("data simulate --n 6 --seed 3 --threads 5 --out b");
    desk.ok("data simulate --n 4 --seed 3 --classes vort,no --out c");
    desk.ok("data simulate --n 6 --seed 4 --out d");
    desk.ok("data simulate --n 6 --seed 3 --distances angular --size 16 --out e");
    for file in images(&desk, "a").iter().map(String::as_str).chain(["params.csv", "simulation.json"]) {
        assert!(desk.bytes(&format!("a/{file}")) == desk.bytes(&format!("b/{file}")), "{file} depends on the threads");
        assert!(
            desk.bytes(&format!("a/{file}")) != desk.bytes(&format!("d/{file}")),
            "{file} does not depend on the seed"
        );
    }
    let fewer = images(&desk, "c");
    assert_eq!(fewer.len(), 2 * (4 + 1));
    for file in fewer {
        assert!(desk.bytes(&format!("a/{file}")) == desk.bytes(&format!("c/{file}")), "{file} depends on other images");
    }
    assert_eq!(desk.images("e/val/sphere/1.npy").0, [16, 16]);
    let (public, angular) = (table(&desk, "a/params.csv"), table(&desk, "e/params.csv"));
    let radius = |t: &HashMap<_, HashMap<String, String>>| -> f64 {
        t["train/no/1.npy"]["halo_theta_E_arcsec"].parse().expect("a number")
    };
    assert!((radius(&public) - 1.281).abs() < 1e-3 && (radius(&angular) - 1.665).abs() < 1e-3);
}

#[test]
fn simulations_that_cannot_be_made() {
    let desk = Desk::new();
    for (flags, parts) in [
        ("--n 0", vec!["'0'", "--n"]),
        ("--classes no,halo", vec!["'halo'", "no, sphere, vort"]),
        ("--classes no,vort,no", vec!["--classes", "no is named twice"]),
        ("--size 151", vec!["151", "8..=150"]),
        ("--seed -1", vec!["-1"]),
        ("--threads 0", vec!["'0'", "--threads"]),
    ] {
        refused(&desk, &format!("data simulate --out d {flags}"), 2, &parts);
    }
    refused(&desk, "data simulate", 2, &["--out"]);
    refused(&desk, "data paint", 2, &["'paint'"]);
    std::fs::write(desk.path("file"), b"").unwrap();
    refused(&desk, "data simulate --n 1 --out file", 5, &["file"]);
    refused(&desk, "data simulate --n 1 --out file/d", 5, &["file"]);
    desk.ok("data simulate --n 2 --classes no --out d");
    refused(&desk, "data simulate --n 1 --out d", 5, &["not empty", "--force"]);
    // A name that is taken by a folder is found out; the rest is replaced.
    let before = desk.bytes("d/train/no/1.npy");
    desk.ok("data simulate --n 1 --classes no --seed 1 --out d --force");
    assert!(before != desk.bytes("d/train/no/1.npy"));
    std::fs::remove_file(desk.path("d/train/no/1.npy")).unwrap();
    std::fs::create_dir(desk.path("d/train/no/1.npy")).unwrap();
    let end = desk.run("data simulate --n 1 --classes no --out d --force");
    assert_eq!(end.code, 5, "{}", end.stderr);
    assert!(end.stderr.contains("1.npy") && end.stderr.contains("folder"), "{}", end.stderr);
    let hidden = |p: &std::path::PathBuf| p.extension().is_some_and(|e| e == "tmp");
    assert!(!desk.listing().iter().any(hidden), "a temporary file is left");
}

/// Ctrl-C keeps what is finished: every image has its row and every row its image.
#[cfg(unix)]
#[test]
fn an_interrupted_simulation_keeps_its_finished_images() {
    use std::process::Stdio;
    let desk = Desk::new();
    let mut command = desk.command("data simulate --n 1000000 --threads 2 --out d");
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let waiting = Instant::now();
    while !desk.path("d/train/vort/3.npy").exists() {
        assert!(waiting.elapsed() < Duration::from_secs(30), "nothing was ever simulated");
        std::thread::sleep(Duration::from_millis(10));
    }
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
    let end = ended(child.wait_with_output());
    assert_eq!(end.code, 130, "{}", end.stderr);
    let recipe = desk.recipe("d/simulation.json");
    let n = recipe["images"].as_u64().expect("a number") as usize;
    assert!(n >= 9 && recipe["complete"] == false, "{recipe}");
    assert!(end.stderr.contains(&format!("{n} of 3300000 images kept in d")), "{}", end.stderr);
    let (rows, files) = (table(&desk, "d/params.csv"), images(&desk, "d"));
    assert!(
        files.len() == n && rows.len() == n && files.iter().all(|f| rows.contains_key(f)),
        "{} {}",
        files.len(),
        rows.len()
    );
    let hidden = |p: &std::path::PathBuf| p.extension().is_some_and(|e| e == "tmp");
    assert!(!desk.listing().iter().any(hidden), "a temporary file is left");
}

#[test]
fn bench_times_the_simulator_without_a_model() {
    let desk = Desk::new();
    let rows = desk.json("bench --model nowhere --measure simulator --calls 3 --batch 2 --threads 2 --json");
    let rows = rows.as_array().expect("rows");
    let names: Vec<&str> = rows.iter().map(|r| r["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["simulated lens, no", "simulated lens, sphere", "simulated lens, vort"]);
    for row in rows {
        assert_eq!((&row["measure"], &row["batch"]), (&"simulator".into(), &2.into()));
        assert_eq!((&row["runs"], &row["threads"]), (&3.into(), &2.into()));
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        assert!(number("min_ms") > 0.0 && number("min_ms") <= number("p50_ms"));
        assert!((number("images_per_s") * number("p50_ms") / 2e3 - 1.0).abs() < 1e-9, "{row}");
    }
}
