//! Three processes' worth of coordinators: real files, real sockets of the loopback, real time.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]
#![cfg(feature = "shell")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use paxos::limits::Timing;
use ramkeep_control::shell::Direct;
use ramkeep_coordinator::DeskEnd;
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::shell::{Running, ShellConfig, ShellError};
use ramkeep_rpc::{Address, Identity, PollMode};
use ramkeep_wire::coordinator::{Answer, ClusterStatus, GroupCounters, Refused, Request, Response};
use ramkeep_wire::{ClientId, PeerId};

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// A coordinator in a thread of its own.
struct Process {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<Result<(), ShellError>>,
}

/// The machines of a group, some with a process.
struct Group {
    directory: tempfile::TempDir,
    peers: Vec<(PeerId, Address)>,
    processes: BTreeMap<u32, Process>,
}

impl Group {
    fn new(members: u32) -> Self {
        // Held at the same time, so that all are different.
        let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let ports: Vec<_> = (0..members).map(|_| free()).collect();
        let address = |port: &std::net::TcpListener| {
            let text = port.local_addr().unwrap().to_string();
            text.parse().unwrap()
        };
        let peers = (1..).map(PeerId).zip(ports.iter().map(address)).collect();
        Self {
            directory: tempfile::tempdir().unwrap(),
            peers,
            processes: BTreeMap::new(),
        }
    }

    fn started() -> Self {
        let mut group = Self::new(3);
        for peer in 1..=3 {
            group.start(peer).unwrap();
        }
        group
    }

    fn directory(&self, peer: u32) -> PathBuf {
        self.directory.path().join(peer.to_string())
    }

    fn address(&self, peer: u32) -> &Address {
        &self.peers[peer as usize - 1].1
    }

