//! `arclet bench` as a child process, on the CPU and on the emulated driver at a tiny size. Times mean nothing here:
//! what is measured, checked, counted and refused does.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Desk, Ended, ended, golden_weights};
use crate::conv_models::write_small_unetpp;

/// `arclet bench` of a golden model.
fn command(desk: &Desk, model: &str, flags: &str) -> Command {
    on_a_gpu(desk, &format!("bench --model {} {flags}", golden_weights(model)))
}

/// `arclet` with the emulated driver and its kernels, or with the machine's own.
fn on_a_gpu(desk: &Desk, arguments: &str) -> Command {
    let mut command = desk.command(arguments);
    if !arclet_emu::real_driver() {
        std::fs::write(desk.path("kernels"), arclet_emu::manifest("80")).expect("manifest");
        command.env("ARCLET_KERNEL_MANIFEST", desk.path("kernels")).envs(arclet_emu::env_for_child());
    }
    command
}

/// The flow ViT of 16 tokens.
const TINY: &str = "a1_flow_vit";

fn run(model: &str, flags: &str) -> Ended {
    ended(command(&Desk::new(), model, flags).output())
}

/// The rows that a run printed.
fn rows(end: &Ended) -> Vec<Value> {
    assert_eq!(end.code, 0, "{}", end.stderr);
    serde_json::from_str(&end.stdout).expect("a list of rows")
}

/// `key` of each row, as compact JSON.
fn column(rows: &[Value], key: &str) -> Vec<String> {
    rows.iter().map(|r| r[key].to_string().replace('"', "")).collect()
}

/// What the documented keys promise, whatever was measured.
fn check_row(row: &Value) {
    for key in ["name", "device", "dtype"] {
        assert!(row[key].as_str().is_some_and(|s| !s.is_empty()), "{key} in {row}");
    }
    for key in ["batch", "steps", "evaluations", "runs"] {
        assert!(row[key].as_u64().is_some_and(|n| n > 0), "{key} in {row}");
    }
    let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
    assert!(number("min_ms") > 0.0 && number("gflops") > 0.0, "{row}");
    assert!(number("min_ms") <= number("p50_ms") && number("p50_ms") <= number("p90_ms"), "{row}");
    assert!(number("p90_ms") <= number("p99_ms"), "{row}");
    let per_evaluation = number("p50_ms") / number("evaluations");
    assert!((number("ms_per_evaluation") / per_evaluation - 1.0).abs() < 1e-9, "{row}");
    let per_second = number("batch") / number("p50_ms") * 1e3;
    assert!((number("images_per_s") / per_second - 1.0).abs() < 1e-9, "{row}");
}

/// The rungs of the ladder, and whether only a Hopper takes them.
const RUNGS: [(&str, bool); 7] = [
    ("f32, launch by launch", false),
    ("f16", false),
    ("fused attention", false),
    ("fused layers", false),
    ("Hopper tiles", true),
    ("one graph", false),
    ("dependent launch", true),
];

/// One technique more in each row, and what it gained.
fn check_ladder(rows: &[Value]) {
    assert!(rows.iter().all(|r| r["measure"] == "ladder" && !r["gate"].is_null()), "{rows:?}");
    let is = |row: &Value, name: &str| row["name"].as_str().is_some_and(|n| n.ends_with(name));
    let mut rungs = RUNGS.into_iter();
    for row in rows {
        while let (name, hopper) = rungs.next().unwrap_or_else(|| panic!("no rung, or too late: {row}"))
            && !is(row, name)
        {
            assert!(hopper, "{name} left out: {row}");
        }
    }
    assert!(rungs.all(|(_, hopper)| hopper), "ends too early: {rows:?}");
    let f16: Vec<bool> = rows.iter().map(|r| r["dtype"] == "f16").collect();
    assert!(!f16[0] && f16[1..].iter().all(|&f16| f16), "{rows:?}");
    assert!(rows[0]["speedup"].is_null());
    for pair in rows.windows(2) {
        let median = |row: &Value| row["p50_ms"].as_f64().expect("median");
        let speedup = pair[1]["speedup"].as_f64().expect("speedup");
        assert!((speedup * median(&pair[1]) / median(&pair[0]) - 1.0).abs() < 1e-9, "{pair:?}");
    }
    // Where attention is not fused its scores need memory.
    let device = |row: &Value| row["device_mb"].as_f64().expect("device memory");
    assert!(device(&rows[1]) > device(&rows[2]), "{} {}", rows[1], rows[2]);
}

