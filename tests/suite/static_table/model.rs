//! The cost model: how long a loop should take on a GPU, from the rows of `kernels/static.tsv` and a few stated
//! assumptions. It fills the part of `docs/performance.md` between two marks.

use arclet::device::gpus::Gpu;

use super::{ALL, Line, known, twin};

const BEGIN: &str = "<!-- begin: made from kernels/static.tsv, all but the last column of the predictions -->\n";
const END: &str = "<!-- end -->\n";
/// What stands in the last column until somebody writes a measurement there.
const NOT_MEASURED: &str = "not measured";

/// GPUs that there are predictions for, with the times to reach on the first workload ...
const TARGETS: [(&str, &str); 5] = [
    ("H200", "14, then 9"),
    ("H100", "15, then 10"),
    ("A100", "22, then 15"),
    ("RTX 4090", "21, then 17"),
    ("L4", "50, then 40"),
];
/// ... and on another.
const OTHER_TARGET: (&str, &str, &str) = ("unetpp-r34", "H200", "15, then 10");
/// Evaluations of the loop of a workload.
const EVALUATIONS: [(&str, u32); 4] =
    [("vit-b16", 50), ("vit-b16 x2", 50), ("nanodit guided", 100), ("unetpp-r34", 50)];
/// Workloads whose launches are listed one kind after another.
const LISTED: [&str; 2] = ["vit-b16", "unetpp-r34"];

/// What the hardware reaches of its data sheet, and what a dependent phase costs.
struct Assumption {
    /// Share of the memory bandwidth.
    bandwidth: f64,
    /// Bandwidth of the cache, which holds all but the weights, in units of the memory's.
    cache: f64,
    /// Share of the tensor peak of a multiprocessor, however many blocks it has.
    peak: f64,
    /// 10^12 operations per second that a block gets done that computes a tile of 64 x 64: its loop waits for data, so
    /// larger tiles get more done. `None`: no matter how the work is cut into blocks.
    block_tflops: Option<f64>,
    /// Microseconds that a phase takes beside its work.
    phase_us: f64,
}

/// What nothing can beat: no cost of phases, every multiprocessor at its peak, and only weights from memory.
const IDEAL: Assumption =
    Assumption { bandwidth: 1.0, cache: f64::INFINITY, peak: 1.0, block_tflops: None, phase_us: 0.0 };
const GOOD: Assumption = Assumption { bandwidth: 0.85, cache: 3.0, peak: 0.8, block_tflops: Some(1.5), phase_us: 1.3 };
const POOR: Assumption = Assumption { bandwidth: 0.6, cache: 1.0, peak: 0.6, block_tflops: Some(0.7), phase_us: 1.8 };

/// How many tiles of 64 x 64 a block of `kernel` computes, if its name says.
fn tiles(kernel: &str) -> f64 {
    let size = kernel.rsplit('_').next().and_then(|name| name.split_once('x'));
    let sides = size.and_then(|(rows, cols)| Some((rows.parse::<f64>().ok()?, cols.parse::<f64>().ok()?)));
    sides.map_or(1.0, |(rows, cols)| rows * cols / (64.0 * 64.0))
}

/// Microseconds of one launch of the kind `line`: what takes longer, memory or arithmetic, and the cost of a phase.
fn phase_us(line: &Line, gpu: &Gpu, assumed: &Assumption) -> f64 {
    let (blocks, all) = (line.grid.iter().product::<u64>() as f64, f64::from(gpu.multiprocessors));
    let cached = (line.bytes - line.weights) as f64 / assumed.cache;
    let memory = (line.weights as f64 + cached) / (gpu.gb_per_s * assumed.bandwidth) / 1e3;
    let tflops = match assumed.block_tflops {
        None => gpu.tflops * assumed.peak,
        // The multiprocessor with the most blocks is waited for.
        Some(block) => {
            blocks * (block * tiles(&line.kernel)).min(gpu.tflops * assumed.peak / all / (blocks / all).ceil())
        }
    };
    memory.max(line.flops as f64 / tflops / 1e6) + assumed.phase_us
}

/// The launches of one evaluation on `gpu`.
fn phases<'a>(lines: &'a [Line], workload: &'a str, gpu: &'a Gpu) -> impl Iterator<Item = &'a Line> {
    lines.iter().filter(move |l| l.workload == workload && l.gpu == twin(gpu).name && l.kernel != ALL)
}

