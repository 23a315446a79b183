//! `--device`: what is missing for a GPU is said, and with the emulated driver the whole program runs on one.

use std::path::Path;
use std::process::Command;

use arclet::io::write_npy_f32;

use super::{Desk, Ended, ended, golden_weights};
use crate::common::{Golden, relative_error};
use crate::conv_models::write_small_unetpp;

/// The program with the emulated driver where its loader looks first.
pub(super) fn on_emulated_gpu(desk: &Desk, arguments: &str) -> Command {
    let mut command = desk.command(arguments);
    let folder = Path::new(arclet_emu::LIBCUDA).parent().expect("the emulated driver lies in a folder");
    command.env("LD_LIBRARY_PATH", folder);
    command
}

fn run(command: &mut Command) -> Ended {
    ended(command.output())
}

/// Runs the program with a driver and kernels.
pub(super) fn on_gpu(desk: &Desk, arguments: &str) -> Ended {
    if real_driver() {
        return desk.run(arguments);
    }
    std::fs::write(desk.path("manifest"), arclet_emu::manifest("80")).unwrap();
    run(on_emulated_gpu(desk, arguments).env("ARCLET_KERNEL_MANIFEST", desk.path("manifest")))
}

/// Whether the program runs against the machine's own driver, which these tests cannot take away.
pub(super) fn real_driver() -> bool {
    arclet_emu::real_driver()
}

#[test]
fn a_gpu_that_is_asked_for_and_not_there_is_an_error() {
    if real_driver() {
        return;
    }
    let desk = Desk::new();
    let arguments = "sample --device cuda --n 1 --steps 1";
    let end = run(on_emulated_gpu(&desk, arguments).env("ARCLET_EMU_FAULT", "no-device"));
    assert_eq!(end.code, 4, "{}", end.stderr);
    assert!(end.stderr.contains("no GPU"), "{}", end.stderr);
    let end = run(&mut on_emulated_gpu(&desk, "sample --device cuda:7 --n 1 --steps 1"));
    assert_eq!(end.code, 4);
    assert!(end.stderr.contains("no GPU number 7"), "{}", end.stderr);
    let end = run(on_emulated_gpu(&desk, arguments).env("ARCLET_EMU_FAULT", "old-driver"));
    assert_eq!(end.code, 4);
    assert!(end.stderr.contains("CUDA 11.4") && end.stderr.contains("12.0"), "{}", end.stderr);
    assert!(desk.listing().is_empty());

    let about = desk.json("doctor --json");
    if about["driver"]["cuda"].is_null() {
        for verb in ["sample --n 1 --steps 1", "bench --model lens-dit-s"] {
            let end = desk.run(&format!("{verb} --device cuda"));
            assert_eq!(end.code, 4);
            assert!(end.stderr.contains("no NVIDIA driver"), "{}", end.stderr);
        }
        let advice = about["advice"].to_string();
        assert!(advice.contains("driver"), "{advice}");
    }
}

#[test]
fn a_gpu_that_is_too_old_is_named_with_what_it_lacks() {
    if real_driver() {
        return;
    }
    let desk = Desk::new();
    let old = |arguments: &str| run(on_emulated_gpu(&desk, arguments).env("ARCLET_EMU_CC", "75"));
    let lacks = |said: &str| said.contains("compute capability 7.5") && said.contains("8.0 or newer");
    for verb in ["sample --n 1 --steps 1", "bench --model lens-dit-s"] {
        let end = old(&format!("{verb} --device cuda"));
        assert_eq!(end.code, 4, "{}", end.stderr);
        assert!(lacks(&end.stderr), "{}", end.stderr);
    }
    assert!(desk.listing().is_empty());
    let about: serde_json::Value = serde_json::from_str(&old("doctor --json").stdout).expect("JSON");
    assert!(about["gpus"][0]["problem"].as_str().is_some_and(lacks), "{about}");
    let end = old("sample --n 1 --steps 1");
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert!(end.stderr.contains("using the CPU") && lacks(&end.stderr), "{}", end.stderr);
    assert_eq!(desk.recipe("samples/samples.json")["device"], "cpu");
}

#[test]
fn a_gpu_with_too_little_memory_says_what_was_asked_for_and_what_is_free() {
    if real_driver() {
        return;
    }
    let desk = Desk::new();
    std::fs::write(desk.path("manifest"), arclet_emu::manifest("80")).unwrap();
    for device in ["cuda", "auto"] {
        let arguments = format!("sample --n 1 --steps 1 --device {device} --out images");
        let mut command = on_emulated_gpu(&desk, &arguments);
        command.env("ARCLET_KERNEL_MANIFEST", desk.path("manifest"));
        let end = run(command.env("ARCLET_EMU_FAULT", "oom=1000000"));
        assert_eq!(end.code, 4, "{}", end.stderr);
        let numbers: Vec<u64> = end.stderr.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert!(end.stderr.contains("out of cuda:0 memory: asked for"), "{}", end.stderr);
        assert!(matches!(numbers[..], [.., asked, free] if free < asked && free <= 1_000_000), "{}", end.stderr);
        assert!(!desk.path("images").exists());
    }
}

