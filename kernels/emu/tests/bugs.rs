//! Planted defects: each must be reported with block, thread, and the line of the source; and correct kernels that
//! look like them must pass.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use arclet_emu::{ALL, Mode, Schedule, with_mode};
use common::{Gpu, Shape, alone, ptr, shape};

const CHECKED: [Mode; 3] = [
    Mode { schedule: Schedule::Forward, checked: true },
    Mode { schedule: Schedule::Reverse, checked: true },
    Mode { schedule: Schedule::Shuffled(3), checked: true },
];
const PLAIN: [Mode; 3] = [ALL[0], ALL[1], ALL[2]];

/// `bugs.cu:<line>` of the comments `bug: <mark>`: of a race, either access may come second and be reported.
fn lines_of(mark: &str) -> Vec<String> {
    let wanted = format!("// bug: {mark}");
    let text = include_str!("kernels/bugs.cu").lines().enumerate();
    let lines = text.filter(|(_, l)| l.ends_with(&wanted));
    let found: Vec<_> = lines.map(|(n, _)| format!("at kernels/emu/tests/kernels/bugs.cu:{}", n + 1)).collect();
    assert!(!found.is_empty(), "no line is marked {mark}");
    found
}

/// A device with two zeroed buffers of 4096 words for the kernels to play with.
struct Bench {
    gpu: Gpu,
    a: cudarc::driver::CudaSlice<f32>,
    b: cudarc::driver::CudaSlice<f32>,
}

impl Bench {
    fn new() -> Self {
        let gpu = Gpu::new();
        let (a, b) = (gpu.stream.alloc_zeros(4096).unwrap(), gpu.stream.alloc_zeros(4096).unwrap());
        Self { gpu, a, b }
    }
    fn a(&self) -> u64 {
        ptr(&self.a, &self.gpu.stream)
    }
    fn b(&self) -> u64 {
        ptr(&self.b, &self.gpu.stream)
    }
    fn clear(&mut self) {
        self.gpu.stream.memset_zeros(&mut self.a).unwrap();
        self.gpu.stream.memset_zeros(&mut self.b).unwrap();
    }
    /// Every mode must report the kernel, with a line marked with its name and all of these in the message.
    fn caught(&mut self, kernel: &str, s: Shape, args: &[u64], modes: &[Mode], wanted: &[&str]) {
        self.caught_at(kernel, kernel, s, args, modes, wanted);
    }
    /// The same, with the mark of the lines spelled out.
    fn caught_at(&mut self, kernel: &str, mark: &str, s: Shape, args: &[u64], modes: &[Mode], wanted: &[&str]) {
        let lines = lines_of(mark);
        for &mode in modes {
            self.clear();
            let message =
                with_mode(mode, || self.gpu.run(kernel, s, args)).expect_err(&format!("{kernel} in {mode:?}"));
            let parts = [format!("kernel {kernel}: "), "block (".into(), " thread (".into()];
            let named = lines.iter().any(|l| message.ends_with(l) || message.contains(&format!("{l} ")));
            assert!(named, "{kernel} in {mode:?}: none of {lines:?} in: {message}");
            for part in wanted.iter().copied().chain(parts.iter().map(String::as_str)) {
                assert!(message.contains(part), "{kernel} in {mode:?}: no `{part}` in: {message}");
            }
        }
    }
    fn passes(&mut self, kernel: &str, s: Shape, args: &[u64], modes: &[Mode]) {
        for &mode in modes {
            self.clear();
            if let Err(e) = with_mode(mode, || self.gpu.run(kernel, s, args)) {
                panic!("{kernel} in {mode:?}: {e}");
            }
        }
    }
    fn read(&self) -> Vec<f32> {
        self.gpu.stream.clone_dtoh(&self.a).unwrap()
    }
}

#[test]
fn races_inside_a_block_are_named() {
    let (_alone, mut t) = (alone(), Bench::new());
    let (a, b) = (t.a(), t.b());
    for k in ["emutest_no_syncwarp", "emutest_shuffle_is_no_barrier"] {
        t.caught(k, shape(1, 32, 1024), &[a], &CHECKED, &["shared-memory race"]);
    }
    t.caught("emutest_no_syncthreads", shape(1, 64, 0), &[a], &CHECKED, &["shared-memory race"]);
    let k = "emutest_no_second_barrier";
    t.caught(k, shape(1, 64, 0), &[b, a, 3], &CHECKED, &["shared-memory race"]);
    let k = "emutest_global_no_syncthreads";
    t.caught(k, shape(1, 64, 0), &[a], &CHECKED, &["global-memory race:"]);
    for k in ["emutest_half_words", "emutest_global_half_words"] {
        t.passes(k, shape(1, 64, 0), &[a, 0], &CHECKED);
        t.caught(k, shape(1, 64, 0), &[a, 1], &CHECKED, &["race: write of 2 bytes"]);
    }
    t.passes("emutest_with_syncwarp", shape(2, 64, 1024), &[a], &PLAIN);
    t.passes("emutest_with_syncwarp", shape(1, 64, 1024), &[a], &CHECKED);
}