/// Milliseconds of the loop.
fn loop_ms(lines: &[Line], workload: &str, evaluations: u32, gpu: &Gpu, assumed: &Assumption) -> f64 {
    let one: f64 = phases(lines, workload, gpu).map(|l| l.count as f64 * phase_us(l, gpu, assumed)).sum();
    one * f64::from(evaluations) / 1e3
}

/// What an evaluation is, per workload and GPU.
fn evaluations(lines: &[Line]) -> Vec<String> {
    let mut rows = vec![
        "| workload | GPU | phases | GFLOP | MB | of them weights |".into(),
        "|---|---|---:|---:|---:|---:|".into(),
    ];
    rows.extend(lines.iter().filter(|l| l.kernel == ALL).map(|l| {
        let (gflop, mb, weights) = (l.flops as f64 / 1e9, l.bytes as f64 / 1e6, l.weights as f64 / 1e6);
        format!("| {} | {} | {} | {gflop:.2} | {mb:.1} | {weights:.1} |", l.workload, l.gpu, l.count)
    }));
    rows
}

/// One row per GPU and workload; the last cell is kept from `old`.
fn predictions(lines: &[Line], old: &str) -> Vec<String> {
    let mut rows = vec![
        "| workload | GPU | floor | + phases | predicted | to reach | measured |".into(),
        "|---|---|---:|---:|---:|---:|---:|".into(),
    ];
    for (workload, evaluations) in EVALUATIONS {
        for (name, target) in TARGETS {
            let ms = |assumed: &Assumption| loop_ms(lines, workload, evaluations, known(name), assumed);
            let with_phases = |phase_us| ms(&Assumption { phase_us, ..IDEAL });
            let (other, gpu, other_target) = OTHER_TARGET;
            let target = match workload {
                _ if workload == EVALUATIONS[0].0 => target,
                _ if (workload, name) == (other, gpu) => other_target,
                _ => "-",
            };
            let row = format!(
                "| {workload}, {evaluations} | {name} | {:.1} | {:.1} - {:.1} | {:.0} - {:.0} | {target} |",
                ms(&IDEAL),
                with_phases(GOOD.phase_us),
                with_phases(POOR.phase_us),
                ms(&GOOD),
                ms(&POOR),
            );
            rows.push(format!("{row} {} |", measured(old, workload, name)));
        }
    }
    rows
}

/// The last cell of the row of this workload and GPU in the document.
fn measured<'a>(old: &'a str, workload: &str, gpu: &str) -> &'a str {
    let row = old
        .lines()
        .map(|l| l.split('|').map(str::trim).collect::<Vec<_>>())
        .find(|cells| cells.len() == 9 && cells[2] == gpu && cells[1].split(',').next() == Some(workload));
    row.map_or(NOT_MEASURED, |cells| cells[7])
}

/// Where the predicted time of an evaluation goes, the longest first.
fn breakdown(lines: &[Line], workload: &str, gpu: &Gpu) -> Vec<String> {
    let mut rows = vec![
        "| n | kernel | grid | waves | floor us | predicted us | n x us |".into(),
        "|---:|---|---:|---:|---:|---:|---:|".into(),
    ];
    let time = |l: &Line, assumed: &Assumption| phase_us(l, gpu, assumed);
    let total = |l: &Line| l.count as f64 * time(l, &POOR);
    let mut kinds: Vec<&Line> = phases(lines, workload, gpu).collect();
    kinds.sort_by(|a, b| total(b).total_cmp(&total(a)));
    rows.extend(kinds.into_iter().map(|l| {
        let ([x, y, z], n) = (l.grid, l.count as f64);
        let (good, poor) = (time(l, &GOOD), time(l, &POOR));
        format!(
            "| {} | `{}` | {x} x {y} x {z} | {:.2} | {:.2} | {good:.1} - {poor:.1} | {:.0} - {:.0} |",
            l.count,
            l.kernel,
            l.occupancy().2,
            phase_us(l, gpu, &IDEAL),
            n * good,
            n * poor
        )
    }));
    rows
}

