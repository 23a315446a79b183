//! What compute capability 9.0 adds: clusters, dependent launches, TMA and wgmma. Each rule has a kernel that breaks it,
//! which must be noticed.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use arclet_emu::{ALL, Mode, with_mode};
use common::{Extra, Gpu, ptr, ran_in_child, shape};
use cudarc::driver::{DriverError, sys};
use half::f16;

const HOPPER: [(&str, &str); 1] = [("ARCLET_EMU_CC", "90")];
/// Forward, reverse and shuffled, with the checker.
const CHECKED: [Mode; 3] = [checked(ALL[0]), checked(ALL[1]), checked(ALL[2])];

const fn checked(mode: Mode) -> Mode {
    Mode { checked: true, ..mode }
}

/// `cluster.cu:<line>` of the comment `bug: <mark>`.
fn lines_of(mark: &str) -> Vec<String> {
    let text = include_str!("kernels/cluster.cu").lines().enumerate();
    let marked = |l: &str| l.split("// ").any(|c| c.trim() == format!("bug: {mark}"));
    text.filter(|(_, l)| marked(l)).map(|(n, _)| format!("cluster.cu:{}", n + 1)).collect()
}

/// Runs `kernel` with `bug`, which must be reported in these words and, where the source marks lines, with one of them.
fn caught(gpu: &Gpu, kernel: &str, bug: u64, modes: &[Mode], wanted: &str, run: impl Fn(u64) -> Result<(), String>) {
    let lines = lines_of(&format!("{kernel} {bug}"));
    for &mode in modes {
        let message = with_mode(mode, || run(bug)).expect_err(&format!("{kernel} {bug} in {mode:?}"));
        assert!(message.contains(wanted), "{kernel} {bug} in {mode:?}: no `{wanted}` in: {message}");
        let named = lines.is_empty() || lines.iter().any(|l| message.contains(l));
        assert!(named, "{kernel} {bug} in {mode:?}: none of {lines:?} in: {message}");
        gpu.stream.synchronize().expect("the error was cleared");
    }
}

#[test]
fn clusters_share_their_memory() {
    if ran_in_child("clusters_share_their_memory", &HOPPER) {
        return;
    }
    let gpu = Gpu::for_arch("90a");
    let out = gpu.stream.alloc_zeros::<f32>(1024).unwrap();
    let kernel = "emutest_cluster_sum";
    let run = |size: u32, bug: u64| {
        let extra = Extra { cluster: [size, 1, 1], ..Extra::default() };
        gpu.run_with(kernel, shape(16, 64, 256), extra, &[ptr(&out, &gpu.stream), bug])
    };
    for mode in ALL.into_iter().chain(CHECKED) {
        for size in [1, 2, 8] {
            with_mode(mode, || run(size, 0)).unwrap_or_else(|e| panic!("{mode:?}, clusters of {size}: {e}"));
            let got = gpu.stream.clone_dtoh(&out).unwrap();
            for (i, &got) in got[..64 * 16 / size as usize].iter().enumerate() {
                let (cluster, i) = (i as u32 / 64, i as u32 % 64);
                let want: u32 = (0..size).map(|r| cluster * size + r + i).sum();
                assert_eq!(got, want as f32, "{mode:?}, clusters of {size}, {cluster} {i}");
            }
        }
    }
    let all = [&ALL[..], &CHECKED].concat();
    let check = |bug, modes: &[Mode], wanted| caught(&gpu, kernel, bug, modes, wanted, |bug| run(4, bug));
    check(1, &CHECKED, "shared memory of a block that may not have started");
    check(2, &CHECKED, "shared memory");
    check(3, &CHECKED, "shared-memory race");
    check(4, &CHECKED, "shared-memory race");
    check(5, &all, "mapa: block 4 of a cluster of 4");
    check(6, &all, "mapa: not an address in dynamic shared memory");
    check(7, &all, "barrier.cluster.arrive: twice without a wait");
    check(8, &all, "barrier.cluster.wait: without an arrive");
    // without the checker a block that has gone leaves NaN
    for mode in &ALL[..3] {
        with_mode(*mode, || run(4, 2)).unwrap();
        assert!(gpu.stream.clone_dtoh(&out).unwrap().iter().any(|x| x.is_nan()), "{mode:?}");
    }
    for (size, grid) in [(3, 16), (16, 16), (0, 16)] {
        let extra = Extra { cluster: [size, 1, 1], ..Extra::default() };
        let refused = gpu.launch_with(kernel, shape(grid, 64, 256), extra, &[ptr(&out, &gpu.stream), 0]).unwrap_err();
        assert_eq!(refused.0, sys::CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE, "clusters of {size}");
    }
}

