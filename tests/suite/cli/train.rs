//! `arclet train`: from simulated lenses to samples, interruption, memory, and what is refused.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::gpu::{on_emulated_gpu, real_driver};
use super::refusals::refused;
use super::{Desk, ended};
use crate::train::{SMALL, images};

/// A desk with small settings and small images.
fn small() -> Desk {
    let desk = Desk::new();
    images(&desk.path("d"));
    std::fs::write(desk.path("s.toml"), SMALL).unwrap();
    desk
}

const TRAIN: &str = "train --config s.toml --data d --device cpu --out run";

#[test]
fn simulated_lenses_become_a_model_that_draws_by_class() {
    let desk = Desk::new();
    let config = crate::common::root().join("configs/lens-dit-s.toml");
    desk.ok("data simulate --n 6 --out d --quiet");
    let trained = desk
        .json(&format!("train --config {} --data d --steps 2 --device cpu --out run --json --quiet", config.display()));
    assert_eq!((&trained["steps"], &trained["images"], &trained["ended"]), (&2.into(), &64.into(), &"done".into()));
    assert!(trained["validation_loss"].as_f64().is_some_and(|loss| loss > 0.1), "{trained}");
    let model = desk.recipe("run/config.json");
    assert_eq!(model["class_names"], serde_json::json!(["no", "sphere", "vort"]));
    assert_eq!(model["value_range"], serde_json::json!([-1.0, 1.0]));
    desk.ok("sample --model run --n 2 --steps 2 --class vort,no --device cpu --out s --quiet");
    assert_eq!(desk.recipe("s/samples.json")["classes"], serde_json::json!(["vort", "no"]));
    assert!(desk.path("run/curve.svg").exists() && desk.path("run/samples/step-00000002.png").exists());
}

