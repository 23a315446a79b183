//! `sample`: the images, the files and what stands in them.

use std::process::Stdio;
use std::time::{Duration, Instant};

use arclet::io::{Checkpoint, sha256_hex, write_npy_f32};

use super::{Desk, ended, golden_weights, small_sample};
use crate::common::{Golden, relative_error};

#[test]
fn the_same_command_gives_the_same_files_for_any_batch_and_number_of_threads() {
    let desk = Desk::new();
    let run = |more: &str, out: &str| {
        desk.ok(&format!("sample --n 5 --class vort --seed 1 --steps 2 --device cpu {more} --out {out}"))
    };
    run("", "a");
    for (i, more) in
        ["", "--batch 1", "--batch 3", "--batch 9", "--threads 1", "--threads 3 --batch 2"].iter().enumerate()
    {
        let out = format!("b{i}");
        run(more, &out);
        for file in ["samples.npy", "samples.json", "samples.png"] {
            assert!(
                desk.bytes(&format!("a/{file}")) == desk.bytes(&format!("{out}/{file}")),
                "{file} differs with {more:?}"
            );
        }
    }
}

#[test]
fn an_image_depends_on_its_seed_and_index_and_class_alone() {
    let desk = Desk::new();
    desk.ok(&small_sample("--n 2 --seed 7 --out two.npy"));
    desk.ok(&small_sample("--n 5 --seed 7 --guidance-scale 1 --out five.npy"));
    desk.ok(&small_sample("--n 2 --seed 8 --out other.npy"));
    desk.ok(&small_sample("--n 2 --seed 7 --class 1 --out class.npy"));
    let of = |name: &str| desk.images(name).1;
    assert_eq!(of("two.npy"), of("five.npy")[..of("two.npy").len()]);
    assert_ne!(of("two.npy"), of("other.npy"));
    let image = of("two.npy").len() / 2;
    // Image 1 has class 1 in turn anyway.
    assert_eq!(of("two.npy")[image..], of("class.npy")[image..]);
    assert_ne!(of("two.npy")[..image], of("class.npy")[..image]);
}

#[test]
fn the_recipe_says_how_the_images_came_to_be() {
    let desk = Desk::new();
    let printed =
        desk.json(&small_sample("--n 4 --class 2,0 --solver heun --cfg-scale 1.5 --seed 3 --dtype bf16 --json"));
    let recipe = desk.recipe("samples/samples.json");
    assert_eq!(printed["recipe"], recipe);
    let expected = serde_json::json!({
        "seed": 3, "solver": "heun", "steps": 3, "evaluations": 6, "guidance_scale": 1.5, "n": 4, "total": 4,
        "first_image": 0, "shard": null, "complete": true, "shape": [4, 1, 16, 16], "classes": ["2", "0", "2", "0"],
        "dtype": "bf16", "device": "cpu", "time": "train", "time_shift": 1.0, "clamp": true, "value_range": [-1.0, 1.0],
        "version": env!("CARGO_PKG_VERSION"),
        "data_sha256": sha256_hex(&desk.bytes("samples/samples.npy")),
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&recipe[field], value, "{field}");
    }
    assert!(recipe["hardware"].as_str().unwrap().starts_with("cpu ("), "{recipe}");
    let weights = std::fs::read(golden_weights("a3_nanodit")).unwrap();
    assert_eq!(recipe["model"]["sha256"], sha256_hex(&weights));
    let text = String::from_utf8(desk.bytes("samples/samples.json")).unwrap();
    assert!(!text.contains(desk.path("").to_str().unwrap()) && !text.contains("goldens"), "no path in the recipe");
}

