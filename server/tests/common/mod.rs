//! A leader of coordinators, played over sockets, and a server that enlists with it.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::sync::Arc;

use ramkeep_rpc::{Batch, Identity, Peer, PollMode, Router, Serving, Session, Wake, WorkerPool};
use ramkeep_server::shell::{ServerOptions, ServerShell};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{
    Answer, Request, Response, Roles, ServerEntry, ServerList, ServerState, Settings, Symptom,
};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{
    Ballot, ClusterId, EndedClients, ListVersion, Micros, Party, PeerId, ServerId, postcards,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

pub(crate) const CLUSTER: ClusterId = ClusterId([1; 16]);

/// What the leader was told.
pub(crate) type Told = (ServerId, Symptom);

/// A master without backups, which the leader lets live for as long as a test takes.
pub(crate) fn settings(segment_size: u32) -> Settings {
    Settings {
        replicas: 0,
        lease_us: 200_000,
        backup_wait_us: 2_000_000,
        heartbeat_us: 100_000,
        suspect_us: 500_000,
        segment_size,
    }
}

pub(crate) fn entry(server: ServerId, state: ServerState, addresses: Vec<String>) -> ServerEntry {
    ServerEntry {
        server,
        roles: Roles {
            master: true,
            backup: true,
        },
        addresses,
        state,
        replaces: None,
        recovered: false,
    }
}

pub(crate) fn list(servers: Vec<ServerEntry>) -> ServerList {
    ServerList {
        version: ListVersion(1),
        servers,
    }
}

/// The leader, who makes everybody who comes this server.
#[derive(Clone)]
struct Leader {
    server: ServerId,
    settings: Settings,
    list: ServerList,
    told: UnboundedSender<Told>,
}

impl Leader {
    fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Enlist(_) => Answer::Enlisted {
                server: self.server,
                cluster: CLUSTER,
                key: CertificateKey([1; 32]),
                settings: self.settings.clone(),
                list: self.list.clone(),
            },
            Request::Heartbeat(report) => {
                assert_eq!(report.server, self.server);
                Answer::Heard {
                    list: None,
                    lease_us: u32::MAX,
                    ended: EndedClients::default(),
                    over: Vec::new(),
                }
            }
            Request::Suspect {
                server,
                by,
                symptom,
            } => {
                assert_eq!(by, self.server);
                // The test has heard enough when nobody listens.
                let _ = self.told.send((server, symptom));
                Answer::Noted
            }
            other => panic!("{other:?}"),
        }
    }
}

impl Session for Leader {
    fn handle_batch(
        &mut self,
        _: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for asked in batch {
            let response = Response {
                ballot: Ballot::default(),
                group: None,
                answer: self.answer(postcards::decode(asked.payload).unwrap()),
            };
            let header = asked.header.reply(Kind::CoordinatorResponse);
            envelope::append(out, header, &postcards::encode(&response));
        }
        Ok(())
    }

    fn poll(&mut self, _: Micros, _: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

/// A master on workers of its own, enlisted.
pub(crate) struct Running {
    pub(crate) shell: Arc<ServerShell>,
    pub(crate) serving: Serving,
    pub(crate) told: UnboundedReceiver<Told>,
    _leader: Serving,
    _pool: WorkerPool,
}

impl Running {
    /// Enlists as `server`, with this server list.
    pub(crate) async fn start(
        server: ServerId,
        settings: Settings,
        list: ServerList,
        memory: u64,
        mode: PollMode,
    ) -> Self {
        let pool = WorkerPool::start(1, mode).unwrap();
        let (tell, told) = unbounded_channel();
        let leader = Leader {
            server,
            settings,
            list,
            told: tell,
        };
        let open = move |_: &Peer, _: Wake| -> Box<dyn Session> { Box::new(leader.clone()) };
        let router = Router::new().route(&[Kind::CoordinatorRequest], Arc::new(open));
        let party = Party::coordinator(PeerId(1));
        let identity = Identity::new(None).with_cluster(CLUSTER).with_party(party);
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let leader = pool.serve(&anywhere, &identity, router).unwrap();
        let options = ServerOptions {
            roles: Roles {
                master: true,
                backup: false,
            },
            coordinators: vec![leader.address().to_string()],
            memory,
            prefault: false,
        };
        let identity = Identity::new(None);
        let runtime = pool.runtime().clone();
        let shell = ServerShell::new(options, None, identity.clone(), runtime).unwrap();
        let serving = pool.serve(&anywhere, &identity, shell.router()).unwrap();
        let addresses = vec![serving.address().to_string()];
        pool.runtime().spawn(shell.clone().run(addresses));
        assert_eq!(shell.joined().await, server);
        Self {
            shell,
            serving,
            told,
            _leader: leader,
            _pool: pool,
        }
    }

    /// What the master says to an order.
    pub(crate) fn order(&self, command: Command) -> OrderReply {
        let ballot = Ballot::default();
        let master = self.shell.plane().unwrap().master();
        master.handle_order(Order { ballot, command })
    }
}