#[test]
fn a_dependent_launch_runs_ahead_up_to_its_wait() {
    if ran_in_child("a_dependent_launch_runs_ahead_up_to_its_wait", &HOPPER) {
        return;
    }
    let gpu = Gpu::for_arch("90a");
    let stream = &gpu.stream;
    let weight = stream.clone_htod(&[10i32; 64]).unwrap();
    let mut buffers: Vec<_> = (0..5).map(|_| stream.alloc_zeros::<i32>(64).unwrap()).collect();
    // buffers 0 -> 1 -> 2 -> 3 -> 4: the kernel `at` in the chain has the bug
    let chain = |buffers: &[cudarc::driver::CudaSlice<i32>], dependent: bool, at: usize, bug: u64| {
        for i in 0..4 {
            let extra = Extra { dependent: dependent && i > 0, ..Extra::default() };
            let bug = if i == at { bug } else { 0 };
            let args = [ptr(&buffers[i], stream), ptr(&weight, stream), ptr(&buffers[i + 1], stream), bug];
            gpu.launch_with("emutest_dependent", shape(2, 32, 0), extra, &args).unwrap();
        }
    };
    let mut results = |mode: Mode, graph: bool, dependent: bool, at: usize, bug: u64| {
        for b in &mut buffers {
            stream.memset_zeros(b).unwrap();
        }
        with_mode(mode, || {
            if graph {
                stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
                chain(&buffers, dependent, at, bug);
                let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
                graph.launch().unwrap();
            } else {
                chain(&buffers, dependent, at, bug);
            }
            gpu.finish()?;
            Ok::<_, String>(buffers.iter().map(|b| stream.clone_dtoh(b).unwrap()[40]).collect::<Vec<_>>())
        })
    };
    for (mode, graph) in ALL.into_iter().chain(CHECKED).flat_map(|m| [(m, false), (m, true)]) {
        assert_eq!(results(mode, graph, true, 0, 0).unwrap(), [0, 10, 20, 30, 40], "{mode:?}");
        assert_eq!(results(mode, graph, false, 2, 1).unwrap(), [0, 10, 20, 30, 40], "an ordinary launch waits");
        for at in [1, 2, 3] {
            let ended = results(mode, graph, true, at, 3).unwrap_err();
            assert!(ended.contains("a dependent launch ended without griddepcontrol.wait"), "{mode:?}: {ended}");
            let read = results(mode, graph, true, at, 1);
            if mode.checked {
                let read = read.unwrap_err();
                assert!(read.contains("race between launches"), "{mode:?} {at}: {read}");
            } else {
                let read = read.unwrap();
                assert_eq!(read[at + 1], 10, "{mode:?} {at}: {read:?} read the buffer as it was before");
            }
        }
    }
    // a write ahead of the wait, into what the launch in front reads
    let (a, b) = (stream.clone_htod(&[1i32; 64]).unwrap(), stream.alloc_zeros::<i32>(64).unwrap());
    for mode in CHECKED {
        let message = with_mode(mode, || {
            for (from, to, bug, dependent) in [(&a, &b, 0, false), (&b, &a, 2, true)] {
                let args = [ptr(from, stream), ptr(&weight, stream), ptr(to, stream), bug];
                let extra = Extra { dependent, ..Extra::default() };
                gpu.launch_with("emutest_dependent", shape(2, 32, 0), extra, &args).unwrap();
            }
            gpu.finish()
        });
        assert!(message.as_ref().is_err_and(|m| m.contains("race between launches")), "{mode:?}: {message:?}");
    }
}

#[test]
fn registers_belong_to_wgmma_until_its_wait() {
    if ran_in_child("registers_belong_to_wgmma_until_its_wait", &HOPPER) {
        return;
    }
    let gpu = Gpu::for_arch("90a");
    let out = gpu.stream.alloc_zeros::<f32>(64 * 8).unwrap();
    let kernel = "emutest_wgmma_rules";
    let run = |bug: u64| gpu.run(kernel, shape(1, 128, 8192), &[ptr(&out, &gpu.stream), bug]);
    let all = [&ALL[..], &CHECKED].concat();
    caught(&gpu, kernel, 1, &all, "no wgmma.fence", run);
    caught(&gpu, kernel, 2, &all, "its registers were written before the wait", run);
    caught(&gpu, kernel, 5, &all, "wgmma never waited for", run);
    for mode in all {
        with_mode(mode, || run(0)).unwrap();
        assert!(gpu.stream.clone_dtoh(&out).unwrap().iter().all(|&x| x == 32.0), "{mode:?}");
        for bug in [3, 4] {
            with_mode(mode, || run(bug)).unwrap();
            assert!(
                gpu.stream.clone_dtoh(&out).unwrap().iter().all(|x| x.is_nan()),
                "{mode:?}: a read before the wait"
            );
        }
    }
}