/// The flag, a configuration that says the same, and the flag before a configuration that says something else.
#[test]
fn the_time_grid_is_shifted_as_the_flag_or_else_the_model_says() {
    let desk = Desk::new();
    let weights = std::fs::read(golden_weights("a3_nanodit")).unwrap();
    let configured = |folder: &str, shift: f64| {
        desk.ok(&format!("convert {} {folder}", golden_weights("a3_nanodit")));
        let mut config = desk.recipe(&format!("{folder}/config.json"));
        assert_eq!(config["time_shift"], 1.0);
        config["time_shift"] = shift.into();
        std::fs::write(desk.path(&format!("{folder}/config.json")), config.to_string()).unwrap();
        std::fs::write(desk.path(&format!("{folder}/model.safetensors")), &weights).unwrap();
        assert_eq!(desk.json(&format!("inspect {folder} --json"))["config"]["time_shift"], shift);
    };
    configured("tenth", 0.1);
    configured("two", 2.0);
    let sample = |model: &str, more: &str, out: &str| {
        desk.ok(&format!("sample --model {model} --device cpu --threads 2 --steps 3 --n 2 {more} --out {out}.npy"));
        (desk.images(&format!("{out}.npy")).1, desk.recipe(&format!("{out}.json"))["time_shift"].as_f64().unwrap())
    };
    let plain = golden_weights("a3_nanodit");
    let [equal, flag] = [sample(&plain, "", "a"), sample(&plain, "--shift 0.1", "b")];
    assert_eq!((equal.1, flag.1), (1.0, 0.1));
    assert_ne!(equal.0, flag.0);
    assert_eq!(sample("tenth", "", "c"), flag);
    assert_eq!(sample("two", "--shift 0.1", "d"), flag);
    assert_eq!(sample("two", "--shift 1", "e"), equal);
    // The notebooks' times are theirs alone.
    assert_eq!(sample("two", "--time notebook", "f"), sample(&plain, "--time notebook --shift 1", "g"));
}

#[test]
fn images_are_clamped_unless_asked_otherwise() {
    let desk = Desk::new();
    desk.ok(&small_sample("--n 3 --steps 1 --out clamped.npy"));
    desk.ok(&small_sample("--n 3 --steps 1 --no-clamp --out free.npy"));
    let (clamped, free) = (desk.images("clamped.npy").1, desk.images("free.npy").1);
    assert!(free.iter().any(|v| v.abs() > 1.0), "a test of clamping needs values to clamp");
    let expected: Vec<f32> = free.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
    assert_eq!(clamped, expected);
}

/// The lensing notebooks' model, noise and both time conventions.
#[test]
fn golden_noise_gives_the_golden_images() {
    let (desk, golden) = (Desk::new(), Golden::open("b_samplers/flow_vit_io.safetensors"));
    write_npy_f32(desk.path("noise.npy"), &golden.shape("in.x_noise"), &golden.f32("in.x_noise")).unwrap();
    let model = golden_weights("a1_flow_vit");
    for (name, flags) in [
        ("out.euler50", "--no-clamp"),
        ("out.euler50_notebook_clamped", "--time notebook"),
        ("out.heun10", "--no-clamp --steps 10 --solver heun"),
        ("out.midpoint10", "--no-clamp --steps 10 --solver midpoint --batch 1"),
    ] {
        desk.ok(&format!("sample --model {model} --noise noise.npy --device cpu --dtype f32 {flags} --out x.npy"));
        let error = relative_error(&desk.images("x.npy").1, &golden.f32(name));
        assert!(error <= golden.bound(name, 1e-4), "{name}: {error:.2e}");
    }
    assert_eq!(desk.recipe("x.json")["seed"], serde_json::Value::Null);
    assert_eq!(desk.recipe("x.json")["noise_sha256"], sha256_hex(&desk.bytes("noise.npy")));
}

#[test]
fn safetensors_hold_the_same_images_and_the_recipe() {
    let desk = Desk::new();
    desk.ok(&small_sample("--n 2 --out deep/er/x.npy"));
    desk.ok(&small_sample("--n 2 --out x.safetensors"));
    let file = Checkpoint::open(desk.path("x.safetensors")).unwrap();
    assert_eq!(
        (file.shape("images").unwrap().to_vec(), file.read_f32("images").unwrap()),
        desk.images("deep/er/x.npy")
    );
    let inside: serde_json::Value = serde_json::from_str(&file.metadata()["recipe"]).unwrap();
    let mut beside = desk.recipe("x.json");
    beside["data_sha256"] = serde_json::Value::Null;
    assert_eq!(inside, beside);
    assert!(desk.path("x.png").is_file() && desk.path("deep/er/x.png").is_file());
}

