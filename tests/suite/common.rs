//! What the tests share: where data lies, devices, and measures of error.

use std::path::{Path, PathBuf};

use arclet::device::Device;
use arclet::device::cpu::Cpu;
use arclet::device::level::Level;
use arclet::io::Checkpoint;

/// The project's folder, or the one that a bundle unpacked to.
pub fn root() -> PathBuf {
    std::env::var_os("ARCLET_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A file below `tests/data`.
pub fn data(path: &str) -> PathBuf {
    root().join("tests/data").join(path)
}

/// A CPU of two threads.
pub fn cpu() -> Device {
    Device::Cpu(Cpu::new(2).expect("two threads"))
}

/// The same with the products of `level`, in portable loops where this machine lacks its instructions.
pub fn cpu_at(level: Level) -> Device {
    Device::Cpu(Cpu::at(2, level).expect("two threads"))
}

/// A CPU that rounds f16 and bf16 after every operation, on every machine: the yardstick of both.
pub fn rounding_cpu() -> Device {
    cpu_at(Level::Portable)
}

/// The tensors of a golden file.
pub struct Golden {
    file: Checkpoint,
    f32_err: serde_json::Value,
}

impl Golden {
    /// Opens `tests/data/goldens/<path>`.
    pub fn open(path: &str) -> Self {
        Self::at(&data("goldens").join(path))
    }

    /// Opens a golden file anywhere.
    pub fn at(path: &Path) -> Self {
        let file = Checkpoint::open(path).expect("golden file");
        let f32_err = file
            .metadata()
            .get("f32_err")
            .map_or(serde_json::Value::Null, |text| serde_json::from_str(text).expect("f32_err is JSON"));
        Self { file, f32_err }
    }

    /// What is in it.
    pub fn names(&self) -> Vec<String> {
        self.file.names().map(str::to_string).collect()
    }

    /// A float tensor.
    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.file.read_f32(name).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Its shape.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.file.shape(name).unwrap_or_else(|| panic!("no {name}")).to_vec()
    }

    /// An i64 tensor.
    pub fn i64(&self, name: &str) -> Vec<i64> {
        let bytes = self.file.bytes(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
    }

    /// Largest error of PyTorch's own f32 run relative to the largest value, if recorded.
    pub fn f32_err(&self, name: &str) -> f64 {
        let entry = &self.f32_err[name];
        match (entry["max_abs_err"].as_f64(), entry["max_abs"].as_f64()) {
            (Some(err), Some(max)) => err / max,
            _ => 0.0,
        }
    }

    /// Bound for an f32 engine: `bound`, or four times PyTorch's own error where that is larger.
    pub fn bound(&self, name: &str, bound: f64) -> f64 {
        bound.max(4.0 * self.f32_err(name))
    }
}

/// max |got - want| / max |want|.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|v| v.is_finite()), "non-finite values");
    let top = want.iter().fold(0f64, |m, &w| m.max((w as f64).abs()));
    got.iter().zip(want).fold(0f64, |m, (&g, &w)| m.max((g as f64 - w as f64).abs())) / top
}

/// Root of the mean squared difference.
pub fn rms_error(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|v| v.is_finite()), "non-finite values");
    let sum: f64 = got.iter().zip(want).map(|(&g, &w)| (g as f64 - w as f64).powi(2)).sum();
    (sum / got.len() as f64).sqrt()
}
