//! Ramkeep: a group of coordinators, and client leases opened and closed at the leader.
//!
//! Each of the two is one small command through Paxos; by turns they leave nothing behind.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ramkeep_control::shell::Direct;
use ramkeep_rpc::{Address, AddressError, Identity, PollMode};
use ramkeep_wire::coordinator::{Answer, GroupCounters, Refused, Request, Response};
use ramkeep_wire::{Ballot, ClientId, MapVersion};

use crate::engine::Worker;
use crate::nonce::Nonces;
use crate::process::{Child, Cores, find, free_port, loopback};
use crate::{Failure, Outcome};

/// A request without an answer for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a group may take to elect its first leader.
const ELECTION: Duration = Duration::from_secs(20);
/// Between two questions for the leader.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A running group.
pub(crate) struct Coordinators {
    children: Vec<Child>,
    addresses: Vec<SocketAddr>,
    leader: SocketAddr,
    poll: PollMode,
}

impl Coordinators {
    /// Starts the coordinators with their data in `data`, and waits until one leads. `poll` is how
    /// this client waits.
    pub(crate) async fn start(count: usize, data: &Path, poll: PollMode) -> Outcome<Self> {
        let program = program()?;
        let mut addresses = Vec::new();
        for _ in 0..count {
            addresses.push(loopback(free_port()?));
        }
        let mut children = Vec::new();
        for at in 0..count {
            let args = args(at, &addresses, data);
            children.push(Child::start(Cores::choose(false)?, &program, &args)?);
        }
        for child in &mut children {
            child.line()?;
        }
        let leader = tokio::time::timeout(ELECTION, find_leader(&addresses))
            .await
            .map_err(|_| Failure::new(format!("no coordinator leads after {ELECTION:?}")))??;
        Ok(Self {
            children,
            addresses,
            leader,
            poll,
        })
    }

    /// The coordinators' process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::pid).collect()
    }

    /// What each coordinator has counted so far.
    pub(crate) async fn counters(&self) -> Outcome<Vec<GroupCounters>> {
        let mut all = Vec::new();
        for address in &self.addresses {
            let mut direct = direct(*address, PollMode::Never)?;
            all.push(counters(&mut direct).await?);
        }
        Ok(all)
    }

    /// As many workers, over so many connections to the leader.
    pub(crate) async fn workers(&self, count: usize, connections: usize) -> Outcome<Vec<Leaser>> {
        let mut connected = Vec::new();
        for _ in 0..connections.min(count) {
            let mut direct = direct(self.leader, self.poll)?;
            // Clones share the connection that this makes.
            counters(&mut direct).await?;
            connected.push(direct);
        }
        let shared = connected.iter().cycle().take(count).cloned();
        Ok(shared.map(Leaser::new).collect())
    }
}

fn program() -> Outcome<PathBuf> {
    let own = std::env::current_exe()?.with_file_name("ramkeep");
    Some(own)
        .filter(|file| file.is_file())
        .or_else(|| find("ramkeep"))
        .ok_or_else(|| {
            Failure::new(
                "the ramkeep binary is neither beside this one nor on PATH: \
                 build it with `cargo build --release`",
            )
        })
}

/// Flags of the coordinator at this place in the group.
fn args(at: usize, addresses: &[SocketAddr], data: &Path) -> Vec<OsString> {
    let id = at + 1;
    let mut args: Vec<OsString> = vec![
        "coordinator".into(),
        "--json".into(),
        "--new-cluster".into(),
        "--id".into(),
        id.to_string().into(),
        "--listen".into(),
        addresses[at].to_string().into(),
        "--data".into(),
        data.join(id.to_string()).into(),
    ];
    if addresses.len() > 1 {
        let peers: Vec<String> = (addresses.iter().enumerate())
            .map(|(at, address)| format!("{}={address}", at + 1))
            .collect();
        args.extend(["--peers".into(), peers.join(",").into()]);
    }
    args
}

fn direct(address: SocketAddr, poll: PollMode) -> Outcome<Direct> {
    let address: Address = (address.to_string().parse())
        .map_err(|error: AddressError| Failure::new(error.to_string()))?;
    Ok(Direct::new(address, Identity::new(None)).waiting(poll, PATIENCE))
}

async fn ask(direct: &mut Direct, request: &Request) -> Outcome<Response> {
    let answer = direct.ask(request).await;
    answer.map_err(|error| Failure::new(format!("ramkeep: {error}")))
}

async fn counters(direct: &mut Direct) -> Outcome<GroupCounters> {
    match ask(direct, &Request::Counters).await?.answer {
        Answer::Counters(counters) => Ok(counters),
        answer => Err(Failure::new(format!("ramkeep: answered {answer:?}"))),
    }
}

/// Asks the coordinators until one of them answers as the leader does.
async fn find_leader(addresses: &[SocketAddr]) -> Outcome<SocketAddr> {
    let known = MapVersion(0);
    loop {
        for &address in addresses {
            let mut direct = direct(address, PollMode::Never)?;
            if let Ok(response) = direct.ask(&Request::Map { known }).await
                && matches!(response.answer, Answer::Map(_))
            {
                return Ok(address);
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Opens a client lease and gives it back, by turns.
pub(crate) struct Leaser {
    leader: Direct,
    nonces: Nonces,
    open: Option<ClientId>,
    ballot: Ballot,
}

impl Leaser {
    fn new(leader: Direct) -> Self {
        Self {
            leader,
            nonces: Nonces::new(),
            open: None,
            ballot: Ballot::default(),
        }
    }

    fn request(&mut self) -> Request {
        match self.open {
            None => Request::OpenClientLease {
                nonce: self.nonces.draw(),
            },
            Some(client) => Request::CloseClientLease { client },
        }
    }

    /// Takes the answer, if it is what was asked for.
    fn take(&mut self, response: Response) -> Outcome<()> {
        if self.ballot > response.ballot {
            return Err(Failure::new(
                "ramkeep: an answer of a leader that was replaced",
            ));
        }
        self.ballot = response.ballot;
        self.open = match (self.open, response.answer) {
            (None, Answer::ClientLease { client, .. }) if client != ClientId(0) => Some(client),
            (Some(_), Answer::Noted) => None,
            (_, Answer::Refused(Refused::NotLeader { .. })) => {
                return Err(Failure::new(
                    "ramkeep: the leader was replaced while measuring",
                ));
            }
            (_, answer) => {
                return Err(Failure::new(format!("ramkeep: answered {answer:?}")));
            }
        };
        Ok(())
    }
}

impl Worker for Leaser {
    async fn command(&mut self) -> Outcome<()> {
        let request = self.request();
        let response = ask(&mut self.leader, &request).await?;
        self.take(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_one_needs_no_peers_and_a_larger_one_names_all() {
        let addresses: Vec<SocketAddr> = (7100..7103).map(loopback).collect();
        let alone = args(0, &addresses[..1], Path::new("/data"));
        assert!(!alone.contains(&"--peers".into()));
        let second = args(1, &addresses, Path::new("/data"));
        let peers = "1=127.0.0.1:7100,2=127.0.0.1:7101,3=127.0.0.1:7102";
        assert!(second.contains(&peers.into()), "{second:?}");
        assert!(second.contains(&"/data/2".into()), "{second:?}");
    }
}
