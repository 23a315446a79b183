//! `arclet doctor`: what this machine and this program can do, and what would add the rest.

use arclet::device::cpu::{Cpu, available_memory};
use arclet::device::cuda::{Cuda, MIN_DRIVER_VERSION, Probe, probe};
use arclet::device::images::KernelImages;
use arclet::device::level::Level;
#[cfg(target_arch = "x86_64")]
use arclet::device::level::{Amx, Features};
use arclet::error::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{device, embedded, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet doctor
  arclet doctor --json";

/// What gives a program built without kernels some.
const ADD_KERNELS: &str = "tools/setup-cuda && cargo build --release";

/// Shows what this machine and this program can do.
///
/// CPU, NVIDIA driver, GPUs and the kernels in this program, and for what is missing how to add it. A machine without
/// a GPU is healthy: everything runs on the CPU.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Prints the findings.
///
/// # Errors
/// [`arclet::error::Error::Input`] for an unreadable kernel manifest; those of stdout.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let images = device::kernel_images()?;
    let probed = probe();
    let gpus = probed.as_ref().map_or_else(|_| Vec::new(), |p| describe_gpus(p, &images));
    let (found, problem) = match &probed {
        Ok(probe) => (Some(cuda_version(probe.driver_version)), None),
        Err(e) => (None, Some(e.to_string())),
    };
    let about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "embedded_model": embedded::NAME,
        "cpu": {
            "dispatch": Level::detect().name(),
            "features": cpu_features(),
            "threads": Cpu::new(0)?.threads(),
            "memory_available": available_memory(),
        },
        "driver": { "cuda": found, "problem": problem },
        "gpus": gpus,
        "kernels": describe_kernels(&images),
        "advice": advice(&probed, &images, &gpus),
    });
    if args.json { report::print_json(&about) } else { report::print(in_words(&about).join("\n")) }
}

/// Each GPU and whether it can be used.
fn describe_gpus(probe: &Probe, images: &KernelImages) -> Vec<Value> {
    let describe = |(ordinal, gpu): (usize, &arclet::device::cuda::DeviceInfo)| {
        let (major, minor) = gpu.compute_capability;
        let opened = Cuda::new(ordinal, images.clone()).and_then(|_| {
            images.select(device::PROBE_MODULE, (major as u32, minor as u32)).map(|i| i.target.to_string())
        });
        let (kernels, problem) = match opened {
            Ok(target) => (Some(target), None),
            Err(e) => (None, Some(e.to_string())),
        };
        json!({
            "device": format!("cuda:{ordinal}"),
            "name": gpu.name,
            "compute_capability": format!("{major}.{minor}"),
            "memory": gpu.memory,
            "kernels": kernels,
            "problem": problem,
        })
    };
    probe.devices.iter().enumerate().map(describe).collect()
}

fn describe_kernels(images: &KernelImages) -> Value {
    let listed = images
        .images()
        .iter()
        .map(|i| json!({ "module": i.module, "target": i.target.to_string(), "bytes": i.stored_size() }));
    json!({
        "description": images.describe(),
        "nvcc": images.nvcc(),
        "manifest": device::manifest_path().map(|p| p.to_string_lossy().into_owned()),
        "images": listed.collect::<Vec<_>>(),
    })
}

/// What to do about what is missing.
fn advice(probed: &Result<Probe>, images: &KernelImages, gpus: &[Value]) -> Vec<String> {
    let mut advice = Vec::new();
    match probed {
        Err(_) => advice.push("a GPU needs NVIDIA's driver; without one everything runs on the CPU".to_owned()),
        Ok(probe) if probe.driver_version < MIN_DRIVER_VERSION => {
            let needed = cuda_version(MIN_DRIVER_VERSION);
            advice.push(format!("install an NVIDIA driver that supports CUDA {needed} or newer"));
        }
        Ok(_) => {}
    }
    if images.is_empty() {
        advice.push(format!("to add GPU kernels to this program: {ADD_KERNELS}"));
    } else if !gpus.is_empty() && gpus.iter().all(|gpu| !gpu["problem"].is_null()) {
        advice.push("no GPU here can be used, for the reasons above; everything runs on the CPU".to_owned());
    }
    advice
}

fn cuda_version(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn in_words(about: &Value) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    let cpu = &about["cpu"];
    let features: Vec<String> = cpu["features"].as_array().into_iter().flatten().map(text).collect();
    let memory = |v: &Value| {
        v.as_u64().map_or_else(|| "unknown".into(), |b| format!("{:.1} GiB", b as f64 / (1u64 << 30) as f64))
    };
    let mut lines = vec![
        format!("arclet   {}, model {} inside", text(&about["version"]), text(&about["embedded_model"])),
        format!(
            "cpu      {}, {} threads, {} of memory free ({})",
            text(&cpu["dispatch"]),
            cpu["threads"],
            memory(&cpu["memory_available"]),
            features.join(" ")
        ),
    ];
    lines.push(match about["driver"]["cuda"].as_str() {
        Some(version) => format!("driver   supports CUDA {version}"),
        None => format!("driver   {}", text(&about["driver"]["problem"])),
    });
    for gpu in about["gpus"].as_array().into_iter().flatten() {
        let state = match gpu["kernels"].as_str() {
            Some(kernels) => format!("ready, kernels {kernels}"),
            None => format!("not usable: {}", text(&gpu["problem"])),
        };
        let (name, capability) = (text(&gpu["name"]), text(&gpu["compute_capability"]));
        lines.push(format!("{:<8} {name}, {capability}, {}: {state}", text(&gpu["device"]), memory(&gpu["memory"])));
    }
    lines.push(format!("kernels  {}", text(&about["kernels"]["description"])));
    if let Some(path) = about["kernels"]["manifest"].as_str() {
        lines.push(format!("         from {path}, as {} says", device::MANIFEST_VARIABLE));
    }
    lines.extend(about["advice"].as_array().into_iter().flatten().map(|a| format!("advice   {}", text(a))));
    lines
}

/// Extensions that matter to the loops; of AMX also whether the system lets this program use it.
fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! present {
            ($($name:tt),*) => { [$(($name, is_x86_feature_detected!($name))),*] };
        }
        let known = present!("sse4.2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512bf16");
        let amx = match Features::detect().amx {
            Amx::Absent => None,
            Amx::Refused => Some("amx-bf16 (refused by the system)"),
            Amx::Granted => Some("amx-bf16"),
        };
        known.into_iter().filter(|(_, present)| *present).map(|(name, _)| name).chain(amx).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}