    fn start(&mut self, peer: u32) -> Result<(), ShellError> {
        let config = ShellConfig {
            listen: self.address(peer).clone(),
            directory: self.directory(peer),
            peer: PeerId(peer),
            peers: self.peers.clone(),
            timing: Timing::default(),
            key: None,
            settings: default_settings(),
            new_cluster: true,
        };
        let running = Running::start(&config)?;
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let until = async { drop(stopped.await) };
            runtime().block_on(running.run_until(until))
        });
        self.processes.insert(peer, Process { stop, thread });
        Ok(())
    }

    fn stop(&mut self, peer: u32) {
        let process = self.processes.remove(&peer).unwrap();
        drop(process.stop);
        process.thread.join().unwrap().unwrap();
    }

    /// Waits until a process ends by itself.
    fn ended(&mut self, peer: u32) -> ShellError {
        let process = self.processes.remove(&peer).unwrap();
        process.thread.join().unwrap().unwrap_err()
    }

    async fn try_ask(&self, peer: u32, request: &Request) -> Option<Response> {
        let address = self.address(peer).clone();
        let direct = Direct::new(address, Identity::new(None));
        let mut direct = direct.waiting(PollMode::Never, PATIENCE);
        direct.ask(request).await.ok()
    }

    async fn counters(&self, peer: u32) -> GroupCounters {
        match self.try_ask(peer, &Request::Counters).await.unwrap().answer {
            Answer::Counters(counters) => counters,
            other => panic!("{other:?}"),
        }
    }

    /// What whoever leads answers, and who that is.
    async fn ask(&self, request: &Request) -> (u32, Answer) {
        loop {
            for peer in self.processes.keys() {
                match self.try_ask(*peer, request).await.map(|r| r.answer) {
                    None | Some(Answer::Refused(Refused::NotLeader { .. })) => {}
                    Some(answer) => return (*peer, answer),
                }
            }
            // The test's own limit of time is that of the runner.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn status(&self) -> ClusterStatus {
        match self.ask(&Request::Status).await.1 {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a status.
    async fn until(&self, fits: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        loop {
            let status = self.status().await;
            if fits(&status) {
                return status;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until a coordinator has decided all that there is.
    async fn caught_up(&self, peer: u32) {
        self.until(|status| {
            let mut reports = status.coordinators.iter();
            let report = reports.find(|report| report.peer == PeerId(peer));
            report.is_some_and(|report| report.decided == Some(status.decided))
        })
        .await;
    }

    /// A client lease, to see that something is decided and stays.
    async fn lease(&self, nonce: u8) -> ClientId {
        let open = Request::OpenClientLease { nonce: [nonce; 16] };
        match self.ask(&open).await.1 {
            Answer::ClientLease { client, .. } => client,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for peer in self.processes.keys().copied().collect::<Vec<_>>() {
            let process = self.processes.remove(&peer).unwrap();
            drop(process.stop);
            drop(process.thread.join());
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn a_group_goes_on_without_its_leader_which_catches_up_later() {
    let mut group = Group::started();
    runtime().block_on(async {
        let client = group.lease(1).await;
        let before = group.status().await;
        let leader = before.leader.0;
        assert_eq!(before.coordinators.len(), 3);
        for other in (1..=3).filter(|peer| *peer != leader) {
            let redirect = group.try_ask(other, &Request::Status).await.unwrap();
            let Answer::Refused(Refused::NotLeader { coordinators, .. }) = redirect.answer else {
                panic!("{redirect:?}");
            };
            let all: Vec<_> = group.peers.iter().map(|(_, at)| at.to_string()).collect();
            assert_eq!(coordinators, all);
        }
        group.stop(leader);
        assert_eq!(group.lease(1).await, client, "its nonce is known");
        let later = group.lease(2).await;
        let status = group.status().await;
        assert_ne!(status.leader.0, leader);
        assert_eq!(status.cluster, before.cluster);
        group.start(leader).unwrap();
        group.caught_up(leader).await;
        // It counts again: without another one the group goes on.
        group.stop(status.leader.0);
        assert_eq!(group.lease(2).await, later);
    });
}

#[test]
fn a_group_whose_processes_all_stopped_goes_on() {
    let mut group = Group::started();
    runtime().block_on(async {
        let client = group.lease(1).await;
        for peer in 1..=3 {
            group.stop(peer);
        }
        for peer in 1..=3 {
            group.start(peer).unwrap();
        }
        assert_eq!(group.lease(1).await, client);
    });
}

/// Commands one at a time, each a batch: what each member counted before and after.
async fn batches(group: &Group, first: u8, commands: u8) -> Vec<(GroupCounters, GroupCounters)> {
    let mut before = Vec::new();
    for peer in 1..=3 {
        group.caught_up(peer).await;
        before.push(group.counters(peer).await);
    }
    for nonce in first..first + commands {
        group.lease(nonce).await;
    }
    let mut counted = Vec::new();
    for (peer, before) in (1..).zip(before) {
        group.caught_up(peer).await;
        counted.push((before, group.counters(peer).await));
    }
    counted
}

#[test]
fn a_batch_takes_one_round_trip_and_at_most_one_sync_at_each_member() {
    const COMMANDS: u8 = 20;
    let group = Group::started();
    runtime().block_on(async {
        group.lease(0).await;
        let mut first = 1;
        let counted = loop {
            let counted = batches(&group, first, COMMANDS).await;
            first += COMMANDS;
            // A machine that was busy elsewhere is not the steady state.
            let calm = |(before, after): &(GroupCounters, GroupCounters)| {
                (before.accepts_resent, before.elections) == (after.accepts_resent, after.elections)
            };
            if counted.iter().all(calm) {
                break counted;
            }
        };
        let commands = u64::from(COMMANDS);
        let mut leaders = 0;
        for (before, after) in counted {
            let syncs = after.syncs - before.syncs;
            // One may have been under way when it was counted first.
            assert!(syncs > 0 && syncs <= commands + 1, "{syncs} syncs");
            if after.slots == before.slots {
                assert_eq!(after.accepts_taken - before.accepts_taken, commands);
                continue;
            }
            leaders += 1;
            assert_eq!(after.commands - before.commands, commands);
            assert_eq!(after.slots - before.slots, commands);
            assert_eq!(after.accepts_sent - before.accepts_sent, 2 * commands);
        }
        assert_eq!(leaders, 1);
    });
}

#[test]
fn one_whose_directory_was_wiped_is_taken_in_again() {
    let mut group = Group::started();
    runtime().block_on(async {
        let client = group.lease(1).await;
        let leader = group.status().await.leader.0;
        let wiped = leader % 3 + 1;
        group.stop(wiped);
        std::fs::remove_dir_all(group.directory(wiped)).unwrap();
        group.start(wiped).unwrap();
        // What its former life had is less than there is from here on.
        group.lease(2).await;
        group.caught_up(wiped).await;
        group.stop(leader);
        assert_eq!(group.lease(1).await, client);
    });
}

#[test]
fn one_that_joins_takes_the_place_of_one_that_is_lost_which_ends() {
    let mut group = Group::new(4);
    let all = std::mem::take(&mut group.peers);
    group.peers = all[..3].to_vec();
    runtime().block_on(async {
        for peer in 1..=3 {
            group.start(peer).unwrap();
        }
        let client = group.lease(1).await;
        let leader = group.status().await.leader.0;
        let lost = leader % 3 + 1;
        group.stop(lost);
        group.peers = all;
        group.start(4).unwrap();
        let replace = Request::ReplaceCoordinator {
            lost: PeerId(lost),
            by: PeerId(4),
        };
        loop {
            match group.ask(&replace).await.1 {
                Answer::Noted => break,
                // It has not asked to join, or not learned enough.
                Answer::Refused(Refused::Limit(_)) => tokio::time::sleep(PAUSE).await,
                other => panic!("{other:?}"),
            }
        }
        group.stop(leader);
        assert_eq!(group.lease(1).await, client);
        group.start(lost).unwrap();
        assert!(matches!(
            group.ended(lost),
            ShellError::End(DeskEnd::Removed)
        ));
    });
}

#[test]
fn a_damaged_journal_is_refused_with_a_word_and_left_as_it_is() {
    let mut group = Group::started();
    runtime().block_on(async {
        for nonce in 0..20 {
            group.lease(nonce).await;
        }
        let leader = group.status().await.leader.0;
        let damaged = leader % 3 + 1;
        group.caught_up(damaged).await;
        group.stop(damaged);
        let path = group.directory(damaged).join("journal");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        let refused = group.start(damaged).unwrap_err().to_string();
        for word in ["journal", "damaged", "restore the directory"] {
            assert!(refused.contains(word), "{refused}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        group.lease(21).await;
        // The others have all that it had: begun anew, it comes back.
        std::fs::remove_dir_all(group.directory(damaged)).unwrap();
        group.start(damaged).unwrap();
        group.caught_up(damaged).await;
    });
}
