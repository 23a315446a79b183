//! cudarc, unmodified, on the emulated driver: memory, launches, capture and replay, manifests, settings per thread.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use arclet_emu::{ALL, Mode, Schedule, stats, with_mode, with_schedule};
use common::{Gpu, alone, get_function, load_manifest, ptr, shape};
use cudarc::{
    driver::{CudaContext, LaunchConfig, PushKernelArg, sys},
    nvrtc::Ptx,
};
use sys::{
    CUresult as R, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as THREAD_LOCAL,
    CUstreamCaptureStatus as Status,
};

fn code<T>(r: Result<T, cudarc::driver::DriverError>) -> R {
    r.err().expect("an error").0
}

#[test]
fn cudarc_runs_unmodified_in_every_mode() {
    let _alone = alone();
    arclet_emu::load();
    let ctx = CudaContext::new(0).unwrap();
    assert_eq!(ctx.compute_capability().unwrap(), (8, 0));
    assert!(ctx.name().unwrap().contains("emulated"));
    let stream = ctx.new_stream().unwrap();
    let module = ctx.load_module(Ptx::from_binary(arclet_emu::manifest("80"))).unwrap();
    let scale = module.load_function("emutest_scale").unwrap();
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Spec {
        n: i32,
        scale: f32,
    }
    // SAFETY: two 32-bit fields without padding, as in C.
    unsafe impl cudarc::driver::DeviceRepr for Spec {}
    let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    for mode in ALL {
        let y = with_mode(mode, || {
            let dx = stream.clone_htod(&x).unwrap();
            let mut dy = stream.alloc_zeros::<f32>(1000).unwrap();
            let spec = Spec { n: 1000, scale: 2.5 };
            let cfg = LaunchConfig { grid_dim: (8, 1, 1), block_dim: (128, 1, 1), shared_mem_bytes: 0 };
            // SAFETY: the arguments match the kernel's parameters.
            unsafe { stream.launch_builder(&scale).arg(&dx).arg(&mut dy).arg(&spec).launch(cfg) }.unwrap();
            stream.clone_dtoh(&dy).unwrap()
        });
        assert!(y.iter().zip(&x).all(|(y, x)| *y == 2.5 * x), "{mode:?}");
    }
}

#[test]
fn collectives_and_atomics_give_what_a_gpu_gives_in_every_mode() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let lane = |l: i32, offset: i32, width: i32, up: bool| {
        let base = l & !(width - 1);
        let from = if up { l - offset } else { l + offset };
        if (base..base + width).contains(&from) { from } else { l }
    };
    for mode in [&ALL[..], &[Mode { schedule: Schedule::Reverse, checked: true }]].concat() {
        let out = gpu.stream.alloc_zeros::<i32>(64).unwrap();
        let w = gpu.stream.clone_htod(&[0, 0, 0, 0, -1, 0, 0, 0, 0, 0]).unwrap();
        let (f, q) = (gpu.stream.alloc_zeros::<f32>(1).unwrap(), gpu.stream.alloc_zeros::<u64>(1).unwrap());
        with_mode(mode, || {
            gpu.run("emutest_collectives", shape(2, 32, 0), &[ptr(&out, &gpu.stream)]).unwrap();
            let args = [ptr(&w, &gpu.stream), ptr(&f, &gpu.stream), ptr(&q, &gpu.stream)];
            gpu.run("emutest_atomics", shape(3, 100, 0), &args).unwrap();
        });
        let got = gpu.stream.clone_dtoh(&out).unwrap();
        for l in 0..32 {
            let v = (l ^ 5) + 100 * lane(l, 3, 8, true) + 10000 * lane(l, 2, 16, false) + 1_000_000 * 7;
            let want = v + i32::from(l % 3 == 0) + 2 + 4 + 10 + 1;
            assert_eq!([got[l as usize], got[32 + l as usize]], [want; 2], "lane {l}, {mode:?}");
        }
        let n = 300;
        let xor = (0..n).fold(0, |a, b| a ^ b);
        let bits = (1 << 20) - 1;
        let want = [n * (n - 1) / 2, n - 1, -(n - 1), bits, !bits, xor, -n, n % 10, 2 * n, 77];
        assert_eq!(gpu.stream.clone_dtoh(&w).unwrap(), want, "{mode:?}");
        assert_eq!(gpu.stream.clone_dtoh(&f).unwrap(), [150.0]);
        assert_eq!(gpu.stream.clone_dtoh(&q).unwrap(), [300 << 33]);
    }
}

