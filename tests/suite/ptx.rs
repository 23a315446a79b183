//! What nvcc made of the kernels: exact arithmetic in `rng`, tensor cores and asynchronous copies where they are promised.
//! Reads the PTX in this binary; a build without nvcc has none and says so (with `ARCLET_EXPECT_IMAGES=1`: fails).

use arclet::device::images::{ImageTarget, KernelImage, KernelImages};

/// One kernel of one module: name and PTX body.
struct Entry {
    module: String,
    name: String,
    body: String,
}

/// Splits a module's PTX at its kernels; every body ends where the next kernel or function begins.
fn entries(module: &str, ptx: &str) -> Vec<Entry> {
    let pieces = ptx.split("\n.visible ").skip(1);
    let entry = |piece: &str| {
        let rest = piece.strip_prefix(".entry ")?;
        let (name, body) = rest.split_once('(')?;
        Some(Entry { module: module.to_owned(), name: name.trim().to_owned(), body: body.to_owned() })
    };
    pieces.filter_map(entry).collect()
}

/// The kernels in this binary, or `None` (after saying so) when it was built without nvcc.
fn embedded() -> Option<Vec<Entry>> {
    let images = KernelImages::embedded();
    if images.is_empty() {
        assert!(std::env::var_os("ARCLET_EXPECT_IMAGES").is_none(), "no kernels here: {}", images.describe());
        eprintln!("nothing checked: {}", images.describe());
        return None;
    }
    let ptx = images.images().iter().filter(|i| matches!(i.target, ImageTarget::Ptx(_)));
    let of_image = |i: &KernelImage| {
        let bytes = i.bytes().unwrap();
        let text = std::str::from_utf8(&bytes).unwrap_or_else(|e| panic!("{}: PTX is not text: {e}", i.module));
        let found = entries(i.module, text);
        assert!(!found.is_empty(), "{}: no kernel in its PTX", i.module);
        found
    };
    Some(ptx.flat_map(of_image).collect())
}

/// Instructions whose result could differ from the same operation on the host: approximate, flushing, without an explicit
/// rounding (which the assembler may contract into an fma), or of another type than was asked for.
fn inexact(ptx: &str) -> Vec<&str> {
    let arithmetic =
        ["add", "sub", "mul", "mad", "fma", "div", "rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh"];
    let suspicious = |line: &&str| {
        let instruction = line.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or("");
        let mut parts = instruction.split('.');
        let operation = parts.next().unwrap_or("");
        let modifiers: Vec<&str> = parts.map(|m| m.trim_end_matches(';')).collect();
        let floating = modifiers.iter().any(|m| ["f16", "bf16", "f32", "f64"].contains(m));
        modifiers.iter().any(|m| ["approx", "ftz", "full"].contains(m))
            || (floating && arithmetic.contains(&operation) && !modifiers.contains(&"rn"))
    };
    ptx.lines().map(str::trim).filter(suspicious).collect()
}

#[test]
fn random_numbers_use_exactly_rounded_operations_only() {
    let Some(kernels) = embedded() else { return };
    let rng: Vec<&Entry> = kernels.iter().filter(|k| k.module == "rng").collect();
    assert!(rng.iter().any(|k| k.body.contains("fma.rn.f32")), "rng computes normals, but its PTX has no fma.rn.f32");
    for kernel in rng {
        let found = inexact(&kernel.body);
        assert!(found.is_empty(), "{}: {} inexact instructions: {found:#?}", kernel.name, found.len());
    }
}

#[test]
fn half_precision_products_run_on_tensor_cores_with_asynchronous_copies() {
    let Some(kernels) = embedded() else { return };
    for dtype in ["f16", "bf16"] {
        for prefix in [format!("linear_fwd_{dtype}"), format!("attention_fwd_{dtype}_hd")] {
            let mut found = kernels.iter().filter(|k| k.name.starts_with(&prefix)).peekable();
            assert!(found.peek().is_some(), "no kernel is named {prefix}...");
            for kernel in found {
                let mma = format!("mma.sync.aligned.m16n8k16.row.col.f32.{dtype}.{dtype}.f32");
                for instruction in [&*mma, "ldmatrix.sync", "cp.async"] {
                    assert!(kernel.body.contains(instruction), "{} has no {instruction}", kernel.name);
                }
            }
        }
    }
}

#[test]
fn single_precision_is_never_rounded_to_tf32() {
    let Some(kernels) = embedded() else { return };
    let single: Vec<&Entry> = kernels.iter().filter(|k| k.name.contains("_f32")).collect();
    assert!(!single.is_empty());
    for kernel in single {
        for instruction in ["tf32", "mma."] {
            assert!(!kernel.body.contains(instruction), "{} has {instruction}", kernel.name);
        }
    }
}

#[test]
fn the_check_sees_what_it_looks_for() {
    let bad = "fma.rn.ftz.f32 %f1, %f2, %f3, %f4;\n\tmul.f32 %f1, %f2, %f3;\n@%p1 sqrt.approx.f32 %f1, %f2;\n\tadd.f32 %f1, %f2, %f3;";
    assert_eq!(inexact(bad).len(), 4);
    let good = "fma.rn.f32 %f1, %f2, %f3, %f4;\nmul.wide.u32 %rd1, %r1, 4;\nadd.s32 %r1, %r2, 1;\nsqrt.rn.f32 %f1, %f2;\nneg.f32 %f1, %f2;";
    assert_eq!(inexact(good), [""; 0]);
    let ptx = "//\n.version 9.0\n\n.visible .entry a_fwd_f32(\n.param .u64 x\n)\n{\nret;\n}\n\t// .globl b\n.visible .entry b(\n)\n{\nexit;\n}\n";
    let found = entries("m", ptx);
    assert_eq!(found.iter().map(|e| &*e.name).collect::<Vec<_>>(), ["a_fwd_f32", "b"]);
    assert!(found[0].body.contains("ret;") && !found[0].body.contains("exit;"));
}
