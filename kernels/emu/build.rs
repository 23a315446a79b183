//! Compiles the emulation runtime, and every kernel twice (plain, and with the access hooks), and links them into one
//! `libcuda.so`. Objects are cached by the hash of everything that goes into them, so a changed kernel recompiles
//! alone; needs g++ and binutils, on Linux x86-64.

use std::{
    collections::hash_map::DefaultHasher,
    env, fs,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

/// Flags of every object. No contraction and no fast math: the exactly rounded intrinsics must be exact.
const COMMON: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
];
const KERNEL: &[&str] =
    &["-x", "c++", "-DCUDA_EMU", "-fno-exceptions", "-fno-math-errno", "-fno-gnu-unique", "-Wno-unknown-pragmas"];
const PLAIN: &[&str] = &["-DEMU_PREFIX=emu_"];
/// Instrumentation only: the runtime supplies the hooks, the sanitizers' libraries are not linked.
const CHECKED: &[&str] = &[
    "-DEMU_PREFIX=chk_",
    "-DEMU_CHECKED=1",
    "-fsanitize=thread,alignment,bounds",
    "--param=tsan-distinguish-volatile=1",
];
/// Objects of earlier builds that are kept: switching a kernel back and forth compiles nothing.
const KEPT_OBJECTS: usize = 256;

struct Job {
    /// From the repository's root on.
    source: PathBuf,
    flags: Vec<String>,
    object: PathBuf,
    /// Kernels export their entries and layouts only: two files may name their helpers alike, as with nvcc.
    localise: bool,
}

fn main() {
    println!("cargo:rerun-if-env-changed=CXX");
    println!("cargo:rerun-if-env-changed=OBJCOPY");
    let target = |name: &str| env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    if target("OS") != "linux" || target("ARCH") != "x86_64" {
        println!("cargo:warning=arclet-emu emulates CUDA on Linux x86-64 only; on this target it is empty");
        return;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let kernels = root.parent().expect("the crate lies in kernels/").to_path_buf();
    // a directory stands for all files in it, those added later too
    println!("cargo:rerun-if-changed={}", kernels.display());

    let compiler = cc::Build::new().cpp(true).warnings(false).get_compiler();
    assert!(compiler.is_like_gnu(), "arclet-emu needs g++ (set CXX), found {}", compiler.path().display());
    let cxx = compiler.path().to_path_buf();
    let version = Command::new(&cxx).arg("--version").output().expect("run the C++ compiler").stdout;

    let runtime = files(&root.join("runtime"), &["cpp"]);
    let sources = [files(&kernels, &["cu"]), files(&root.join("tests/kernels"), &["cu"])].concat();
    let include = root.join("include");
    let runtime_headers = [files(&root.join("runtime"), &["h"]), files(&include, &["h"])].concat();
    let kernel_headers =
        [files(&include, &["h"]), files(&kernels, &["cuh"]), files(&root.join("tests/kernels"), &["cuh"])].concat();

    let repository = kernels.parent().expect("kernels/ lies in the repository").to_path_buf();
    let common: Vec<String> =
        COMMON.iter().map(|s| s.to_string()).chain(["-Ikernels/emu/include".into(), "-Ikernels".into()]).collect();
    // tools/mutate-barriers builds several trees that differ in one kernel
    println!("cargo:rerun-if-env-changed=ARCLET_EMU_OBJECTS");
    let shared = env::var_os("ARCLET_EMU_OBJECTS");
    let cache = shared.as_ref().map_or_else(|| out.join("objects"), PathBuf::from);
    fs::create_dir_all(&cache).expect("create the object cache");
    let job = |source: &Path, headers: &[PathBuf], flags: &[&[&str]], label: &str, localise: bool| {
        let source = source.strip_prefix(&repository).expect("sources lie in the repository");
        let mut all = common.clone();
        all.extend(flags.concat().iter().map(|s| s.to_string()));
        let mut hash = DefaultHasher::new();
        (&version, &all, localise).hash(&mut hash);
        for f in headers.iter().chain([&repository.join(source)]) {
            let text = fs::read(f).unwrap_or_else(|e| panic!("read {}: {e}", f.display()));
            (f.strip_prefix(&repository).ok(), text).hash(&mut hash);
        }
        let stem = source.file_stem().expect("a file name").to_string_lossy();
        let object = cache.join(format!("{stem}.{label}.{:016x}.o", hash.finish()));
        Job { source: source.to_path_buf(), flags: all, object, localise }
    };
    let mut jobs: Vec<Job> = runtime.iter().map(|s| job(s, &runtime_headers, &[], "rt", false)).collect();
    for s in &sources {
        jobs.push(job(s, &kernel_headers, &[KERNEL, PLAIN], "emu", true));
        jobs.push(job(s, &kernel_headers, &[KERNEL, CHECKED], "chk", true));
    }
    compile(&cxx, &repository, &jobs);
    let library = out.join("lib/libcuda.so");
    link(&cxx, &jobs, &out, &library);
    if shared.is_none() {
        prune(&cache, &jobs);
    }
    println!("cargo:rustc-env=ARCLET_EMU_LIBCUDA={}", library.display());
}

/// Files of `dir` with one of these extensions, in name order.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("read {}: {e}", dir.display()));
    let mut found: Vec<PathBuf> = entries
        .map(|e| e.expect("read a directory").path())
        .filter(|p| p.is_file() && p.extension().is_some_and(|x| extensions.iter().any(|e| x == *e)))
        .collect();
    found.sort();
    found
}

