//! The rules of the house: imports run downward, files stay small, unsafe code stays at the edges.

use std::path::{Path, PathBuf};

use crate::common::root;

/// Modules of the library, lowest first; a module may import from rows above its own, and from itself.
const LAYERS: [&[&str]; 10] = [
    &["error", "math"],
    &["device"],
    &["tensor", "rng"],
    // A leaf: files in and out.
    &["io"],
    &["ops"],
    &["nn"],
    &["models"],
    &["flow", "data"],
    &["train"],
    &["cli"],
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("source folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "cu" || e == "cuh" || e == "cpp" || e == "h") {
            found.push(path);
        }
    }
}

/// Rust files below `src` with the module each belongs to; `None` where only binaries were shipped.
fn library_files() -> Option<Vec<(String, PathBuf)>> {
    let src = root().join("src");
    if !src.is_dir() {
        println!("no sources here: house rules are not checked");
        return None;
    }
    let mut files = Vec::new();
    sources(&src, &mut files);
    let module = |p: &PathBuf| {
        let first =
            p.strip_prefix(&src).expect("below src").iter().next().expect("a name").to_string_lossy().into_owned();
        first.trim_end_matches(".rs").to_string()
    };
    Some(files.into_iter().map(|p| (module(&p), p)).filter(|(m, _)| m != "lib" && m != "main").collect())
}

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|row| row.contains(&module)).unwrap_or_else(|| panic!("module {module} has no layer"))
}

/// Modules named by the `crate::` paths of a line of code.
fn imports(line: &str) -> Vec<String> {
    if line.trim_start().starts_with("//") {
        return Vec::new();
    }
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    line.match_indices("crate::").map(|(at, _)| name(&line[at + 7..])).filter(|n| !n.is_empty()).collect()
}

#[test]
fn imports_run_downward() {
    let mut upward = Vec::new();
    for (module, path) in library_files().unwrap_or_default() {
        let text = std::fs::read_to_string(&path).expect("source file");
        for (number, line) in text.lines().enumerate() {
            assert!(
                !line.contains("crate::{"),
                "{}:{}: one path a line, so that it can be read",
                path.display(),
                number + 1
            );
            for to in imports(line).into_iter().filter(|to| LAYERS.iter().any(|row| row.contains(&to.as_str()))) {
                // Rows are strict: modules of one row do not know each other.
                if to != module && layer(&to) >= layer(&module) {
                    upward.push(format!("{}:{}: {module} imports {to}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(upward.is_empty(), "upward imports:\n{}", upward.join("\n"));
}

#[test]
fn the_import_reader_sees_paths() {
    assert_eq!(imports("use crate::tensor::{DType, Tensor};"), ["tensor"]);
    assert_eq!(imports("    crate::math::exp(self) + crate::rng::x()"), ["math", "rng"]);
    assert!(imports("//! see crate::flow").is_empty());
}

#[test]
fn source_files_are_small() {
    if library_files().is_none() {
        return;
    }
    let mut files = Vec::new();
    for folder in ["src", "kernels", "tests", "build"] {
        sources(&root().join(folder), &mut files);
    }
    for path in files {
        let lines = std::fs::read_to_string(&path).expect("source file").lines().count();
        assert!(lines <= 700, "{} has {lines} lines: split it", path.display());
    }
}

#[test]
fn unsafe_code_stays_at_the_edges() {
    let allowed = [
        "src/device/cuda.rs",
        "src/device/launch.rs",
        "src/device/level.rs",
        "src/io/mapped.rs",
        "src/ops/backward/product.rs",
        "src/ops/linear/cpu.rs",
        "src/ops/product/amx.rs",
        "src/ops/product/amx/emulated.rs",
        "src/ops/product/avx.rs",
        "src/ops/product/blocks.rs",
        "src/ops/product/mod.rs",
        "src/ops/product/pack.rs",
        "src/ops/product/panels.rs",
        "src/ops/simd.rs",
        "src/rng.rs",
    ];
    for (_, path) in library_files().unwrap_or_default() {
        let text = std::fs::read_to_string(&path).expect("source file");
        let uses = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains("unsafe "));
        let name = path.strip_prefix(root()).expect("below the root").to_string_lossy().replace('\\', "/");
        assert!(!uses || allowed.contains(&name.as_str()), "{name} holds unsafe code");
    }
}
