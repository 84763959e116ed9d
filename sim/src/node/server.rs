//! A server process: its core, with a simulated network, memory and time around it.
//!
//! # Invariants
//! 1. Nothing is decided here: envelopes, bytes of frames and time go between the cores and the world.
//! 2. A replayer does a few steps for each input, as many and as often as its process drew: whatever
//!    may happen between two steps of a real one may happen here.

use std::collections::btree_map::{BTreeMap, Entry};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use ramkeep_backup::{Backup, MemoryStore};
use ramkeep_master::core::Master;
use ramkeep_master::recovery::{Driven, RecoveryId, Replayer};
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_rpc::{Batch, Identity, Wake};
use ramkeep_server::core::{
    CONTROL_KINDS, DATA_KINDS, DataLine, Room, ServerConfig, ServerCore, ServerOutput, serves,
};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, ServerId};

use super::{Context, delivered};
use crate::connections::{Carried, Connections, Happening, WireCarrier};
use crate::network::{ConnectionId, NetEvent};
use crate::rng::Rng;
use crate::watch::ServerWatch;

/// Steps of one replayer for each input.
const STEPS: [usize; 4] = [1, 3, 3, 20];
/// A replayer that has work goes on after so long, microseconds.
const PACES: [u64; 5] = [30, 300, 300, 2_000, 8_000];
/// A replica is read back every so many milliseconds.
const SCRUBS: [u64; 4] = [10, 50, 200, 1_000];

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
    /// The server itself.
    pub core: ServerCore<MemoryStore, WireCarrier>,
    connections: Connections,
    lines: BTreeMap<ConnectionId, Line>,
    replays: Replays,
    carried: Carried,
    stopped: bool,
    /// What was seen of it.
    pub watch: ServerWatch,
}

impl ServerNode {
    /// A process that listens at `address` and starts with the frames given, if it is a backup. What
    /// is drawn from the seed is its own.
    #[must_use]
    pub fn new(
        address: String,
        mut config: ServerConfig,
        frames: Option<MemoryStore>,
        now: Micros,
    ) -> Self {
        let mut rng = Rng::new(config.seed).fork(7);
        let replays = Replays {
            replayers: Vec::new(),
            steps: *rng.choose(&STEPS),
            pace: Duration::from_micros(*rng.choose(&PACES)),
            next: now,
        };
        config.scrub_every = Duration::from_millis(*rng.choose(&SCRUBS));
        let open = |store| Backup::open(store, config.boot, now).expect("formatted by the world");
        let backup = frames.map(|store| Arc::new(Mutex::new(open(store))));
        let serves = serves(config.roles);
        let identity = Identity::new(None);
        let core = ServerCore::new(config, identity.clone(), backup);
        Self {
            address,
            core,
            connections: Connections::new(identity, serves),
            lines: BTreeMap::new(),
            replays,
            carried: Carried::default(),
            stopped: false,
            watch: ServerWatch::default(),
        }
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
        self.core.backup().map(|backup| backup.lock())
    }

    /// Whether it has ended by itself.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The frames that a kill leaves.
    #[must_use]
    pub fn into_frames(self) -> Option<MemoryStore> {
        let backup = self.core.backup().cloned();
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
                wire,
                local,
                peer,
                cluster,
            } => {
                let carrier = || Some(self.carried.over(wire));
                (self.core).handle_up(now, wire, (local, peer), cluster, carrier);
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
                if plane.handle_received(now, wire.number, &envelope) {
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
            let backup = self.core.backup().expect("nothing else is served");
            backup.lock().answer(now, &envelope, &mut out)
        };
        let backup = self.core.backup().map(|backup| backup.lock());
        self.watch.answered(&envelope, &out, backup.as_deref());
        drop(backup);
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
            let Some(carried) = self.carried.pop() else {
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
                ServerOutput::Foreign { ours, theirs } => {
                    context.say(format_args!("met {theirs} instead of {ours}"));
                }
                ServerOutput::Adopt { server } => {
                    context.say(format_args!("enlisted as {server:?} at {}", self.address));
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
        if let Some(backup) = self.core.backup() {
            self.watch.freed(&backup.lock(), may_be_a_list);
        }
    }
}
