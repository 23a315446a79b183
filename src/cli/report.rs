//! What goes to stdout and stderr.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use arclet::error::{Error, Result};
use serde::Serialize;

/// One line about something that the user may want to know, on stderr.
pub fn note(quiet: bool, text: impl Display) {
    if !quiet {
        write_stderr("arclet: ", &text.to_string());
    }
}

/// One line about what stopped the program, on stderr.
pub fn error(text: &str) {
    write_stderr("arclet: error: ", text);
}

fn write_stderr(prefix: &str, text: &str) {
    let line: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    // Nowhere is left to complain to when stderr is closed.
    let _ = writeln!(std::io::stderr(), "{prefix}{}", line.join(" "));
}

/// `text` and a newline on stdout. A reader that has gone away is no error.
///
/// # Errors
/// [`Error::Output`] for any other failure, a full disk for instance.
pub fn print(text: impl Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Error::output("<stdout>", e)),
        _ => Ok(()),
    }
}

/// `value` as indented JSON on stdout.
///
/// # Errors
/// Those of [`print`].
pub fn print_json(value: &impl Serialize) -> Result<()> {
    print(to_json(value)?)
}

/// `value` as indented JSON.
///
/// # Errors
/// [`Error::Runtime`] for a value that JSON cannot hold.
pub fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::Runtime(format!("JSON: {e}")))
}

/// The message of a command-line error without its usage and hints below.
pub fn first_paragraph(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more"));
    let joined = lines.filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    joined.strip_prefix("error: ").map_or(joined.clone(), str::to_owned)
}

/// The first of `names`, and how many more there are.
pub fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let first = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// `count` things: `1 image`, `2 images`.
pub fn counted(count: usize, thing: &str) -> String {
    if count == 1 { format!("1 {thing}") } else { format!("{count} {thing}s") }
}