#[test]
fn rounding_is_exact() {
    let (_alone, gpu) = (alone(), Gpu::new());
    // bit patterns of every kind: all exponents, denormals, infinities, NaN
    let mut state = 1u64;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        f32::from_bits((state >> 32) as u32)
    };
    let n = 20_000;
    let mut values: Vec<f32> = (0..3 * n).map(|_| draw()).collect();
    for (i, v) in
        [0.0, -0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 3.0, 0.5, 2.5, 2147483648.0, -3e9].iter().enumerate()
    {
        values[7 * i] = *v;
        values[n + 7 * i] = values[11];
    }
    // near-cancellation, where a product rounded before the addition would show
    for i in (1..n).step_by(5) {
        let (a, b) = (1.0 + (i as f32) / 65536.0, 1.0 - (i as f32) / 70000.0);
        (values[i], values[n + i], values[2 * n + i]) = (a, b, -(a * b));
    }
    let (a, rest) = values.split_at(n);
    let (b, c) = rest.split_at(n);
    let [da, db, dc] = [a, b, c].map(|v| gpu.stream.clone_htod(v).unwrap());
    let out = gpu.stream.alloc_zeros::<u32>(12 * n).unwrap();
    let args = [ptr(&da, &gpu.stream), ptr(&db, &gpu.stream), ptr(&dc, &gpu.stream), ptr(&out, &gpu.stream), n as u64];
    gpu.run("emutest_exact", shape(n.div_ceil(256) as u32, 256, 0), &args).unwrap();
    let got = gpu.stream.clone_dtoh(&out).unwrap();
    for i in 0..n {
        let (x, y, z) = (a[i], b[i], c[i]);
        let floats = [
            ("fma", x.mul_add(y, z)),
            ("mul", x * y),
            ("add", x + y),
            ("sub", x - y),
            ("div", x / y),
            ("sqrt", x.abs().sqrt()),
            ("mul then add", x * y + z),
            ("u32 to f32", x.to_bits() as f32),
            ("i32 to f32", x.to_bits() as i32 as f32),
        ];
        for (k, (name, want)) in floats.into_iter().enumerate() {
            let bits = got[k * n + i];
            let same = bits == want.to_bits() || (want.is_nan() && f32::from_bits(bits).is_nan());
            assert!(same, "{name} of {x:e} {y:e} {z:e}: {:e}, not {want:e}", f32::from_bits(bits));
        }
        assert_eq!(got[9 * n + i], ((x.to_bits() as u64 * y.to_bits() as u64) >> 32) as u32);
        assert_eq!(got[10 * n + i] as i32, x.round_ties_even() as i32, "{x:e} to i32");
        let (h, bf) = (half::f16::from_f32(x), half::bf16::from_f32(x));
        if !x.is_nan() {
            assert_eq!(got[11 * n + i], h.to_bits() as u32 | (bf.to_bits() as u32) << 16, "{x:e} to 16 bits");
        }
    }
}

#[test]
fn a_captured_step_replays_with_its_own_parameters() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let table: Vec<f32> = vec![1.0, 10.0, 100.0, 1000.0];
    let mut x = gpu.stream.alloc_zeros::<f32>(32).unwrap();
    let dt = gpu.stream.clone_htod(&table).unwrap();
    for mode in ALL {
        gpu.stream.memset_zeros(&mut x).unwrap();
        let counter = gpu.stream.alloc_zeros::<u32>(1).unwrap();
        with_mode(mode, || {
            let before = (stats(), arclet_emu::kernel_launches("emutest_step"));
            gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
            assert!(matches!(gpu.stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_ACTIVE));
            let mut args = [ptr(&x, &gpu.stream), ptr(&dt, &gpu.stream), ptr(&counter, &gpu.stream)];
            gpu.launch("emutest_step", shape(1, 32, 0), &args).unwrap();
            gpu.launch("emutest_advance", shape(1, 1, 0), &args[2..]).unwrap();
            args.fill(0); // the parameters were copied
            assert_eq!(stats(), before.0, "nothing runs during the capture");
            let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
            let mut nodes = 0;
            // SAFETY: a live graph; a null list asks for the number of nodes.
            unsafe { sys::cuGraphGetNodes(graph.cu_graph(), std::ptr::null_mut(), &mut nodes) }.result().unwrap();
            assert_eq!(nodes, 2);
            graph.upload().unwrap();
            for _ in 0..4 {
                graph.launch().unwrap();
            }
            gpu.stream.synchronize().unwrap();
            let after = stats();
            assert_eq!((after.launches - before.0.launches, after.graph_launches - before.0.graph_launches), (8, 4));
            assert_eq!(arclet_emu::kernel_launches("emutest_step") - before.1, 4);
        });
        assert_eq!(gpu.stream.clone_dtoh(&x).unwrap(), [1111.0; 32], "{mode:?}");
    }
}

