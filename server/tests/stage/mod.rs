//! A server's core without sockets: the test is the leader, the other servers and the time.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_backup::{Backup, Frames, Geometry, MemoryStore};
use ramkeep_rpc::Batch;
use ramkeep_rpc::Identity;
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_server::core::{
    BackupLink, LinkCarrier, RECONNECT, Room, SCRUB_EVERY, ServerConfig, ServerCore, ServerEnd,
    ServerOutput,
};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{
    Answer, Heartbeat, Refused, Request, Response, Roles, ServerEntry, ServerList, ServerState,
    Settings,
};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{
    Ballot, BootId, ClusterId, EndedClients, ListVersion, Micros, Party, PeerId, ServerId,
    postcards,
};

pub(crate) const CLUSTER: ClusterId = ClusterId([1; 16]);
pub(crate) const ME: ServerId = ServerId(7);
pub(crate) const LEASE: Duration = Duration::from_millis(200);
const SEGMENT: u32 = 64 << 10;
const LEADER: Party = Party(2 << 62 | 1);

pub(crate) const BOTH: Roles = Roles {
    master: true,
    backup: true,
};
pub(crate) const ONLY_BACKUP: Roles = Roles {
    master: false,
    backup: true,
};

/// Notes what a master sends to a backup.
#[derive(Clone, Debug)]
pub(crate) struct Notes {
    pub(crate) wire: WireId,
    pub(crate) sent: Arc<Mutex<VecDeque<Vec<u8>>>>,
    pub(crate) is_closed: Arc<Mutex<bool>>,
}

impl LinkCarrier for Notes {
    fn send(&self, build: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut bytes = Vec::new();
        build(&mut bytes);
        self.sent.lock().push_back(bytes);
        !*self.is_closed.lock()
    }

    fn close(&self) {
        *self.is_closed.lock() = true;
    }
}

/// A connection that the server asked for.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) room: Room,
    pub(crate) wire: WireId,
    pub(crate) to: Party,
}

/// An envelope that it sent, but for replication.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) wire: WireId,
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Stage {
    pub(crate) core: ServerCore<MemoryStore, Notes>,
    pub(crate) now: Micros,
    /// Under which the leader answers.
    pub(crate) ballot: Ballot,
    /// What the leader says to enlistments and reports; the list is told to who has another.
    pub(crate) list: ServerList,
    pub(crate) refuses: Option<Refused>,
    pub(crate) settings: Settings,
    /// What the leader was asked.
    pub(crate) requests: Vec<Request>,
    pub(crate) connects: Vec<Asked>,
    pub(crate) sent: VecDeque<Sent>,
    pub(crate) closed: Vec<WireId>,
    pub(crate) adopted: Vec<ServerId>,
    /// The coordinators are of this cluster, which is another.
    pub(crate) strangers: Option<ClusterId>,
    /// Other clusters that it was said to have met, as often as it was said.
    pub(crate) foreign: Vec<ClusterId>,
    pub(crate) ends: Vec<ServerEnd>,
    /// The carriers of links to backups, by the order in which they came up.
    pub(crate) carriers: Vec<Notes>,
}

pub(crate) fn ballot(round: u64) -> Ballot {
    let peer = PeerId(1);
    Ballot { round, peer }
}

pub(crate) fn entry(id: u64, state: ServerState) -> ServerEntry {
    ServerEntry {
        server: ServerId(id),
        roles: BOTH,
        addresses: vec![format!("server-{id}")],
        state,
        replaces: None,
        recovered: false,
    }
}

pub(crate) fn list(version: u64, servers: &[(u64, ServerState)]) -> ServerList {
    let servers = servers.iter().map(|(id, state)| entry(*id, *state));
    ServerList {
        version: ListVersion(version),
        servers: servers.collect(),
    }
}

/// A backup's frames, empty.
pub(crate) fn frames() -> Backup<MemoryStore> {
    let mut store = MemoryStore::new(Geometry::new(16, SEGMENT).unwrap());
    let boot = BootId([1; 16]);
    Frames::format(&mut store, boot).unwrap();
    Backup::open(store, boot, Micros(0)).unwrap()
}

