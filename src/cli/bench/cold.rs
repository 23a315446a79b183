//! Cold start: from the start of a process to its first image. Each measurement is a child of its own; it says how long
//! the parts took, and the parent how long the whole.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

use arclet::error::{Error, Result};
use serde::{Deserialize, Serialize};

use super::super::report;
use super::measure::milliseconds;
use super::row::summary;

/// What a child tells about itself when its first image is in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FirstImage {
    /// Opening the device: on a GPU the driver and its context.
    pub open_ms: f64,
    /// Reading, converting and placing the weights.
    pub load_ms: f64,
    /// Largest memory, in 10^6 bytes.
    pub peak_rss_mb: Option<f64>,
}

/// What several children took.
#[derive(Clone, Debug)]
pub struct ColdStart {
    /// From before each process started to its first image, as the parent saw it, in milliseconds.
    pub times: Vec<f64>,
    /// Medians of the parts; the largest memory of all.
    pub parts: FirstImage,
}

impl FirstImage {
    /// One line of JSON for the parent.
    ///
    /// # Errors
    /// Those of stdout.
    pub fn announce(&self) -> Result<()> {
        report::print(serde_json::to_string(self).map_err(|e| Error::Runtime(format!("JSON: {e}")))?)
    }
}

/// Starts this program with `arguments` `count` times, one after another.
///
/// # Errors
/// [`Error::Runtime`] for a child that cannot be started, fails or says something else.
pub fn measure(arguments: &[String], count: usize) -> Result<ColdStart> {
    let starts = (0..count.max(1)).map(|_| start(arguments)).collect::<Result<Vec<_>>>()?;
    let median = |part: fn(&FirstImage) -> f64| summary(&starts.iter().map(|s| part(&s.1)).collect::<Vec<_>>())[0];
    Ok(ColdStart {
        times: starts.iter().map(|s| s.0).collect(),
        parts: FirstImage {
            open_ms: median(|p| p.open_ms),
            load_ms: median(|p| p.load_ms),
            peak_rss_mb: starts.iter().filter_map(|s| s.1.peak_rss_mb).max_by(f64::total_cmp),
        },
    })
}

fn start(arguments: &[String]) -> Result<(f64, FirstImage)> {
    let failed = |what: String| Error::Runtime(format!("cold start: {what}"));
    let program = std::env::current_exe().map_err(|e| failed(format!("this program has no path: {e}")))?;
    let begin = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut line = String::new();
    let read = match child.stdout.take() {
        Some(stdout) => BufReader::new(stdout).read_line(&mut line),
        None => Ok(0),
    };
    let elapsed = milliseconds(begin);
    // The child is waited for in any case.
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    read.map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        return Err(failed(format!("the child ended with {status}")));
    }
    let parts = serde_json::from_str(&line).map_err(|e| failed(format!("the child said {:?}: {e}", line.trim())))?;
    Ok((elapsed, parts))
}