#[test]
fn captured_fills_and_copies_replay() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let (mut a, mut b) = (gpu.stream.clone_htod(&[1u32; 8]).unwrap(), gpu.stream.clone_htod(&[2u32; 8]).unwrap());
    gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
    gpu.stream.memcpy_dtod(&a, &mut b).unwrap();
    gpu.stream.memset_zeros(&mut a).unwrap();
    let graph = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(gpu.stream.clone_dtoh(&b).unwrap(), [2; 8]);
    graph.launch().unwrap();
    assert_eq!((gpu.stream.clone_dtoh(&a).unwrap(), gpu.stream.clone_dtoh(&b).unwrap()), (vec![0; 8], vec![1; 8]));
    gpu.stream.memcpy_htod(&[7u32; 8], &mut a).unwrap();
    graph.launch().unwrap();
    assert_eq!(gpu.stream.clone_dtoh(&b).unwrap(), [7; 8]);
}

/// What a capture forbids: the call fails, and the capture with it.
#[test]
fn a_capture_is_invalidated_by_what_it_forbids() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let mut x = gpu.stream.alloc_zeros::<f32>(32).unwrap();
    let outside = gpu.stream.record_event(None).unwrap();
    let other = gpu.ctx.new_stream().unwrap();
    type Call<'a> = (&'a str, R, Box<dyn FnMut() -> R + 'a>);
    let (stream, ctx) = (&gpu.stream, &gpu.ctx);
    let unsupported = R::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    let mut host = [0f32; 32];
    let cases: Vec<Call> = vec![
        ("alloc", unsupported, Box::new(|| code(stream.alloc_zeros::<f32>(8)))),
        ("alloc elsewhere", unsupported, Box::new(|| code(other.alloc_zeros::<f32>(8)))),
        ("stream synchronize", unsupported, Box::new(|| code(stream.synchronize()))),
        ("other stream synchronize", unsupported, Box::new(|| code(other.synchronize()))),
        ("context synchronize", unsupported, Box::new(|| code(ctx.synchronize()))),
        ("copy from the host", unsupported, Box::new(|| code(stream.memcpy_htod(&[0f32; 32], &mut x)))),
        ("event synchronize", unsupported, Box::new(|| code(outside.synchronize()))),
        (
            "wait for an event from outside",
            R::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
            Box::new(|| code(stream.wait(&outside))),
        ),
        ("load a module", unsupported, Box::new(|| code(load_manifest(&arclet_emu::manifest("80"))))),
        (
            "free",
            unsupported,
            Box::new(|| {
                // SAFETY: the address of no allocation; the call is refused before it is looked at.
                code(unsafe { sys::cuMemFree_v2(16) }.result())
            }),
        ),
    ];
    for (name, want, mut call) in cases {
        stream.begin_capture(THREAD_LOCAL).unwrap();
        assert_eq!(call(), want, "{name}");
        assert!(matches!(stream.capture_status().unwrap(), Status::CU_STREAM_CAPTURE_STATUS_INVALIDATED), "{name}");
        let end = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(|_| ());
        assert_eq!(code(end), R::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "{name}");
        stream.synchronize().expect(name); // and the stream works again
    }
    stream.begin_capture(THREAD_LOCAL).unwrap();
    assert_eq!(code(stream.memcpy_dtoh(&x, &mut host)), unsupported);
    assert!(stream.end_capture(sys::CUgraphInstantiate_flags(0)).is_err());
    assert_eq!(code(stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(|_| ())), R::CUDA_ERROR_ILLEGAL_STATE);
    stream.begin_capture(THREAD_LOCAL).unwrap();
    assert_eq!(code(stream.begin_capture(THREAD_LOCAL)), R::CUDA_ERROR_ILLEGAL_STATE);
    // another thread may allocate meanwhile, but not end the capture
    std::thread::scope(|s| {
        s.spawn(|| {
            ctx.bind_to_thread().unwrap();
            other.alloc_zeros::<f32>(8).unwrap();
            let end = stream.end_capture(sys::CUgraphInstantiate_flags(0)).map(|_| ());
            assert_eq!(code(end), R::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
        });
    });
    assert!(stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().is_some());
}

