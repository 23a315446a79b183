//! `arclet data simulate`: a training set of simulated lenses.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use arclet::data::simulate::{Class, Distances, Plan, Population, Simulator, write_set};
use arclet::device::cpu::Cpu;
use arclet::error::{Error, Result};
use arclet::io::write_atomic;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::super::convert::refuse_occupied;
use super::super::options::ReportArgs;
use super::super::{interrupt, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet data simulate --n 300 --out lenses
  arclet data simulate --n 2000 --classes no,vort --seed 7 --size 150 --out large";

/// Simulates gravitational lenses to train on, in the style of the public DeepLense sets.
///
/// Writes DIR/train/CLASS/1.npy and so on, and a tenth as many in DIR/val: 32-bit floats of SIZE x SIZE pixels, each image
/// from 0 to 1 by itself. DIR/params.csv has a row with every parameter for each image (0 where one does not apply to the
/// class), DIR/simulation.json the recipe. Classes are no (smooth halo), sphere (25 subhaloes on average) and vort (an axion
/// vortex). An image depends on the seed, its class, its part and its number alone: more images, other classes or threads
/// leave it as it is.
#[derive(Args, Debug)]
pub struct SimulateArgs {
    /// Images of each class to train on
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Seed of all random numbers
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Classes to simulate
    #[arg(long, value_enum, value_name = "A,B,..", value_delimiter = ',', default_value = "no,sphere,vort")]
    classes: Vec<ClassChoice>,
    /// Pixels of a side, averaged down from the detector's 150 of 0.05 arcsec
    #[arg(long, value_name = "PIXELS", default_value_t = 64, value_parser = clap::value_parser!(u16).range(8..=150))]
    size: u16,
    /// Distances behind the Einstein radii: as in the public sets, or as theory has them (larger rings)
    #[arg(long, value_enum, default_value = "public-sets")]
    distances: DistancesChoice,
    /// Threads of the CPU [default: as many as there are]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Write into a folder that is not empty: files of the same name are replaced, others stay
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClassChoice {
    /// Smooth halo
    No,
    /// Subhaloes
    Sphere,
    /// Axion vortex
    Vort,
}

impl From<ClassChoice> for Class {
    fn from(choice: ClassChoice) -> Self {
        match choice {
            ClassChoice::No => Self::No,
            ClassChoice::Sphere => Self::Sphere,
            ClassChoice::Vort => Self::Vort,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DistancesChoice {
    /// Luminosity distances
    PublicSets,
    /// Angular-diameter distances
    Angular,
}

impl From<DistancesChoice> for Distances {
    fn from(choice: DistancesChoice) -> Self {
        match choice {
            DistancesChoice::PublicSets => Self::PublicSets,
            DistancesChoice::Angular => Self::Angular,
        }
    }
}

/// Simulates.
///
/// # Errors
/// [`Error::Usage`] for a class that is named twice; [`Error::Output`] for a folder that is not empty or cannot be
/// written; [`Error::Interrupted`] with what was kept.
pub fn run(args: &SimulateArgs) -> Result<()> {
    let start = Instant::now();
    interrupt::listen()?;
    let classes: Vec<Class> = args.classes.iter().map(|&c| c.into()).collect();
    if let Some(twice) = classes.iter().enumerate().find_map(|(i, c)| classes[..i].contains(c).then_some(c)) {
        return Err(Error::usage(format!("--classes: {} is named twice", twice.name())));
    }
    let plan = Plan { classes, train: args.n.into(), val: args.n.div_ceil(10).into() };
    let population = Population::public_sets(args.distances.into());
    let simulator = Simulator::new(population, args.seed, args.size.into())?;
    let cpu = Cpu::new(args.threads.unwrap_or(0).into())?;
    refuse_occupied(&args.out, args.force)?;

    // Draws itself on a terminal only.
    let bar = if args.report.quiet { ProgressBar::hidden() } else { ProgressBar::new(plan.images()) };
    let style = ProgressStyle::with_template("{bar:32} {pos}/{len} images, {elapsed} of about {duration}");
    bar.set_style(style.map_err(|e| Error::Runtime(format!("progress bar: {e}")))?);
    bar.tick();
    let finished = || {
        bar.inc(1);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let images = cpu.install(|| write_set(&simulator, &plan, &args.out, &finished));
    bar.finish_and_clear();
    let images = images?;
    let recipe = recipe(args, &plan, images);
    write_atomic(args.out.join("simulation.json"), (report::to_json(&recipe)? + "\n").as_bytes())?;

    let (seconds, out) = (start.elapsed().as_secs_f64(), args.out.display());
    if args.report.json {
        report::print_json(&json!({
            "out": args.out, "images": images, "threads": cpu.threads(), "seconds": seconds,
            "images_per_s": images as f64 / seconds, "recipe": recipe,
        }))?;
    }
    if images < plan.images() {
        let planned = report::counted(plan.images() as usize, "image");
        return Err(Error::Interrupted(format!("{images} of {planned} kept in {out}")));
    }
    let (what, rate) = (report::counted(images as usize, "image"), images as f64 / seconds);
    report::note(args.report.quiet, format!("{what} in {seconds:.2} s ({rate:.0} a second): {out}, params.csv"));
    Ok(())
}

/// All that decides the images, and how many there are; no clock time, host or path.
fn recipe(args: &SimulateArgs, plan: &Plan, images: u64) -> Value {
    let classes: Vec<&str> = plan.classes.iter().map(|c| c.name()).collect();
    json!({
        "format": "arclet-simulation/1", "version": env!("CARGO_PKG_VERSION"), "seed": args.seed, "classes": classes,
        "train": plan.train, "val": plan.val, "size": args.size, "distances": Distances::from(args.distances).name(),
        "images": images, "complete": images == plan.images(),
    })
}