/// The phases of an evaluation of the flow ViT of two layers and 16 tokens.
fn check_phases(row: &Value) {
    let phases = &row["phases"];
    let kinds = phases["kinds"].as_array().expect("kinds");
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"));
    let sum = |f: &dyn Fn(&Value) -> f64| kinds.iter().map(|k| number(k, "count") * f(k)).sum::<f64>();
    assert_eq!(sum(&|_| 1.0), number(phases, "count"));
    assert!((sum(&|k| number(k, "us")) / number(phases, "sum_us") - 1.0).abs() < 1e-9);
    // The operations of all phases are those that the row's rate counts, but for the input convolution, which is part
    // of the patch embedding.
    let counted = number(row, "gflops") * number(row, "p50_ms") * 1e6 / number(row, "evaluations");
    let ratio = sum(&|k| number(k, "flops")) / counted;
    assert!((0.8..=1.0).contains(&ratio), "the phases make {ratio} of the operations");
    for kind in kinds {
        let us = number(kind, "us");
        assert!(us > 0.0, "{kind}");
        for (rate, work, unit) in [("gb_per_s", "bytes", 1e3), ("tflops", "flops", 1e6)] {
            assert!((number(kind, rate) - number(kind, work) / us / unit).abs() <= 1e-9 * number(kind, rate), "{kind}");
        }
        assert!(number(kind, "bytes") > 0.0 && kind["grid"].as_array().is_some_and(|g| g.len() == 3), "{kind}");
        // An emulated GPU is no known model.
        assert!(arclet_emu::real_driver() || kind["bandwidth_share"].is_null() && kind["peak_share"].is_null());
    }
    assert_eq!(kinds.last().expect("a kind")["kernel"], "counter_advance");
    assert!(number(phases, "overhead_us") > 0.0, "{phases}");
    assert!(phases["dependent_overhead_us"].is_null() || number(phases, "dependent_overhead_us") > 0.0, "{phases}");
}

#[test]
fn bench_measures_everything_on_a_gpu() {
    let flags = "--device cuda --steps 2 --dtype f32,f16 --warmup 1 --iterations 3 --calls 4 --batches 1,2 --starts 2 \
                 --seconds 0 --threads 2 --json";
    let rows = rows(&ended(command(&Desk::new(), TINY, flags).env("ARCLET_EMU_CC", "80").output()));
    rows.iter().for_each(check_row);
    let measures = ["latency", "calls", "throughput", "throughput", "cold", "phases"];
    let (rows, ladder) = rows.split_at(12);
    assert_eq!(column(rows, "measure"), [measures, measures].concat());
    assert_eq!(column(rows, "dtype"), [["f32"; 6], ["f16"; 6]].concat());
    assert_eq!(column(rows, "batch")[..6], ["1", "1", "1", "2", "1", "1"]);
    assert_eq!(column(rows, "runs")[..6], ["3", "4", "3", "3", "2", "5"]);
    assert_eq!(column(rows, "warm_ups")[..6], ["1", "1", "2", "2", "0", "2"]);
    check_ladder(ladder);
    assert!(arclet_emu::real_driver() || ladder.len() == RUNGS.iter().filter(|(_, hopper)| !hopper).count());
    for row in ladder.iter().chain(rows) {
        assert_eq!(row["phases"].is_null(), row["measure"] != "phases", "{row}");
        assert!(row["speedup"].is_null() || row["measure"] == "ladder", "{row}");
    }
    for row in [&rows[5], &rows[11]] {
        check_phases(row);
    }
    for row in rows {
        assert_eq!(row["evaluations"], 2);
        let gate = &row["gate"];
        for what in ["velocity", "image"] {
            let error = gate[format!("{what}_error")].as_f64().expect("error");
            // Above zero: the GPU sums in another order than the CPU, or rounds.
            assert!(0.0 < error && error <= gate[format!("{what}_bound")].as_f64().expect("bound"), "{gate}");
        }
        let megabytes = |key: &str| row[key].as_f64().expect("megabytes");
        assert!(megabytes("binary_mb") > 1.0, "{row}");
        if row["measure"] != "cold" {
            assert!(megabytes("device_mb") > megabytes("weights_mb"), "{row}");
        }
    }
    // The weights are counted as they are stored: one matrix type in half the bytes, tables in f32.
    let weights = |row: &Value| row["weights_mb"].as_f64().expect("weights");
    let ratio = weights(&rows[0]) / weights(&rows[6]);
    assert!((1.8..=2.0).contains(&ratio), "f32 takes {ratio} x the memory of f16");
    let device = |row: &Value| row["device_mb"].as_f64().expect("device memory");
    assert!(device(&rows[3]) > device(&rows[2]), "a batch of two needs more memory than one");
    let total = rows[4]["min_ms"].as_f64().expect("time");
    assert!(rows[4]["open_ms"].as_f64().expect("opened") + rows[4]["load_ms"].as_f64().expect("loaded") <= total * 2.0);
    assert!(rows[4]["peak_rss_mb"].as_f64().is_none_or(|mb| mb > 1.0));
}