/// What a tensor map is made of.
#[derive(Clone, Copy)]
struct Tiling {
    base: u64,
    dims: [u64; 2],
    stride: u64,
    boxes: [u32; 2],
    misaligned: bool,
}

impl Tiling {
    /// Of an f16 matrix [rows, k]: boxes of 64 columns and 128 rows.
    fn new(base: u64, k: usize, rows: usize) -> Self {
        Self { base, dims: [k as u64, rows as u64], stride: 2 * k as u64, boxes: [64, 128], misaligned: false }
    }
}

#[repr(C, align(64))]
struct Map([u64; 17]);

fn tensor_map(t: Tiling) -> Result<Map, DriverError> {
    let mut map = Map([0; 17]);
    use sys::{
        CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE, CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
        CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    };
    let ones = [1u32, 1];
    // SAFETY: arrays of the rank, alive during the call; the map has room, wherever in it the driver is told to write.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map.0.as_mut_ptr().add(t.misaligned.into()).cast(),
            CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            2,
            t.base as *mut _,
            t.dims.as_ptr(),
            &t.stride,
            t.boxes.as_ptr(),
            ones.as_ptr(),
            CU_TENSOR_MAP_INTERLEAVE_NONE,
            CU_TENSOR_MAP_SWIZZLE_128B,
            CU_TENSOR_MAP_L2_PROMOTION_NONE,
            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()?;
    Ok(map)
}

#[test]
fn tensor_maps_are_refused_as_a_driver_refuses_them() {
    if ran_in_child("tensor_maps_are_refused_as_a_driver_refuses_them", &HOPPER) {
        return;
    }
    let gpu = Gpu::for_arch("90a");
    let data = gpu.stream.alloc_zeros::<f16>(64 * 200).unwrap();
    let good = Tiling::new(ptr(&data, &gpu.stream), 64, 200);
    assert!(tensor_map(good).is_ok());
    let bad = [
        Tiling { base: good.base + 8, ..good },
        Tiling { stride: 136, ..good },
        Tiling { stride: 64, ..good },
        Tiling { dims: [0, 200], ..good },
        Tiling { boxes: [64, 257], ..good },
        Tiling { boxes: [64, 0], ..good },
        Tiling { boxes: [72, 64], ..good },
        Tiling { boxes: [4, 64], ..good },
        Tiling { misaligned: true, ..good },
    ];
    for (i, t) in bad.into_iter().enumerate() {
        let refused = tensor_map(t).map(|_| ()).expect_err(&format!("number {i}"));
        assert_eq!(refused.0, sys::CUresult::CUDA_ERROR_INVALID_VALUE, "number {i}");
    }
}

#[test]
fn older_devices_refuse_what_they_lack() {
    let gpu = Gpu::new();
    let out = gpu.stream.alloc_zeros::<f32>(256).unwrap();
    assert_eq!(tensor_map(Tiling::new(ptr(&out, &gpu.stream), 64, 2)).map(|_| ()).unwrap_err().0, NOT_SUPPORTED);
    for extra in [Extra { cluster: [2, 1, 1], dependent: false }, Extra { cluster: [1, 1, 1], dependent: true }] {
        let args = [ptr(&out, &gpu.stream), 0];
        let refused = gpu.launch_with("emutest_cluster_sum", shape(16, 64, 256), extra, &args).unwrap_err();
        assert_eq!(refused.0, NOT_SUPPORTED);
    }
}
const NOT_SUPPORTED: sys::CUresult = sys::CUresult::CUDA_ERROR_NOT_SUPPORTED;

/// TMA, mbarriers, wgmma: right in every mode, and planted defects are caught.
#[test]
fn a_tma_ring_feeds_wgmma() {
    if ran_in_child("a_tma_ring_feeds_wgmma", &HOPPER) {
        return;
    }
    let gpu = Gpu::for_arch("90a");
    let (m, n, k) = (100usize, 136usize, 320usize);
    let values = |len: usize, seed: usize| -> Vec<f16> {
        (0..len).map(|i| f16::from_f32(((i * 7 + seed) * 2654435761 % 1000) as f32 / 500.0 - 1.0)).collect()
    };
    let (a, w) = (values(m * k, 1), values(n * k, 2));
    let (da, dw) = (gpu.stream.clone_htod(&a).unwrap(), gpu.stream.clone_htod(&w).unwrap());
    let (ta, tw) = (
        tensor_map(Tiling::new(ptr(&da, &gpu.stream), k, m)).unwrap(),
        tensor_map(Tiling::new(ptr(&dw, &gpu.stream), k, n)).unwrap(),
    );
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
