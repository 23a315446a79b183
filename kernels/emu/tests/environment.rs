//! What the environment decides before the first driver call: each test runs again in a child process.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use common::{Gpu, load_manifest, ptr, ran_in_child};
use cudarc::driver::{CudaContext, result, sys};
use half::f16;
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

/// A kernel of the next issue's kind: TMA, mbarriers, wgmma; right in every mode, and its planted defects are caught.
#[test]
fn hopper_pieces() {
    if ran_in_child("hopper_pieces", &[("ARCLET_EMU_CC", "90")]) {
        return;
    }
    let gpu = Gpu::new();
    let (m, n, k) = (100usize, 136usize, 320usize);
    let values = |len: usize, seed: usize| -> Vec<f16> {
        (0..len).map(|i| f16::from_f32(((i * 7 + seed) * 2654435761 % 1000) as f32 / 500.0 - 1.0)).collect()
    };
    let (a, w) = (values(m * k, 1), values(n * k, 2));
    let (da, dw) = (gpu.stream.clone_htod(&a).unwrap(), gpu.stream.clone_htod(&w).unwrap());
    let map = |base: u64, rows: usize| {
        #[repr(align(64))]
        struct Map(sys::CUtensorMap);
        // SAFETY: plain bytes.
        let mut map = Map(unsafe { std::mem::zeroed() });
        let (dims, strides) = ([k as u64, rows as u64], [2 * k as u64]);
        let (boxes, ones) = ([64u32, 128], [1u32, 1]);
        use sys::{
            CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE, CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        // SAFETY: arrays of the rank, alive during the call; the map is 64-byte aligned.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                2,
                base as *mut _,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                ones.as_ptr(),
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_NONE,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .unwrap();
        map
    };
    let (ta, tw) = (map(ptr(&da, &gpu.stream), m), map(ptr(&dw, &gpu.stream), n));
    let dc = gpu.stream.alloc_zeros::<f16>(m * n).unwrap();
    let run = |kernel: &str| {
        let f = gpu.function(kernel);
        let smem = 4 * 32768 + 64;
        let (c, sizes) = (ptr(&dc, &gpu.stream), [m as i32, n as i32, k as i32]);
        let at = |p: *const ()| p as *mut std::ffi::c_void;
        let mut slots = [at((&raw const ta).cast()), at((&raw const tw).cast()), at((&raw const c).cast())].to_vec();
        slots.extend(sizes.iter().map(|s| at((s as *const i32).cast())));
        // SAFETY: six parameters of the kernel's types, alive during the call.
        unsafe {
            let opt_in = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            sys::cuFuncSetAttribute(f, opt_in, smem).result().unwrap();
            let stream = gpu.stream.cu_stream();
            sys::cuLaunchKernel(f, 2, 1, 1, 384, 1, 1, smem as u32, stream, slots.as_mut_ptr(), std::ptr::null_mut())
                .result()
                .unwrap();
        }
        gpu.stream.synchronize().map_err(|_| {
            let message = arclet_emu::last_error().unwrap();
            arclet_emu::reset_error();
            message
        })
    };
    for mode in arclet_emu::ALL {
        arclet_emu::with_mode(mode, || run("emutest_wgmma")).unwrap();
        let c = gpu.stream.clone_dtoh(&dc).unwrap();
        for (i, got) in c.iter().enumerate() {
            let (x, y) = (&a[i / n * k..][..k], &w[i % n * k..][..k]);
            let want: f64 = x.iter().zip(y).map(|(x, y)| x.to_f64() * y.to_f64()).sum();
            assert!((got.to_f64() - want).abs() < 2e-3 * (1.0 + want.abs()), "{mode:?} {i}: {got}, not {want}");
        }
    }
    let checked = |kernel: &str, schedule| arclet_emu::with_schedule(schedule, true, || run(kernel)).unwrap_err();
    let message = checked("emutest_wgmma_no_empty_wait", arclet_emu::Schedule::Forward);
    assert!(message.contains("hopper.cu:"), "{message}");
    let message = checked("emutest_wgmma_no_barrier", arclet_emu::Schedule::Reverse);
    assert!(message.contains("shared-memory race") && message.contains("hopper.cu:"), "{message}");
}
