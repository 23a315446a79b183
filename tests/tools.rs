//! The Python tools, tested by their own unit tests.

use std::process::Command;

#[test]
fn python_tools_pass_their_tests() {
    unit_tests_pass("tools");
}

#[test]
fn the_comparison_with_peers_passes_its_tests() {
    unit_tests_pass("benches/peers");
}

fn unit_tests_pass(folder: &str) {
    let run = Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", folder])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("python3 is needed to test the tools");
    let report = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{report}");
    // An empty discovery would pass too.
    assert!(report.contains("Ran ") && !report.contains("Ran 0 "), "{report}");
}
