//! Compiles `kernels/*.cu` with nvcc, when there is one, and embeds the images in the library as `images.rs` of
//! `OUT_DIR`. Without nvcc the library is built with no images at all, in silence: `arclet doctor` says so.

#[path = "build/compile.rs"]
mod compile;
#[path = "build/sources.rs"]
mod sources;
#[path = "build/toolkit.rs"]
mod toolkit;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use compile::Image;
use toolkit::{Found, Nvcc};

fn main() {
    if let Err(message) = run() {
        eprintln!("cannot build the CUDA kernels\n{message}\n(`NVCC= cargo build` builds without them)");
        std::process::exit(1);
    }
}

fn run() -> Result<(), String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    // `tools/setup-cuda` touches this file, so that the next build looks for nvcc again.
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    match toolkit::find(&root)? {
        Found::Nvcc(nvcc) => {
            // The folder and not its files: a new kernel must be seen too.
            println!("cargo:rerun-if-changed=kernels");
            let cache = target_folder(&out)?.join("kernels");
            let images = compile::compile_all(&root, &cache, &nvcc)?;
            write_index(&cache.join("index.tsv"), &nvcc, &images)?;
            embed(&out, Some(&nvcc), &images)
        }
        Found::Nothing { warning } => {
            warning.iter().for_each(|w| println!("cargo:warning=built without CUDA kernels: {w}"));
            embed(&out, None, &[])
        }
    }
}

/// Cargo's target folder, which all profiles share: the outermost folder above `OUT_DIR` that Cargo has tagged.
fn target_folder(out: &Path) -> Result<&Path, String> {
    out.ancestors()
        .take(8)
        .filter(|folder| folder.join("CACHEDIR.TAG").is_file())
        .last()
        .or(out.ancestors().nth(4))
        .ok_or_else(|| format!("{} is not inside a target folder", out.display()))
}

/// Lists the images for `tools/kernel-table`: module, architecture, image, log, arguments of nvcc.
fn write_index(path: &Path, nvcc: &Nvcc, images: &[Image]) -> Result<(), String> {
    let mut text = format!("# nvcc {} {}\n", nvcc.version, nvcc.path.display());
    for i in images {
        let (image, log) = (i.path.display(), i.log.display());
        let _ = writeln!(text, "{}\t{}\t{image}\t{log}\t{}", i.module, i.target.arch, i.arguments.join(" "));
    }
    fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// Copies the images beside the generated source, so that emptying the cache cannot break a later build.
fn embed(out: &Path, nvcc: Option<&Nvcc>, images: &[Image]) -> Result<(), String> {
    let mut source = format!(
        "pub(super) const NVCC: Option<&str> = {:?};\npub(super) static IMAGES: [super::Embedded; {}] = [\n",
        nvcc.map(|n| n.version.as_str()),
        images.len()
    );
    for i in images {
        let name = format!("{}.{}", i.module, i.target.arch);
        let copied = fs::copy(&i.packed, out.join(&name));
        copied.map_err(|e| format!("cannot copy {} to {}: {e}", i.packed.display(), out.display()))?;
        let packed = format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\"))");
        let _ = writeln!(source, "    ({:?}, super::{}, {packed}),", i.module, i.target.rust);
    }
    source.push_str("];\n");
    fs::write(out.join("images.rs"), source).map_err(|e| format!("cannot write images.rs to {}: {e}", out.display()))
}