#[test]
fn a_forked_stream_must_be_joined_back() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let side = gpu.ctx.new_stream().unwrap();
    let (mut a, mut b) = (gpu.stream.clone_htod(&[1u32; 8]).unwrap(), gpu.stream.clone_htod(&[1u32; 8]).unwrap());
    for joined in [false, true] {
        gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
        gpu.stream.memset_zeros(&mut a).unwrap();
        side.wait(&gpu.stream.record_event(None).unwrap()).unwrap();
        side.memset_zeros(&mut b).unwrap();
        if joined {
            gpu.stream.wait(&side.record_event(None).unwrap()).unwrap();
        }
        let end = gpu.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        if !joined {
            assert_eq!(code(end.map(|_| ())), R::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
            continue;
        }
        end.unwrap().unwrap().launch().unwrap();
        assert_eq!((gpu.stream.clone_dtoh(&a).unwrap(), side.clone_dtoh(&b).unwrap()), (vec![0; 8], vec![0; 8]));
    }
}

#[test]
fn only_kernels_of_a_fitting_manifest_are_found() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let text = |s: &str| [s.as_bytes(), b"\0"].concat();
    let part = load_manifest(&text("ARCLET-EMU-MANIFEST\narch 80\nemutest_scale\n")).unwrap();
    get_function(part, "emutest_scale").unwrap();
    assert_eq!(code(get_function(part, "emutest_step")), R::CUDA_ERROR_NOT_FOUND);
    assert!(arclet_emu::last_error().unwrap().contains("`emutest_step` is not in the loaded manifest"));
    let two = load_manifest(&text("ARCLET-EMU-MANIFEST\narch 90a\nemutest_step\narch 80\nemutest_scale\n")).unwrap();
    assert_eq!(code(get_function(two, "emutest_step")), R::CUDA_ERROR_NOT_FOUND);
    for arch in ["86", "90", "90a"] {
        assert_eq!(code(load_manifest(&arclet_emu::manifest(arch))), R::CUDA_ERROR_NO_BINARY_FOR_GPU, "{arch}");
    }
    for bad in [
        "ARCLET-EMU-MANIFEST\narch 80\nno_such_kernel\n",
        "ARCLET-EMU-MANIFEST\nemutest_scale\n",
        "//\n.version 8.0\n",
        "\x7fELF",
    ] {
        assert_eq!(code(load_manifest(&text(bad))), R::CUDA_ERROR_INVALID_IMAGE, "{bad}");
    }
    // a function dies with its module
    let f = get_function(part, "emutest_scale").unwrap();
    // SAFETY: the module is live; the launch below is refused, because the function no longer is.
    unsafe {
        sys::cuModuleUnload(part).result().unwrap();
        let (none, null) = (std::ptr::null_mut(), std::ptr::null_mut());
        let launch = sys::cuLaunchKernel(f, 1, 1, 1, 1, 1, 1, 0, gpu.stream.cu_stream(), none, null).result();
        assert_eq!(code(launch), R::CUDA_ERROR_INVALID_HANDLE);
    }
}

