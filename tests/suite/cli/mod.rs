//! The command line as a user meets it: the real binary in an empty folder.

mod bench;
mod data;
mod diffusion;
mod embedded;
mod gpu;
#[cfg(unix)]
mod latents;
mod parameters;
mod refusals;
mod samples;
mod schedulers;
mod shards;
mod simulate;
mod train;
mod verbs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arclet::io::{NonFinite, read_npy_f32};
use serde_json::Value;

use crate::common::{data, root};

/// A folder of its own for one test, where the program runs.
pub struct Desk(tempfile::TempDir);

/// How a run of the program ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Desk {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program with these arguments, separated by blanks.
    fn command(&self, arguments: &str) -> Command {
        let bundled = std::env::var_os("ARCLET_TEST_ROOT").map(|_| root().join("arclet"));
        let mut command = Command::new(bundled.unwrap_or_else(|| env!("CARGO_BIN_EXE_arclet").into()));
        command.args(arguments.split_whitespace()).current_dir(self.0.path()).env_remove("ARCLET_KERNEL_MANIFEST");
        command
    }

    fn run(&self, arguments: &str) -> Ended {
        ended(self.command(arguments).output())
    }

    /// Runs the program and wants it to succeed.
    pub fn ok(&self, arguments: &str) -> Ended {
        let end = self.run(arguments);
        assert_eq!(end.code, 0, "arclet {arguments}: {}", end.stderr);
        end
    }

    /// Runs the program on the CPU with `--json`, wants it to succeed, and returns what it printed.
    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.ok(arguments).stdout).expect("one JSON value on stdout")
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Images of a .npy file and their shape.
    pub fn images(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        read_npy_f32(self.path(name), NonFinite::Refuse).expect("images")
    }

    pub fn recipe(&self, name: &str) -> Value {
        serde_json::from_slice(&self.bytes(name)).expect("a recipe")
    }

    /// Every file and folder below, relative, sorted.
    fn listing(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        list(self.0.path(), &mut found);
        found.sort();
        found
    }
}

fn list(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            list(&path, found);
        }
        found.push(path);
    }
}

fn ended(output: std::io::Result<Output>) -> Ended {
    let output = output.expect("the program starts");
    Ended {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Weights of a golden model, as an argument.
fn golden_weights(model: &str) -> String {
    data("goldens").join(model).join("weights.safetensors").display().to_string()
}

/// `sample` of a small model on the CPU, a few steps: the quickest run there is.
fn small_sample(more: &str) -> String {
    let model = golden_weights("a3_nanodit");
    format!("sample --model {model} --device cpu --threads 2 --steps 3 --quiet {more}")
}