#[test]
fn bench_counts_one_evaluation_less_for_the_notebooks_times() {
    let flags = "--device cuda --measure latency --time notebook --steps 4 --warmup 0 --iterations 1 --threads 2";
    let end = run(TINY, flags);
    assert_eq!(end.code, 0, "{}", end.stderr);
    let table = end.stdout;
    let columns: Vec<&str> = table.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!(columns[..6], ["latency", "weights.safetensors", "f16", "1", "1", "3"], "{table}");
    assert!(
        table.contains("checked against the CPU in f32") && table.contains("1 runs after 0 warm-up runs"),
        "{table}"
    );
    let refused = run(TINY, "--device cpu --time notebook --steps 1");
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("at least 2"), "{}", refused.stderr);
}

#[test]
fn bench_adds_the_published_evaluations_for_the_published_model() {
    // A folder of that name holds the tiny model here.
    let desk = Desk::new();
    std::fs::create_dir(desk.path("vit-b16")).expect("folder");
    std::fs::copy(golden_weights(TINY), desk.path("vit-b16/model.safetensors")).expect("weights");
    let flags = "--device cuda --dtype f32 --measure latency,calls --steps 3 --warmup 0 --iterations 1 --calls 1 \
                 --threads 2 --model ./vit-b16 --json";
    let mut command = on_a_gpu(&desk, &format!("bench {flags}"));
    let rows = rows(&ended(command.output()));
    rows.iter().for_each(check_row);
    assert_eq!(column(&rows, "measure"), ["latency", "latency", "calls"]);
    assert_eq!(column(&rows, "time"), ["train", "notebook", "train"]);
    assert_eq!(column(&rows, "evaluations"), ["3", "2", "3"]);
    assert!(rows[0]["gate"] != rows[1]["gate"] && rows[0]["gate"] == rows[2]["gate"], "each schedule has its check");
}

#[test]
fn bench_guides_models_with_classes() {
    let flags = "--device cuda --dtype f32 --measure throughput --steps 1 --iterations 1 --batches 1 --seconds 0 \
                 --threads 2 --json";
    let rows = rows(&run("a3_nanodit", flags));
    assert_eq!(column(&rows, "guidance"), ["3.0", "1.0"]);
    assert_eq!(column(&rows, "batch"), ["1", "1"]);
    let operations = |row: &Value| row["gflops"].as_f64().expect("gflops") * row["p50_ms"].as_f64().expect("time");
    assert!((operations(&rows[0]) / operations(&rows[1]) - 2.0).abs() < 1e-9, "guidance is twice the work");
    assert!(rows[0]["gate"] != rows[1]["gate"], "guided images are compared with guided ones");
}

#[test]
fn bench_shows_phases_and_the_ladder_as_text() {
    let flags = "--device cuda --dtype f16 --measure phases,ladder --guidance-scale 3 --steps 1 --warmup 0 \
                 --iterations 2 --threads 2";
    let end = run("a3_nanodit", flags);
    assert_eq!(end.code, 0, "{}", end.stderr);
    for part in ["linear_fwd_f16", "TFLOP/s", "an empty phase takes", "x as fast as the rung before"] {
        assert!(end.stdout.contains(part), "{part} not in: {}", end.stdout);
    }
}

#[test]
fn bench_climbs_over_every_rung_on_hopper() {
    if arclet_emu::real_driver() {
        return;
    }
    let flags =
        "--device cuda --dtype f16 --measure phases,ladder --steps 1 --warmup 0 --iterations 1 --threads 2 --json";
    let end = ended(command(&Desk::new(), TINY, flags).env("ARCLET_EMU_CC", "90").output());
    let rows = rows(&end);
    assert!(rows[0]["phases"]["dependent_overhead_us"].as_f64().is_some_and(|us| us > 0.0), "{}", rows[0]);
    check_ladder(&rows[1..]);
    assert_eq!(rows.len(), 1 + RUNGS.len());
}

/// A convolutional network, checked against the CPU like any other; rungs about layers and products of transformers are left out.
#[test]
fn bench_times_a_unetpp_on_a_gpu() {
    let desk = Desk::new();
    write_small_unetpp(&desk, 32);
    let flags =
        "--device cuda --dtype f16 --measure latency,ladder --steps 1 --warmup 0 --iterations 1 --threads 2 --json";
    let end = ended(on_a_gpu(&desk, &format!("bench --model w.safetensors {flags}")).output());
    let rows = rows(&end);
    rows.iter().for_each(check_row);
    assert!(rows.iter().all(|r| !r["gate"].is_null()), "{rows:?}");
    let rungs: Vec<&str> = rows[1..].iter().map(|r| r["name"].as_str().expect("a name")).collect();
    let named = ["f32, launch by launch", "f16", "one graph", "dependent launch"];
    let as_named = rungs.iter().zip(named).all(|(rung, name)| rung.ends_with(name));
    assert!(as_named && (3..=4).contains(&rungs.len()), "{rungs:?}");
}

