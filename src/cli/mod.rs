//! The command line: parses, resolves and dispatches, one file per verb. Data and JSON go to stdout, everything else to
//! stderr; errors are one line, and their kind decides the exit code.

mod bench;
mod completions;
mod convert;
mod data;
mod device;
mod doctor;
mod embedded;
mod inspect;
mod interrupt;
mod merge;
mod model;
mod options;
mod output;
mod parameters;
mod recipe;
mod report;
mod sample;
mod settings;
mod solver;
mod train;

use std::ffi::OsString;
use std::process::ExitCode;

use arclet::error::{Error, Result};
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

/// Samples scientific images from flow-matching models.
///
/// With no model given it draws gravitational lenses from a small trained model that is part of the program.
#[derive(Parser, Debug)]
#[command(name = "arclet", version, max_term_width = 110, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  arclet sample --n 16 --class vort,sphere,no --out lenses
  arclet doctor";

#[derive(Subcommand, Debug)]
enum Verb {
    // A setting from a file and the flag that overrides it are two occurrences of one argument.
    #[command(args_override_self = true, after_help = sample::EXAMPLES)]
    Sample(sample::SampleArgs),
    #[command(after_help = train::EXAMPLES)]
    Train(train::TrainArgs),
    #[command(after_help = inspect::EXAMPLES)]
    Inspect(inspect::InspectArgs),
    #[command(after_help = convert::EXAMPLES)]
    Convert(convert::ConvertArgs),
    #[command(after_help = merge::EXAMPLES)]
    Merge(merge::MergeArgs),
    #[command(after_help = data::EXAMPLES)]
    Data(data::DataArgs),
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::BenchArgs),
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    #[command(after_help = completions::EXAMPLES)]
    Completions(completions::CompletionsArgs),
}

/// Parses the arguments of the process, does the work and tells the exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return refuse_arguments(&error),
    };
    match cli.verb.run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::error(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

impl Verb {
    fn run(self, arguments: &[OsString]) -> Result<()> {
        match self {
            Self::Sample(args) => match &args.config {
                Some(path) => match settings::with_file(arguments, path)?.verb {
                    Self::Sample(args) => sample::run(&args),
                    _ => Err(Error::Runtime("settings changed the verb".into())),
                },
                None => sample::run(&args),
            },
            Self::Train(args) => train::run(&args),
            Self::Inspect(args) => inspect::run(&args),
            Self::Convert(args) => convert::run(&args),
            Self::Merge(args) => merge::run(&args),
            Self::Data(args) => data::run(args),
            Self::Bench(args) => bench::run(&args),
            Self::Doctor(args) => doctor::run(&args),
            Self::Completions(args) => completions::run(&args),
        }
    }
}

/// Help and version are no errors; the rest is one line.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        report::error(&report::first_paragraph(error));
        return ExitCode::from(2);
    }
    // A closed pipe behind `--help` is nobody's concern.
    let _ = error.print();
    ExitCode::from(error.exit_code() as u8)
}
