//! Saving when the process is killed, and when the disk is full. The process that saves is this binary, started again.
#![cfg(unix)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use arclet::train::checkpoint::{newest, save};

use super::checkpoint::{newest_whole, sample};
use crate::listing;

/// Names the run folder to the processes that are started here.
const RUN: &str = "ARCLET_TEST_RUN";

/// Elements of the larger tensor of each group: a save takes some milliseconds.
const ELEMENTS: usize = 60_000;

/// The test called `name` in a process of its own, below `wrapper` if there is one.
fn start(wrapper: &[&str], name: &str, run: &Path) -> Child {
    let this = std::env::current_exe().unwrap();
    let mut words = wrapper.iter().map(Into::into).chain([this.into_os_string()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args([&format!("train::kill::{name}"), "--exact", "--nocapture", "--test-threads=1"]);
    command.env(RUN, run).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// In a process that was started for it: saves step after step, and says so after each.
#[test]
fn child_saves_for_ever() {
    let Some(run) = std::env::var_os(RUN) else { return };
    let run = Path::new(&run);
    let first = newest(run).unwrap().map_or(0, |found| found.step);
    for step in first + 1.. {
        save(run, step, &sample(step, ELEMENTS), 2).unwrap();
        eprintln!("saved {step}");
    }
}

#[test]
fn the_newest_loads_after_every_kill() {
    let run = tempfile::tempdir().unwrap();
    let (mut random, mut left_something) = (0x9E37_79B9u32, 0);
    for round in 0..50 {
        let mut child = start(&[], "child_saves_for_ever", run.path());
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        let mut saved = lines.next().expect("a line after the first save");
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        std::thread::sleep(Duration::from_micros(u64::from(random % 25_000)));
        // SIGKILL.
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());
        if let Some(last) = lines.last() {
            saved = last;
        }
        let saved: u64 = saved.strip_prefix("saved ").expect("saved STEP").parse().unwrap();
        let found = newest_whole(run.path(), ELEMENTS);
        // It may have been killed between the last rename and the line about it.
        assert!(found == saved || found == saved + 1, "round {round}: found {found} after {saved} was saved");
        left_something += usize::from(listing(&run.path().join("checkpoints")).len() > 2);
    }
    assert!(left_something > 5, "of 50 kills only {left_something} came in the middle of a save");
    let last = newest_whole(run.path(), ELEMENTS) + 1;
    save(run.path(), last, &sample(last, ELEMENTS), 1).unwrap();
    assert_eq!(listing(&run.path().join("checkpoints")), [format!("step-{last:08}")], "nothing is left of the kills");
}

/// In a process that may write small files only.
#[test]
fn child_fills_the_disk() {
    let Some(run) = std::env::var_os(RUN) else { return };
    let run = Path::new(&run);
    save(run, 1, &sample(1, 10), 1).unwrap();
    let error = save(run, 2, &sample(2, ELEMENTS), 1).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    assert!(error.to_string().contains("ema.safetensors"), "{error}");
    eprintln!("refused");
}

#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let run = tempfile::tempdir().unwrap();
    // 64 blocks are 32 or 64 KiB; without the signal, a write beyond them is an error, as on a full disk.
    let limited = ["sh", "-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""];
    let output = start(&limited, "child_fills_the_disk", run.path()).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("refused"), "{said}");
    assert_eq!(newest_whole(run.path(), 10), 1);
    assert_eq!(fs::read_dir(run.path().join("checkpoints")).unwrap().count(), 1, "nothing is left of the second");
}