/// `old` with the part between the marks as `lines` make it.
pub fn document(old: &str, lines: &[Line]) -> String {
    let (before, rest) = old.split_once(BEGIN).expect("the first mark");
    let (_, after) = rest.split_once(END).expect("the second mark");
    let assumed = |what: fn(&Assumption) -> f64| format!("{} to {}", what(&GOOD), what(&POOR));
    let listed = LISTED.iter().flat_map(|workload| {
        let head = format!("Where one evaluation of `{workload}` should spend its time on an H200:");
        [vec![String::new(), head, String::new()], breakdown(lines, workload, known("H200"))].concat()
    });
    let parts = [
        vec!["One evaluation in f16:".into(), String::new()],
        evaluations(lines),
        vec![
            String::new(),
            format!(
                "The loop of so many evaluations, in milliseconds. Assumed, from good to poor: {} us per phase; {} of the \
                 memory bandwidth, and {} times that from the cache; {} of a multiprocessor's tensor peak, but no more than \
                 {} TFLOP/s for each tile of 64 x 64 of a block.",
                assumed(|a| a.phase_us),
                assumed(|a| a.bandwidth),
                assumed(|a| a.cache),
                assumed(|a| a.peak),
                assumed(|a| a.block_tflops.unwrap_or(f64::INFINITY))
            ),
            String::new(),
        ],
        predictions(lines, old),
        listed.collect(),
    ];
    format!("{before}{BEGIN}{}\n{END}{after}", parts.concat().join("\n"))
}

#[test]
fn the_model_adds_up_what_it_says() {
    let line = |kernel: &str, count, blocks, flops, [bytes, weights]: [u64; 2]| Line {
        workload: "vit-b16".into(),
        gpu: "A100".into(),
        count,
        kernel: kernel.into(),
        grid: [blocks, 1, 1],
        threads: 128,
        registers: 64,
        shared: 0,
        flops,
        bytes,
        weights,
    };
    // 3.12 GFLOP are 10 us of an A100 at its peak, 20.39 MB are 10 us of its memory.
    let work = 3_120_000_000;
    let lines = [
        line("product", 2, 54, work, [0, 0]),
        line("product", 1, 109, work, [0, 0]),
        line("product", 1, 108, 0, [30_585_000, 20_390_000]),
        line(ALL, 4, 0, 3 * work, [30_585_000, 20_390_000]),
    ];
    let a100 = known("A100");
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-9, "{got} is not {want}");
    let loop_of_1000 = |assumed: &Assumption| loop_ms(&lines, "vit-b16", 1000, a100, assumed);
    near(loop_of_1000(&IDEAL), 3.0 * 10.0 + 10.0);
    // Half of the multiprocessors have a block; then one has two blocks, and each gets half of it.
    let busy = Assumption { block_tflops: Some(1e6), ..IDEAL };
    near(loop_of_1000(&busy), 2.0 * 20.0 + 10.0 * 216.0 / 109.0 + 10.0);
    // 10^12 operations per second and block.
    let waiting = Assumption { block_tflops: Some(1.0), ..IDEAL };
    near(loop_of_1000(&waiting), 2.0 * 3120.0 / 54.0 + 3120.0 / 109.0 + 10.0);
    assert_eq!(["linear_fwd_f16_128x64", "linear_fwd_f16", "attention_fwd_f16_hd64"].map(tiles), [2.0, 1.0, 1.0]);
    let slow = Assumption { bandwidth: 0.5, cache: 2.0, peak: 0.25, phase_us: 1.5, ..IDEAL };
    near(loop_of_1000(&slow), 3.0 * 40.0 + 20.0 + 5.0 + 4.0 * 1.5);

    let old = format!("words\n{BEGIN}| vit-b16, 50 | A100 | 1 | 2 | 3 | 4 | 17.5 (a file) |\n{END}more\n");
    let new = document(&old, &lines);
    assert!(new.starts_with("words\n") && new.ends_with("more\n"));
    let row = |gpu: &str| new.lines().find(|l| l.starts_with(&format!("| vit-b16, 50 | {gpu} "))).expect("a row");
    assert!(row("A100").ends_with("| 22, then 15 | 17.5 (a file) |"), "{}", row("A100"));
    assert!(row("L4").ends_with("| 50, then 40 | not measured |"), "{}", row("L4"));
    assert_eq!(document(&new, &lines), new);
}
