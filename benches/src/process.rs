//! Child processes: found, started on the right core, timed, and gone when their owner is.
//!
//! # Invariants
//! 1. A [`Child`] that is dropped has ended, and so has its process group.
//! 2. A child doesn't outlive this process, however this process ends (where `setpriv` exists).

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{Failure, Outcome};

/// How long a server may take to answer its first request.
pub const START: Duration = Duration::from_secs(10);
/// How long a server may take to stop when asked to.
const STOP: Duration = Duration::from_secs(5);
/// Between two looks at a condition of another process.
const LOOK: Duration = Duration::from_millis(10);

/// Where a program lies on `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A port of loopback that is free now.
pub fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// An address of loopback.
pub fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Connects as soon as something listens there.
pub fn connect(address: SocketAddr) -> Outcome<TcpStream> {
    eventually("a server to listen", || TcpStream::connect(address).ok())
}

/// Asks until there is an answer, for at most [`START`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Outcome<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if begin.elapsed() > START {
            return Err(Failure::new(format!("waited {START:?} in vain for {what}")));
        }
        std::thread::sleep(LOOK);
    }
}

/// Which cores the client and a single server use.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    all: CpuSet,
    /// The server's and the client's, when they are kept apart.
    apart: Option<(usize, usize)>,
}

impl Cores {
    /// Two cores of those that this process may use, if pinning is wanted and there are two.
    pub fn choose(pin: bool) -> Outcome<Self> {
        let all = sched_getaffinity(None)?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|&core| all.is_set(core));
        let apart = usable.next().zip(usable.next()).filter(|_| pin);
        Ok(Self { all, apart })
    }

    /// No pinning.
    pub fn shared(self) -> Self {
        Self {
            apart: None,
            ..self
        }
    }

    /// Moves this process to the client's core.
    pub fn enter_client(self) -> Outcome<()> {
        self.enter(self.apart.map(|(_, client)| client))
    }

    fn enter(self, core: Option<usize>) -> Outcome<()> {
        let set = core.map_or(self.all, |core| {
            let mut one = CpuSet::new();
            one.set(core);
            one
        });
        Ok(sched_setaffinity(None, &set)?)
    }
}

impl std::fmt::Display for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.apart {
            Some((server, client)) => write!(f, "server on core {server}, client on core {client}"),
            None => write!(f, "not pinned, {} cores shared by all", self.all.count()),
        }
    }
}

/// A running child process, ended on drop.
pub struct Child {
    child: std::process::Child,
    stdout: BufReader<ChildStdout>,
}

impl Child {
    /// Starts a program on the server's core, with a piped standard output.
    pub fn start(cores: Cores, program: &PathBuf, args: &[OsString]) -> Outcome<Self> {
        let mut command = match find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0);
        // Affinity is inherited, by all threads that the child starts.
        cores.enter(cores.apart.map(|(server, _)| server))?;
        let spawned = command.spawn();
        cores.enter_client()?;
        let mut child = spawned
            .map_err(|e| Failure::new(format!("cannot start {}: {e}", program.display())))?;
        let stdout = child
            .stdout
            .take()
            .expect("standard output was piped above");
        Ok(Self {
            child,
            stdout: BufReader::new(stdout),
        })
    }

    /// The next line of the child's standard output.
    pub fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            return Err(Failure::new(
                "a server ended before it was ready; see its message above",
            ));
        }
        Ok(line)
    }

    /// The child's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let Some(pid) = Pid::from_raw(self.child.id() as i32) else {
            return;
        };
        // A child that is gone already is what these want.
        let _gone = kill_process(pid, Signal::TERM);
        let begin = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && begin.elapsed() < STOP {
            std::thread::sleep(LOOK);
        }
        let _gone = kill_process_group(pid, Signal::KILL);
        let _reaped = self.child.wait();
    }
}

/// Processor time that the processes have used so far, user and system, all threads.
pub fn cpu_time(pids: &[u32]) -> Outcome<Duration> {
    let per_second = rustix::param::clock_ticks_per_second();
    let mut ticks = 0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field, the program's name, may hold spaces; fields 14 and 15 are wanted.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let wanted = fields.split_whitespace().skip(11).take(2);
        ticks += wanted
            .filter_map(|field| field.parse::<u64>().ok())
            .sum::<u64>();
    }
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_of_a_busy_process_grows() {
        let own = [std::process::id()];
        let before = cpu_time(&own).unwrap();
        let used = eventually("processor time to be used", || {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            cpu_time(&own).ok().filter(|after| *after > before)
        });
        assert!(used.is_ok());
    }

    #[test]
    fn a_dropped_child_has_ended() {
        let cores = Cores::choose(false).unwrap();
        let sleep = find("sleep").unwrap();
        let child = Child::start(cores, &sleep, &["1000".into()]).unwrap();
        let stat = format!("/proc/{}/stat", child.pid());
        assert!(std::fs::exists(&stat).unwrap());
        drop(child);
        assert!(!std::fs::exists(&stat).unwrap());
    }
}
