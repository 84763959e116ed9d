//! The process: real files, real sockets, and a server made of one thread of this test.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]
#![cfg(feature = "shell")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use paxos::limits::Timing;
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::shell::{Running, ShellConfig, ShellError};
use ramkeep_rpc::{
    Address, Batch, Caller, Identity, Link, Peer, PollMode, Router, Serving, Session, Wake,
    WorkerPool,
};
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::{Certificate, SegmentKind};
use ramkeep_wire::coordinator::{
    Answer, Enlist, Heartbeat, RecoveryReport, Refused, Request, Response, ServerState, TabletState,
};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::order::{Command as OrderCommand, Order, OrderReply};
use ramkeep_wire::{
    Ballot, BootId, ListVersion, LogPosition, MapVersion, Micros, Party, PeerId, ReplicationEpoch,
    SegmentId, ServerId, postcards,
};

const PATIENCE: Duration = Duration::from_secs(10);

fn config(directory: &Path) -> ShellConfig {
    ShellConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        directory: directory.to_owned(),
        peer: PeerId(1),
        peers: Vec::new(),
        timing: Timing::default(),
        key: None,
        settings: default_settings(),
        new_cluster: true,
    }
}

/// A coordinator in a thread of its own, stopped when dropped.
struct Process {
    address: Address,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Process {
    fn start(directory: &Path) -> Result<Self, ShellError> {
        let running = Running::start(&config(directory))?;
        let address = running.address().clone();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let until = async { drop(stopped.await) };
            runtime.unwrap().block_on(running.run_until(until)).unwrap();
        });
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Answers orders as a master does.
struct FakeServer {
    ballot: Arc<Mutex<Ballot>>,
    probes: Arc<AtomicU64>,
}

impl Session for FakeServer {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for envelope in batch.by_ref() {
            if envelope.header.kind == Kind::BackupRequest {
                self.show(&envelope.header, envelope.payload, out);
                continue;
            }
            let order: Order = postcards::decode(envelope.payload).unwrap();
            *self.ballot.lock() = order.ballot;
            let reply = match order.command {
                OrderCommand::TakeTablets(grants) => {
                    OrderReply::Taken(grants.iter().map(|_| Some(LogPosition(9))).collect())
                }
                OrderCommand::TakeRecovered(recovered) => {
                    OrderReply::Taken(recovered.iter().map(|one| Some(one.takeover)).collect())
                }
                OrderCommand::Probe => {
                    self.probes.fetch_add(1, Ordering::Relaxed);
                    OrderReply::Done
                }
                OrderCommand::DropTables(_) | OrderCommand::UpdateServers(_) => OrderReply::Done,
                OrderCommand::Recover(_) => OrderReply::NotReady,
            };
            let header = envelope.header.reply(Kind::OrderReply);
            envelope::append(out, header, &postcards::encode(&reply));
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

impl FakeServer {
    /// Holds a replica of whatever master, from before its machine was started anew.
    fn show(&self, header: &Header, payload: &[u8], out: &mut Vec<u8>) {
        let BackupRequest::Inventory { master, .. } = postcards::decode(payload).unwrap() else {
            panic!("asked for the bytes of a replica that proves nothing");
        };
        let replica = ReplicaInfo {
            master,
            segment: SegmentId(1),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(1),
            length: 1,
            closed: false,
            certificate: Certificate::NONE,
            boot: BootId([9; 16]),
            inherited: true,
        };
        let response = BackupResponse::Inventory(vec![replica]);
        let header = header.reply(Kind::BackupResponse);
        envelope::append(out, header, &postcards::encode(&response));
    }
}

struct Server {
    identity: Identity,
    ballot: Arc<Mutex<Ballot>>,
    probes: Arc<AtomicU64>,
    serving: Serving,
    _pool: WorkerPool,
}

impl Server {
    fn start() -> Self {
        let identity = Identity::new(None);
        let pool = WorkerPool::start(1, PollMode::Never).unwrap();
        let ballot = Arc::<Mutex<Ballot>>::default();
        let probes = Arc::<AtomicU64>::default();
        let (of_session, counted) = (Arc::clone(&ballot), Arc::clone(&probes));
        let open = move |_: &Peer, _: Wake| -> Box<dyn Session> {
            Box::new(FakeServer {
                ballot: of_session.clone(),
                probes: counted.clone(),
            })
        };
        let router = Router::new().route(&[Kind::Order, Kind::BackupRequest], Arc::new(open));
        let any = "127.0.0.1:0".parse().unwrap();
        let serving = pool.serve(&any, &identity, router).unwrap();
        Self {
            identity,
            ballot,
            probes,
            serving,
            _pool: pool,
        }
    }

    /// Enlists and reports as ready.
    async fn join(&self, caller: &Caller) -> ServerId {
        self.join_as(caller, 3).await
    }

