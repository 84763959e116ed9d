//! A server process: its core, with a simulated network, memory and time around it.
//!
//! # Invariants
//! 1. Nothing is decided here: envelopes, bytes of frames and time go between the cores and the world.
//! 2. A replayer does a few steps for each input, as many and as often as its process drew: whatever
//!    may happen between two steps of a real one may happen here.

use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use ramkeep_backup::{Backup, MemoryStore};
use ramkeep_master::core::Master;
use ramkeep_master::recovery::{Driven, RecoveryId, Replayer};
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_rpc::{Batch, Identity, Wake};
use ramkeep_server::core::{
    CONTROL_KINDS, DATA_KINDS, DataLine, LinkCarrier, Room, ServerConfig as CoreConfig, ServerCore,
    ServerOutput,
};
use ramkeep_wire::coordinator::ServerState;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party, ServerId};

use super::{Context, delivered};
use crate::connections::{Connections, Happening};
use crate::crash_points::CrashPoint;
use crate::network::{ConnectionId, NetEvent};
use crate::rng::Rng;
use crate::watch::ServerWatch;

/// Steps of one replayer for each input.
const STEPS: [usize; 4] = [1, 3, 3, 20];
/// A replayer that has work goes on after so long, microseconds.
const PACES: [u64; 5] = [30, 300, 300, 2_000, 8_000];
/// A replica is read back every so many milliseconds.
const SCRUBS: [u64; 4] = [10, 50, 200, 1_000];

/// What a server answers, without a backup and with one.
static SERVES: LazyLock<[Vec<Kind>; 2]> = LazyLock::new(|| {
    let without = [DATA_KINDS, CONTROL_KINDS].concat();
    let with = [&without, ramkeep_backup::KINDS].concat();
    [without, with]
});

/// What a server process starts with.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where it listens.
    pub address: String,
    /// What its core starts with. Boot, nonce, seed and what is drawn from it change with each start.
    pub core: CoreConfig,
}

/// Carries replication over a wire.
#[derive(Clone, Debug)]
struct WireCarrier {
    wire: WireId,
    outputs: Arc<Mutex<VecDeque<WireOutput>>>,
}

impl LinkCarrier for WireCarrier {
    fn send(&self, build: impl FnOnce(&mut Vec<u8>)) -> bool {
        let (wire, mut bytes) = (self.wire, Vec::new());
        build(&mut bytes);
        self.outputs
            .lock()
            .push_back(WireOutput::Send { wire, bytes });
        true
    }

    fn close(&self) {
        let wire = self.wire;
        self.outputs.lock().push_back(WireOutput::Close { wire });
    }
}

/// A connection with data requests.
#[derive(Debug)]
struct Line {
    data: DataLine<WireCarrier>,
    wake: Wake,
}

/// What replays, and how fast.
#[derive(Debug)]
struct Replays {
    replayers: Vec<(RecoveryId, Box<Replayer>)>,
    steps: usize,
    pace: Duration,
    /// When they go on.
    next: Micros,
}

/// A server process.
#[derive(Debug)]
pub struct ServerNode {
    address: String,
    core: ServerCore<MemoryStore, WireCarrier>,
    backup: Option<Arc<Mutex<Backup<MemoryStore>>>>,
    connections: Connections,
    lines: BTreeMap<ConnectionId, Line>,
    replays: Replays,
    /// What carriers were given.
    carried: Arc<Mutex<VecDeque<WireOutput>>>,
    stopped: bool,
    watch: ServerWatch,
}

impl ServerNode {
    /// A process that starts with the frames given, if it is a backup.
    #[must_use]
    pub fn new(config: ServerConfig, frames: Option<MemoryStore>, now: Micros) -> Self {
        let ServerConfig { address, mut core } = config;
        let mut rng = Rng::new(core.seed).fork(7);
        let replays = Replays {
            replayers: Vec::new(),
            steps: *rng.choose(&STEPS),
            pace: Duration::from_micros(*rng.choose(&PACES)),
            next: now,
        };
        core.scrub_every = Duration::from_millis(*rng.choose(&SCRUBS));
        let backup = frames.map(|store| {
            let opened = Backup::open(store, core.boot, now);
            Arc::new(Mutex::new(opened.expect("formatted by the world")))
        });
        let serves = &SERVES[usize::from(backup.is_some())];
        let core = ServerCore::new(core, backup.clone());
        let identity = Identity::new(None);
        if let Some(cluster) = core.cluster() {
            identity.set_cluster(cluster);
        }
        Self {
            address,
            core,
            backup,
            connections: Connections::new(identity, serves),
            lines: BTreeMap::new(),
            replays,
            carried: Arc::default(),
            stopped: false,
            watch: ServerWatch::default(),
        }
    }