/// Runs a command, panics with its output when it fails, and passes its warnings on.
fn run(command: &mut Command, what: &str) {
    let output = command.output().unwrap_or_else(|e| panic!("{what}: cannot run {command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what} failed:\n{command:?}\n{text}");
    for line in text.lines() {
        println!("cargo:warning={line}");
    }
}

/// Compiles what the cache does not hold, the largest sources first, on as many threads as cargo allows.
fn compile(cxx: &Path, repository: &Path, jobs: &[Job]) {
    let mut missing: Vec<&Job> = jobs.iter().filter(|j| !j.object.exists()).collect();
    missing.sort_by_key(|j| std::cmp::Reverse(fs::metadata(repository.join(&j.source)).map(|m| m.len()).unwrap_or(0)));
    let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).min(missing.len());
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = std::panic::catch_unwind(|| build_object(cxx, repository, job));
                    if let Err(e) = result {
                        failure.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
                        return;
                    }
                }
            });
        }
    });
    if let Some(e) = failure.into_inner().unwrap_or_else(|p| p.into_inner()) {
        std::panic::resume_unwind(e);
    }
}

fn build_object(cxx: &Path, repository: &Path, job: &Job) {
    let name = job.source.display();
    let temporary = |kind: &str| job.object.with_extension(format!("{}.{kind}", std::process::id()));
    let raw = temporary("raw");
    let flags = job.flags.iter();
    let mut compile = Command::new(cxx);
    compile.current_dir(repository);
    // messages name files from the repository's root on, and its place changes no object
    compile.arg(format!("-fdebug-prefix-map={}=.", repository.display()));
    run(compile.args(flags).arg("-c").arg(&job.source).arg("-o").arg(&raw), &format!("compiling {name}"));
    if job.localise {
        // inline functions and templates lie in groups, which the linker would merge over files and over the plain
        // and the checked build; first dissolve the groups, then make all but the exports local
        let single = temporary("single");
        let mut ld = Command::new(cxx);
        ld.args(["-r", "-nostdlib", "-Wl,--force-group-allocation"]).arg(&raw).arg("-o").arg(&single);
        run(&mut ld, &format!("merging {name}"));
        let mut objcopy = Command::new(env::var_os("OBJCOPY").unwrap_or("objcopy".into()));
        objcopy.args(["--wildcard", "--keep-global-symbol=emu_*", "--keep-global-symbol=chk_*"]);
        run(objcopy.arg(&single).arg(&raw), &format!("localising {name}"));
        fs::remove_file(&single).expect("remove a temporary object");
    }
    fs::rename(&raw, &job.object).expect("put the object in place");
}

/// Links all objects, unless the library is made of these already.
fn link(cxx: &Path, jobs: &[Job], out: &Path, library: &Path) {
    let exports = out.join("exports.map");
    fs::write(&exports, "{ global: cu*; emu_*; chk_*; local: *; };\n").expect("write the export list");
    let list: String = jobs.iter().map(|j| format!("{}\n", j.object.display())).collect();
    let made_of = out.join("linked-objects");
    if library.exists() && fs::read_to_string(&made_of).is_ok_and(|l| l == list) {
        return;
    }
    fs::create_dir_all(library.parent().expect("the library has a folder")).expect("create the library's folder");
    // a running test may have the old library mapped: replace, never overwrite
    let fresh = library.with_extension("new");
    let mut ld = Command::new(cxx);
    ld.args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,-z,defs"])
        .arg(format!("-Wl,--version-script={}", exports.display()));
    ld.args(jobs.iter().map(|j| &j.object)).args(["-ldl", "-lpthread", "-lm", "-o"]).arg(&fresh);
    run(&mut ld, "linking libcuda.so");
    fs::rename(&fresh, library).expect("put the library in place");
    fs::write(&made_of, list).expect("note what the library is made of");
}

/// Removes the oldest unused objects beyond `KEPT_OBJECTS`.
fn prune(cache: &Path, jobs: &[Job]) {
    let mut unused: Vec<(SystemTime, PathBuf)> = files(cache, &["o", "raw", "single"])
        .into_iter()
        .filter(|f| jobs.iter().all(|j| j.object != *f))
        .map(|f| (fs::metadata(&f).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH), f))
        .collect();
    unused.sort();
    let excess = unused.len().saturating_sub(KEPT_OBJECTS);
    for (_, f) in &unused[..excess] {
        let _ = fs::remove_file(f);
    }
}