#[test]
fn divergence_and_deadlock_are_named() {
    let (_alone, mut t) = (alone(), Bench::new());
    let a = t.a();
    let all = [&PLAIN[..], &CHECKED[..]].concat();
    let k = "emutest_divergent_barrier";
    t.caught(k, shape(1, 64, 0), &[a], &all, &["divergent __syncthreads"]);
    let k = "emutest_early_exit";
    t.caught(k, shape(1, 64, 0), &[a, 40], &all, &["__syncthreads after some threads exited"]);
    let k = "emutest_divergent_shuffle";
    t.caught(k, shape(1, 32, 0), &[a], &all, &["deadlock: waits in __shfl_xor_sync"]);
    let k = "emutest_trap";
    t.caught(k, shape(1, 32, 0), &[], &all, &["trap", "thread (3,0,0)"]);
}

#[test]
fn bad_addresses_are_named() {
    let (_alone, mut t) = (alone(), Bench::new());
    let (a, words) = (t.a(), 4096u64);
    let k = "emutest_misaligned";
    t.caught(k, shape(1, 1, 0), &[a], &CHECKED, &["misaligned"]);
    let k = "emutest_static_oob";
    t.caught(k, shape(1, 32, 0), &[a, 1], &CHECKED, &["index 32 out of bounds of 'int [32]'", "thread (31,0,0)"]);
    let k = "emutest_dynamic_oob";
    t.caught(k, shape(1, 32, 128), &[a, 1], &CHECKED, &["shared memory out of bounds", "thread (31,0,0)"]);
    for mode in PLAIN {
        // without the checker only the bytes behind the shared memory tell, once the block has ended
        let message = with_mode(mode, || t.gpu.run(k, shape(1, 32, 128), &[a, 1])).unwrap_err();
        assert!(
            message.contains("write past dynamic shared memory, 0 bytes after its end: block (0,0,0)"),
            "{message}"
        );
    }
    let k = "emutest_store";
    let past = ["global memory out of bounds", "past the end of a 16384-byte buffer", "thread (1,0,0)"];
    t.caught(k, shape(1, 2, 0), &[a, words - 1], &CHECKED, &past);
    let before = ["global memory out of bounds", "4 bytes before a 16384-byte buffer"];
    t.caught(k, shape(1, 1, 0), &[a, u64::MAX], &CHECKED, &before);
    t.caught(k, shape(1, 1, 0), &[a, 1 << 40], &CHECKED, &["not device memory"]);
    // host memory is not device memory, even where this process could write to it
    let mut host = [0i32; 4];
    t.caught(k, shape(1, 1, 0), &[host.as_mut_ptr() as u64, 0], &CHECKED, &["not device memory"]);
    assert_eq!(host, [0; 4]);
}

#[test]
fn faults_without_the_checker_become_errors_too() {
    let (_alone, mut t) = (alone(), Bench::new());
    let (a, words) = (t.a(), 4096u64);
    let k = "emutest_store";
    t.caught(k, shape(1, 1, 0), &[a, words], &PLAIN, &["illegal address"]);
    t.caught(k, shape(1, 1, 0), &[a, u64::MAX], &PLAIN, &["illegal address"]);
    t.caught("emutest_stack_overflow", shape(1, 1, 0), &[a], &PLAIN, &["stack overflow"]);
    let freed = {
        let gone = t.gpu.stream.alloc_zeros::<f32>(16).unwrap();
        ptr(&gone, &t.gpu.stream)
    };
    t.caught(k, shape(1, 1, 0), &[freed, 0], &PLAIN, &["illegal address"]);
    // and the thread goes on as before
    t.passes(k, shape(1, 32, 0), &[a, 0], &ALL);
}

#[test]
fn memory_nobody_wrote_reads_as_nan() {
    let (_alone, mut t) = (alone(), Bench::new());
    let a = t.a();
    for mode in ALL {
        t.clear();
        with_mode(mode, || t.gpu.run("emutest_uninitialised", shape(1, 32, 128), &[a])).unwrap();
        let v = t.read();
        assert!(v[..31].iter().chain(&v[32..63]).all(|x| *x == 1.0), "{mode:?}");
        assert!(v[31].is_nan() && v[63].is_nan(), "{mode:?}");
    }
    // SAFETY: deliberately uninitialised device memory, which the emulator fills.
    let fresh = unsafe { t.gpu.stream.alloc::<f32>(100) }.unwrap();
    assert!(t.gpu.stream.clone_dtoh(&fresh).unwrap().iter().all(|x| x.is_nan()));
}

