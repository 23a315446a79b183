//! `arclet bench`: how long a model takes on this machine, by stated definitions, and what memory it needs.

mod against;
mod args;
mod cold;
mod follow;
mod gate;
mod ladder;
mod measure;
mod phases;
mod products;
mod row;
mod simulator;
mod system;
mod tune;

use std::time::Instant;

use arclet::device::Device;
use arclet::device::cpu::Cpu;
use arclet::device::cuda::Cuda;
use arclet::device::level::Level;
use arclet::error::{Error, Result};
use arclet::flow::schedule::{Schedule, Solver, TimeConvention};
use arclet::models::Model;
use arclet::models::config::{NetworkConfig, Prediction};
use arclet::ops::product::ceilings;
use arclet::tensor::DType;

use super::model::{Source, Weights};
use super::options::{ComputeArgs, DTypeChoice, check_shift, shift_or};
use super::sample::read_noise;
use super::{device, report};
pub use args::{BenchArgs, Measure};
use cold::FirstImage;
use gate::{Gate, Reference};
use measure::{Plan, Subject, milliseconds};
use products::{Baseline, flops};
use row::{Row, table};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet bench --model vit-b16 --device cpu
  arclet bench --model nanodit --device cuda --dtype f16,bf16 --steps 100 --guidance-scale 3 --json";

/// The model that published figures are about, which took one evaluation less than they say steps.
const PUBLISHED: &str = "vit-b16";
/// Runs that are thrown away where a run is long: on the CPU and in the sweep.
const FEW_WARM_UPS: usize = 2;
/// Fewest measurements, however long one takes.
const LEAST: usize = 5;

/// Measures and prints.
///
/// # Errors
/// [`Error::Device`] for a GPU that cannot be used; [`Error::Runtime`] for wrong results; those of models.
pub fn run(args: &BenchArgs) -> Result<()> {
    let quiet = args.report.quiet;
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(Error::usage(format!("--seconds {}: a number from 0 expected", args.seconds)));
    }
    if !args.guidance_scale.is_finite() {
        return Err(Error::usage(format!("--guidance-scale {}: a finite number expected", args.guidance_scale)));
    }
    if args.measure == [Measure::Simulator] {
        return print(args, &simulator::rows(args)?);
    }
    check_shift(args.shift, args.time.into())?;
    if args.against.is_some() {
        return against::run(args);
    }
    let source = Source::open(Some(&args.model))?;
    let weights = source.sampled_weights(quiet)?;
    let config = weights.config();
    if config.prediction != Prediction::Velocity {
        let found = config.prediction.name();
        let reason = format!("found a diffusion model that predicts {found}; bench measures velocity models");
        return Err(Error::input(&args.model, reason));
    }
    if matches!(config.network, NetworkConfig::Unet2d(_)) {
        let found = config.architecture().name();
        return Err(Error::input(&args.model, format!("found {found}, whose operations bench does not count yet")));
    }
    let image = [config.in_channels, config.image_size, config.image_size];
    let compute = ComputeArgs { device: args.device, dtype: DTypeChoice::Auto, threads: args.threads };
    if args.launches {
        return launches(args, &weights);
    }
    if let Some(path) = &args.tune {
        return match device::open(&compute, quiet)? {
            Device::Cuda(cuda) => tune::tune(config, &cuda, tuning_runs(args), path),
            Device::Cpu(_) => Err(Error::usage("--tune: needs a GPU, whose tiles it compares")),
        };
    }
    let noise = args.noise.as_deref().map(|path| read_noise(path, Some(args.batch), image)).transpose()?;

    let opening = Instant::now();
    let device = device::open(&compute, quiet)?;
    let open_ms = milliseconds(opening);
    let on_cpu = matches!(device, Device::Cpu(_));
    let measures = match (&args.measure[..], on_cpu) {
        ([], true) => &[Measure::Calls][..],
        ([], false) => &Measure::OF_MODELS,
        (asked, true) => {
            if let Some(measure) = asked.iter().find(|m| m.needs_gpu()) {
                let name = measure.name();
                return Err(Error::usage(format!("--measure {name}: needs a GPU; calls measures on the CPU")));
            }
            asked
        }
        (asked, false) => asked,
    };
    let steps = args.steps.unwrap_or(if on_cpu { 1 } else { 50 }) as usize;
    let (time, shift) = (args.time.into(), shift_or(args.shift, args.time.into(), &config.sampling));
    let mut session = Session {
        args,
        source: &source,
        weights: &weights,
        device: &device,
        time,
        shift,
        schedule: schedule(steps, time, shift)?,
        steps,
        noise: noise.as_deref(),
        open_ms,
        rows: Vec::new(),
    };
    for &dtype in &args.dtype {
        session.measure(dtype.or(DType::best(&device)), measures)?;
    }
    if measures.contains(&Measure::Ladder) && !args.first_image && !args.follow {
        session.ladder()?;
    }
    if args.first_image || args.follow {
        return Ok(());
    }
    if measures.contains(&Measure::Simulator) {
        session.rows.extend(simulator::rows(args)?);
    }
    print(args, &session.rows)
}

