//! `arclet sample`: draws images from a model.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use arclet::device::Device;
use arclet::error::{Error, Result};
use arclet::flow::run::{Job, Noise, auto_batch, draw};
use arclet::flow::sampler::{Sampler, SamplerOptions};
use arclet::io::{NonFinite, read_npy_f32, sha256_file};
use arclet::models::autoencoder_kl::latents::LatentSpace;
use arclet::models::config::Classes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::model::Source;
use super::options::{ComputeArgs, ReportArgs, Shard};
use super::output::{COLOR_MAP, SampleWriter, Target};
use super::recipe::{FORMAT, ModelRecipe, PreviewRecipe, Recipe};
use super::solver::SolverArgs;
use super::{device, interrupt, parameters, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet sample --n 9 --class vort --seed 1 --out lenses
  arclet sample --model checkpoint/ --n 1000 --shard 2/10 --guidance-scale 2 --out run/samples.npy";

/// Images when neither --n nor --noise says how many.
const DEFAULT_IMAGES: u32 = 9;

/// Draws images from a model.
///
/// Writes the images as 32-bit floats (n, channels, height, width) in the model's value range, a recipe (.json) that
/// tells how to draw them again, and a preview (.png). Image i depends on the model, the options, the seed and i alone:
/// not on --n, --batch, --shard or --threads.
#[derive(Args, Debug)]
pub struct SampleArgs {
    /// Weights file, model folder or built-in model; ./NAME for a path called like one [default: lens-dit-s]
    #[arg(long, value_name = "PATH|NAME")]
    model: Option<PathBuf>,
    /// Images to draw [default: 9, or as many as --noise has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    n: Option<u32>,
    /// Images at a time; changes speed and memory, not the images [default: chosen for the device]
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Option<u32>,
    #[command(flatten)]
    solver: SolverArgs,
    /// Classes by name or number; image i gets entry i modulo their number [default: all classes in turn]
    #[arg(long, value_name = "A,B,..")]
    class: Option<String>,
    /// Continuous parameter to ask a model for that was trained with some, once for each of them; in the units of its data
    #[arg(long = "param", value_name = "NAME=VALUE", value_delimiter = ',')]
    parameters: Vec<String>,
    /// Classifier-free guidance scale; 1 is off
    #[arg(long, visible_alias = "cfg-scale", value_name = "G", default_value_t = 1.0, allow_negative_numbers = true)]
    guidance_scale: f32,
    /// Seed of the noise [default: 0]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Starting noise from a .npy file of shape (n, channels, height, width); a seed is then only for solvers that draw more
    #[arg(long, value_name = "FILE.npy")]
    noise: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Folder, or file that ends in .npy, .safetensors or .h5
    #[arg(long, value_name = "PATH", default_value = "samples")]
    out: PathBuf,
    /// Draw part I of N of the images only, to be joined by `arclet merge`; a part may be empty
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Keep values outside the model's value range
    #[arg(long)]
    no_clamp: bool,
    /// Settings from a TOML file; its keys are the names of these flags, which go before it
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Draws the images.
///
/// # Errors
/// Every kind: see the README for the exit codes.
pub fn run(args: &SampleArgs) -> Result<()> {
    let start = Instant::now();
    interrupt::listen()?;
    let quiet = args.report.quiet;
    args.solver.check()?;
    if !args.guidance_scale.is_finite() {
        return Err(Error::usage(format!("--guidance-scale {}: a finite number expected", args.guidance_scale)));
    }
    let target = Target::new(&args.out, args.shard)?;

    let source = Source::open(args.model.as_deref())?;
    let weights = source.sampled_weights(quiet)?;
    let config = weights.config();
    let plan = args.solver.plan(config, &source.name())?;
    if let (Some(seed), Some(path), false) = (args.seed, &args.noise, plan.draws_noise) {
        let (solver, path) = (plan.solver, path.display());
        return Err(Error::usage(format!("--seed {seed}: --noise {path} is all the noise that {solver} takes")));
    }
    let seed = args.seed.unwrap_or(0);
    let parameters = parameters::resolve(&args.parameters, &config.parameters, &source.name())?;
    let classes = resolve_classes(args.class.as_deref(), config.classes.as_ref(), &source.name())?;
    let image = [config.in_channels, config.image_size, config.image_size];
    let noise = args.noise.as_deref().map(|path| read_noise(path, args.n, image)).transpose()?;
    let image_len: usize = image.iter().product();
    let decodes = config.autoencoder.is_some();
    let total = noise.as_ref().map_or(args.n.unwrap_or(DEFAULT_IMAGES).into(), |n| (n.len() / image_len) as u64);
    let range = args.shard.unwrap_or(Shard::WHOLE).range(total);
    let images = (range.end - range.start) as usize;
    let guided = args.guidance_scale != 1.0;
    if guided && config.classes.is_none() && parameters.is_none() {
        return Err(Error::usage(format!(
            "--guidance-scale {}: {} is unconditional, a class-conditional model, or one with --param, expected (1 is off)",
            args.guidance_scale,
            source.name()
        )));
    }

    let device = device::open(&args.compute, quiet)?;
    let dtype = device::dtype(args.compute.dtype, &device, quiet);
    let latents = LatentSpace::of(config, &source.home(), &device, dtype)?;
    let written = latents.as_ref().map_or(image, LatentSpace::image);
    let mut writer = SampleWriter::create(target.clone(), images, written)?;
    let rows = noise.as_ref().map(|n| &n[range.start as usize * image_len..][..images * image_len]);
    let start_noise = rows.map_or(Noise::Seed(seed), |rows| Noise::Rows(rows, seed));
    let job = Job { noise: start_noise, first: range.start, images, classes: &classes };
    let clamp = !args.no_clamp && (decodes || !config.is_latent());
    let (mut load_seconds, mut drawn) = (0.0, 0);
    if images > 0 {
        let model = weights.load(&device, dtype)?;
        load_seconds = start.elapsed().as_secs_f64();
        let batch = args.batch.map_or_else(|| auto_batch(&device, config, images, guided), |b| b as usize);
        let options = SamplerOptions { guidance: args.guidance_scale, clamp: clamp && !decodes };
        let mut sampler = match &parameters {
            None => Sampler::new(&model, &plan.schedule, batch, options)?,
            Some(values) => Sampler::with_parameters(&model, &plan.schedule, batch, options, values)?,
        };
        drawn = draw_all(&mut sampler, &job, quiet, &mut |drawn| match &latents {
            None => writer.push(drawn),
            Some(latents) => {
                let mut images = latents.decode(drawn)?;
                if clamp {
                    let (low, high) = config.value_range;
                    images.iter_mut().for_each(|v| *v = v.clamp(low, high));
                }
                writer.push(&images)
            }
        })?;
        if drawn == 0 {
            return Err(Error::Interrupted("no image was finished, and nothing was written".into()));
        }
    }

    let drawn_classes = (range.start..range.start + drawn as u64).filter_map(|i| job.class(i));
    let names = |c: &Classes| drawn_classes.map(|i| c.names[i].clone()).collect();
    let recipe = Recipe {
        format: FORMAT.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        model: ModelRecipe {
            name: source.name(),
            architecture: config.architecture().name().into(),
            sha256: source.sha256(),
            autoencoder_sha256: latents.as_ref().map(|latents| latents.sha256().to_owned()),
        },
        total,
        shard: args.shard.map(|s| s.to_string()),
        first_image: range.start,
        n: 0,
        complete: drawn == images,
        shape: [0; 4],
        seed: (noise.is_none() || plan.draws_noise).then_some(seed),
        noise_sha256: args.noise.as_deref().map(sha256_file).transpose()?,
        classes: config.classes.as_ref().map(names),
        parameters: parameters.map(|values| parameters::by_name(&config.parameters, &values)),
        solver: plan.solver.into(),
        steps: args.solver.steps as usize,
        evaluations: plan.schedule.evaluations(),
        time: plan.time.into(),
        time_shift: plan.shift,
        diffusion: plan.diffusion,
        guidance_scale: args.guidance_scale,
        clamp,
        value_range: [config.value_range.0, config.value_range.1],
        dtype: dtype.name().into(),
        device: if matches!(device, Device::Cpu(_)) { "cpu" } else { "cuda" }.into(),
        hardware: device.description(),
        preview: PreviewRecipe { color_map: COLOR_MAP.into(), range: [config.value_range.0, config.value_range.1] },
        data_sha256: None,
    };
    let recipe = writer.finish(recipe)?;
    let seconds = start.elapsed().as_secs_f64();
    if args.report.json {
        report::print_json(&json!({
            "files": target, "seconds": seconds, "load_seconds": load_seconds, "recipe": recipe,
        }))?;
    }
    if drawn < images {
        let kept = target.data.display();
        return Err(Error::Interrupted(format!("{drawn} of {} kept in {kept}", report::counted(images, "image"))));
    }
    let (what, files) = (report::counted(drawn, "image"), target.data.display());
    report::note(quiet, format!("{what} of {} in {seconds:.2} s: {files}, .json, .png", source.name()));
    Ok(())
}

/// Draws with a progress bar until all is done or the user wants an end; returns the number of finished images.
fn draw_all(
    sampler: &mut Sampler,
    job: &Job,
    quiet: bool,
    keep: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<usize> {
    // Draws itself on a terminal only.
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(job.images as u64) };
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} images, {elapsed} of about {duration}");
    bar.set_style(style.map_err(|e| Error::Runtime(format!("progress bar: {e}")))?);
    bar.tick();
    if interrupt::requested() {
        return Ok(0);
    }
    let image_len = sampler.image_len();
    let drawn = Cell::new(0);
    draw(sampler, job, &mut |images| {
        keep(images)?;
        drawn.set(drawn.get() + images.len() / image_len);
        bar.set_position(drawn.get() as u64);
        Ok(if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    bar.finish_and_clear();
    Ok(drawn.get())
}

/// Numbers of the classes that images get in turn; none for an unconditional model.
fn resolve_classes(wanted: Option<&str>, known: Option<&Classes>, model: &str) -> Result<Vec<usize>> {
    match (wanted, known) {
        (None, None) => Ok(Vec::new()),
        (None, Some(known)) => Ok((0..known.names.len()).collect()),
        (Some(wanted), None) => {
            Err(Error::usage(format!("--class {wanted}: {model} is unconditional, a class-conditional model expected")))
        }
        (Some(wanted), Some(known)) => wanted
            .split(',')
            .map(|name| {
                known.find(name.trim()).ok_or_else(|| {
                    Error::usage(format!("--class: found {:?}, {model} has {}", name.trim(), describe(known)))
                })
            })
            .collect(),
    }
}

/// `vort (0), sphere (1)` and the aliases.
fn describe(classes: &Classes) -> String {
    let names: Vec<String> = classes.names.iter().enumerate().map(|(i, name)| format!("{name} ({i})")).collect();
    let aliases: Vec<String> = classes.aliases.iter().map(|(alias, name)| format!("{alias} for {name}")).collect();
    let also = if aliases.is_empty() { String::new() } else { format!("; also {}", aliases.join(", ")) };
    format!("{}{also}", names.join(", "))
}

/// Noise (n, C, H, W) for images of shape `image`, `n` of them if that was asked for.
///
/// # Errors
/// [`Error::Input`] for another shape or a file that is no float array; [`Error::Usage`] for another number of images.
pub fn read_noise(path: &Path, n: Option<u32>, image: [usize; 3]) -> Result<Vec<f32>> {
    let (shape, values) = read_npy_f32(path, NonFinite::Refuse)?;
    let [c, h, w] = image;
    if shape.len() != 4 || shape[1..] != image || shape[0] == 0 {
        return Err(Error::input(path, format!("noise: found shape {shape:?}, expected [n, {c}, {h}, {w}]")));
    }
    match n {
        Some(n) if n as usize != shape[0] => {
            Err(Error::usage(format!("--n {n}: {} holds noise for {} images", path.display(), shape[0])))
        }
        _ => Ok(values),
    }
}
