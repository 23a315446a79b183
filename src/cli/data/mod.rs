//! `arclet data`: what to do with sets of images, one file per subcommand.

mod args;
mod check;
mod convert;
mod stats;

use arclet::error::Result;
use clap::{Args, Subcommand};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet data check lenses/
  arclet data convert jets.h5 jets/ --resume";

/// Checks, describes and converts sets of images.
#[derive(Args, Debug)]
pub struct DataArgs {
    #[command(subcommand)]
    verb: DataVerb,
}

#[derive(Subcommand, Debug)]
enum DataVerb {
    #[command(after_help = check::EXAMPLES)]
    Check(check::CheckArgs),
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
        DataVerb::Stats(args) => stats::run(&args),
        DataVerb::Convert(args) => convert::run(&args),
    }
}