/// A model that is gone on from keeps its classes, and the data's are found by name.
#[test]
fn classes_match_by_name() {
    let desk = Desk::new();
    desk.ok("data simulate --n 3 --out d --quiet");
    desk.ok("train --init lens-dit-s --data d --steps 1 --device cpu --out run --quiet");
    let record: Value = serde_json::from_slice(&desk.bytes("run/run.json")).unwrap();
    let names: Vec<&str> =
        record["data"]["classes"].as_array().unwrap().iter().map(|c| c[0].as_str().unwrap()).collect();
    assert_eq!(names, ["vort", "sphere", "no"]);
    assert_eq!(desk.recipe("run/config.json")["class_names"], serde_json::json!(names));
    assert_eq!(record["init"]["name"], "lens-dit-s");
    std::fs::rename(desk.path("d/train/no"), desk.path("d/train/halo")).unwrap();
    refused(&desk, "train --init lens-dit-s --data d --steps 1 --device cpu --out other", 3, &["halo"]);
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_is_saved_at_once_and_goes_on() {
    let desk = small();
    let command = &mut desk.command(&format!("{TRAIN} --steps 1000000"));
    let child = command.stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    let waiting = Instant::now();
    while !desk.path("run/checkpoints/step-00000020").exists() {
        assert!(waiting.elapsed() < Duration::from_secs(60), "nothing was ever saved");
        std::thread::sleep(Duration::from_millis(10));
    }
    let sent = Instant::now();
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let end = ended(child.wait_with_output());
    let took = sent.elapsed();
    assert_eq!(end.code, 130, "{}", end.stderr);
    assert!(took < Duration::from_secs(2), "saving took {took:?}");
    let saved = end.stderr.split("interrupted: step ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a step");
    let saved: u64 = saved.parse().unwrap();
    let steps = saved + 3;
    let went_on = desk.json(&format!("train --resume --out run --device cpu --steps {steps} --json"));
    assert_eq!(went_on["steps"], steps);
    let again = desk.ok(&format!("train --resume --out run --device cpu --steps {steps}"));
    assert!(again.stderr.contains(&format!("goes on from step {steps}")), "{}", again.stderr);
}

#[test]
fn too_little_memory_halves_the_batch() {
    if real_driver() {
        return;
    }
    let desk = small();
    std::fs::write(desk.path("manifest"), arclet_emu::manifest("80")).unwrap();
    let arguments = "train --config s.toml --data d --device cuda --steps 2 --out run";
    let run = |memory: usize| {
        let _ = std::fs::remove_dir_all(desk.path("run"));
        let mut command = on_emulated_gpu(&desk, arguments);
        command.env("ARCLET_KERNEL_MANIFEST", desk.path("manifest")).env("ARCLET_EMU_FAULT", format!("oom={memory}"));
        ended(command.output())
    };
    // Enough for the weights and some of the eight images.
    let whole = run(1 << 30);
    assert_eq!(whole.code, 0, "{}", whole.stderr);
    assert!(whole.stderr.contains("8 images at a time"), "{}", whole.stderr);
    let halved =
        (1..60).map(|sixteenth| run(sixteenth << 16)).find(|end| end.code == 0).expect("some memory is enough");
    let fewer = ["1 images at a time, 8", "2 images at a time, 4", "4 images at a time, 2"];
    assert!(fewer.iter().any(|f| halved.stderr.contains(f)), "{}", halved.stderr);
    let settings = SMALL.to_owned() + "[memory]\nhalve_batch = false\n";
    std::fs::write(desk.path("s.toml"), settings).unwrap();
    let refused = run(1 << 20);
    assert_eq!(refused.code, 4, "{}", refused.stderr);
    assert!(refused.stderr.contains("out of cuda:0 memory"), "{}", refused.stderr);
}

#[test]
fn bad_settings_and_folders_are_refused() {
    let desk = small();
    let with = |line: &str| std::fs::write(desk.path("t.toml"), format!("{SMALL}\n{line}")).unwrap();
    with("[flow]\nlabel_droput = 0.1");
    let train = |config: &str, rest: &str| format!("train --config {config} --device cpu --out other {rest}");
    refused(&desk, &train("t.toml", "--data d"), 3, &["t.toml", "label_droput", "label_dropout"]);
    refused(&desk, &train("nothing.toml", "--data d"), 3, &["nothing.toml"]);
    refused(&desk, &train("s.toml", ""), 2, &["--data"]);
    std::fs::create_dir(desk.path("empty")).unwrap();
    refused(&desk, &train("s.toml", "--data empty"), 3, &["empty", "no images"]);
    refused(&desk, "train --resume --out nowhere --device cpu", 2, &["nowhere"]);
    refused(&desk, "train --init no-such-model --data d --device cpu --out other", 3, &["no-such-model", "lens-dit-s"]);
    desk.ok(&format!("{TRAIN} --steps 1 --quiet"));
    refused(&desk, &format!("{TRAIN} --steps 1"), 2, &["run", "--resume"]);
}

#[test]
fn a_pixel_that_is_no_number_ends_the_run_with_its_file() {
    let desk = small();
    let mut pixels = vec![0.0; 64];
    pixels[9] = f32::NAN;
    arclet::io::write_npy_f32(desk.path("d/train/rows/7.npy"), &[8, 8], &pixels).unwrap();
    let end = desk.run(&format!("{TRAIN} --steps 20"));
    assert_eq!(end.code, 3, "{}", end.stderr);
    assert!(end.stderr.contains("rows/7.npy") && end.stderr.contains("NaN"), "{}", end.stderr);
}

/// No room for the next checkpoint: exit 5, and the one before loads.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_checkpoint_before() {
    let desk = small();
    desk.ok(&format!("{TRAIN} --steps 20 --quiet"));
    let program = desk.command("").get_program().to_string_lossy().into_owned();
    // 100 blocks of 1024 bytes: less than the moments take.
    let line = format!("trap '' XFSZ; ulimit -f 100; exec {program} train --resume --out run --device cpu --steps 60");
    let mut shell = std::process::Command::new("bash");
    let end = ended(shell.args(["-c", &line]).current_dir(desk.path("")).output());
    assert_eq!(end.code, 5, "{}", end.stderr);
    let went_on = desk.json("train --resume --out run --device cpu --steps 25 --json");
    assert_eq!(went_on["steps"], 25);
}
