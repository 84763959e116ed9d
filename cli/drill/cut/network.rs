//! The drill's network: a namespace for each host, all joined by one in the middle, in which the drill
//! itself is.
//!
//! # Invariants
//! 1. The middle passes packets on between hosts, and no link leads out of it: no traffic leaves.
//! 2. Nothing has a name outside: all of it ends with the drill's process, however that ends.
//! 3. A cut drops packets in the middle without a word, in one direction between two hosts. The drill
//!    itself reaches every host at all times.

use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Command, Stdio};

use crate::failure::Failure;
use crate::up::namespace::Namespace;
use crate::up::plan::Host;

/// Where the middle is told to pass packets on.
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// Where pings are sent to.
const PING_PORT: u16 = 9;
/// Hosts that there may be.
const MAX_HOSTS: usize = 200;

/// The network.
#[derive(Debug)]
pub(super) struct Network {
    middle: Namespace,
    pub(super) hosts: Vec<Host>,
    /// What undoes the cuts that are made.
    undo: Vec<String>,
}

impl Network {
    /// With so many hosts. Moves this thread into its middle.
    pub(super) fn make(hosts: usize) -> Result<Self, Failure> {
        if hosts > MAX_HOSTS {
            return Err(Failure::usage(format_args!(
                "at most {MAX_HOSTS} processes"
            )));
        }
        let middle = Namespace::make()?;
        middle.enter()?;
        ip(["link set lo up".to_owned()])?;
        std::fs::write(FORWARD, "1").map_err(|error| {
            Failure::new(format_args!(
                "cannot have packets passed on ({FORWARD}): {error}"
            ))
        })?;
        let mut network = Self {
            middle,
            hosts: Vec::new(),
            undo: Vec::new(),
        };
        for number in 1..=hosts {
            let host = network.join(number)?;
            network.hosts.push(host);
        }
        Ok(network)
    }

    /// Makes a host, with a link to the middle and nothing else.
    fn join(&self, number: usize) -> Result<Host, Failure> {
        let address = |last| Ipv4Addr::new(10, 77, number as u8, last);
        let (near, far) = (address(1), address(2));
        let host = Namespace::make()?;
        ip([
            format!(
                "link add host{number} type veth peer name middle netns {}",
                host.path()
            ),
            format!("address add {near}/30 dev host{number}"),
            format!("link set host{number} up"),
        ])?;
        host.within(|| {
            ip([
                "link set lo up".to_owned(),
                format!("address add {far}/30 dev middle"),
                "link set middle up".to_owned(),
                format!("route add default via {near}"),
            ])
        })??;
        Ok(Host {
            ip: far,
            namespace: Some(host),
        })
    }

    /// Drops what is sent in each of these directions, from now on.
    pub(super) fn cut(&mut self, directions: &[Direction]) -> Result<(), Failure> {
        let rule = |direction: &Direction| {
            let [from, to] = direction.map(|host| self.hosts[host].ip);
            format!("from {from} to {to} blackhole")
        };
        let rules: Vec<String> = directions.iter().map(rule).collect();
        self.undo
            .extend(rules.iter().map(|rule| format!("rule del {rule}")));
        self.middle
            .within(|| ip(rules.iter().map(|rule| format!("rule add {rule}"))))?
    }

    /// Drops nothing any more.
    pub(super) fn heal(&mut self) -> Result<(), Failure> {
        let undo = std::mem::take(&mut self.undo);
        self.middle.within(|| ip(undo))?
    }

    /// Something that sends packets in this direction.
    pub(super) fn pinger(&self, direction: Direction) -> Result<Pinger, Failure> {
        let socket = |host: &Host, port| {
            let bind = || {
                let socket = UdpSocket::bind((host.ip, port))?;
                socket.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(socket)
            };
            let bound = match &host.namespace {
                Some(namespace) => namespace.within(bind)?,
                None => bind(),
            };
            bound.map_err(|error| Failure::new(format_args!("cannot ping: {error}")))
        };
        let [from, to] = direction.map(|host| &self.hosts[host]);
        Ok(Pinger {
            from: socket(from, 0)?,
            to: socket(to, PING_PORT)?,
        })
    }
}

/// From one host to another, by their places.
pub(super) type Direction = [usize; 2];

/// Sends packets in one direction, and sees whether any gets through.
#[derive(Debug)]
pub(super) struct Pinger {
    from: UdpSocket,
    to: UdpSocket,
}

impl Pinger {
    /// Sends one, and says whether one has come since it was last asked.
    pub(super) fn ping(&self) -> bool {
        // One that can't be sent does not come.
        if let Ok(to) = self.to.local_addr() {
            drop(self.from.send_to(b"ping", to));
        }
        let mut came = false;
        while self.to.recv(&mut [0; 16]).is_ok() {
            came = true;
        }
        came
    }
}

/// Has `ip` carry out these commands in this thread's namespace, all at once.
fn ip(commands: impl IntoIterator<Item = String>) -> Result<(), Failure> {
    let why = |error: &str| Failure::new(format_args!("ip (of iproute2): {error}"));
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| why(&error.to_string()))?;
    let mut words = commands.into_iter().collect::<Vec<_>>().join("\n");
    words.push('\n');
    if let Some(mut input) = child.stdin.take() {
        // If it takes nothing it says why.
        let _ = input.write_all(words.as_bytes());
    }
    let done = child.wait_with_output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(why(String::from_utf8_lossy(&done.stderr).trim()))
}
