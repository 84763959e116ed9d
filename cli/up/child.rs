//! One child process of a cluster: started, awaited, stopped.
//!
//! # Invariants
//! 1. A child is signalled only while it has not been waited for, so that its pid is still its own.
//! 2. A child ends when this process ends, however this one ends (the child sees to that itself),
//!    and when its [`Child`] is dropped.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

use super::namespace::Namespace;
use crate::failure::Failure;
use crate::process::Announcement;

/// From SIGTERM to SIGKILL.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// From its start to its announcement.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// Variables that begin so are settings; a child is given all of its own as flags.
const SETTINGS: &str = "RAMKEEP_";

/// A child process that has announced itself.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    pub(crate) announcement: Announcement,
    /// What it prints from now on.
    lines: Lines<BufReader<ChildStdout>>,
}

/// What a child does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It has ended: `exit code N` or `signal N`.
    Ended(String),
    /// It was decided crashed and has joined as another server.
    Announced(Announcement),
}

impl Child {
    /// Starts this very program with `arguments`, in this namespace if there is one, and waits until it
    /// announces itself.
    pub(crate) async fn start(
        arguments: &[OsString],
        namespace: Option<&Namespace>,
    ) -> Result<Self, Failure> {
        let mut command = command(arguments)?;
        let spawned = match namespace {
            Some(namespace) => namespace.within(|| command.spawn())?,
            None => command.spawn(),
        };
        let mut process = spawned
            .map_err(|error| Failure::new(format_args!("cannot start a process: {error}")))?;
        let name = arguments
            .first()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        let Some(stdout) = process.stdout.take() else {
            return Err(Failure::new(format_args!(
                "the {name} has no standard output"
            )));
        };
        let mut lines = BufReader::new(stdout).lines();
        match tokio::time::timeout(START_PATIENCE, announcement(&mut lines)).await {
            Ok(Some(announcement)) => Ok(Self {
                process,
                announcement,
                lines,
            }),
            Ok(None) => {
                let status = process.wait().await.map(describe).unwrap_or_default();
                Err(Failure::new(format_args!(
                    "a {name} did not start ({status}); its own words are above"
                )))
            }
            Err(_) => Err(Failure::new(format_args!(
                "a {name} is not in service after {START_PATIENCE:?}; RAMKEEP_TRACE=debug shows more"
            ))),
        }
    }

    /// Waits for its end, or until it announces itself again, as another server. Loses nothing when
    /// dropped half-way.
    pub(crate) async fn next(&mut self) -> Next {
        let mut talks = true;
        loop {
            tokio::select! {
                status = self.process.wait() => return Next::Ended(match status {
                    Ok(status) => describe(status),
                    Err(error) => format!("unknown ({error})"),
                }),
                line = self.lines.next_line(), if talks => match line {
                    Ok(Some(line)) => if let Some(announcement) = Announcement::parse(&line) {
                        self.announcement = announcement.clone();
                        return Next::Announced(announcement);
                    },
                    Ok(None) | Err(_) => talks = false,
                },
            }
        }
    }

    /// How it ended, if it did.
    pub(crate) fn has_ended(&mut self) -> Option<String> {
        self.process.try_wait().ok().flatten().map(describe)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let sent = self.pid().map(|pid| kill_process(pid, signal));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(Failure::new(format_args!(
                "no signal can be sent to {}: {error}",
                self.announcement.text()
            ))),
            None => Err(Failure::new(format_args!(
                "{} has ended",
                self.announcement.text()
            ))),
        }
    }

    /// Ends it at once and waits until it is gone.
    pub(crate) async fn kill(mut self) -> Result<(), Failure> {
        let killed = self.process.kill().await;
        killed.map_err(|error| {
            let process = self.announcement.text();
            Failure::new(format_args!("{process} cannot be killed: {error}"))
        })
    }

    /// `None`: it has been waited for.
    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(self.process.id()?.cast_signed())
    }

    /// Asks it to stop, waits, and kills it if it takes too long.
    pub(crate) async fn stop(mut self) {
        let Some(pid) = self.pid() else { return };
        let asked = kill_process(pid, Signal::TERM).is_ok();
        if asked
            && tokio::time::timeout(STOP_PATIENCE, self.process.wait())
                .await
                .is_ok()
        {
            return;
        }
        tracing::warn!(process = ?self.announcement, "does not stop; killing it");
        if let Err(error) = self.process.kill().await {
            tracing::warn!(process = ?self.announcement, %error, "could not be killed");
        }
    }
}

fn command(arguments: &[OsString]) -> Result<Command, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::new(format_args!("cannot find this program's file: {error}")))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .arg("--parent")
        .arg(std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Ctrl-C in a terminal is for the parent alone, which stops its children in order.
        .process_group(0)
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with(SETTINGS) {
            command.env_remove(name);
        }
    }
    Ok(command)
}

async fn announcement(lines: &mut Lines<BufReader<ChildStdout>>) -> Option<Announcement> {
    let line = lines.next_line().await.ok()??;
    Announcement::parse(&line)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}
