//! What the system tells about memory, this program and the GPU's clocks.

use std::process::{Command, Stdio};

use arclet::device::Device;
use serde_json::{Map, Value};

/// What `nvidia-smi` is asked for. Reading only: nothing here changes a clock or a limit.
const QUERY: [&str; 10] = [
    "driver_version",
    "pstate",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
    "clocks_throttle_reasons.active",
];

/// Largest resident memory of this process so far, in 10^6 bytes, where the system tells (Linux).
pub fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0 / 1e6)
}

/// Size of this program, in 10^6 bytes.
pub fn binary_mb() -> Option<f64> {
    let path = std::env::current_exe().ok()?;
    Some(std::fs::metadata(path).ok()?.len() as f64 / 1e6)
}

/// Clocks, power, temperature and throttling of a GPU now; `None` on the CPU, or where `nvidia-smi` is missing or
/// does not know the GPU.
pub fn gpu_state(device: &Device) -> Option<Value> {
    let Device::Cuda(cuda) = device else { return None };
    let output = Command::new("nvidia-smi")
        .arg(format!("--id={}", cuda.uuid()?))
        .arg(format!("--query-gpu={}", QUERY.join(",")))
        .arg("--format=csv,noheader")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| parse(&String::from_utf8_lossy(&output.stdout)))?
}

/// The one line of the answer, by the names of the questions.
fn parse(answer: &str) -> Option<Value> {
    let values: Vec<&str> = answer.lines().next()?.split(',').map(str::trim).collect();
    if values.len() != QUERY.len() {
        return None;
    }
    Some(QUERY.iter().zip(values).map(|(k, v)| (k.to_string(), v.into())).collect::<Map<_, _>>().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_position_and_others_refused() {
        let line = "550.54, P0, 1980 MHz, 2619 MHz, 1980 MHz, 120.5 W, 700.00 W, 35, 0 %, 0x0000000000000000\n";
        let state = parse(line).unwrap();
        assert_eq!((&state["clocks.sm"], &state["power.draw"]), (&"1980 MHz".into(), &"120.5 W".into()));
        assert_eq!(state["clocks_throttle_reasons.active"], "0x0000000000000000");
        assert_eq!(parse("No devices were found\n"), None);
        assert_eq!(parse(""), None);
    }
}
