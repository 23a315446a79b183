//! Which device a run uses, and which kernels it may load.

use std::path::Path;

use arclet::device::Device;
use arclet::device::cpu::Cpu;
pub use arclet::device::cuda::PROBE_MODULE;
use arclet::device::cuda::{Cuda, probe};
use arclet::device::images::KernelImages;
use arclet::error::{Error, Result};
use arclet::tensor::DType;

use super::options::{ComputeArgs, DTypeChoice, DeviceChoice};
use super::report;

/// Names a file that stands in for the embedded kernels: for tests, which run on an emulated driver.
pub const MANIFEST_VARIABLE: &str = "ARCLET_KERNEL_MANIFEST";

/// The device that `args` ask for. `auto` says in one line which one it took and why.
///
/// # Errors
/// [`Error::Device`] with what is missing, for an explicit GPU; [`Error::Input`] for an unreadable manifest.
pub fn open(args: &ComputeArgs, quiet: bool) -> Result<Device> {
    let cpu = || Cpu::new(args.threads.unwrap_or(0).into());
    match args.device {
        DeviceChoice::Cpu => cpu().map(Device::Cpu),
        DeviceChoice::Cuda(ordinal) => Cuda::new(ordinal, kernel_images()?).map(Device::Cuda),
        DeviceChoice::Auto => match first_usable(&kernel_images()?) {
            Ok(cuda) => {
                let device = Device::Cuda(cuda);
                report::note(quiet, format!("using {}: {}", device.name(), device.description()));
                Ok(device)
            }
            Err(reason) => {
                let cpu = cpu()?;
                let threads = report::counted(cpu.threads(), "thread");
                report::note(quiet, format!("using the CPU ({}, {threads}): {reason}", cpu.level().name()));
                Ok(Device::Cpu(cpu))
            }
        },
    }
}

/// The type that `choice` means on `device`; says so where `auto` takes bf16 on a CPU.
pub fn dtype(choice: DTypeChoice, device: &Device, quiet: bool) -> DType {
    let dtype = choice.or(DType::best(device));
    if let (DTypeChoice::Auto, DType::BF16, Device::Cpu(cpu)) = (choice, dtype, device) {
        report::note(
            quiet,
            format!("in bf16, which this CPU multiplies ({}); --dtype f32 for f32", cpu.level().name()),
        );
    }
    dtype
}

/// The embedded kernels, or the manifest that the environment names.
///
/// # Errors
/// [`Error::Input`] for a manifest that cannot be read or is none.
pub fn kernel_images() -> Result<KernelImages> {
    let Some(path) = manifest_path() else { return Ok(KernelImages::embedded()) };
    let path = Path::new(&path);
    let text = std::fs::read(path).map_err(|e| Error::input(path, format!("kernel manifest: {e}")))?;
    if !text.starts_with(KernelImages::MANIFEST_MARKER.as_bytes()) {
        let expected = KernelImages::MANIFEST_MARKER.trim_end();
        return Err(Error::input(path, format!("kernel manifest: expected {expected} as the first line")));
    }
    Ok(KernelImages::manifest(text))
}

/// The file that stands in for the embedded kernels, if one does.
pub fn manifest_path() -> Option<std::ffi::OsString> {
    std::env::var_os(MANIFEST_VARIABLE)
}

/// The first GPU that the kernels run on.
fn first_usable(images: &KernelImages) -> Result<Cuda> {
    let mut reason = None;
    for ordinal in 0..probe()?.devices.len() {
        match Cuda::new(ordinal, images.clone()) {
            Ok(cuda) => return Ok(cuda),
            Err(e) => reason = reason.or(Some(e)),
        }
    }
    Err(reason.unwrap_or_else(|| Error::device("the NVIDIA driver reports no GPU")))
}
