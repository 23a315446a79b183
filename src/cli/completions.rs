//! `arclet completions`: completion scripts for shells.

use arclet::error::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use super::{Cli, report};

/// Shown below the help.
pub const EXAMPLES: &str = "\
Examples:
  arclet completions bash > ~/.local/share/bash-completion/completions/arclet
  arclet completions fish > ~/.config/fish/completions/arclet.fish";

/// Prints a completion script for a shell.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
///
/// # Errors
/// Those of stdout.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "arclet", &mut script);
    report::print(String::from_utf8_lossy(&script).trim_end())
}
