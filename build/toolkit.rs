//! Finds an nvcc that can build the kernels.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest nvcc that knows every target of `compile::TARGETS` and C++17.
const OLDEST: (u32, u32) = (12, 0);

/// Where `tools/setup-cuda` puts nvcc, from the root of the repository.
const SETUP_CUDA_NVCC: &str = ".cuda/nvidia/cu13/bin/nvcc";

/// An nvcc that answered.
pub struct Nvcc {
    /// Absolute path, or the name given in `NVCC`.
    pub path: PathBuf,
    /// For instance `13.0.88`.
    pub version: String,
}

/// What the search came to.
pub enum Found {
    /// Build the kernels with this one.
    Nvcc(Nvcc),
    /// Build without kernels; the reason is worth a warning only if somebody has to act on it.
    Nothing { warning: Option<String> },
}

/// Looks at `NVCC`, `$CUDA_HOME/bin`, `PATH` and the folder of `tools/setup-cuda`, in this order, and tells Cargo what
/// to watch. `NVCC` set to the empty string means: build without kernels.
pub fn find(root: &Path) -> Result<Found, String> {
    println!("cargo:rerun-if-env-changed=NVCC");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if let Some(given) = env::var_os("NVCC") {
        if given.is_empty() {
            return Ok(Found::Nothing { warning: None });
        }
        let path = PathBuf::from(given);
        let version = version_of(&path).map_err(|e| format!("NVCC={}: {e}", path.display()))?;
        if !is_new_enough(&version) {
            return Err(format!("NVCC={}: {}", path.display(), too_old(&version)));
        }
        return Ok(Found::Nvcc(watched(Nvcc { path, version })));
    }

    let mut warning = None;
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let on_path = env::var_os("PATH").into_iter().flat_map(|p| env::split_paths(&p).collect::<Vec<_>>());
    let on_path = on_path.map(|dir| dir.join("nvcc")).find(|p| p.is_file());
    for path in [home, on_path.clone(), Some(root.join(SETUP_CUDA_NVCC))].into_iter().flatten().filter(|p| p.is_file())
    {
        match version_of(&path) {
            Ok(version) if is_new_enough(&version) => {
                if on_path.as_ref() == Some(&path) {
                    println!("cargo:rerun-if-env-changed=PATH");
                }
                return Ok(Found::Nvcc(watched(Nvcc { path, version })));
            }
            Ok(version) => warning = Some(format!("{}: {}", path.display(), too_old(&version))),
            Err(e) => warning = Some(format!("{}: {e}", path.display())),
        }
    }
    println!("cargo:rerun-if-env-changed=PATH");
    Ok(Found::Nothing { warning })
}

/// Asks Cargo to run this script again when nvcc itself is replaced.
fn watched(nvcc: Nvcc) -> Nvcc {
    if nvcc.path.is_file() {
        println!("cargo:rerun-if-changed={}", nvcc.path.display());
    }
    nvcc
}

/// The version after `, V` in the last lines of `nvcc --version`.
fn version_of(nvcc: &Path) -> Result<String, String> {
    let out = Command::new(nvcc).arg("--version").output().map_err(|e| format!("does not run: {e}"))?;
    let text = String::from_utf8_lossy(&out.stdout);
    text.split_once(", V")
        .and_then(|(_, rest)| rest.split_whitespace().next())
        .map(str::to_owned)
        .ok_or_else(|| format!("`--version` printed no version but: {}{}", text, String::from_utf8_lossy(&out.stderr)))
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= OLDEST
}

fn too_old(version: &str) -> String {
    format!(
        "nvcc {version} is too old for the kernels, which need {}.{} or newer; tools/setup-cuda installs one",
        OLDEST.0, OLDEST.1
    )
}