#[test]
fn asynchronous_copies_are_watched() {
    let (_alone, mut t) = (alone(), Bench::new());
    let (a, b) = (t.a(), t.b());
    let all = [&PLAIN[..], &CHECKED[..]].concat();
    let k = "emutest_early_refill";
    t.caught(k, shape(1, 64, 1024), &[a, b], &CHECKED, &["shared-memory race"]);
    let k = "emutest_copy_no_barrier";
    t.caught(k, shape(1, 64, 1024), &[a, b], &CHECKED, &["shared-memory race"]);
    let k = "emutest_copy_not_waited";
    t.caught(k, shape(1, 32, 1024), &[a, b], &all, &["cp.async never waited for"]);
    let k = "emutest_copy_misaligned";
    t.caught(k, shape(1, 32, 1024), &[a, b, 1, 0], &all, &["misaligned: cp.async destination"]);
    t.caught(k, shape(1, 32, 1024), &[a, b, 0, 2], &all, &["misaligned: cp.async source"]);
    t.caught(k, shape(1, 32, 256), &[a, b, 0, 0], &all, &["shared memory out of bounds: cp.async destination"]);
    // too short a wait: the copy that is still in flight reads as NaN
    for mode in all {
        t.clear();
        with_mode(mode, || t.gpu.run("emutest_copy_waited_too_little", shape(1, 32, 1024), &[a, b])).unwrap();
        let v = t.read();
        assert!(v[..32].iter().all(|x| *x == 0.0) && v[32..64].iter().all(|x| x.is_nan()), "{mode:?}");
    }
}

#[test]
fn races_between_blocks_are_named() {
    let (_alone, mut t) = (alone(), Bench::new());
    let (a, b) = (t.a(), t.b());
    let k = "emutest_blocks_write_same";
    t.caught(k, shape(2, 32, 0), &[a], &CHECKED, &["global-memory race between blocks", "with a write of thread #"]);
    t.passes(k, shape(1, 32, 0), &[a], &CHECKED);
    let k = "emutest_blocks_read_neighbour";
    t.caught(k, shape(3, 1, 0), &[a], &CHECKED, &["global-memory race between blocks"]);
    let k = "emutest_plain_read_of_atomic";
    t.caught(k, shape(2, 1, 0), &[a, b], &CHECKED, &["global-memory race between blocks"]);
}

#[test]
fn atomics_order_memory_only_with_a_fence() {
    let (_alone, mut t) = (alone(), Bench::new());
    // partial sums and the result in one buffer, the ticket in the other
    let (partial, ticket, out) = (t.a(), t.b(), t.a() + 4 * 4000);
    let args = [partial, ticket, out];
    for k in ["emutest_last_block_no_release", "emutest_last_block_no_acquire", "emutest_last_block_no_barrier"] {
        t.caught_at(k, "last_block_sums", shape(4, 64, 0), &args, &CHECKED, &["global-memory race between blocks"]);
    }
    for k in ["emutest_last_block", "emutest_last_block_all_fence"] {
        for mode in [&PLAIN[..], &CHECKED[..]].concat() {
            t.passes(k, shape(4, 64, 0), &args, &[mode]);
            let got = t.read();
            assert!((0..64).all(|i| got[4000 + i] == (6 + 4 * i) as f32), "{k} in {mode:?}");
        }
    }
}

#[test]
fn blocks_that_wait_for_each_other_run_together() {
    let (_alone, mut t) = (alone(), Bench::new());
    let (a, b) = (t.a(), t.b());
    for mode in [&PLAIN[..], &CHECKED[..]].concat() {
        t.passes("emutest_grid_barrier", shape(6, 64, 256), &[a, b, 4], &[mode]);
        let got: Vec<u32> = t.read().iter().map(|x| x.to_bits()).collect();
        // round r of block k: the value of block k + r in round 0, plus one for each round
        for (r, k) in (0..4u32).flat_map(|r| (0..6u32).map(move |k| (r, k))) {
            assert_eq!(got[((r * 6 + k) * 64) as usize], (k + r) % 6 + 1 + r, "{mode:?}");
        }
        t.passes("emutest_volatile_chain", shape(20, 1, 0), &[a, b], &[mode]);
        assert_eq!(t.read()[19].to_bits(), 20, "{mode:?}");
        let k = "emutest_spin_forever";
        t.caught(k, shape(3, 32, 0), &[a], &[mode], &["deadlock: a spin-wait that no block ends"]);
    }
}
