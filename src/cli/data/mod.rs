//! `arclet data`: sets of images to train on.

mod simulate;

use arclet::error::Result;
use clap::{Args, Subcommand};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet data simulate --n 300 --out lenses
  arclet data simulate --n 1000 --classes vort --seed 2 --out vortices";

/// Makes sets of images to train on.
#[derive(Args, Debug)]
pub struct DataArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(simulate::SimulateArgs),
}

/// Does what was asked for.
///
/// # Errors
/// Those of the subcommand.
pub fn run(args: &DataArgs) -> Result<()> {
    match &args.what {
        What::Simulate(args) => simulate::run(args),
    }
}