#[test]
fn hdf5_is_written_or_refused_before_any_work() {
    let desk = Desk::new();
    let end = desk.run(&small_sample("--n 2 --out x.h5"));
    if cfg!(feature = "hdf5") {
        assert_eq!(end.code, 0, "{}", end.stderr);
        assert!(desk.bytes("x.h5").starts_with(b"\x89HDF"));
    } else {
        assert_eq!(end.code, 2);
        assert!(end.stderr.contains("features hdf5"), "{}", end.stderr);
        assert!(desk.listing().is_empty());
    }
}

#[test]
fn settings_come_from_a_file_and_flags_go_before_them() {
    let desk = Desk::new();
    let settings =
        "n = 4\nsteps = 5\nclass = [\"0\", 2]\ncfg-scale = 2.0\nno-clamp = true\nseed = 9\nout = \"from-file\"\n";
    std::fs::write(desk.path("run.toml"), settings).unwrap();
    desk.ok(&small_sample("--config run.toml --seed 4"));
    let recipe = desk.recipe("from-file/samples.json");
    let got = ["n", "steps", "guidance_scale", "clamp", "seed"].map(|f| recipe[f].clone());
    assert_eq!(got.to_vec(), serde_json::json!([4, 3, 2.0, false, 4]).as_array().unwrap().clone());
    assert_eq!(recipe["classes"], serde_json::json!(["0", "2", "0", "2"]));
    for (text, parts) in [
        ("stepps = 3", vec!["\"stepps\"", "steps"]),
        ("steps = \"many\"", vec!["\"steps\"", "many"]),
        ("quiet = 1", vec!["\"quiet\"", "true or false"]),
        ("steps = {a = 1}", vec!["\"steps\"", "table"]),
        ("steps = 3\nsteps = 4", vec!["line 2", "duplicate key"]),
        ("config = \"other.toml\"", vec!["\"config\""]),
    ] {
        std::fs::write(desk.path("bad.toml"), text).unwrap();
        let end = desk.run("sample --config bad.toml");
        assert_eq!(end.code, 3, "{text}: {}", end.stderr);
        assert!(
            end.stderr.contains("bad.toml") && parts.iter().all(|p| end.stderr.contains(p)),
            "{text}: {}",
            end.stderr
        );
    }
    assert!(!desk.path("samples").exists());
}

#[test]
fn start_up_is_under_a_third_of_a_second() {
    let desk = Desk::new();
    let load = || desk.json("sample --n 1 --steps 1 --device cpu --json")["load_seconds"].as_f64().unwrap();
    let least = (0..3).map(|_| load()).fold(f64::INFINITY, f64::min);
    assert!(least < 0.3, "{least} s until the model was loaded");
}

/// Ctrl-C keeps what is finished, in complete files, and says so.
#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_its_finished_images() {
    let desk = Desk::new();
    let mut command = desk.command(&small_sample("--n 1000000 --batch 2 --out x.npy"));
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let begun =
        |p: &std::path::PathBuf| p.extension().is_some_and(|e| e == "tmp") && p.to_string_lossy().contains("x.npy");
    let waiting = Instant::now();
    while !desk.listing().iter().any(begun) {
        assert!(waiting.elapsed() < Duration::from_secs(30), "sampling never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(400));
    let signalled = Instant::now();
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
    let end = ended(child.wait_with_output());
    println!("ended {:.2} s after the signal", signalled.elapsed().as_secs_f64());
    assert_eq!(end.code, 130, "{}", end.stderr);
    let recipe = desk.recipe("x.json");
    let n = recipe["n"].as_u64().unwrap() as usize;
    assert!(n > 0 && n.is_multiple_of(2) && recipe["complete"] == false, "{recipe}");
    assert!(end.stderr.contains(&format!("{n} of 1000000 images kept")), "{}", end.stderr);
    assert_eq!(desk.images("x.npy").0, [n, 1, 16, 16]);
    assert_eq!(desk.listing().len(), 3, "no temporary file is left: {:?}", desk.listing());
    // The finished images are those of any run.
    desk.ok(&small_sample("--n 2 --out two.npy"));
    assert_eq!(desk.images("x.npy").1[..512], desk.images("two.npy").1);
}
