//! `--against peers`: other programs in turns with this one, through `benches/peers/run.py` of the repository.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use arclet::error::{Error, Result};
use clap::ValueEnum;

use super::super::options::DeviceChoice;
use super::super::report;
use super::BenchArgs;

/// Whom to measure against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Against {
    /// PyTorch, and on the CPU OpenVINO and ONNX Runtime, as far as python3 has them
    Peers,
}

/// The script, below the root of the repository.
const SCRIPT: &str = "benches/peers/run.py";

/// Runs the comparison: its table on stdout, or with --json what it recorded.
///
/// # Errors
/// [`Error::Usage`] outside of the repository; [`Error::Runtime`] if python3 cannot be started or the comparison failed, in
/// part or as a whole.
pub fn run(args: &BenchArgs) -> Result<()> {
    let script = script()?;
    let program = std::env::current_exe().map_err(|e| Error::Runtime(format!("where this program is: {e}")))?;
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(&python);
    command.arg(&script).arg("--arclet").arg(program).arg("--models").arg(&args.model);
    command.arg("--device").arg(match args.device {
        DeviceChoice::Auto => "auto".into(),
        DeviceChoice::Cpu => "cpu".into(),
        DeviceChoice::Cuda(n) => format!("cuda:{n}"),
    });
    let types: Vec<&str> = args.dtype.iter().filter_map(|d| d.fixed()).map(|d| d.name()).collect();
    if !types.is_empty() {
        command.arg("--dtypes").arg(types.join(","));
    }
    command.args(args.steps.map(|steps| format!("--steps={steps}")));
    command.args(args.threads.map(|threads| format!("--threads={threads}")));
    command.args((args.batch != 1).then(|| format!("--batch={}", args.batch)));
    command.arg(format!("--time={}", arclet::flow::schedule::TimeConvention::from(args.time).name()));
    let record = std::env::temp_dir().join(format!("arclet-peers-{}.json", std::process::id()));
    if args.report.json {
        command.arg("--out").arg(&record).stdout(Stdio::from(io::stderr()));
    }
    let status = command.status().map_err(|e| Error::Runtime(format!("{}: {e}", python.display())))?;
    if args.report.json {
        let text = std::fs::read_to_string(&record);
        let _ = std::fs::remove_file(&record);
        if let Ok(text) = text {
            report::print(text.trim_end().to_owned())?;
        }
    }
    if status.success() { Ok(()) } else { Err(Error::Runtime(format!("{SCRIPT}: {status}"))) }
}

/// The script of the repository that the current folder is in.
fn script() -> Result<PathBuf> {
    let here = std::env::current_dir().map_err(|e| Error::Runtime(format!("the current folder: {e}")))?;
    let found = here.ancestors().map(|folder: &Path| folder.join(SCRIPT)).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::usage(format!("--against peers: {SCRIPT} is not here, start in a clone of the repository"))
    })
}