impl Stage {
    /// A process that has not begun. The leader knows of nobody else.
    pub(crate) fn new(roles: Roles, replicas: u8) -> Self {
        let config = ServerConfig {
            roles,
            coordinators: vec!["leader".to_owned()],
            memory: 8 << 20,
            boot: BootId([1; 16]),
            nonce: [3; 16],
            seed: 5,
            reconnect: RECONNECT,
            scrub_every: SCRUB_EVERY,
        };
        let settings = Settings {
            replicas,
            lease_us: LEASE.as_micros() as u32,
            backup_wait_us: 2_000_000,
            heartbeat_us: 100_000,
            suspect_us: 500_000,
            segment_size: SEGMENT,
        };
        let backup = roles.backup.then(|| Arc::new(Mutex::new(frames())));
        Self {
            core: ServerCore::new(config, Identity::new(None), backup),
            now: Micros(1_000_000),
            ballot: ballot(5),
            list: list(1, &[(ME.0, ServerState::Joining)]),
            refuses: None,
            settings,
            requests: Vec::new(),
            connects: Vec::new(),
            sent: VecDeque::new(),
            closed: Vec::new(),
            adopted: Vec::new(),
            strangers: None,
            foreign: Vec::new(),
            ends: Vec::new(),
            carriers: Vec::new(),
        }
    }

    /// A server that is enlisted, under the list given.
    pub(crate) fn enlisted(roles: Roles, replicas: u8, list: ServerList) -> Self {
        let mut stage = Self::new(roles, replicas);
        stage.list = list;
        stage.start();
        assert_eq!(stage.core.me(), Some(ME));
        stage.run(Duration::ZERO);
        stage
    }

