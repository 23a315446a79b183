//! `arclet data`: what to do with sets of images, one file per subcommand.

mod args;
mod check;
mod convert;
mod simulate;
mod stats;

use arclet::error::Result;
use clap::{Args, Subcommand};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet data simulate --n 300 --out lenses
  arclet data check lenses/";

/// Simulates, checks, describes and converts sets of images.
#[derive(Args, Debug)]
pub struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Subcommand, Debug)]
enum DataVerb {
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
    #[command(after_help = simulate::EXAMPLES)]
    Simulate(simulate::SimulateArgs),
    #[command(after_help = stats::EXAMPLES)]
    Stats(stats::StatsArgs),
    #[command(after_help = convert::EXAMPLES)]
    Convert(convert::ConvertArgs),
}

/// Does what the subcommand says.
///
/// # Errors
/// Those of the subcommand.
pub fn run(args: DataArgs) -> Result<()> {
    match args.verb {
        DataVerb::Check(args) => check::run(&args),
        DataVerb::Simulate(args) => simulate::run(&args),
        DataVerb::Stats(args) => stats::run(&args),
        DataVerb::Convert(args) => convert::run(&args),
    }
}