#[test]
fn launches_are_refused_as_a_driver_refuses_them() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let out = gpu.stream.alloc_zeros::<i32>(1).unwrap();
    let a = ptr(&out, &gpu.stream);
    let f = gpu.function("emutest_dynamic");
    let raw = |bytes: u32| {
        let mut slots =
            [&a as *const u64 as *mut std::ffi::c_void, &(bytes / 4) as *const u32 as *mut std::ffi::c_void];
        // SAFETY: two parameters, alive during the call.
        unsafe {
            sys::cuLaunchKernel(
                f,
                1,
                1,
                1,
                1,
                1,
                1,
                bytes,
                gpu.stream.cu_stream(),
                slots.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
    };
    raw(48 << 10).unwrap();
    assert_eq!(code(raw((48 << 10) + 4)), R::CUDA_ERROR_INVALID_VALUE, "more than 48 KiB needs the opt-in");
    let opt_in = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    // SAFETY: a live function.
    unsafe {
        assert_eq!(code(sys::cuFuncSetAttribute(f, opt_in, (163 << 10) + 1).result()), R::CUDA_ERROR_INVALID_VALUE);
        sys::cuFuncSetAttribute(f, opt_in, 163 << 10).result().unwrap();
        let mut v = 0;
        sys::cuFuncGetAttribute(&mut v, opt_in, f).result().unwrap();
        assert_eq!(v, 163 << 10);
    }
    for mode in ALL {
        with_mode(mode, || raw(163 << 10)).unwrap();
        assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [163 << 8]);
    }
    for (blocks, threads) in [(0, 32), (1, 0), (1, 1025)] {
        assert_eq!(
            code(gpu.launch("emutest_dynamic", shape(blocks, threads, 4), &[a, 1])),
            R::CUDA_ERROR_INVALID_VALUE
        );
    }
    // and through the extended launch, whose attributes are read
    let mut slots = [&a as *const u64 as *mut std::ffi::c_void, &8u32 as *const u32 as *mut std::ffi::c_void];
    // SAFETY: zero is a valid configuration of no attributes; the fields that matter follow.
    let mut config: sys::CUlaunchConfig = unsafe { std::mem::zeroed() };
    (config.gridDimX, config.gridDimY, config.gridDimZ) = (2, 1, 1);
    (config.blockDimX, config.blockDimY, config.blockDimZ) = (32, 1, 1);
    (config.sharedMemBytes, config.hStream) = (32, gpu.stream.cu_stream());
    // SAFETY: zero is a valid value of each; the id comes last.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    (config.attrs, config.numAttrs) = (&mut attribute, 1);
    // SAFETY: a live function, stream, attribute and parameters.
    unsafe { sys::cuLaunchKernelEx(&config, f, slots.as_mut_ptr(), std::ptr::null_mut()) }.result().unwrap();
    assert_eq!(gpu.stream.clone_dtoh(&out).unwrap(), [8]);
}

#[test]
fn copies_and_fills_stay_inside_their_buffers() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let x = gpu.stream.alloc_zeros::<f32>(10).unwrap();
    let p = ptr(&x, &gpu.stream);
    let mut host = [0f32; 11];
    // SAFETY: the emulated driver checks the device side of each copy; the host side has 44 bytes.
    unsafe {
        assert_eq!(code(sys::cuMemcpyHtoD_v2(p, host.as_ptr().cast(), 44).result()), R::CUDA_ERROR_INVALID_VALUE);
        assert!(arclet_emu::last_error().unwrap().contains("44 bytes at offset 0 of a 40-byte buffer"));
        assert_eq!(
            code(sys::cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), p + 4, 40).result()),
            R::CUDA_ERROR_INVALID_VALUE
        );
        assert_eq!(code(sys::cuMemsetD32_v2(p, 1, 11).result()), R::CUDA_ERROR_INVALID_VALUE);
        sys::cuMemsetD32_v2(p, 1.5f32.to_bits(), 10).result().unwrap();
        assert_eq!(code(sys::cuMemFree_v2(p + 8).result()), R::CUDA_ERROR_INVALID_VALUE);
    }
    assert_eq!(gpu.stream.clone_dtoh(&x).unwrap(), [1.5; 10]);
}

#[test]
fn a_fault_sticks_to_the_context() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let x = gpu.stream.alloc_zeros::<f32>(1).unwrap();
    gpu.launch("emutest_trap", shape(1, 32, 0), &[]).expect("the launch itself does not fail");
    for _ in 0..2 {
        assert_eq!(code(gpu.stream.synchronize()), R::CUDA_ERROR_LAUNCH_FAILED);
    }
    assert_eq!(code(gpu.stream.clone_dtoh(&x)), R::CUDA_ERROR_LAUNCH_FAILED);
    assert_eq!(code(get_function(gpu.module, "emutest_dynamic")), R::CUDA_ERROR_LAUNCH_FAILED);
    let message = arclet_emu::last_error().unwrap();
    assert!(message.starts_with("kernel emutest_trap: trap: __trap: block (0,0,0) thread (3,0,0) at "), "{message}");
    let e = gpu.stream.synchronize().unwrap_err().to_string();
    assert!(e.contains("unspecified launch failure") && e.contains(&message), "the error itself tells it: {e}");
    // other threads see it too
    std::thread::scope(|s| {
        s.spawn(|| {
            assert_eq!(code(gpu.ctx.synchronize()), R::CUDA_ERROR_LAUNCH_FAILED);
            assert!(arclet_emu::last_error().unwrap().contains("emutest_trap"));
        });
    });
    arclet_emu::reset_error();
    gpu.stream.synchronize().unwrap();
}

