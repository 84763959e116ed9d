//! The connections to the other coordinators: one to each, for what this one says. What they say
//! comes on theirs.
//!
//! # Invariants
//! 1. Messages to one coordinator leave in order, as long as its connection lasts; what can't be
//!    sent is lost, as `paxos` expects.
//! 2. Messages that wait for a connection are bounded by [`MAX_WAITING`].
//! 3. One to whom nothing was said for [`FORGET_AFTER`], and who is not there, is forgotten: others
//!    took the places of some, and some never were coordinators.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use paxos::Envelope;
use paxos::limits::{MAX_BATCH_BYTES, MAX_COMMAND, MAX_IN_FLIGHT, PAGE_BYTES};
use ramkeep_rpc::{Address, ConnectError, Link, PollMode, clock};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::limits::MAX_PAYLOAD;
use ramkeep_wire::{Micros, Party, PeerId, postcards};

use super::hub::Hub;

/// Messages that wait while a connection is made; older ones go first.
const MAX_WAITING: usize = 64;
/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);
/// After which one who is not there, and to whom nothing was said, is forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });
/// Bytes of a message beside its entries: lengths, slots, ballots, a group.
const OVERHEAD: usize = 32 << 10;

// The longest messages fit an envelope: a page, and all that a leader may have in flight.
const _: () = assert!(PAGE_BYTES + OVERHEAD <= MAX_PAYLOAD && MAX_COMMAND <= MAX_BATCH_BYTES);
const _: () = assert!(MAX_IN_FLIGHT * MAX_BATCH_BYTES + OVERHEAD <= MAX_PAYLOAD);

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
    /// When something was last said.
    used: Micros,
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
                used: clock::now(),
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

    /// There is no connection. False when another line has taken its place, or none is needed.
    fn disconnected(&mut self, to: PeerId, number: u64) -> bool {
        let line = self.lines.get_mut(&to).filter(|line| line.number == number);
        let Some(line) = line else { return false };
        line.link = None;
        let needed = clock::now().since(line.used) <= FORGET_AFTER;
        if !needed {
            self.lines.remove(&to);
        }
        needed
    }
}

impl Line {
    fn send(&mut self, message: &Envelope) {
        self.used = clock::now();
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
        let begun = clock::now();
        match connect(&hub, to, &address).await {
            Ok(link) => {
                if !hub.with_peers(|peers| peers.connected(to, number, &link)) {
                    return;
                }
                while !link.is_closed() {
                    link.ready().await;
                    link.try_receive(&mut |_| {});
                }
                tracing::debug!(%to, reason = ?link.closed_reason(), "a connection closed");
            }
            Err(true) => hub.input(|core, now| core.handle_peer_gone(now, to)),
            Err(false) => {}
        }
        if !hub.with_peers(|peers| peers.disconnected(to, number)) {
            return;
        }
        // At once when a connection that had lasted broke: it shows whether the process is gone.
        tokio::time::sleep(RETRY.saturating_sub(clock::now().since(begun))).await;
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

#[cfg(test)]
mod tests {
    use paxos::{Body, Incarnation};
    use ramkeep_rpc::Identity;

    use super::*;
    use crate::core::{Config, Coordinator, default_settings};

    fn message(to: u32) -> Envelope {
        Envelope {
            group: None,
            from: paxos::PeerId(1),
            incarnation: Incarnation([1; 16]),
            to: paxos::PeerId(to),
            body: Body::Fresh {
                asker: Incarnation([2; 16]),
            },
        }
    }

    fn core() -> Coordinator {
        let config = Config {
            peer: PeerId(1),
            incarnation: [1; 16],
            address: String::new(),
            peers: vec![(PeerId(1), String::new()), (PeerId(2), String::new())],
            settings: default_settings(),
            timing: paxos::limits::Timing::default(),
            entropy: [1; 32],
        };
        Coordinator::new(clock::now(), config, paxos::Stored::default()).unwrap()
    }

    #[test]
    fn one_who_is_never_there_is_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (hub, _jobs) = Hub::new(core(), Identity::new(None), runtime.handle().clone());
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        for to in 7..40 {
            let message = message(to);
            hub.with_peers(|peers| peers.send(&hub, Some(address.clone()), &message));
        }
        assert_eq!(hub.with_peers(|peers| peers.lines.len()), 33);
        runtime.block_on(async {
            // The test's own limit of time is that of the runner.
            while hub.with_peers(|peers| !peers.lines.is_empty()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }

    #[test]
    fn what_waits_for_a_connection_is_bounded() {
        let mut line = Line {
            number: 1,
            address: String::new(),
            link: None,
            waiting: VecDeque::new(),
            used: Micros(0),
        };
        for to in 0..1_000 {
            line.send(&message(to));
        }
        assert_eq!(line.waiting.len(), MAX_WAITING);
        let newest = line.waiting.back().map(|message| message.to);
        assert_eq!(newest, Some(paxos::PeerId(999)), "older ones went");
    }
}