fn print(args: &BenchArgs, rows: &[Row]) -> Result<()> {
    if args.report.json { report::print_json(&rows) } else { report::print(table(rows)) }
}

/// Prints the phases of one evaluation, or writes the plans of its products, of which nothing runs.
fn launches(args: &BenchArgs, weights: &Weights) -> Result<()> {
    let cuda = Cuda::dry(0)?;
    if let Some(path) = &args.tune {
        return tune::tune(weights.config(), &cuda, tuning_runs(args), path);
    }
    let device = Device::Cuda(cuda);
    let model = weights.load(&device, args.dtype[0].or(DType::best(&device)))?;
    let (.., phases) = phases::trace(&model, args.batch as usize, args.guidance_scale)?;
    report::print_json(&phases)
}

/// How often --tune runs each plan.
fn tuning_runs(args: &BenchArgs) -> Plan {
    Plan::exactly(FEW_WARM_UPS, LEAST.min(args.iterations as usize))
}

fn schedule(steps: usize, time: TimeConvention, shift: f64) -> Result<Schedule> {
    Schedule::shifted(Solver::Euler, steps, time, shift)
        .ok_or_else(|| Error::usage(format!("--steps {steps}: at least 2 expected with --time {}", time.name())))
}

/// One model on one device, and the rows so far.
struct Session<'a> {
    args: &'a BenchArgs,
    source: &'a Source,
    weights: &'a Weights<'a>,
    device: &'a Device,
    time: TimeConvention,
    shift: f64,
    schedule: Schedule,
    steps: usize,
    noise: Option<&'a [f32]>,
    open_ms: f64,
    rows: Vec<Row>,
}

/// A model on the device, what loading it took, and on a GPU what it has to come close to.
struct Loaded {
    model: Model,
    load_ms: f64,
    weights_mb: Option<f64>,
    reference: Option<Reference>,
}

impl Loaded {
    /// Compares the model, which draws `batch` images, with the CPU; the CPU itself is the reference.
    fn check(&self, batch: usize) -> Result<Option<Gate>> {
        self.reference.as_ref().map(|r| r.check(&self.model, batch)).transpose()
    }
}

