//! What the environment decides before the first driver call: each test runs again in a child process.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::{Gpu, load_manifest, ptr, ran_in_child};
use cudarc::driver::{CudaContext, result, sys};
use sys::CUresult as R;

#[test]
fn no_device() {
    if ran_in_child("no_device", &[("ARCLET_EMU_FAULT", "no-device")]) {
        return;
    }
    arclet_emu::load();
    // SAFETY: asks whether the library can be loaded.
    assert!(unsafe { sys::is_culib_present() });
    assert_eq!(CudaContext::new(0).unwrap_err().0, R::CUDA_ERROR_NO_DEVICE);
}

#[test]
fn old_driver() {
    if ran_in_child("old_driver", &[("ARCLET_EMU_FAULT", "old-driver")]) {
        return;
    }
    arclet_emu::load();
    let mut version = 0;
    // SAFETY: may be asked before cuInit.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().unwrap();
    assert_eq!(version, 11040);
    let _ctx = CudaContext::new(0).unwrap();
    let e = load_manifest(&arclet_emu::manifest("80")).unwrap_err();
    assert_eq!(e.0, R::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
}

#[test]
fn little_memory() {
    if ran_in_child("little_memory", &[("ARCLET_EMU_FAULT", "oom=1000000")]) {
        return;
    }
    let gpu = Gpu::new();
    assert_eq!(gpu.ctx.total_mem().unwrap(), 1_000_000);
    assert_eq!(result::mem_get_info().unwrap(), (1_000_000, 1_000_000));
    let half = gpu.stream.alloc_zeros::<u8>(512 << 10).unwrap();
    assert_eq!(result::mem_get_info().unwrap(), (1_000_000 - (512 << 10), 1_000_000));
    let e = gpu.stream.alloc_zeros::<u8>(512 << 10).unwrap_err();
    assert_eq!(e.0, R::CUDA_ERROR_OUT_OF_MEMORY);
    assert!(arclet_emu::last_error().unwrap().contains("524288 bytes, 475712 of 1000000 free"));
    drop(half);
    // freed memory can be had again, and the error does not stick
    gpu.stream.alloc_zeros::<u8>(900_000).unwrap();
    assert_eq!(gpu.stream.alloc_zeros::<u8>(usize::MAX >> 8).unwrap_err().0, R::CUDA_ERROR_OUT_OF_MEMORY);
}

#[test]
fn manifests_for_hopper() {
    if ran_in_child("manifests_for_hopper", &[("ARCLET_EMU_CC", "90"), ("ARCLET_EMU_MULTIPROCESSORS", "114")]) {
        return;
    }
    let gpu = Gpu::new();
    assert_eq!(gpu.ctx.compute_capability().unwrap(), (9, 0));
    let count = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    assert_eq!(gpu.ctx.attribute(count).unwrap(), 114);
    for (arch, runs) in
        [("80", true), ("86", true), ("90", true), ("90a", true), ("100", false), ("100a", false), ("80a", false)]
    {
        let loaded = load_manifest(&arclet_emu::manifest(arch));
        assert_eq!(loaded.is_ok(), runs, "{arch}");
        assert!(loaded.is_ok() || loaded.unwrap_err().0 == R::CUDA_ERROR_NO_BINARY_FOR_GPU, "{arch}");
    }
}

/// A child that does not call `load`: the library is found on the path, in the mode of the parent's thread.
#[test]
fn children_find_the_driver_on_the_path() {
    const NAME: &str = "children_find_the_driver_on_the_path";
    let child = std::env::var("ARCLET_EMU_TEST_CHILD").is_ok();
    if !child {
        let env = arclet_emu::with_schedule(arclet_emu::Schedule::Shuffled(9), true, arclet_emu::env_for_child);
        let env: Vec<(&str, &str)> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert!(ran_in_child(NAME, &env));
        return;
    }
    let ctx = CudaContext::new(0).expect("a context without load()");
    let stream = ctx.new_stream().unwrap();
    let module = load_manifest(&arclet_emu::manifest("80")).unwrap();
    let f = common::get_function(module, "emutest_no_syncwarp").unwrap();
    let out = stream.alloc_zeros::<i32>(32).unwrap();
    let mut slots = [&ptr(&out, &stream) as *const u64 as *mut std::ffi::c_void];
    // SAFETY: one parameter, alive during the call.
    unsafe {
        sys::cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 128, stream.cu_stream(), slots.as_mut_ptr(), std::ptr::null_mut())
    }
    .result()
    .unwrap();
    assert_eq!(stream.synchronize().unwrap_err().0, R::CUDA_ERROR_LAUNCH_FAILED);
    assert!(arclet_emu::last_error().unwrap().contains("shared-memory race"));
    std::mem::forget((out, stream)); // nothing can be freed in a dead context
}

#[test]
fn the_real_driver_is_left_alone() {
    if ran_in_child("the_real_driver_is_left_alone", &[("ARCLET_TEST_DRIVER", "real")]) {
        return;
    }
    arclet_emu::load();
    assert!(arclet_emu::real_driver() && arclet_emu::env_for_child().is_empty());
    assert_eq!(arclet_emu::modes().len(), 1);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("libcuda.so"), "load() must not load the emulated driver");
    assert_eq!(arclet_emu::with_mode(arclet_emu::ALL[3], || 5), 5);
}