    /// Whether it has told a client of what it looked up, since this was asked last.
    pub fn take_told(&mut self) -> bool {
        self.watch.take_told()
    }

    /// Moments of recoveries that came since this was asked last.
    pub fn take_points(&mut self) -> Vec<CrashPoint> {
        self.watch.take_points()
    }

    /// Orders that it has refused for their ballot.
    #[must_use]
    pub fn stale_orders(&self) -> u64 {
        self.watch.stale_orders()
    }

    /// Its identity; 0 until it is enlisted.
    #[must_use]
    pub fn server(&self) -> ServerId {
        self.core.me().unwrap_or_default()
    }

    /// Its master.
    #[must_use]
    pub fn master(&self) -> Option<&Master> {
        self.core.master().map(|master| &**master)
    }

    /// Its backup, to look into or to damage.
    #[must_use]
    pub fn backup(&self) -> Option<MutexGuard<'_, Backup<MemoryStore>>> {
        self.backup.as_ref().map(|backup| backup.lock())
    }

    /// Whether it has asked the coordinator to record a replication epoch, and waits for the answer.
    #[must_use]
    pub fn asks_for_a_record(&self) -> bool {
        self.core.asks_for_a_record()
    }

    /// Whether it has heard that a server was decided crashed.
    #[must_use]
    pub fn knows_crashed(&self, server: ServerId) -> bool {
        let list = self.core.list();
        let listed = list.and_then(|list| list.servers.iter().find(|e| e.server == server));
        // A process that dies before it is enlisted holds nothing under its own name.
        server == ServerId(0) || listed.is_some_and(|e| e.state == ServerState::Crashed)
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The frames that a kill leaves.
    #[must_use]
    pub fn into_frames(self) -> Option<MemoryStore> {
        let backup = self.backup;
        drop(self.core);
        let backup = Arc::into_inner(backup?).expect("the core's is gone");
        Some(backup.into_inner().into_store())
    }

    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        self.look_at_frames(false);
        self.core.start(context.now, vec![self.address.clone()]);
        self.act(context);
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let connections = self.connections.next_timeout();
        let replays = (!self.replays.replayers.is_empty()).then_some(self.replays.next);
        let all = [self.core.next_timeout(), connections, replays];
        all.into_iter().flatten().min().filter(|_| !self.stopped)
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        let news = self.connections.handle_tick(context);
        news.into_iter().for_each(|one| self.hear(context, one));
        self.core.handle_tick(context.now);
        self.act(context);
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        if !self.stopped {
            let news = self.connections.handle(context, event);
            news.into_iter().for_each(|one| self.hear(context, one));
            self.act(context);
        }
    }

    fn hear(&mut self, context: &mut Context<'_>, happening: Happening) {
        let now = context.now;
        match happening {
            Happening::Up {
                wire, local, peer, ..
            } => {
                let outputs = self.carried.clone();
                let carrier = || Some(WireCarrier { wire, outputs });
                self.core.handle_up(now, wire, local, peer, carrier);
            }
            Happening::Received { wire, bytes } => self.receive(now, wire, &bytes),
            Happening::Down { wire, end } => self.core.handle_down(now, wire, &end),
            Happening::Accepted { .. } => {}
            Happening::Request { inbound, bytes } => self.request(context, inbound, &bytes),
            Happening::Gone { inbound, .. } => self.gone(inbound),
        }
    }

    fn gone(&mut self, inbound: ConnectionId) {
        self.lines.remove(&inbound);
        self.watch.gone(inbound);
    }

    fn receive(&mut self, now: Micros, wire: WireId, bytes: &[u8]) {
        let envelope = delivered(bytes);
        match self.core.plane() {
            Some(plane) if Room::of(wire) == Some(Room::Links) => {
                let (links, master) = (plane.links(), plane.master());
                let all = links.all();
                let link = all.iter().find(|link| link.number() == wire.number);
                if link.is_some_and(|link| links.handle_received(now, master, link, &envelope)) {
                    plane.pump(now);
                }
            }
            _ => self.core.handle_received(now, wire, &envelope),
        }
        self.look_at_frames(true);
    }

    fn request(&mut self, context: &mut Context<'_>, inbound: ConnectionId, bytes: &[u8]) {
        let (now, envelope, mut out) = (context.now, delivered(bytes), Vec::new());
        let kind = envelope.header.kind;
        let answered = if DATA_KINDS.contains(&kind) {
            self.watch.asked(inbound, &envelope);
            let answered = self.data(now, inbound, bytes, &mut out);
            self.watch.told(inbound, &out);
            answered
        } else if CONTROL_KINDS.contains(&kind) {
            let mut batch = Batch::new(bytes);
            self.core.handle_requests(now, &mut batch, &mut out)
        } else {
            let backup = self.backup.as_ref().expect("nothing else is served");
            backup.lock().answer(now, &envelope, &mut out)
        };
        self.watch.answered(&envelope, &out);
        self.look_at_frames(kind == Kind::Order);
        self.connections.send_inbound(context, inbound, &out);
        if let Err(refusal) = answered {
            self.connections.refuse_inbound(context, inbound, &refusal);
            self.gone(inbound);
        }
    }

    fn data(
        &mut self,
        now: Micros,
        inbound: ConnectionId,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let line = match self.lines.entry(inbound) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let wake = Wake::new();
                let data = self.core.open_line(wake.clone())?;
                new.insert(Line { data, wake })
            }
        };
        line.data.handle(&mut Batch::new(bytes), out, &|| now)
    }

    /// Does all that the core wants, and what comes of that.
    fn act(&mut self, context: &mut Context<'_>) {
        self.replay(context.now);
        loop {
            self.perform_all(context);
            let Some(carried) = self.carried.lock().pop_front() else {
                break;
            };
            if let WireOutput::Close { wire } = carried {
                let end = WireEnd::Closed("it was closed here".to_owned());
                self.core.handle_down(context.now, wire, &end);
            }
            self.connections.perform(context, carried);
        }
        self.release(context);
    }

    fn perform_all(&mut self, context: &mut Context<'_>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                ServerOutput::Wire(output) => self.connections.perform(context, output),
                ServerOutput::Adopt { cluster, server } => {
                    context.say(format_args!("enlisted as {server:?} at {}", self.address));
                    self.connections.identity().set_cluster(cluster);
                    self.connections.identity().set_party(Party::server(server));
                }
                ServerOutput::StartReplay(id, replayer) => {
                    self.replays.replayers.push((id, replayer));
                }
                ServerOutput::Pump => {
                    let plane = self.core.plane().expect("a master is pumped");
                    plane.pump(context.now);
                }
                ServerOutput::End(end) => {
                    context.say(format_args!("{:?} ends: {end}", self.server()));
                    self.connections.stop(context);
                    self.stopped = true;
                }
            }
        }
    }

    /// A few steps of each replayer.
    fn replay(&mut self, now: Micros) {
        let Some(master) = self.core.master().cloned() else {
            return;
        };
        self.replays.next = now + self.replays.pace;
        let (most, watch, mut told) = (self.replays.steps, &mut self.watch, false);
        self.replays.replayers.retain_mut(|(id, replayer)| {
            for _ in 0..most {
                match replayer.drive(*id, master.store(), || master.recoveries()) {
                    Driven::Worked => {}
                    Driven::Told => told = true,
                    Driven::WaitsForBackups | Driven::WaitsForSegments => return true,
                    Driven::Ended => return false,
                    Driven::Finished(end) => {
                        watch.replayed(end);
                        return false;
                    }
                }
            }
            true
        });
        if told {
            self.core.handle_tick(now);
        }
    }

    /// Has those connections look again that were woken, or asked for it.
    fn release(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        for (inbound, line) in &mut self.lines {
            let woken = line.wake.take() || line.data.wants_a_turn();
            if !woken || !line.data.holds() {
                continue;
            }
            let mut out = Vec::new();
            line.data.release(&mut out, &|| now);
            self.watch.told(*inbound, &out);
            self.connections.send_inbound(context, *inbound, &out);
        }
        if let Some(master) = self.core.master() {
            self.watch.durable(master.store().durability().position());
        }
    }

    fn look_at_frames(&mut self, may_be_a_list: bool) {
        if let Some(backup) = &self.backup {
            self.watch.freed(&backup.lock(), may_be_a_list);
        }
    }
}