impl Session<'_> {
    /// The rows of one type.
    fn measure(&mut self, dtype: DType, measures: &[Measure]) -> Result<()> {
        let (args, guidance) = (self.args, self.args.guidance_scale);
        let mut loaded = self.load(dtype)?;
        if args.first_image {
            Subject::new(&loaded.model, &self.schedule, args.batch as usize, guidance, None, true)?.call()?;
            let peak_rss_mb = system::peak_memory_mb();
            return FirstImage { open_ms: self.open_ms, load_ms: loaded.load_ms, peak_rss_mb }.announce();
        }
        loaded.reference = self.reference(dtype, &self.schedule, guidance)?;
        let batch = args.batch as usize;
        let gate = loaded.check(batch)?;
        if args.follow {
            let mut subject = Subject::new(&loaded.model, &self.schedule, batch, guidance, self.noise, true)?;
            let about = Row { gate, ..self.row(Measure::Latency, &loaded, batch, guidance) };
            return follow::follow(&about, &mut subject);
        }
        for measure in measures {
            let first = self.rows.len();
            match measure {
                Measure::Latency => self.latency(&loaded)?,
                Measure::Calls if matches!(self.device, Device::Cpu(_)) => self.calls_beside_products(&loaded)?,
                Measure::Calls => self.calls(&loaded)?,
                Measure::Throughput => self.throughput(&loaded)?,
                Measure::Cold => self.cold(&loaded)?,
                Measure::Phases => self.phases(&loaded)?,
                // Once for all types.
                Measure::Ladder | Measure::Simulator => {}
            }
            // Rows of another batch or schedule bring their own.
            self.rows[first..].iter_mut().for_each(|row| row.gate = row.gate.or(gate));
        }
        Ok(())
    }

    fn load(&self, dtype: DType) -> Result<Loaded> {
        let start = Instant::now();
        let model = self.weights.load(self.device, dtype)?;
        self.device.synchronize()?;
        Ok(Loaded { load_ms: milliseconds(start), weights_mb: self.device_mb(), reference: None, model })
    }

    /// What a GPU has to come close to.
    fn reference(&self, dtype: DType, schedule: &Schedule, guidance: f32) -> Result<Option<Reference>> {
        if let Device::Cpu(_) = self.device {
            return Ok(None);
        }
        // Below the levels with bf16 of their own, where bf16 too is f32 rounded after every operation.
        let level = Level::detect().min(Level::Avx512);
        let cpu = Device::Cpu(Cpu::at(self.args.threads.unwrap_or(0).into(), level)?);
        Reference::new(&cpu, self.weights, dtype, schedule, guidance).map(Some)
    }

    /// The loop alone; for the model of the published figures also at the evaluations that those have.
    fn latency(&mut self, loaded: &Loaded) -> Result<()> {
        let (args, batch, guidance) = (self.args, self.args.batch as usize, self.args.guidance_scale);
        let plan = Plan::exactly(args.warmup as usize, args.iterations as usize);
        let time = |session: &Self, gate: Option<Gate>| {
            let before = system::gpu_state(session.device);
            let mut subject = Subject::new(&loaded.model, &session.schedule, batch, guidance, session.noise, true)?;
            let times = plan.times(|| subject.device_time())?;
            subject.check_images()?;
            let row = Row { warm_ups: plan.warm_ups, gate, ..session.row(Measure::Latency, loaded, batch, guidance) };
            Ok::<Row, Error>(session.finish(row, &times, before))
        };
        let row = time(self, None)?;
        self.rows.push(row);
        if self.source.name() == PUBLISHED && self.time == TimeConvention::Train && self.steps > 1 {
            let notebook = TimeConvention::Notebook;
            let equal = 1.0;
            let published = schedule(self.steps, notebook, equal)?;
            let train = (std::mem::replace(&mut self.schedule, published), self.time, self.shift);
            (self.time, self.shift) = (notebook, equal);
            let reference = self.reference(loaded.model.dtype, &self.schedule, guidance)?;
            let gate = reference.map(|r| r.check(&loaded.model, batch)).transpose()?;
            let row = time(self, gate)?;
            self.rows.push(row);
            (self.schedule, self.time, self.shift) = train;
        }
        Ok(())
    }

    /// Calls on a GPU.
    fn calls(&mut self, loaded: &Loaded) -> Result<()> {
        let (batch, guidance) = (self.args.batch as usize, self.args.guidance_scale);
        let plan = Plan::exactly(self.args.warmup as usize, self.args.calls.unwrap_or(1024) as usize);
        let before = system::gpu_state(self.device);
        let mut subject = Subject::new(&loaded.model, &self.schedule, batch, guidance, self.noise, true)?;
        let times = plan.times(|| subject.call())?;
        let row = Row { warm_ups: plan.warm_ups, ..self.row(Measure::Calls, loaded, batch, guidance) };
        self.rows.push(self.finish(row, &times, before));
        Ok(())
    }

    /// Calls on the CPU, and the matrix products alone.
    fn calls_beside_products(&mut self, loaded: &Loaded) -> Result<()> {
        let (args, batch, guidance) = (self.args, self.args.batch as usize, self.args.guidance_scale);
        let mut subject = Subject::new(&loaded.model, &self.schedule, batch, guidance, self.noise, true)?;
        for _ in 0..FEW_WARM_UPS {
            subject.call()?;
        }
        let peak_rss_mb = system::peak_memory_mb();
        // In f32, in every type: a yardstick that does not move.
        let passes = if guidance == 1.0 { 1 } else { 2 };
        let mut baseline = Baseline::new(self.weights.config(), passes * batch);
        let mut alone = || {
            let start = Instant::now();
            self.device.run(|| (0..self.schedule.evaluations()).for_each(|_| baseline.run()));
            milliseconds(start)
        };
        alone();
        let mut products = Vec::new();
        let plan = Plan {
            warm_ups: 0,
            least: args.calls.map_or(LEAST, |n| n as usize),
            most: args.calls.map_or(usize::MAX, |n| n as usize),
            seconds: args.seconds,
        };
        let whole = plan.times(|| {
            // In turn, so that both see the same clock speed and the same neighbours.
            let time = subject.call()?;
            products.push(alone());
            Ok(time)
        })?;
        let row = Row { warm_ups: FEW_WARM_UPS, peak_rss_mb, ..self.row(Measure::Calls, loaded, batch, guidance) };
        let mut row = self.finish(row, &whole, None);
        let bare = Row {
            name: format!("{} matrix products alone", row.name),
            measure: "products",
            dtype: DType::F32.name().into(),
            warm_ups: 1,
            load_ms: None,
            open_ms: None,
            peak_rss_mb: None,
            binary_mb: None,
            ..row.clone()
        };
        let bare = self.finish(bare, &products, None);
        row.ratio_to_products = Some(row.p50_ms / bare.p50_ms);
        row.ceilings = self.ceilings(loaded.model.dtype, &row)?;
        self.rows.extend([row, bare]);
        Ok(())
    }

    /// What the CPU could do at best, beside what `row` reaches.
    fn ceilings(&self, dtype: DType, row: &Row) -> Result<Option<row::Ceilings>> {
        let Device::Cpu(cpu) = self.device else { return Ok(None) };
        let Some(element) = dtype.packing(cpu) else { return Ok(None) };
        let best = ceilings::measure(cpu, element)?;
        let weights = products::weights(self.weights.config()).map(|[n, k]| element.bytes(n, k)).sum::<usize>() as f64;
        Ok(Some(row::Ceilings {
            gflops: best.flops / 1e9,
            gb_per_s: best.bytes / 1e9,
            weights_mb: weights / 1e6,
            of_gflops: row.gflops * 1e9 / best.flops,
            of_gb_per_s: weights / (row.ms_per_evaluation * 1e-3) / best.bytes,
        }))
    }

    /// Rows of growing batch, as long as there is memory, and of guidance.
    fn throughput(&mut self, loaded: &Loaded) -> Result<()> {
        let guidance = self.args.guidance_scale;
        let mut cases: Vec<(usize, f32)> = self.args.batches.iter().map(|&b| (b as usize, guidance)).collect();
        if self.weights.config().classes.is_some() && guidance == 1.0 {
            // Any scale costs the same.
            cases.insert(0, (1, 3.0));
        }
        for (batch, guidance) in cases {
            let row = match guidance == self.args.guidance_scale {
                true => loaded.check(batch).and_then(|gate| self.throughput_of(loaded, batch, guidance, gate)),
                false => self.guided_throughput(loaded, batch, guidance),
            };
            match row {
                Err(e @ Error::OutOfMemory { .. }) => {
                    report::note(self.args.report.quiet, format!("throughput ends before batch {batch}: {e}"));
                    break;
                }
                row => self.rows.push(row?),
            }
        }
        Ok(())
    }

    fn guided_throughput(&self, loaded: &Loaded, batch: usize, guidance: f32) -> Result<Row> {
        let reference = self.reference(loaded.model.dtype, &self.schedule, guidance)?;
        let gate = reference.map(|r| r.check(&loaded.model, batch)).transpose()?;
        self.throughput_of(loaded, batch, guidance, gate)
    }

    fn throughput_of(&self, loaded: &Loaded, batch: usize, guidance: f32, gate: Option<Gate>) -> Result<Row> {
        let before = system::gpu_state(self.device);
        let mut subject = Subject::new(&loaded.model, &self.schedule, batch, guidance, None, true)?;
        let most = self.args.iterations as usize;
        let plan = Plan { warm_ups: FEW_WARM_UPS, least: LEAST.min(most), most, seconds: self.args.seconds };
        let times = plan.times(|| subject.device_time())?;
        subject.check_images()?;
        let row = Row { warm_ups: plan.warm_ups, gate, ..self.row(Measure::Throughput, loaded, batch, guidance) };
        Ok(self.finish(row, &times, before))
    }

    /// The whole loop, and one evaluation of it phase by phase.
    fn phases(&mut self, loaded: &Loaded) -> Result<()> {
        let (args, batch, guidance) = (self.args, self.args.batch as usize, self.args.guidance_scale);
        let before = system::gpu_state(self.device);
        let mut subject = Subject::new(&loaded.model, &self.schedule, batch, guidance, self.noise, true)?;
        let plan = Plan::exactly(FEW_WARM_UPS, LEAST);
        let times = plan.times(|| subject.device_time())?;
        let phases = phases::measure(&loaded.model, batch, guidance, phases::REPEATS.min(args.iterations as usize))?;
        let row = self.row(Measure::Phases, loaded, batch, guidance);
        let row = Row { warm_ups: plan.warm_ups, phases: Some(phases), ..row };
        self.rows.push(self.finish(row, &times, before));
        Ok(())
    }

    fn cold(&mut self, loaded: &Loaded) -> Result<()> {
        let (args, batch, guidance) = (self.args, self.args.batch as usize, self.args.guidance_scale);
        let (device, dtype) = (self.device.name(), loaded.model.dtype);
        let model = args.model.to_str().ok_or_else(|| Error::input(&args.model, "cold starts need a path in UTF-8"))?;
        let mut arguments: Vec<String> = ["bench", "--first-image", "--quiet"].map(String::from).to_vec();
        arguments.extend([
            format!("--model={model}"),
            format!("--device={device}"),
            format!("--dtype={dtype}"),
            format!("--steps={}", self.steps),
            format!("--time={}", self.time.name()),
            format!("--shift={}", self.shift),
            format!("--batch={batch}"),
            format!("--guidance-scale={guidance}"),
        ]);
        arguments.extend(args.threads.map(|t| format!("--threads={t}")));
        let before = system::gpu_state(self.device);
        let start = cold::measure(&arguments, args.starts as usize)?;
        let row = Row {
            open_ms: Some(start.parts.open_ms),
            load_ms: Some(start.parts.load_ms),
            peak_rss_mb: start.parts.peak_rss_mb,
            // The child's, which this process does not see.
            device_mb: None,
            ..self.row(Measure::Cold, loaded, batch, guidance)
        };
        self.rows.push(self.finish(row, &start.times, before));
        Ok(())
    }

    /// A row without times.
    fn row(&self, measure: Measure, loaded: &Loaded, batch: usize, guidance: f32) -> Row {
        Row {
            name: self.source.name(),
            measure: measure.name(),
            device: self.device.description(),
            dtype: loaded.model.dtype.name().into(),
            threads: match self.device {
                Device::Cpu(cpu) => Some(cpu.threads()),
                Device::Cuda(_) => None,
            },
            batch,
            guidance,
            steps: self.steps,
            time: self.time.name(),
            shift: self.shift,
            evaluations: self.schedule.evaluations(),
            load_ms: Some(loaded.load_ms),
            open_ms: Some(self.open_ms),
            weights_mb: loaded.weights_mb,
            device_mb: self.device_mb(),
            binary_mb: system::binary_mb(),
            ..Row::default()
        }
    }

    /// `row` with its times and the state of the GPU `before` them and now.
    fn finish(&self, row: Row, times: &[f64], before: Option<serde_json::Value>) -> Row {
        let passes = if row.guidance == 1.0 { 1 } else { 2 };
        let operations = flops(self.weights.config()) * (passes * row.batch * self.schedule.evaluations()) as f64;
        let gpu_state = before.zip(system::gpu_state(self.device)).map(|(before, after)| [before, after]);
        Row { gpu_state, ..row }.with_times(times, operations)
    }

    /// Device memory that is allocated now, in 10^6 bytes.
    fn device_mb(&self) -> Option<f64> {
        match self.device {
            Device::Cuda(cuda) => Some(cuda.allocated().0 as f64 / 1e6),
            Device::Cpu(_) => None,
        }
    }
}
