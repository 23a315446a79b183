//! Command line of arclet.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
