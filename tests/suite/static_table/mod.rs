//! What can be known about speed without a GPU: what one evaluation launches, how much of a multiprocessor each kernel
//! takes, and what it moves and computes, held to `kernels/static.tsv`; and the predictions of `docs/performance.md`
//! that follow from it.
//!
//! `ARCLET_WRITE_TABLES=1 cargo test --release --test suite static_table` writes both.

mod model;
mod occupancy;

use std::path::Path;
use std::process::Command;
use std::thread;

use arclet::device::gpus::{self, Gpu};
use serde_json::Value;

use crate::common::root;
use occupancy::ARCHITECTURES;

/// What is drawn: a name, and what `arclet bench` is asked for.
const WORKLOADS: [(&str, &str); 4] = [
    ("vit-b16", "--model vit-b16"),
    ("vit-b16 x2", "--model vit-b16 --batch 2"),
    ("nanodit guided", "--model nanodit --guidance-scale 3"),
    ("unetpp-r34", "--model unetpp-r34"),
];
const COLUMNS: &str = "workload\tgpu\tcount\tkernel\tgrid\tthreads\tregisters\tshared\tblocks_per_sm\tlimit\twaves\tflops\tbytes\tweights";
/// Stands for the kernel in the row of sums.
const ALL: &str = "all";

/// One kind of launch in an evaluation, or the sum of all.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    workload: String,
    gpu: String,
    count: u64,
    kernel: String,
    grid: [u64; 3],
    threads: u32,
    /// Of each thread.
    registers: u32,
    /// Bytes of static and dynamic shared memory of a block.
    shared: u32,
    flops: u64,
    bytes: u64,
    /// Those of the bytes that are matrices of parameters.
    weights: u64,
}

impl Line {
    /// Blocks that a multiprocessor holds, and what limits them; blocks over those that the whole GPU holds.
    fn occupancy(&self) -> (u32, &'static str, f64) {
        let gpu = known(&self.gpu);
        let limits = ARCHITECTURES.iter().find(|l| l.arch == gpu.arch).expect("architecture");
        let (resident, limit) = limits.resident(self.threads, self.registers, self.shared);
        let blocks = self.grid.iter().product::<u64>() as f64;
        (resident, limit, blocks / f64::from(resident * gpu.multiprocessors))
    }

    fn text(&self) -> String {
        let Self { workload, gpu, count, kernel, grid: [x, y, z], threads, registers, shared, .. } = self;
        let work = format!("{}\t{}\t{}", self.flops, self.bytes, self.weights);
        if kernel == ALL {
            return format!("{workload}\t{gpu}\t{count}\t{kernel}\t\t\t\t\t\t\t\t{work}");
        }
        let (resident, limit, waves) = self.occupancy();
        format!(
            "{workload}\t{gpu}\t{count}\t{kernel}\t{x}x{y}x{z}\t{threads}\t{registers}\t{shared}\t{resident}\t{limit}\t\
             {waves:.2}\t{work}"
        )
    }

    fn parse(text: &str) -> Self {
        let cells: Vec<&str> = text.split('\t').collect();
        let number = |i: usize| cells[i].parse().unwrap_or(0);
        let mut grid = cells[4].split('x').map(|n| n.parse().unwrap_or(0));
        Self {
            workload: cells[0].into(),
            gpu: cells[1].into(),
            count: number(2),
            kernel: cells[3].into(),
            grid: [(); 3].map(|()| grid.next().unwrap_or(0)),
            threads: number(5) as u32,
            registers: number(6) as u32,
            shared: number(7) as u32,
            flops: number(11),
            bytes: number(12),
            weights: number(13),
        }
    }
}

fn known(name: &str) -> &'static Gpu {
    gpus::KNOWN.iter().find(|g| g.name == name).expect("a known GPU")
}

/// The GPU of the table that launches the same as `gpu`: the first with as many multiprocessors of its kind.
fn twin(gpu: &Gpu) -> &'static Gpu {
    let same = |g: &&Gpu| (g.arch, g.multiprocessors) == (gpu.arch, gpu.multiprocessors);
    gpus::KNOWN.iter().find(same).expect("itself")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Registers and static shared memory of `kernel`, from `kernels/resources.tsv`.
fn resources(table: &str, kernel: &str, arch: &str) -> (u32, u32) {
    let rows = table.lines().map(|l| l.split('\t').collect::<Vec<_>>());
    let row = rows.into_iter().find(|r| r.len() == 9 && r[1] == kernel && r[2] == arch);
    let row =
        row.unwrap_or_else(|| panic!("kernels/resources.tsv has no {kernel} for {arch}: tools/kernel-table --write"));
    (row[3].parse().expect("registers"), row[7].parse().expect("shared memory"))
}

