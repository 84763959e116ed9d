//! Network namespaces: a process in one has a network of its own, in which there is only what was put
//! into it.
//!
//! # Invariants
//! 1. A namespace has no name in the file system. It ends with the last process or file that holds it,
//!    so nothing of it is left when this process ends, however it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::failure::Failure;

/// A handle on a network namespace, which lives as long as the handle.
#[derive(Clone, Debug)]
pub(crate) struct Namespace(Arc<File>);

impl Namespace {
    /// A new one, with nothing in it but a loopback interface that is down.
    pub(crate) fn make() -> Result<Self, Failure> {
        let why = |error| Failure::new(format_args!("cannot make a network namespace: {error}"));
        // A process that repeats what it is told holds the namespace until it is opened here.
        let mut holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| why(format!("unshare: {error}")))?;
        let (mut input, mut output) = (holder.stdin.take(), holder.stdout.take());
        let is_there = input
            .as_mut()
            .is_some_and(|input| input.write_all(b"\n").is_ok())
            && output
                .as_mut()
                .is_some_and(|output| output.read_exact(&mut [0]).is_ok());
        let opened = File::open(format!("/proc/{}/ns/net", holder.id()));
        drop((input, output));
        let ended = holder.wait_with_output()?;
        if !is_there {
            let words = String::from_utf8_lossy(&ended.stderr);
            return Err(why(words.trim().to_owned()));
        }
        Ok(Self(Arc::new(
            opened.map_err(|error| why(error.to_string()))?,
        )))
    }

    /// The one that this thread is in.
    fn current() -> Result<Self, Failure> {
        Ok(Self(Arc::new(File::open("/proc/thread-self/ns/net")?)))
    }

    /// Moves this thread into it for good, and so the threads and processes that it starts.
    pub(crate) fn enter(&self) -> Result<(), Failure> {
        let kind = Some(LinkNameSpaceType::Network);
        let moved = move_into_link_name_space(self.0.as_fd(), kind);
        moved.map_err(|error| {
            Failure::new(format_args!("cannot enter a network namespace: {error}"))
        })
    }

    /// Does something in it: processes that are started and sockets that are made stay there.
    pub(crate) fn within<T>(&self, action: impl FnOnce() -> T) -> Result<T, Failure> {
        let before = Self::current()?;
        self.enter()?;
        let done = action();
        before.enter()?;
        Ok(done)
    }

    /// Where other processes find it while this one has it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}
