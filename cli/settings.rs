//! Where a flag's value comes from: the command line, else `RAMKEEP_*`, else the configuration
//! file, else its default.
//!
//! Every long flag of every command takes part, under its own name: `--key-file` is `key-file` in
//! the file and `RAMKEEP_KEY_FILE` in the environment. In the file, what stands at the top is for
//! every command that has such a flag; a table named like a command is for that command alone and
//! wins. A name that no command knows is refused, so that a slip of the pen is not passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use crate::args::Cli;
use crate::failure::Failure;

const PREFIX: &str = "RAMKEEP_";
const CONFIG_FLAG: &str = "--config";
const CONFIG_VARIABLE: &str = "RAMKEEP_CONFIG";

/// Parses the command line over the environment, the configuration file and the defaults.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Cli, Failure> {
    let file = match config_path(&arguments) {
        Some(path) => read(&path)?,
        None => Table::new(),
    };
    let command = layered(&file).map_err(Failure::usage)?;
    let parser_failure = |error| Failure::Parser(Box::new(error));
    let matches = command
        .try_get_matches_from(arguments)
        .map_err(parser_failure)?;
    Cli::from_arg_matches(&matches).map_err(parser_failure)
}

/// The environment variable of a long flag.
fn variable(long: &str) -> String {
    format!("{PREFIX}{}", long.to_uppercase().replace('-', "_"))
}

/// Found before the real parse, because it decides what the real parse falls back to.
fn config_path(arguments: &[OsString]) -> Option<PathBuf> {
    let mut rest = arguments
        .iter()
        .skip(1)
        .take_while(|argument| *argument != "--");
    while let Some(argument) = rest.next() {
        if argument == CONFIG_FLAG {
            return rest.next().map(PathBuf::from);
        }
        let inline = argument
            .to_str()
            .and_then(|text| text.strip_prefix("--config="));
        if let Some(path) = inline {
            return Some(path.into());
        }
    }
    std::env::var_os(CONFIG_VARIABLE)
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

fn read(path: &std::path::Path) -> Result<Table, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(format_args!("cannot read {}: {error}", path.display())))?;
    text.parse().map_err(|error: toml::de::Error| {
        Failure::new(format_args!("{} is not TOML: {error}", path.display()))
    })
}

/// The command with variables and the file's values behind its flags.
fn layered(table: &Table) -> Result<clap::Command, String> {
    let mut file = File::default();
    file.flatten(table, "");
    let command = file.apply(Cli::command(), "");
    match (file.wrong, file.unused.first()) {
        (Some(name), _) => Err(format!(
            "the configuration file's `{name}` must be text, a number, true or false"
        )),
        (None, Some(name)) => Err(format!(
            "the configuration file sets `{name}`, which is no flag of that command, or of any; \
             see `ramkeep help`"
        )),
        (None, None) => Ok(command),
    }
}

/// The file's values by dotted name: `port`, `up.port`, `table.create.deadline`.
#[derive(Default)]
struct File {
    values: BTreeMap<String, Value>,
    /// Names that no flag has asked for.
    unused: BTreeSet<String>,
    /// A name with a value that no flag can have.
    wrong: Option<String>,
}

impl File {
    fn flatten(&mut self, table: &Table, prefix: &str) {
        for (name, value) in table {
            let dotted = format!("{prefix}{name}");
            match value {
                Value::Table(inner) => self.flatten(inner, &format!("{dotted}.")),
                _ => {
                    self.unused.insert(dotted.clone());
                    self.values.insert(dotted, value.clone());
                }
            }
        }
    }

    /// Sets the flags of `command`, whose own values begin with `prefix`, and of those below it.
    fn apply(&mut self, command: clap::Command, prefix: &str) -> clap::Command {
        let mut command = command.mut_args(|arg| match arg.get_long().map(str::to_owned) {
            Some(long) => self.set(with_variable(arg, &long), &long, prefix),
            None => arg,
        });
        let below: Vec<String> = command
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        for name in below {
            let prefix = format!("{prefix}{name}.");
            command = command.mut_subcommand(&name, |sub| self.apply(sub, &prefix));
        }
        command
    }

    fn set(&mut self, arg: Arg, long: &str, prefix: &str) -> Arg {
        let own = format!("{prefix}{long}");
        self.unused.remove(&own);
        let mut found = self.values.get(&own).map(|value| (own, value));
        // A flag with a variable of its own has a meaning of its own: the file's top is not for it.
        if arg.get_env() == Some(variable(long).as_ref()) {
            self.unused.remove(long);
            found = found.or_else(|| self.values.get(long).map(|value| (long.to_owned(), value)));
        }
        let Some((name, value)) = found else {
            return arg;
        };
        match texts(value) {
            Some(texts) => arg.required(false).default_values(texts),
            None => {
                self.wrong = Some(name);
                arg
            }
        }
    }
}

fn with_variable(arg: Arg, long: &str) -> Arg {
    let arg = match arg.get_action() {
        ArgAction::SetTrue => arg.value_parser(FalseyValueParser::new()),
        _ => arg,
    };
    match arg.get_env() {
        Some(_) => arg,
        None => arg.env(variable(long)).hide_env(true),
    }
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Integer(number) => Some(vec![number.to_string()]),
        Value::Float(number) => Some(vec![number.to_string()]),
        Value::Boolean(flag) => Some(vec![flag.to_string()]),
        Value::Array(values) => {
            let nested: Option<Vec<_>> = values.iter().map(texts).collect();
            nested.map(|texts| texts.into_iter().flatten().collect())
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}
