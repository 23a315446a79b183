//! A measurement in turns with another program: `--follow` loads and checks once, then runs as often as each line of
//! stdin says and answers each with one line of times.

use std::io::BufRead;

use arclet::error::{Error, Result};
use serde_json::json;

use super::super::report;
use super::measure::Subject;
use super::row::Row;

/// Most runs that one line may ask for.
const MOST_RUNS: usize = 1_000_000;

/// Says what will be measured, then obeys stdin until it ends.
///
/// # Errors
/// [`Error::Usage`] for a line that is no number of runs; those of runs and of stdout.
pub fn follow(about: &Row, subject: &mut Subject) -> Result<()> {
    print_line(&json!({ "ready": about }))?;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::Runtime(format!("stdin: {e}")))?;
        let runs = line.trim().parse().ok().filter(|n| (1..=MOST_RUNS).contains(n));
        let runs: usize =
            runs.ok_or_else(|| Error::usage(format!("--follow: found {line:?}, expected 1 to {MOST_RUNS} runs")))?;
        let times = (0..runs).map(|_| subject.device_time()).collect::<Result<Vec<_>>>()?;
        subject.check_images()?;
        print_line(&json!({ "times_ms": times }))?;
    }
    Ok(())
}

fn print_line(value: &serde_json::Value) -> Result<()> {
    report::print(value)
}
