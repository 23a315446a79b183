//! Compiles every kernel for every target with nvcc, in parallel, through a cache keyed by content.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, io};

use flate2::Compression;
use flate2::write::ZlibEncoder;

use crate::sources::{self, Fnv128};
use crate::toolkit::Nvcc;

/// One kind of image made of every kernel.
pub struct Target {
    /// Name in file names and in `kernels/resources.tsv`; also what `-arch` is given.
    pub arch: &'static str,
    /// nvcc's output phase and what belongs to it.
    phase: &'static [&'static str],
    /// File extension of the image.
    extension: &'static str,
    /// The `ImageTarget` of `src/device/images.rs`, as Rust source.
    pub rust: &'static str,
}

/// PTX for the floor (any later GPU compiles it when it loads), machine code for the GPUs in use.
pub const TARGETS: [Target; 5] = [
    Target { arch: "compute_80", phase: &["-ptx"], extension: "ptx", rust: "ImageTarget::Ptx(80)" },
    cubin("sm_80", "ImageTarget::Cubin { major: 8, minor: 0, feature_a: false }"),
    cubin("sm_86", "ImageTarget::Cubin { major: 8, minor: 6, feature_a: false }"),
    cubin("sm_89", "ImageTarget::Cubin { major: 8, minor: 9, feature_a: false }"),
    cubin("sm_90a", "ImageTarget::Cubin { major: 9, minor: 0, feature_a: true }"),
];

/// `--resource-usage` writes registers, spills and shared memory to the log that `tools/kernel-table` reads.
const fn cubin(arch: &'static str, rust: &'static str) -> Target {
    Target { arch, phase: &["-cubin", "--resource-usage"], extension: "cubin", rust }
}

/// Flags of every compilation.
const FLAGS: [&str; 2] = ["-std=c++17", "-O3"];

/// Set to 1, it keeps file and line in the images for profilers and compute-sanitizer. Off by default: it makes machine
/// code three to four times as large (a fused attention kernel 24 kB, with lines 81 kB) and puts paths of the building
/// machine into the binary.
const LINEINFO: &str = "ARCLET_LINEINFO";

/// Kernels whose numbers must have the same bits as the host's: nothing may be contracted into an fma.
const EXACT: [&str; 1] = ["rng"];

/// Variables by which nvcc itself is told what to do.
const NVCC_VARIABLES: [&str; 3] = ["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"];

/// One kernel file for one target.
pub struct Image {
    /// Name of the kernel file without `.cu`.
    pub module: String,
    /// What it was compiled for.
    pub target: &'static Target,
    /// The arguments of nvcc, without the output.
    pub arguments: Vec<String>,
    /// The compiled image in the cache.
    pub path: PathBuf,
    /// The same with zlib compression, PTX with the NUL that the driver expects at its end.
    pub packed: PathBuf,
    /// What nvcc printed while compiling it, in the cache.
    pub log: PathBuf,
}

/// Compiles what the cache lacks; returns the images of all kernels, or what nvcc said of the first that
/// failed.
pub fn compile_all(root: &Path, cache: &Path, nvcc: &Nvcc) -> Result<Vec<Image>, String> {
    NVCC_VARIABLES.iter().chain([&LINEINFO]).for_each(|name| println!("cargo:rerun-if-env-changed={name}"));
    fs::create_dir_all(cache).map_err(|e| format!("cannot create {}: {e}", cache.display()))?;
    let mut images = Vec::new();
    for kernel in sources::kernels(root)? {
        let source = sources::digest(&kernel)?;
        let targets = TARGETS.iter().filter(|target| is_for(&kernel, target));
        images.extend(targets.map(|target| plan(&kernel, source.clone(), target, cache, nvcc)));
    }

    let complete = |i: &Image| [&i.path, &i.packed, &i.log].iter().all(|file| file.is_file());
    let missing: Vec<&Image> = images.iter().filter(|i| !complete(i)).collect();
    let next = AtomicUsize::new(0);
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_usize).clamp(1, missing.len().max(1));
    let failures: Vec<String> = std::thread::scope(|scope| {
        let worker = || {
            let mut failures = Vec::new();
            while let Some(image) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(message) = compile(root, nvcc, image) {
                    failures.push(message);
                    next.store(missing.len(), Ordering::Relaxed); // one report of a broken header is enough
                }
            }
            failures
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a compile worker panicked")).collect()
    });
    if failures.is_empty() { Ok(images) } else { Err(failures.join("\n")) }
}

/// Whether a kernel file is compiled for a target: `*_hopper.cu` is for Hopper alone, the others for all.
fn is_for(kernel: &Path, target: &Target) -> bool {
    target.arch == "sm_90a" || !kernel.file_stem().unwrap_or_default().to_string_lossy().ends_with("_hopper")
}

/// Names the image by everything that its bytes depend on.
fn plan(kernel: &Path, source: Fnv128, target: &'static Target, cache: &Path, nvcc: &Nvcc) -> Image {
    let module = kernel.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut arguments: Vec<String> = FLAGS.iter().map(ToString::to_string).collect();
    if env::var_os(LINEINFO).is_some_and(|v| v == "1") {
        arguments.push("-lineinfo".into());
    }
    if EXACT.contains(&module.as_str()) {
        arguments.push("-fmad=false".into());
    }
    arguments.extend(target.phase.iter().map(ToString::to_string));
    arguments.extend([format!("-arch={}", target.arch), format!("kernels/{module}.cu")]);

    let mut key = source;
    key.update(nvcc.version.as_bytes());
    arguments.iter().for_each(|a| key.update(a.as_bytes()));
    for name in NVCC_VARIABLES {
        key.update(env::var_os(name).unwrap_or_default().as_encoded_bytes());
    }
    let name = format!("{module}.{}.{:032x}", target.arch, key.value());
    let file = |extension: &str| cache.join(format!("{name}.{extension}"));
    Image { module, target, arguments, path: file(target.extension), packed: file("zlib"), log: file("log") }
}

/// Runs nvcc, packs its output, and moves all into place: a build that is interrupted leaves no half image.
fn compile(root: &Path, nvcc: &Nvcc, image: &Image) -> Result<(), String> {
    let unfinished = image.path.with_added_extension(std::process::id().to_string());
    let command = || format!("{} {}", nvcc.path.display(), image.arguments.join(" "));
    let out = Command::new(&nvcc.path)
        .current_dir(root)
        .args(&image.arguments)
        .arg("-o")
        .arg(&unfinished)
        .output()
        .map_err(|e| format!("cannot run {}: {e}", command()))?;
    if !out.status.success() {
        let said = [out.stdout, out.stderr].concat();
        return Err(format!("{} failed ({}):\n{}", command(), out.status, String::from_utf8_lossy(&said)));
    }
    let finish = || -> io::Result<()> {
        let mut bytes = fs::read(&unfinished)?;
        if image.target.extension == "ptx" {
            bytes.push(0);
        }
        let mut packer = ZlibEncoder::new(Vec::new(), Compression::default());
        packer.write_all(&bytes)?;
        replace(&image.packed, &packer.finish()?)?;
        replace(&image.log, &[out.stdout, out.stderr].concat())?;
        fs::rename(&unfinished, &image.path)
    };
    finish().map_err(|e| format!("cannot write {}: {e}", image.path.display()))
}

/// Writes a file of the cache under its own name only once it is whole.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = path.with_added_extension(std::process::id().to_string());
    fs::write(&unfinished, bytes)?;
    fs::rename(&unfinished, path)
}
