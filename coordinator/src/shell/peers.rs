//! The connections to the other coordinators: one to each, for what this one says. What they say
//! comes on theirs.
//!
//! # Invariants
//! 1. Messages to one coordinator leave in order, as long as its connection lasts; what can't be
//!    sent is lost, as `paxos` expects.
//! 2. Messages that wait for a connection are bounded by [`MAX_WAITING`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use paxos::Envelope;
use ramkeep_rpc::{Address, ConnectError, Link, PollMode};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::{Party, PeerId, postcards};

use super::hub::Hub;

/// Messages that wait while a connection is made; older ones go first.
const MAX_WAITING: usize = 64;
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// The connections.
#[derive(Default)]
pub(super) struct Peers {
    lines: BTreeMap<PeerId, Line>,
    /// Names connections, so that the end of one is not taken for the end of the next.
    next: u64,
}

struct Line {
    number: u64,
    address: String,
    link: Option<Link>,
    waiting: VecDeque<Envelope>,
}

impl Peers {
    /// Sends a message, or keeps it while a connection is made.
    pub(super) fn send(&mut self, hub: &Arc<Hub>, address: Option<String>, message: &Envelope) {
        let to = PeerId(message.to.0);
        let Some(address) = address else {
            return tracing::debug!(%to, "it is not known where a coordinator is");
        };
        let there = self
            .lines
            .get(&to)
            .is_some_and(|line| line.address == address);
        if !there {
            self.next += 1;
            let line = Line {
                number: self.next,
                address,
                link: None,
                waiting: VecDeque::new(),
            };
            let keeping = keep(hub.clone(), to, line.number, line.address.clone());
            self.lines.insert(to, line);
            hub.runtime().spawn(keeping);
        }
        if let Some(line) = self.lines.get_mut(&to) {
            line.send(message);
        }
    }

    /// A connection was made. False when another line has taken its place.
    fn connected(&mut self, to: PeerId, number: u64, link: &Link) -> bool {
        let Some(line) = self.lines.get_mut(&to).filter(|line| line.number == number) else {
            return false;
        };
        line.link = Some(link.clone());
        for message in std::mem::take(&mut line.waiting) {
            line.send(&message);
        }
        true
    }

    /// A connection is gone. False when another line has taken its place.
    fn disconnected(&mut self, to: PeerId, number: u64) -> bool {
        let line = self.lines.get_mut(&to).filter(|line| line.number == number);
        line.is_some_and(|line| {
            line.link = None;
            true
        })
    }
}

impl Line {
    fn send(&mut self, message: &Envelope) {
        let Some(link) = &self.link else {
            if self.waiting.len() >= MAX_WAITING {
                self.waiting.pop_front();
            }
            return self.waiting.push_back(message.clone());
        };
        let header = link.header(Kind::Group, 0);
        let payload = postcards::encode(message);
        let sent = link.send(|out| envelope::append(out, header, &payload));
        if let Err(error) = sent {
            tracing::debug!(%error, "a message to a coordinator is lost");
        }
    }
}

/// Keeps a connection to a coordinator, as long as this line is the one to it.
async fn keep(hub: Arc<Hub>, to: PeerId, number: u64, address: String) {
    loop {
        match connect(&hub, to, &address).await {
            Ok(link) => {
                if !hub.with_peers(|peers| peers.connected(to, number, &link)) {
                    return;
                }
                while !link.is_closed() {
                    link.ready().await;
                    link.try_receive(&mut |_| {});
                }
                if !hub.with_peers(|peers| peers.disconnected(to, number)) {
                    return;
                }
                tracing::debug!(%to, reason = ?link.closed_reason(), "a connection closed");
            }
            Err(refused) => {
                if refused {
                    hub.input(|core, now| core.handle_peer_gone(now, to));
                }
                tokio::time::sleep(RETRY).await;
                if !hub.with_peers(|peers| peers.disconnected(to, number)) {
                    return;
                }
            }
        }
    }
}

/// Connects; else, whether no process listens there.
async fn connect(hub: &Arc<Hub>, to: PeerId, text: &str) -> Result<Link, bool> {
    let Ok(address) = text.parse::<Address>() else {
        tracing::warn!(%to, %text, "a coordinator's address makes no sense");
        return Err(false);
    };
    let party = Party::coordinator(to);
    let link = Link::connect(&address, hub.identity(), party, PollMode::Never).await;
    link.map_err(|error| {
        tracing::debug!(%to, %error, "can't connect to a coordinator");
        nobody_there(&error)
    })
}

fn nobody_there(error: &ConnectError) -> bool {
    let ConnectError::Io { error, .. } = error else {
        return false;
    };
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}
