//! The table of tuned products, `kernels/tiles.tsv`: which tile each product of a model takes on a GPU, and in how many
//! chunks k is summed.

use std::collections::BTreeMap;
use std::path::Path;

use arclet::device::Device;
use arclet::device::cuda::Cuda;
use arclet::error::{Error, Result};
use arclet::io::write_atomic;
use arclet::models::config::{ModelConfig, NetworkConfig};
use arclet::ops::Columns;
use arclet::ops::linear::{Operands, Plan, Workspace, candidates, linear_by, predicted};
use arclet::rng::normals;
use arclet::tensor::{DType, Tensor};

use super::measure::Plan as Runs;
use super::products::{Product, products};
use super::row::summary;

const HEADER: &str = "# arch\tmultiprocessors\trows\tn\tk\ttile\tsplits\tus\tgpu";
/// Stands for the time where a model of the GPU chose and not a measurement.
const PREDICTED: &str = "-";
/// Bytes of weights that are gone through, so that they come from memory as in a model whose weights no cache holds.
const WEIGHTS: usize = 256 << 20;
/// Products that are timed together, one behind the other in one graph.
const REPEATS: usize = 16;

/// Which product on which kind of GPU.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    arch: String,
    multiprocessors: usize,
    rows: usize,
    n: usize,
    k: usize,
}

/// Writes a row for every product of `config` on this GPU into the table at `path`, in place of older ones, from `runs` of each
/// plan. On a GPU that runs nothing the rows hold what the program takes where it knows no better, and leave measured ones alone.
///
/// # Errors
/// [`Error::Output`] for a table that cannot be written, [`Error::Input`] for one that cannot be read; the device's.
pub fn tune(config: &ModelConfig, cuda: &Cuda, runs: Runs, path: &Path) -> Result<()> {
    if !matches!(config.network, NetworkConfig::FlowVit(_) | NetworkConfig::Dit(_)) {
        let found = config.architecture().name();
        return Err(Error::usage(format!(
            "--tune: found {found}, a transformer expected: tiles are those of its products"
        )));
    }
    let mut table = read(path)?;
    for product in products(config) {
        let Product::Linear { m: rows, n, k } = product else { continue };
        if rows == 1 {
            continue; // computed once per run, for all evaluations
        }
        let key = Key { arch: cuda.arch(), multiprocessors: cuda.multiprocessors(), rows, n, k };
        if cuda.is_dry() {
            let chosen = predicted(cuda, DType::F16, rows, n, k);
            let row = format!("{}\t{}\t{PREDICTED}\tmodel", chosen.tile.name(), chosen.splits);
            table
                .entry(key)
                .and_modify(|old| {
                    if is_predicted(old) {
                        old.clone_from(&row)
                    }
                })
                .or_insert(row);
            continue;
        }
        let mut best: Option<(f64, Plan)> = None;
        for plan in candidates(cuda, DType::F16, rows, n, k) {
            let us = time(cuda, plan, runs, rows, n, k)?;
            if best.is_none_or(|(least, _)| us < least) {
                best = Some((us, plan));
            }
        }
        let (us, plan) = best.ok_or_else(|| Error::Runtime(format!("no kernel computes {rows} x {n} x {k}")))?;
        table.insert(key, format!("{}\t{}\t{us:.2}\t{}", plan.tile.name(), plan.splits, cuda.model()));
    }
    let rows = table.into_iter().map(|(key, row)| {
        let Key { arch, multiprocessors, rows, n, k } = key;
        format!("{arch}\t{multiprocessors}\t{rows}\t{n}\t{k}\t{row}\n")
    });
    write_atomic(path, format!("{HEADER}\n{}", rows.collect::<String>()).as_bytes())
}

/// The rows of the table at `path`; none if there is no such file.
fn read(path: &Path) -> Result<BTreeMap<Key, String>> {
    let text = match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        text => text.map_err(|e| Error::input(path, e.to_string()))?,
    };
    let rows = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#'));
    rows.map(|(i, line)| {
        let parsed = parse(line);
        parsed.ok_or_else(|| Error::input(path, format!("line {}: {line:?} found, {HEADER:?} expected", i + 1)))
    })
    .collect()
}

fn parse(line: &str) -> Option<(Key, String)> {
    let mut fields = line.splitn(6, '\t');
    let arch = fields.next()?.to_owned();
    let mut number = || fields.next()?.parse().ok();
    let key = Key { arch, multiprocessors: number()?, rows: number()?, n: number()?, k: number()? };
    let row = fields.next().filter(|row| row.split('\t').count() == 4)?;
    Some((key, row.to_owned()))
}

fn is_predicted(row: &str) -> bool {
    row.split('\t').nth(2) == Some(PREDICTED)
}

/// Microseconds of one product with bias in f16 by `plan`, each on weights of its own.
fn time(cuda: &Cuda, plan: Plan, runs: Runs, rows: usize, n: usize, k: usize) -> Result<f64> {
    let (device, dtype) = (Device::Cuda(cuda.clone()), DType::F16);
    let random = |shape: &[usize], image: u64| {
        let mut values = vec![0.0; shape.iter().product()];
        normals(0, image, 0, &mut values);
        Tensor::from_f32(&device, dtype, shape, &values)
    };
    let copies = (WEIGHTS / (n * k * dtype.size())).clamp(1, REPEATS);
    let x = random(&[1, rows, k], 0)?;
    let weights: Vec<Tensor> = (0..copies).map(|i| random(&[n, k], 1 + i as u64)).collect::<Result<_>>()?;
    let bias = Tensor::zeros(&device, dtype, &[n])?;
    let mut y = Tensor::zeros(&device, dtype, &[1, rows, n])?;
    let mut workspace = Workspace::new(&device, dtype, plan.workspace(rows, n))?;
    let mut run = || {
        weights.iter().cycle().take(REPEATS).try_for_each(|weight| {
            let operands = Operands { bias: Some(Columns::Shared(&bias)), ..Operands::new(&x, weight) };
            linear_by(&device, plan, operands, &mut y, None, &mut workspace)
        })
    };
    run()?; // loads the kernel, which a recording must not do
    let graph = cuda.capture(run)?;
    let (start, end) = (cuda.event()?, cuda.event()?);
    let times = runs.times(|| {
        cuda.record(&start)?;
        graph.launch()?;
        cuda.record(&end)?;
        cuda.elapsed_ms(&start, &end)
    })?;
    Ok(summary(&times)[0] * 1e3 / REPEATS as f64)
}
