//! This process among others: its parent, its wish to stop, how it announces itself, the files it may have.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use ramkeep_wire::limits::{MAX_CONNECTIONS, RESERVED_CONNECTIONS};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit,
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Has `signal` sent to this process when `parent`, which started it, ends, however that one ends.
///
/// The signal is sent when the thread that started this process ends, so a supervisor starts its
/// children from its main thread.
pub(crate) fn die_with(parent: i32, signal: Signal) -> Result<(), Failure> {
    set_parent_process_death_signal(Some(signal))
        .map_err(|error| Failure::new(format_args!("cannot watch the parent process: {error}")))?;
    // The parent may have ended before the signal was asked for.
    if getppid().map(Pid::as_raw_pid) == Some(parent) {
        Ok(())
    } else {
        Err(Failure::new(
            "the process that started this one has ended; stopping too",
        ))
    }
}

/// Files of one listener's connections.
const FILES_OF_A_LISTENER: u64 = (MAX_CONNECTIONS + RESERVED_CONNECTIONS) as u64;
/// Files for everything else.
const FILES_BESIDE: u64 = 512;

/// Raises the limit of open files as far as this process may; its children inherit it. How many files it may
/// have open then.
pub(crate) fn allow_files() -> Result<u64, Failure> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let most = maximum.unwrap_or(u64::MAX);
    if current.unwrap_or(u64::MAX) < most {
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        setrlimit(Resource::Nofile, raised).map_err(|error| {
            Failure::new(format_args!(
                "cannot raise the limit of open files to {most}: {error}"
            ))
        })?;
    }
    Ok(most)
}

/// Raises the limit of open files, and says so if it is too low for all connections that so many listeners
/// accept.
pub(crate) fn allow_connections(listeners: u64) {
    let needed = listeners * FILES_OF_A_LISTENER + FILES_BESIDE;
    match allow_files() {
        Ok(allowed) if allowed >= needed => {}
        Ok(allowed) => tracing::warn!(
            allowed,
            needed,
            "the limit of open files is lower than all connections need: raise the hard limit (ulimit -Hn)"
        ),
        Err(why) => tracing::warn!(%why, needed, "the limit of open files stays as it is"),
    }
}

/// Replaces this process's image with a new one of the same program and arguments: all that it knew,
/// held and listened on is gone, its pid and its parent stay. Returns only if that fails.
pub(crate) fn begin_again() -> Failure {
    // The file that runs, also when another has taken its name since.
    let mut again = Command::new("/proc/self/exe");
    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).exec();
    Failure::new(format_args!("cannot start again: {error}"))
}

/// Ctrl-C, SIGTERM and SIGHUP, each a wish to stop.
pub(crate) struct StopSignals([tokio::signal::unix::Signal; 3]);

impl StopSignals {
    /// From now on the signals are noted instead of ending the process.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let open = || -> io::Result<_> {
            Ok([
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ])
        };
        open()
            .map(Self)
            .map_err(|error| Failure::new(format_args!("cannot listen for signals: {error}")))
    }

    /// Waits until one is there.
    pub(crate) async fn recv(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// What a process of a cluster does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Knows who owns what.
    Coordinator,
    /// A master, with a backup or without.
    Server,
    /// Holds replicas only.
    Backup,
}

impl Role {
    const ALL: [Self; 3] = [Self::Coordinator, Self::Server, Self::Backup];

    /// As it is printed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Server => "server",
            Self::Backup => "backup",
        }
    }
}

/// The line by which a process says that it is there: the first on its standard output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// What it does.
    pub(crate) role: Role,
    /// Its ServerId or PeerId.
    pub(crate) id: u64,
    /// Its process id.
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) address: String,
}

impl Announcement {
    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self {
            role,
            id,
            pid,
            address,
        } = self;
        format!("{:<11} {id:>3}  pid {pid:<8} {address}", role.name())
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({
            "event": "process",
            "role": self.role.name(),
            "id": self.id,
            "pid": self.pid,
            "address": self.address,
        })
    }

    /// Reads what [`Self::json`] wrote.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let role = value["role"].as_str()?;
        Some(Self {
            role: Role::ALL.into_iter().find(|known| known.name() == role)?,
            id: value["id"].as_u64()?,
            pid: value["pid"].as_u64()?.try_into().ok()?,
            address: value["address"].as_str()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_reads_what_its_child_announces() {
        let announcement = Announcement {
            role: Role::Backup,
            id: 5,
            pid: 4711,
            address: "127.0.0.1:7114".to_owned(),
        };
        let line = announcement.json().to_string();
        assert_eq!(Announcement::parse(&line), Some(announcement));
        assert_eq!(Announcement::parse("listening"), None);
    }

    #[test]
    fn a_process_of_another_parent_refuses_to_go_on() {
        assert!(die_with(1 << 22, Signal::TERM).is_err());
        set_parent_process_death_signal(None).unwrap();
    }
}
