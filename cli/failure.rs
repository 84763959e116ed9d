//! How a command fails: an exit code and one line that says what happened and what to do.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::output::Output;

/// Why a command did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It could not be done. Exit code 1.
    Failed(String),
    /// No cluster answers, or none that has a leader. Exit code 1.
    NoCluster(String),
    /// It was asked for wrongly. Exit code 2.
    Usage(String),
    /// The argument parser has its own words, for wrong usage and for `--help`.
    Parser(Box<clap::Error>),
    /// Nobody reads standard output any more; there is nobody to tell either. Exit code 1.
    NoReader,
}

impl Failure {
    /// A failure of the command itself.
    pub(crate) fn new(message: impl Display) -> Self {
        Self::Failed(message.to_string())
    }

    /// Wrong usage that the argument parser could not see.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::Usage(message.to_string())
    }

    /// The same, with what it happened in.
    pub(crate) fn within(self, what: impl Display) -> Self {
        match self {
            Self::Failed(message) => Self::Failed(format!("{what}: {message}")),
            Self::NoCluster(message) => Self::NoCluster(format!("{what}: {message}")),
            other => other,
        }
    }

    /// The same, with what is behind it.
    pub(crate) fn because(self, why: impl Display) -> Self {
        match self {
            Self::Failed(message) => Self::Failed(format!("{message}; {why}")),
            Self::NoCluster(message) => Self::NoCluster(format!("{message}; {why}")),
            other => other,
        }
    }

    /// Tells the person, or the program, once, and gives the exit code.
    pub(crate) fn report(self, output: Output) -> ExitCode {
        let code = self.code();
        match self {
            Self::NoReader => {}
            Self::Parser(error) if !(output.is_json() && error.use_stderr()) => {
                // Printing fails only when nobody listens.
                let _ = error.print();
            }
            failure if output.is_json() => eprintln!("{}", failure.json()),
            failure => eprintln!("ramkeep: {failure}"),
        }
        ExitCode::from(code)
    }

    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) | Self::NoCluster(_) | Self::NoReader => 1,
            Self::Usage(_) => 2,
            Self::Parser(error) => u8::from(error.use_stderr()) * 2,
        }
    }

    /// For programs: what kind of failure it is, and what a person is told.
    fn json(&self) -> Value {
        let error = match self {
            Self::Failed(_) => "failed",
            Self::NoCluster(_) => "no_cluster",
            Self::Usage(_) | Self::Parser(_) => "usage",
            Self::NoReader => "no_reader",
        };
        json!({ "error": error, "message": one_line(&self.to_string()) })
    }
}

/// As it is told.
impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(message) | Self::NoCluster(message) | Self::Usage(message) => {
                f.write_str(&one_line(message))
            }
            Self::Parser(error) => Display::fmt(error, f),
            Self::NoReader => f.write_str("nobody reads standard output"),
        }
    }
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NoReader,
            _ => Self::new(format_args!("cannot write to standard output: {error}")),
        }
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_one_line() {
        assert_eq!(
            one_line("no table\n  flights; create it"),
            "no table flights; create it"
        );
    }

    #[test]
    fn a_program_is_told_what_kind_of_failure_it_is() {
        let failure = Failure::NoCluster("nobody\n  leads".to_owned()).within("status");
        let told = failure.json();
        assert_eq!(told["error"], "no_cluster");
        assert_eq!(told["message"], "status: nobody leads");
        assert_eq!(failure.code(), 1);
        assert_eq!(Failure::usage("--data").json()["error"], "usage");
        assert_eq!(Failure::usage("--data").code(), 2);
    }

    #[test]
    fn a_closed_pipe_is_no_failure_to_tell_of() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(Failure::from(error), Failure::NoReader));
    }
}
