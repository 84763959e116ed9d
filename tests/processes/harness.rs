//! Starts `ramkeep` and looks at what it says.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use ramkeep_rpc::{Identity, Link, PollMode};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Party, ServerId};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for something that must happen; far above what it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The program under test, with nothing of the environment's settings.
pub(crate) fn ramkeep() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ramkeep"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RAMKEEP_") && name != "RAMKEEP_TRACE" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Done {
    Done(
        ramkeep()
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap(),
    )
}

/// What a finished run left.
#[derive(Debug)]
pub(crate) struct Done(pub(crate) Output);

impl Done {
    pub(crate) fn code(&self) -> i32 {
        self.0.status.code().unwrap_or(-1)
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }

    /// Succeeded, and this is the JSON it printed.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code(), 0, "{self:?}");
        serde_json::from_str(&self.stdout()).unwrap()
    }

    /// Failed with this code, and said so in one line on standard error only.
    pub(crate) fn assert_failed(&self, code: i32, words: &str) {
        assert_eq!(self.code(), code, "{self:?}");
        assert!(self.0.stdout.is_empty(), "{self:?}");
        assert!(self.stderr().contains(words), "{self:?}");
        if code == 1 {
            assert_eq!(self.stderr().lines().count(), 1, "{self:?}");
        }
    }
}

/// A process of a cluster, as `up` announced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) role: String,
    pub(crate) id: u64,
    pub(crate) pid: i32,
    pub(crate) address: String,
}

impl Member {
    pub(crate) fn read(event: &Value) -> Self {
        Self {
            role: event["role"].as_str().unwrap().to_owned(),
            id: event["id"].as_u64().unwrap(),
            pid: event["pid"].as_i64().unwrap().try_into().unwrap(),
            address: event["address"].as_str().unwrap().to_owned(),
        }
    }

    /// A connection to it, past the client library; of which cluster it is, its refusal says.
    pub(crate) async fn link(&self, identity: &Identity) -> Link {
        let address = self.address.parse().unwrap();
        let to = Party::server(ServerId(self.id));
        let connect = || Link::connect(&address, identity, to, PollMode::Never);
        match connect().await {
            Ok(link) => link,
            Err(refused) => {
                let Some(Refusal::Cluster(cluster)) = refused.refusal() else {
                    panic!("{refused}");
                };
                assert!(identity.join(*cluster), "{refused}");
                connect().await.unwrap()
            }
        }
    }

    pub(crate) fn kill(&self) {
        send(self.pid, Signal::KILL);
        await_that("a killed process is gone", || is_gone(self.pid));
    }
}

/// A running `ramkeep up`.
pub(crate) struct Cluster {
    pub(crate) up: Child,
    pub(crate) members: Vec<Member>,
    /// The coordinators, as `--coordinators` takes them.
    pub(crate) coordinators: String,
    /// The coordinators, one by one.
    pub(crate) addresses: Vec<String>,
    events: Receiver<Value>,
}

impl Cluster {
    /// Starts one on free ports, with little memory.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let mut command = ramkeep();
        command
            .args(["up", "--json", "--port", "0", "--memory", "64MiB"])
            .args(flags);
        let mut up = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let events = json_lines(&mut up);
        let mut members = Vec::new();
        loop {
            let event = match events.recv_timeout(PATIENCE) {
                Ok(event) => event,
                Err(error) => {
                    drop(up.kill());
                    panic!("no cluster: {error}; {:?}", up.wait());
                }
            };
            if event["event"] == "ready" {
                let all: Vec<String> =
                    serde_json::from_value(event["coordinators"].clone()).unwrap();
                return Self {
                    up,
                    members,
                    coordinators: all.join(","),
                    addresses: all,
                    events,
                };
            }
            assert_eq!(event["event"], "process");
            members.push(Member::read(&event));
        }
    }

    /// The next thing that `up` tells.
    pub(crate) fn next_event(&self) -> Value {
        self.events.recv_timeout(PATIENCE).unwrap()
    }

    /// The members of one role.
    pub(crate) fn of_role(&self, role: &str) -> Vec<&Member> {
        self.members
            .iter()
            .filter(|member| member.role == role)
            .collect()
    }

    /// Runs a command against this cluster.
    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        let mut command = ramkeep();
        command
            .env("RAMKEEP_COORDINATORS", &self.coordinators)
            .args(arguments);
        Done(command.stdin(Stdio::null()).output().unwrap())
    }

    /// The same with bytes on standard input.
    pub(crate) fn run_with(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut command = ramkeep();
        command
            .env("RAMKEEP_COORDINATORS", &self.coordinators)
            .args(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        Done(child.wait_with_output().unwrap())
    }

    /// Runs a command that must succeed; the JSON it printed.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        self.run(&arguments).json()
    }

    /// Sends a signal to `up` itself and waits for its end.
    pub(crate) fn end(&mut self, signal: Signal) {
        send(self.up.id().cast_signed(), signal);
        let deadline = Instant::now() + PATIENCE;
        while self.up.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "`up` does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.up.try_wait().ok().flatten().is_none() {
            send(self.up.id().cast_signed(), Signal::TERM);
            drop(self.up.wait());
        }
    }
}

/// A process started apart from `up`, killed with its test.
pub(crate) struct Apart {
    pub(crate) process: Child,
    pub(crate) member: Member,
    _events: Receiver<Value>,
}

impl Apart {
    /// Starts it and waits until it announces itself.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_logging(arguments, Stdio::inherit())
    }

    /// The same; what it logs goes elsewhere.
    pub(crate) fn start_logging(arguments: &[&str], log: Stdio) -> Self {
        let mut process = ramkeep()
            .args(arguments)
            .arg("--json")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let events = json_lines(&mut process);
        let member = Member::read(&events.recv_timeout(PATIENCE).unwrap());
        Self {
            process,
            member,
            _events: events,
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn json_lines(process: &mut Child) -> Receiver<Value> {
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let value = serde_json::from_str(&line).expect("only JSON on standard output");
            if sender.send(value).is_err() {
                return;
            }
        }
    });
    receiver
}

pub(crate) fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether a process has ended, with all its threads; one that nobody has waited for yet counts as
/// ended.
pub(crate) fn is_gone(pid: i32) -> bool {
    let process = Path::new("/proc").join(pid.to_string());
    let Ok(stat) = std::fs::read_to_string(process.join("stat")) else {
        return true;
    };
    let state = stat.rsplit(')').next().unwrap_or_default();
    // The first thread may be through while others still hold files.
    let threads = std::fs::read_dir(process.join("task")).map_or(0, Iterator::count);
    state.trim_start().starts_with('Z') && threads <= 1
}

/// Waits until it is so.
pub(crate) fn await_that(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "not in {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// The command line of a running process.
pub(crate) fn arguments_of(pid: i32) -> Vec<String> {
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    line.trim_end_matches('\0')
        .split('\0')
        .map(str::to_owned)
        .collect()
}