    async fn join_as(&self, caller: &Caller, nonce: u8) -> ServerId {
        let address = self.serving.address().to_string();
        let request = Request::Enlist(Enlist::server([nonce; 16], address));
        let Answer::Enlisted {
            server, cluster, ..
        } = ask(caller, &request).await.answer
        else {
            panic!("not enlisted");
        };
        self.identity.join(cluster);
        self.identity.set_party(Party::server(server));
        assert!(matches!(beat(caller, server).await, Answer::Heard { .. }));
        server
    }
}

async fn connect(process: &Process) -> Caller {
    let identity = Identity::new(None);
    let link = Link::connect(&process.address, &identity, Party::NONE, PollMode::Never).await;
    let caller = Caller::new(link.unwrap());
    // It leads once its disk has that it does.
    while let Answer::Refused(Refused::NotLeader { .. }) =
        ask(&caller, &Request::Status).await.answer
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    caller
}

async fn ask(caller: &Caller, request: &Request) -> Response {
    let payload = postcards::encode(request);
    let answer = caller
        .call(Kind::CoordinatorRequest, &payload, PATIENCE)
        .await;
    postcards::decode(&answer.unwrap()).unwrap()
}

async fn beat(caller: &Caller, server: ServerId) -> Answer {
    let heartbeat = Heartbeat::of(server);
    ask(caller, &Request::Heartbeat(heartbeat)).await.answer
}

async fn state_of(caller: &Caller, server: ServerId) -> ServerState {
    let request = Request::Servers {
        known: ListVersion(0),
    };
    let Answer::Servers(Some(list)) = ask(caller, &request).await.answer else {
        panic!("no list");
    };
    list.servers
        .iter()
        .find(|entry| entry.server == server)
        .unwrap()
        .state
}

async fn create(caller: &Caller) -> Answer {
    ask(
        caller,
        &Request::CreateTable {
            name: "t".into(),
            once: None,
        },
    )
    .await
    .answer
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(test);
}

#[test]
fn a_table_is_served_when_its_owner_has_taken_it_and_stays_through_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let process = Process::start(directory.path()).unwrap();
        let caller = connect(&process).await;
        assert_eq!(create(&caller).await, Answer::Refused(Refused::NoMaster));
        let server = Server::start();
        let id = server.join(&caller).await;
        while state_of(&caller, id).await != ServerState::Up {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let Answer::Table(table) = create(&caller).await else {
            panic!("no table");
        };
        assert_eq!(
            (table.tablets[0].owner, table.tablets[0].state),
            (id, TabletState::Normal)
        );
        let before = *server.ballot.lock();
        drop((caller, process));

        let process = Process::start(directory.path()).unwrap();
        let caller = connect(&process).await;
        let response = ask(
            &caller,
            &Request::Map {
                known: MapVersion(0),
            },
        )
        .await;
        assert!(response.ballot > before);
        let Answer::Map(Some(map)) = response.answer else {
            panic!("no map");
        };
        assert_eq!(map.tables, [table]);
        assert_eq!(state_of(&caller, id).await, ServerState::Up);
        let Answer::Dropped = ask(
            &caller,
            &Request::DropTable {
                name: "t".into(),
                once: None,
            },
        )
        .await
        .answer
        else {
            panic!("not dropped");
        };
        assert_eq!(*server.ballot.lock(), response.ballot);
    });
}

#[test]
fn a_server_whose_port_is_closed_is_decided_crashed() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let process = Process::start(directory.path()).unwrap();
        let caller = connect(&process).await;
        let server = Server::start();
        let id = server.join(&caller).await;
        server.serving.stop(Duration::ZERO).await;
        // The test's own limit of time is that of the runner.
        while state_of(&caller, id).await != ServerState::Crashed {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(beat(&caller, id).await, Answer::Refused(Refused::Crashed));
    });
}

#[test]
fn the_backups_are_asked_what_they_hold_of_a_crashed_master() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let process = Process::start(directory.path()).unwrap();
        let caller = connect(&process).await;
        let master = Server::start();
        let id = master.join_as(&caller, 3).await;
        assert!(matches!(create(&caller).await, Answer::Table(_)));
        let backup = Server::start();
        let other = backup.join_as(&caller, 4).await;
        master.serving.stop(Duration::ZERO).await;
        let report = loop {
            beat(&caller, other).await;
            let Answer::Status(status) = ask(&caller, &Request::Status).await.answer else {
                panic!("no status");
            };
            let stuck = |report: &RecoveryReport| report.master == id && report.stuck;
            if let Some(report) = status.recoveries.into_iter().find(stuck) {
                break report;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(report.phase.contains("segment-1 at server-2"), "{report:?}");
        assert_eq!(report.tablets, 1);
    });
}

#[test]
fn a_silent_server_that_answers_probes_stays() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let process = Process::start(directory.path()).unwrap();
        let caller = connect(&process).await;
        let server = Server::start();
        let id = server.join(&caller).await;
        while server.probes.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_ne!(state_of(&caller, id).await, ServerState::Crashed);
    });
}

#[test]
fn two_processes_never_share_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let process = Process::start(directory.path()).unwrap();
    assert!(matches!(
        Process::start(directory.path()),
        Err(ShellError::Files(_))
    ));
    drop(process);
    assert!(Process::start(directory.path()).is_ok());
}

#[test]
fn what_is_no_request_closes_the_connection_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let process = Process::start(directory.path()).unwrap();
        for payload in [&b""[..], &[0xff; 40], &[0; 100_000]] {
            let caller = connect(&process).await;
            assert!(
                caller
                    .call(Kind::CoordinatorRequest, payload, PATIENCE)
                    .await
                    .is_err()
            );
        }
        let caller = connect(&process).await;
        assert!(matches!(
            ask(&caller, &Request::Status).await.answer,
            Answer::Status(_)
        ));
    });
}
