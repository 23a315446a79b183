//! Emulated CUDA driver for tests: every kernel of `kernels/*.cu`, compiled for the CPU, behind a `libcuda.so` that
//! cudarc takes for the real one.
//!
//! A test calls [`load`] before its first cudarc call, gives the device a [`manifest`] in place of compiled kernels,
//! and runs each case in the modes of [`modes`]: forward, reverse and shuffled thread order, and with the access
//! checker on. With `ARCLET_TEST_DRIVER=real` the same tests use the machine's own driver.
//!
//! Settings, statistics and error messages belong to the calling thread, so tests may run side by side. A kernel's
//! fault, though, poisons the one primary context of the process, as on a GPU: a test that faults a kernel on purpose
//! runs in a child process, or alone with [`reset_error`] after it.
//!
//! A kernel that waits for another thread or block in a loop must do so with an atomic or `__nanosleep`: there the
//! emulator lets others run and tells a wait that nothing ends. Loops over a `volatile` alone are seen by the checked
//! build only, and hang the plain one.
//!
//! Needs g++ and binutils to build, and a processor with AVX2, FMA and F16C. The crate's own tests
//! (`cargo test --release -p arclet-emu`) are for the emulated driver only.
//!
//! | environment | meaning |
//! |---|---|
//! | `ARCLET_TEST_DRIVER=real` | tests use the machine's driver |
//! | `ARCLET_EMU_CC=80` | compute capability the device reports (default 80) |
//! | `ARCLET_EMU_MULTIPROCESSORS=n` | multiprocessors the device reports (default 108, and 132 from capability 9.0) |
//! | `ARCLET_EMU_FAULT=no-device`, `old-driver` or `oom=<bytes>` | read by `cuInit`: no device, a driver of CUDA 11.4, this much device memory |
//! | `ARCLET_EMU_SCHEDULE=forward`, `reverse` or a number from 2 | schedule of threads that set none; the number seeds a shuffle |
//! | `ARCLET_EMU_CHECK=1` | checker on in threads that do not set it |
//! | `ARCLET_EMU_LIBRARY=<path>` | another build of the library in place of [`LIBCUDA`]: how `tools/mutate-barriers` brings its mutants in |
//! | `ARCLET_EMU_CHECKED_KERNELS=<path>` | file that gets the name of each kernel that runs under the checker, once a process |
//! | `ARCLET_EMU_THREADS=n` | OS threads per unchecked launch (default 1) |

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod library;

use std::ffi::CStr;

use library::library;

/// Absolute path of the emulated driver.
pub const LIBCUDA: &str = env!("ARCLET_EMU_LIBCUDA");

/// Absolute path of the emulated driver that [`load`] takes: [`LIBCUDA`], unless `ARCLET_EMU_LIBRARY` names another
/// build of it.
pub fn libcuda() -> String {
    std::env::var("ARCLET_EMU_LIBRARY").unwrap_or_else(|_| LIBCUDA.into())
}

/// Prefix of the kernels that test the emulator itself. They are in [`manifest`], not in [`kernel_names`].
pub const TEST_KERNEL_PREFIX: &str = "emutest_";

/// Whether tests are to use the machine's own driver (`ARCLET_TEST_DRIVER=real`).
pub fn real_driver() -> bool {
    std::env::var_os("ARCLET_TEST_DRIVER").is_some_and(|v| v == "real")
}

/// Loads the emulated driver for the whole process; call before the first cudarc call. cudarc's own
/// `dlopen("libcuda.so")` then finds it by its SONAME. Does nothing the second time, or with the real driver.
///
/// # Panics
/// If the library cannot be loaded.
pub fn load() {
    if !real_driver() {
        library();
    }
}

/// The order in which the threads of a launch run: lanes in a warp, warps in a block, blocks in the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Schedule {
    /// Ascending.
    Forward,
    /// Descending.
    Reverse,
    /// A permutation drawn from this seed.
    Shuffled(u32),
}

impl Schedule {
    /// The number by which the library knows it.
    fn order(self) -> u32 {
        match self {
            Self::Forward => 0,
            Self::Reverse => 1,
            Self::Shuffled(seed) => seed.saturating_add(2),
        }
    }
}

/// One way to run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// Thread order.
    pub schedule: Schedule,
    /// Whether every memory access is checked: bounds, alignment, races. About twice slower.
    pub checked: bool,
}

/// The modes that every kernel case runs in.
pub const ALL: [Mode; 4] = [
    Mode { schedule: Schedule::Forward, checked: false },
    Mode { schedule: Schedule::Reverse, checked: false },
    Mode { schedule: Schedule::Shuffled(5), checked: false },
    Mode { schedule: Schedule::Forward, checked: true },
];

/// [`ALL`], or with the real driver, where modes mean nothing, the first alone.
pub fn modes() -> &'static [Mode] {
    if real_driver() { &ALL[..1] } else { &ALL }
}

/// Runs `f` with this mode for the launches of the calling thread, then restores the thread's former mode. With the
/// real driver, just runs `f`.
pub fn with_mode<R>(mode: Mode, f: impl FnOnce() -> R) -> R {
    struct Restore(u32, u32);
    impl Drop for Restore {
        fn drop(&mut self) {
            let lib = library();
            // SAFETY: plain functions of the loaded library that set this thread's options.
            unsafe {
                (lib.set_schedule)(self.0);
                (lib.set_check)(self.1);
            }
        }
    }
    if real_driver() {
        return f();
    }
    let lib = library();
    // SAFETY: plain functions of the loaded library that read and set this thread's options.
    let _restore = unsafe {
        let former = Restore((lib.schedule)(), (lib.check)());
        (lib.set_schedule)(mode.schedule.order());
        (lib.set_check)(mode.checked.into());
        former
    };
    f()
}