    pub(crate) fn start(&mut self) {
        self.core.start(self.now, vec!["server-7".to_owned()]);
        self.drain();
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(due) = self.core.next_timeout().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.core.handle_tick(self.now);
            self.drain();
        }
        self.now = until;
    }

    /// Does what the core wants; the leader answers at once.
    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                ServerOutput::Wire(output) => self.handle_wire(output),
                ServerOutput::Foreign { theirs, .. } => self.foreign.push(theirs),
                ServerOutput::Adopt { server } => self.adopted.push(server),
                ServerOutput::Pump => {
                    let plane = self.core.plane().unwrap().clone();
                    plane.pump(self.now);
                }
                ServerOutput::StartReplay(..) => {}
                ServerOutput::End(end) => self.ends.push(end),
            }
        }
    }

    fn handle_wire(&mut self, output: WireOutput) {
        match output {
            WireOutput::Connect { wire, to, .. } => {
                let room = Room::of(wire).unwrap();
                self.connects.push(Asked { room, wire, to });
                match self.strangers {
                    _ if room != Room::Control => {}
                    None => self.up(wire, LEADER),
                    Some(cluster) => {
                        let end = WireEnd::Refused(Refusal::Cluster(cluster));
                        self.core.handle_down(self.now, wire, &end);
                    }
                }
            }
            WireOutput::Close { wire } => self.closed.push(wire),
            WireOutput::Send { wire, bytes } => {
                assert_ne!(Room::of(wire), Some(Room::Links));
                let mut rest = &bytes[..];
                while let Some((envelope, len)) = envelope::parse(rest).unwrap() {
                    let (header, payload) = (envelope.header, envelope.payload.to_vec());
                    rest = &rest[len..];
                    match header.kind {
                        Kind::CoordinatorRequest => self.lead(wire, header, &payload),
                        _ => self.sent.push_back(Sent {
                            wire,
                            header,
                            payload,
                        }),
                    }
                }
            }
        }
    }

    fn lead(&mut self, wire: WireId, header: Header, payload: &[u8]) {
        let request: Request = postcards::decode(payload).unwrap();
        let answer = match (&self.refuses, &request) {
            (Some(refused), _) => Answer::Refused(refused.clone()),
            (None, Request::Enlist(_)) => Answer::Enlisted {
                server: ME,
                cluster: CLUSTER,
                key: CertificateKey([1; 32]),
                settings: self.settings.clone(),
                list: self.list.clone(),
            },
            (None, Request::Heartbeat(report)) => Answer::Heard {
                list: (report.list != self.list.version).then(|| self.list.clone()),
                lease_us: 0,
                ended: EndedClients::default(),
                over: Vec::new(),
            },
            (None, Request::RecordEpoch { .. }) => Answer::EpochRecorded,
            (None, _) => Answer::Noted,
        };
        self.requests.push(request);
        let ballot = self.ballot;
        let payload = postcards::encode(&Response::new(ballot, answer));
        self.receive(wire, header.reply(Kind::CoordinatorResponse), &payload);
    }

    fn me(&self) -> Party {
        self.core.me().map_or(Party::NONE, Party::server)
    }

    /// A connection is there.
    pub(crate) fn up(&mut self, wire: WireId, peer: Party) {
        let carrier = Notes {
            wire,
            sent: Arc::default(),
            is_closed: Arc::default(),
        };
        let (now, me) = (self.now, self.me());
        let mut taken = None;
        self.core.handle_up(now, wire, (me, peer), CLUSTER, || {
            taken = Some(carrier.clone());
            Some(carrier)
        });
        self.carriers.extend(taken);
        self.drain();
    }

    /// A connection has ended, or could not be made.
    pub(crate) fn down(&mut self, wire: WireId, end: &WireEnd) {
        self.core.handle_down(self.now, wire, end);
        self.drain();
    }

    pub(crate) fn receive(&mut self, wire: WireId, header: Header, payload: &[u8]) {
        let mut bytes = Vec::new();
        envelope::append(&mut bytes, header, payload);
        let (envelope, _) = envelope::parse(&bytes).unwrap().unwrap();
        self.core.handle_received(self.now, wire, &envelope);
        self.drain();
    }

    /// Sends an envelope to the server's port.
    pub(crate) fn ask(
        &mut self,
        kind: Kind,
        from: Party,
        payload: &[u8],
    ) -> Result<Vec<u8>, Refusal> {
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        let header = Header::new(kind, 1, self.me(), from);
        envelope::append(&mut bytes, header, payload);
        let mut batch = Batch::new(&bytes);
        self.core.handle_requests(self.now, &mut batch, &mut out)?;
        self.drain();
        let (reply, _) = envelope::parse(&out).unwrap().unwrap();
        assert_eq!(reply.header.kind.answers(), Some(kind));
        Ok(reply.payload.to_vec())
    }

    /// Gives an order under the ballot of this round.
    pub(crate) fn order(&mut self, round: u64, command: Command) -> OrderReply {
        let order = Order {
            ballot: ballot(round),
            command,
        };
        let reply = self.ask(Kind::Order, LEADER, &postcards::encode(&order));
        postcards::decode(&reply.unwrap()).unwrap()
    }

    /// The connections of a room that were asked for since this was looked at last.
    pub(crate) fn take_connects(&mut self, room: Room) -> Vec<Asked> {
        let (taken, left) = std::mem::take(&mut self.connects)
            .into_iter()
            .partition(|asked| asked.room == room);
        self.connects = left;
        taken
    }

    /// The reports that were made since this was looked at last.
    pub(crate) fn take_reports(&mut self) -> Vec<Heartbeat> {
        let requests = std::mem::take(&mut self.requests);
        let reports = requests.into_iter().filter_map(|request| match request {
            Request::Heartbeat(report) => Some(report),
            _ => None,
        });
        reports.collect()
    }

    /// The links to backups that are current.
    pub(crate) fn links(&self) -> Vec<BackupLink<Notes>> {
        let plane = self.core.plane().unwrap();
        plane.links().all().to_vec()
    }

    /// An envelope comes over a link to a backup.
    pub(crate) fn acknowledge(&self, link: &BackupLink<Notes>, bytes: &[u8]) {
        let plane = self.core.plane().unwrap();
        let (envelope, _) = envelope::parse(bytes).unwrap().unwrap();
        let (links, master) = (plane.links(), plane.master());
        assert!(links.handle_received(self.now, master, link, &envelope));
        plane.pump(self.now);
    }
}