#[test]
fn bench_ends_the_sweep_when_memory_does() {
    if arclet_emu::real_driver() {
        return;
    }
    let flags = "--device cuda --dtype f16 --measure throughput --steps 1 --iterations 1 --batches 1,4096,2 --seconds 0 \
                 --threads 2 --json";
    let desk = Desk::new();
    let end = ended(command(&desk, TINY, flags).env("ARCLET_EMU_FAULT", "oom=8000000").output());
    let rows = rows(&end);
    assert_eq!(column(&rows, "batch"), ["1"]);
    let said = "throughput ends before batch 4096: out of cuda:0 memory";
    assert!(end.stderr.contains(said), "{}", end.stderr);
}

#[test]
fn bench_runs_without_a_gpu() {
    let flags = "--device cpu --measure calls,cold --calls 5 --starts 1 --threads 2 --shift 0.25 --json";
    let rows = rows(&run(TINY, flags));
    rows.iter().for_each(check_row);
    assert_eq!(column(&rows, "measure"), ["calls", "products", "cold"]);
    assert_eq!(column(&rows, "shift"), ["0.25"; 3]);
    assert!(rows[0]["ratio_to_products"].as_f64().is_some_and(|r| r > 0.0));
    assert!(rows.iter().all(|r| r["gate"].is_null() && r["device_mb"].is_null() && r["threads"] == 2));
    if !arclet_emu::real_driver() {
        let flags = "--measure calls --calls 1 --threads 2 --json";
        let end = ended(command(&Desk::new(), TINY, flags).env("ARCLET_EMU_FAULT", "no-device").output());
        assert!(end.stderr.contains("using the CPU") && end.stderr.contains("no GPU"), "{}", end.stderr);
        assert_eq!(column(&self::rows(&end), "measure"), ["calls", "products"]);
    }
    let refused = run(TINY, "--device cpu --steps 2 --shift 0.25 --time notebook");
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("--shift 0.25"), "{}", refused.stderr);
    for measure in ["latency", "phases", "calls,ladder"] {
        let refused = run(TINY, &format!("--device cpu --measure {measure}"));
        assert_eq!(refused.code, 2);
        assert!(refused.stderr.contains("needs a GPU"), "{}", refused.stderr);
    }
}

#[test]
fn bench_follows_another_program() {
    let desk = Desk::new();
    let mut child = command(&desk, TINY, "--device cuda --dtype f32 --steps 1 --threads 2 --follow")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("arclet runs");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let mut answer = || -> Value { serde_json::from_str(&lines.next().expect("a line").expect("text")).expect("JSON") };
    assert_eq!(answer()["ready"]["evaluations"], 1);
    let mut stdin = child.stdin.take().expect("stdin");
    for runs in [1, 3] {
        writeln!(stdin, "{runs}").expect("asked");
        let times = answer()["times_ms"].as_array().expect("times").clone();
        assert_eq!(times.len(), runs);
        assert!(times.iter().all(|t| t.as_f64().is_some_and(|t| t > 0.0)), "{times:?}");
    }
    writeln!(stdin, "many").expect("asked");
    drop(stdin);
    let end = ended(child.wait_with_output());
    assert_eq!(end.code, 2);
    assert!(end.stderr.contains("found \"many\""), "{}", end.stderr);
}

/// The comparison is a script of the repository, which is given what was asked for.
#[cfg(unix)]
#[test]
fn bench_runs_the_peers_of_the_repository_it_is_in() {
    let desk = Desk::new();
    let refused = desk.run("bench --against peers");
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("benches/peers/run.py"), "{}", refused.stderr);

    std::fs::create_dir_all(desk.path("benches/peers")).unwrap();
    let script = "import json, sys\nat = sys.argv.index('--out') if '--out' in sys.argv else 0\n\
                  print('table')\nif at: json.dump(sys.argv[1:at], open(sys.argv[at + 1], 'w'))\nsys.exit('f16' in sys.argv)\n";
    std::fs::write(desk.path("benches/peers/run.py"), script).unwrap();
    assert_eq!(desk.ok("bench --against peers").stdout, "table\n");
    let given = desk.json(
        "bench --against peers --model nanodit --device cpu --dtype f32,bf16 --steps 2 --threads 3 --batch 4 --json",
    );
    let given: Vec<&str> = given.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert_eq!(given[2..4], ["--models", "nanodit"]);
    let rest = "--device cpu --dtypes f32,bf16 --steps=2 --threads=3 --batch=4 --time=train";
    assert_eq!(given[4..].join(" "), rest);
    assert_eq!(desk.run("bench --against peers --dtype f16").code, 1);
}