/// [`with_mode`] with its two parts spelled out.
pub fn with_schedule<R>(schedule: Schedule, checked: bool, f: impl FnOnce() -> R) -> R {
    with_mode(Mode { schedule, checked }, f)
}

/// Spreads the calling thread's unchecked launches over `n` OS threads (1 to 64; default 1).
pub fn set_os_threads(n: u32) {
    // SAFETY: a plain function of the loaded library.
    unsafe { (library().set_os_threads)(n) }
}

/// Why the calling thread's last failed driver call failed, or how its last faulting kernel did: kernel, what, block,
/// thread, file and line.
pub fn last_error() -> Option<String> {
    let lib = library();
    // SAFETY: the length comes first, then the message is copied into a buffer of that length and a zero byte.
    let bytes = unsafe {
        let n = (lib.last_error)(std::ptr::null_mut(), 0);
        let mut buffer = vec![0u8; n + 1];
        (lib.last_error)(buffer.as_mut_ptr().cast(), buffer.len());
        buffer.truncate(n);
        buffer
    };
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// Clears the context's sticky error, for all threads, which no real context survives; and this thread's message.
pub fn reset_error() {
    // SAFETY: a plain function of the loaded library.
    unsafe { (library().reset_error)() }
}

/// What the calling thread has run so far.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Kernels run, those of replayed graphs included.
    pub launches: u64,
    /// Graphs launched.
    pub graph_launches: u64,
    /// Switches to a CUDA thread.
    pub switches: u64,
    /// Warp collectives: shuffles, votes, mma, ldmatrix, `__syncwarp`.
    pub collectives: u64,
    /// Block barriers.
    pub barriers: u64,
    /// Checked memory accesses.
    pub accesses: u64,
}

/// Statistics of the calling thread; subtract two to measure what lies between.
pub fn stats() -> Stats {
    let mut s = Stats::default();
    // SAFETY: the library writes six 64-bit counters, the layout of `Stats`.
    unsafe { (library().statistics)(&mut s) }
    s
}

/// How often the calling thread has run this kernel; 0 for a name the library does not know.
pub fn kernel_launches(name: &str) -> u64 {
    let Ok(name) = std::ffi::CString::new(name) else { return 0 };
    // SAFETY: a zero-terminated name.
    unsafe { (library().kernel_launches)(name.as_ptr()) }
}

/// Every kernel in the library, in name order.
fn all_kernels() -> Vec<String> {
    let lib = library();
    // SAFETY: names are static strings, for each index below the count.
    unsafe {
        (0..(lib.kernel_count)()).map(|i| CStr::from_ptr((lib.kernel_name)(i)).to_string_lossy().into_owned()).collect()
    }
}

/// Names of the project's kernels, in order.
pub fn kernel_names() -> Vec<String> {
    all_kernels().into_iter().filter(|n| !n.starts_with(TEST_KERNEL_PREFIX)).collect()
}

/// A kernel image for the emulated driver: all kernels in the library, as if compiled for `arch` (`80`, `90a`, ...).
/// Ends with the zero byte that `cuModuleLoadData` needs.
pub fn manifest(arch: &str) -> Vec<u8> {
    let mut text = format!("ARCLET-EMU-MANIFEST\narch {arch}\n");
    for name in all_kernels() {
        text.push_str(&name);
        text.push('\n');
    }
    text.push('\0');
    text.into_bytes()
}

/// A field of a C struct.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecField {
    /// Its name in C.
    pub name: String,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes it takes.
    pub size: usize,
}

/// Layout of a spec struct as the C compiler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecLayout {
    /// Bytes of the whole struct.
    pub size: usize,
    /// Its fields, in order of declaration in `SPEC_LAYOUT`.
    pub fields: Vec<SpecField>,
}

/// Layout that a kernel file exports with `SPEC_LAYOUT(name, ...)`, or `None` if none does.
pub fn spec_layout(name: &str) -> Option<SpecLayout> {
    library().spec(name)
}

/// Environment that makes a child process use the emulated driver in the calling thread's mode: set these beside what
/// it inherits. Empty with the real driver.
pub fn env_for_child() -> Vec<(String, String)> {
    if real_driver() {
        return Vec::new();
    }
    let lib = library();
    let folder = std::path::Path::new(&libcuda()).parent().map(|p| p.display().to_string()).unwrap_or_default();
    let path = match std::env::var("LD_LIBRARY_PATH") {
        Ok(old) if !old.is_empty() => format!("{folder}:{old}"),
        _ => folder,
    };
    // SAFETY: plain functions of the loaded library that read this thread's options.
    let (order, check) = unsafe { ((lib.schedule)(), (lib.check)()) };
    vec![
        ("LD_LIBRARY_PATH".into(), path),
        ("ARCLET_EMU_SCHEDULE".into(), order.to_string()),
        ("ARCLET_EMU_CHECK".into(), check.to_string()),
    ]
}