/// `order[k]`: the k-th block to run, told by a counter that each block takes from.
#[test]
fn schedules_belong_to_threads() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let run = |schedule, checked| {
        gpu.ctx.bind_to_thread().unwrap();
        let stream = gpu.ctx.new_stream().unwrap();
        let (out, mut counter) = (stream.alloc_zeros::<u32>(100).unwrap(), stream.alloc_zeros::<u32>(1).unwrap());
        let (out_p, counter_p) = (ptr(&out, &stream), ptr(&counter, &stream));
        with_schedule(schedule, checked, || {
            for _ in 0..50 {
                stream.memset_zeros(&mut counter).unwrap();
                let before = stats().accesses;
                gpu.launch("emutest_order", shape(100, 1, 0), &[out_p, counter_p]).unwrap();
                assert_eq!(stats().accesses > before, checked);
            }
        });
        stream.clone_dtoh(&out).unwrap()
    };
    let ascending: Vec<u32> = (0..100).collect();
    let descending: Vec<u32> = (0..100).rev().collect();
    std::thread::scope(|s| {
        let threads = [
            s.spawn(|| run(Schedule::Forward, false)),
            s.spawn(|| run(Schedule::Reverse, true)),
            s.spawn(|| run(Schedule::Shuffled(1), false)),
            s.spawn(|| run(Schedule::Shuffled(2), false)),
            s.spawn(|| run(Schedule::Shuffled(1), true)),
        ];
        let [forward, reverse, one, two, again] = threads.map(|t| t.join().unwrap());
        assert_eq!((forward, reverse), (ascending.clone(), descending.clone()));
        assert_eq!(one, again);
        let mut sorted = one.clone();
        sorted.sort();
        assert!(one != two && one != ascending && one != descending && sorted == ascending);
    });
}

#[test]
fn blocks_can_be_spread_over_os_threads() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let x: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    let (dx, dy) = (gpu.stream.clone_htod(&x).unwrap(), gpu.stream.alloc_zeros::<f32>(x.len()).unwrap());
    let (a, b) = (gpu.stream.alloc_zeros::<i32>(6 * 64 * 4).unwrap(), gpu.stream.alloc_zeros::<u32>(1).unwrap());
    arclet_emu::set_os_threads(3);
    let spec = x.len() as u64 | (3f32.to_bits() as u64) << 32;
    let scaled = gpu.run("emutest_scale", shape(782, 128, 0), &[ptr(&dx, &gpu.stream), ptr(&dy, &gpu.stream), spec]);
    let waited = gpu.run("emutest_grid_barrier", shape(6, 64, 256), &[ptr(&a, &gpu.stream), ptr(&b, &gpu.stream), 4]);
    let fault = gpu.run("emutest_trap", shape(20, 32, 0), &[]);
    arclet_emu::set_os_threads(1);
    scaled.unwrap();
    waited.unwrap();
    assert!(fault.unwrap_err().contains("trap"));
    assert!(gpu.stream.clone_dtoh(&dy).unwrap().iter().zip(&x).all(|(y, x)| *y == 3.0 * x));
}

#[test]
fn events_time_what_lies_between() {
    let (_alone, gpu) = (alone(), Gpu::new());
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let start = gpu.stream.record_event(timed).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20));
    let end = gpu.stream.record_event(timed).unwrap();
    end.synchronize().unwrap();
    let ms = start.elapsed_ms(&end).unwrap();
    assert!((19.0..2000.0).contains(&ms), "{ms} ms");
    let untimed = gpu.stream.record_event(None).unwrap();
    assert_eq!(code(start.elapsed_ms(&untimed)), R::CUDA_ERROR_INVALID_HANDLE);
}

#[test]
fn layouts_and_names_are_listed() {
    let layout = arclet_emu::spec_layout("EmutestSpec").unwrap();
    assert_eq!(layout.size, 8);
    let fields: Vec<_> = layout.fields.iter().map(|f| (f.name.as_str(), f.offset, f.size)).collect();
    assert_eq!(fields, [("n", 0, 4), ("scale", 4, 4)]);
    assert_eq!(arclet_emu::spec_layout("NoSuchSpec"), None);
    let names = arclet_emu::kernel_names();
    assert!(names.iter().any(|n| n == "linear_fwd_f16_64x64") && names.iter().all(|n| !n.starts_with("emutest_")));
    assert!(String::from_utf8(arclet_emu::manifest("80")).unwrap().contains("\nemutest_scale\n"));
}
