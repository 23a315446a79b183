//! Flags from a TOML file: its keys are the names of flags, and flags on the command line go before them.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use arclet::error::{Error, Result};
use clap::{Command, CommandFactory, Parser};
use toml::Value;

use super::{Cli, report};

/// Largest settings file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Parses `arguments` (program, verb, flags) again, with the settings of the file at `path` before the flags.
///
/// # Errors
/// [`Error::Input`] that names the key, for a file that is no TOML, an unknown key or a value that its flag refuses.
pub fn with_file(arguments: &[OsString], path: &Path) -> Result<Cli> {
    let (head, flags) = arguments.split_at(arguments.len().min(2));
    let verb = head.last().map_or(OsStr::new(""), |v| v);
    let cli = Cli::command();
    let command = cli.get_subcommands().find(|c| verb == c.get_name());
    let command = command.ok_or_else(|| Error::usage("--config goes after the verb"))?;
    let mut all = head.to_vec();
    for (key, value) in read(path)? {
        if let Some(setting) = as_flag(command, &key, &value).map_err(|reason| Error::input(path, reason))? {
            // Alone first, so that a refusal names the key and the file.
            let alone = Cli::try_parse_from(head.iter().chain([&setting]));
            alone.map_err(|e| Error::input(path, format!("key {key:?}: {}", report::first_paragraph(&e))))?;
            all.push(setting);
        }
    }
    all.extend_from_slice(flags);
    Cli::try_parse_from(all).map_err(|e| Error::usage(report::first_paragraph(&e)))
}

fn read(path: &Path) -> Result<toml::Table> {
    let refuse = |reason: String| Error::input(path, reason);
    let size = std::fs::metadata(path).map_err(|e| refuse(e.to_string()))?.len();
    if size > MAX_BYTES {
        return Err(refuse(format!("{size} bytes of settings, at most {MAX_BYTES} expected")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| refuse(e.to_string()))?;
    text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        refuse(format!("TOML, line {line}: {}", e.message()))
    })
}

/// `--key=value`, `--key` for true, and nothing for false.
fn as_flag(command: &Command, key: &str, value: &Value) -> Result<Option<OsString>, String> {
    let known = |a: &&clap::Arg| !["config", "help", "version"].contains(&a.get_id().as_str()) && !names(a).is_empty();
    let Some(argument) = command.get_arguments().filter(known).find(|a| names(a).contains(&key)) else {
        let all: Vec<&str> = command.get_arguments().filter(known).flat_map(names).collect();
        return Err(format!("unknown key {key:?}, expected one of {}", all.join(", ")));
    };
    let takes_value = argument.get_action().takes_values();
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) => Ok(n.to_string()),
        Value::Float(x) => Ok(x.to_string()),
        other => Err(format!("key {key:?}: found a {}, expected a number or a string", other.type_str())),
    };
    match value {
        Value::Boolean(on) if !takes_value => Ok(on.then(|| format!("--{key}").into())),
        other if !takes_value => Err(format!("key {key:?}: found a {}, expected true or false", other.type_str())),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(one).collect::<Result<_, _>>()?;
            Ok(Some(format!("--{key}={}", items.join(",")).into()))
        }
        value => Ok(Some(format!("--{key}={}", one(value)?).into())),
    }
}

/// The long names of a flag.
fn names(argument: &clap::Arg) -> Vec<&str> {
    argument.get_long_and_visible_aliases().unwrap_or_default()
}