#[test]
fn a_program_without_kernels_says_how_to_add_them() {
    let desk = Desk::new();
    let about = desk.json("doctor --json");
    if real_driver() || !about["kernels"]["images"].as_array().unwrap().is_empty() {
        return;
    }
    let end = run(&mut on_emulated_gpu(&desk, "sample --device cuda --n 1 --steps 1"));
    assert_eq!(end.code, 4, "{}", end.stderr);
    assert!(end.stderr.contains("no GPU kernels") && end.stderr.contains("tools/setup-cuda"), "{}", end.stderr);
    assert!(about["advice"].to_string().contains("tools/setup-cuda && cargo build --release"), "{about}");
}

#[test]
fn auto_takes_the_cpu_where_there_is_no_gpu_and_says_so() {
    if real_driver() {
        return;
    }
    let desk = Desk::new();
    let end = run(on_emulated_gpu(&desk, "sample --n 1 --steps 1").env("ARCLET_EMU_FAULT", "no-device"));
    assert_eq!(end.code, 0, "{}", end.stderr);
    let lines: Vec<&str> = end.stderr.lines().filter(|l| l.contains("using the CPU")).collect();
    assert!(lines.len() == 1 && lines[0].contains("no GPU"), "{}", end.stderr);
    assert_eq!(desk.recipe("samples/samples.json")["device"], "cpu");
}

/// A driver that is older than the compiler of the kernels, say: found when the GPU is opened, so that auto goes on.
#[test]
fn auto_takes_the_cpu_where_the_driver_cannot_load_the_kernels() {
    if real_driver() {
        return;
    }
    let desk = Desk::new();
    std::fs::write(desk.path("manifest"), arclet_emu::manifest("90")).unwrap();
    let gpu = |arguments: &str| {
        let mut command = on_emulated_gpu(&desk, arguments);
        run(command.env("ARCLET_KERNEL_MANIFEST", desk.path("manifest")).env("ARCLET_EMU_CC", "80"))
    };
    let end = gpu("sample --n 1 --steps 1");
    assert_eq!(end.code, 0, "{}", end.stderr);
    let lines: Vec<&str> = end.stderr.lines().filter(|l| l.contains("using the CPU")).collect();
    assert!(lines.len() == 1 && lines[0].contains("cannot load the kernels"), "{}", end.stderr);
    assert_eq!(desk.recipe("samples/samples.json")["device"], "cpu");
    let end = gpu("sample --n 1 --steps 1 --device cuda --out none");
    assert_eq!(end.code, 4, "{}", end.stderr);
    assert!(end.stderr.contains("cannot load the kernels") && end.stderr.contains("supports CUDA"), "{}", end.stderr);
}

/// The whole way, from flags to files, through the driver and every kernel.
#[test]
fn the_program_samples_on_a_gpu_as_on_the_cpu() {
    let desk = Desk::new();
    let model = golden_weights("a3_nanodit");
    let flags = format!("sample --model {model} --n 3 --steps 2 --dtype f32 --cfg-scale 2 --no-clamp --quiet");
    desk.ok(&format!("{flags} --device cpu --out cpu.npy"));
    let end = on_gpu(&desk, &format!("{flags} --device auto --batch 2 --out gpu.npy"));
    assert_eq!(end.code, 0, "{}", end.stderr);
    assert_eq!(desk.recipe("gpu.json")["device"], "cuda");
    let error = relative_error(&desk.images("gpu.npy").1, &desk.images("cpu.npy").1);
    assert!(error < 1e-4, "relative error {error:.2e}");

    let about: serde_json::Value = serde_json::from_str(&on_gpu(&desk, "doctor --json").stdout).unwrap();
    assert!(about["gpus"][0]["problem"].is_null() && about["gpus"][0]["device"] == "cuda:0", "{about}");
    if !real_driver() {
        assert!(about["kernels"]["manifest"].as_str().unwrap().ends_with("manifest"), "{about}");
        std::fs::write(desk.path("manifest"), "something else").unwrap();
        let end = run(on_emulated_gpu(&desk, "doctor").env("ARCLET_KERNEL_MANIFEST", desk.path("manifest")));
        assert_eq!(end.code, 3);
        assert!(end.stderr.contains("manifest"), "{}", end.stderr);
    }
}

/// PyTorch's weights under the notebooks' names; of the golden's two images the first.
#[test]
fn an_imported_unetpp_is_sampled_on_a_gpu() {
    let (golden, desk) = (Golden::open("g_conv_hash/unetpp_flow.safetensors"), Desk::new());
    write_small_unetpp(&desk, 64);
    write_npy_f32(desk.path("first.npy"), &[1, 1, 64, 64], &desk.images("x.npy").1[..64 * 64]).unwrap();
    let flags = "--noise first.npy --steps 10 --no-clamp --quiet --device cuda --dtype f32 --out images.npy";
    let end = on_gpu(&desk, &format!("sample --model w.safetensors {flags}"));
    assert_eq!(end.code, 0, "{}", end.stderr);
    let (shape, images) = desk.images("images.npy");
    assert_eq!(shape, [1, 1, 64, 64]);
    let error = relative_error(&images, &golden.f32("out.euler10")[..64 * 64]);
    assert!(error <= golden.bound("out.euler10", 1e-4), "{error:.2e}");
    let recipe = desk.recipe("images.json");
    assert_eq!(
        (recipe["device"].as_str(), recipe["model"]["architecture"].as_str()),
        (Some("cuda"), Some("flow_unetpp"))
    );
}