/// What one evaluation launches on `gpu`: the program on an emulated GPU of its kind, which runs nothing.
fn launches(flags: &str, gpu: &Gpu) -> Vec<Value> {
    let capability = gpu.arch.trim_start_matches("sm_").trim_end_matches('a');
    let output = Command::new(env!("CARGO_BIN_EXE_arclet"))
        .args(["bench", "--launches", "--dtype", "f16"])
        .args(flags.split_whitespace())
        .envs(arclet_emu::env_for_child())
        .env("ARCLET_EMU_CC", capability)
        .env("ARCLET_EMU_MULTIPROCESSORS", gpu.multiprocessors.to_string())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a list of launches")
}

/// The rows of one workload on one GPU, the sum last.
fn lines(workload: &str, flags: &str, gpu: &Gpu, table: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for launch in launches(flags, gpu) {
        let number = |v: &Value| v.as_u64().expect("a number");
        let kernel = launch["kernel"].as_str().expect("a kernel");
        let (registers, shared) = resources(table, kernel, gpu.arch);
        let line = Line {
            workload: workload.into(),
            gpu: gpu.name.into(),
            count: 1,
            kernel: kernel.into(),
            grid: [0, 1, 2].map(|i| number(&launch["grid"][i])),
            threads: number(&launch["threads"]) as u32,
            registers,
            shared: shared + number(&launch["shared_bytes"]) as u32,
            flops: number(&launch["flops"]),
            bytes: number(&launch["bytes"]),
            weights: number(&launch["weights"]),
        };
        match lines.iter_mut().find(|l| Line { count: 1, ..(*l).clone() } == line) {
            Some(same) => same.count += 1,
            None => lines.push(line),
        }
    }
    let sum = |f: fn(&Line) -> u64| lines.iter().map(|l| l.count * f(l)).sum();
    let all = Line {
        kernel: ALL.into(),
        count: sum(|_| 1),
        grid: [0; 3],
        threads: 0,
        registers: 0,
        shared: 0,
        flops: sum(|l| l.flops),
        bytes: sum(|l| l.bytes),
        weights: sum(|l| l.weights),
        ..lines[0].clone()
    };
    lines.push(all);
    lines
}

/// The table as it should be.
fn table() -> String {
    let resources = read(&root().join("kernels/resources.tsv"));
    let of_gpu = |gpu: &Gpu| -> Vec<Line> {
        WORKLOADS.iter().flat_map(|(name, flags)| lines(name, flags, gpu, &resources)).collect()
    };
    let parts: Vec<Vec<Line>> = thread::scope(|scope| {
        let gpus = gpus::KNOWN.iter().filter(|g| twin(g) == *g);
        let threads: Vec<_> = gpus.map(|gpu| scope.spawn(|| of_gpu(gpu))).collect();
        threads.into_iter().map(|t| t.join().expect("a trace")).collect()
    });
    let mut text = vec![
        "# What one evaluation in f16 launches. waves: blocks over those that all multiprocessors hold at a time."
            .into(),
        COLUMNS.into(),
    ];
    text.extend(parts.iter().flatten().map(Line::text));
    text.join("\n") + "\n"
}

/// Compares a committed file with what it should hold, or writes it. One difference is shown.
fn hold(path: &Path, want: &str) {
    if std::env::var_os("ARCLET_WRITE_TABLES").is_some() {
        std::fs::write(path, want).expect("written");
        return;
    }
    let found = read(path);
    let found_lines = found.lines().map(Some).chain(std::iter::repeat(None));
    let differs = want.lines().map(Some).chain([None]).zip(found_lines).find(|(want, found)| want != found);
    if let Some((want, found)) = differs {
        panic!(
            "{} holds\n  {}\nwhere the code makes\n  {}\nIf that is meant: ARCLET_WRITE_TABLES=1 cargo test --release \
             --test suite static_table, and say why in the commit.",
            path.display(),
            found.unwrap_or("(nothing)"),
            want.unwrap_or("(nothing)")
        );
    }
}

/// Whether this is a checkout and not a bundle on a GPU machine, which has no tables.
fn in_checkout() -> bool {
    std::env::var_os("ARCLET_TEST_ROOT").is_none() && !arclet_emu::real_driver()
}

/// First the table, then the document that is made from it.
#[test]
fn launches_and_predictions_are_as_committed() {
    if !in_checkout() {
        return;
    }
    let path = root().join("kernels/static.tsv");
    hold(&path, &table());
    let lines: Vec<Line> = read(&path).lines().skip(2).map(Line::parse).collect();
    let document = root().join("docs/performance.md");
    hold(&document, &model::document(&read(&document), &lines));
}
