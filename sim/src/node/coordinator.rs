//! A coordinator process: its desk, its disk and its connections, and what goes between them.
//!
//! # Invariants
//! 1. The desk hears that something is persisted only once it is synced.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ramkeep_coordinator::{Config, Coordinator, Desk, DeskOutput, SessionId};
use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::Request;
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::{ClusterId, Micros, Party, postcards};

use super::{Context, delivered};
use crate::connections::{Connections, Happening};
use crate::crash_points::{CrashPoint, EndsSeen};
use crate::disk::CoordinatorDisk;
use crate::network::{ConnectionId, NetEvent};
use crate::world::Event;

/// What a coordinator process starts with.
#[derive(Clone, Debug)]
pub struct CoordinatorConfig {
    /// The core's; its disk's incarnation and entropy come with each start.
    pub core: Config,
    /// Bytes of a crashed master's log for one recovery master.
    pub partition_bytes: u64,
    /// Bytes of commands after which a snapshot is taken.
    pub snapshot_after: usize,
}

/// A coordinator process.
#[derive(Debug)]
pub struct CoordinatorNode {
    desk: Desk,
    disk: CoordinatorDisk,
    connections: Connections,
    /// What sessions brought that the desk has not taken yet.
    left: BTreeMap<SessionId, VecDeque<Vec<u8>>>,
    ended: bool,
    ends: EndsSeen,
}

impl CoordinatorNode {
    /// A process that starts with what is on the disk.
    #[must_use]
    pub fn new(
        now: Micros,
        config: &CoordinatorConfig,
        disk: CoordinatorDisk,
        entropy: [u8; 32],
    ) -> Self {
        let identity = Identity::new(None).with_party(Party::coordinator(config.core.peer));
        let setup = Config {
            incarnation: disk.incarnation,
            entropy,
            ..config.core.clone()
        };
        let core = Coordinator::new(now, setup, disk.stored())
            .expect("a disk that this build wrote makes a coordinator")
            .with_partitions_of(config.partition_bytes)
            .with_snapshots_after(config.snapshot_after);
        Self {
            desk: Desk::new(core),
            connections: Connections::new(identity, &[Kind::CoordinatorRequest, Kind::Group]),
            disk,
            left: BTreeMap::new(),
            ended: false,
            ends: EndsSeen::default(),
        }
    }

    /// The core.
    #[must_use]
    pub fn core(&self) -> &Coordinator {
        self.desk.core()
    }

    /// Its disk.
    #[must_use]
    pub fn disk(&self) -> &CoordinatorDisk {
        &self.disk
    }

    /// Whether the process ends by itself.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// What is left of the process when it is killed.
    #[must_use]
    pub fn into_disk(self) -> CoordinatorDisk {
        self.disk
    }

    /// Moments of recoveries that came since this was asked last.
    pub fn take_points(&mut self) -> Vec<CrashPoint> {
        self.ends.look(self.desk.core()).into_iter().collect()
    }

    /// The disk, to be tampered with.
    pub fn disk_mut(&mut self) -> &mut CoordinatorDisk {
        &mut self.disk
    }

    /// The disk is as it should be, and what is under way takes no longer than it should.
    pub fn mend_disk(&mut self, context: &mut Context<'_>) {
        let under_way = self.disk.mend(context.rng);
        await_sync(context, under_way);
    }

    pub(super) fn start(&mut self, context: &mut Context<'_>) {
        self.act(context);
    }

    pub(super) fn timer(&mut self, context: &mut Context<'_>) {
        let happenings = self.connections.handle_tick(context);
        self.hear(context, happenings);
        self.desk.handle_tick(context.now);
        self.act(context);
    }

    pub(super) fn next_timeout(&self) -> Option<Micros> {
        let due = [self.desk.next_timeout(), self.connections.next_timeout()];
        due.into_iter().flatten().min()
    }

    /// An operator asks something here, and does not wait for the answer.
    pub fn ask(&mut self, context: &mut Context<'_>, request: &Request) {
        let session = SessionId(u64::MAX);
        let (me, payload) = (Party::NONE, postcards::encode(request));
        let header = Header::new(Kind::CoordinatorRequest, 1, me, me);
        let mut bytes = Vec::new();
        envelope::append(&mut bytes, header, &payload);
        self.desk.open_session(session, me, ClusterId::default());
        let taken = self
            .desk
            .handle_envelope(context.now, session, &delivered(&bytes));
        if let Err(refusal) = taken {
            context.say(format_args!("refuses an operator: {refusal}"));
        }
        self.act(context);
    }

    /// The disk has synced everything up to `seq`.
    pub fn persisted(&mut self, context: &mut Context<'_>, seq: u64) {
        if self.disk.sync(seq) {
            self.desk.handle_persisted(context.now, seq);
            self.begin_sync(context);
            self.act(context);
        }
    }

    pub(super) fn net(&mut self, context: &mut Context<'_>, event: &NetEvent) {
        let happenings = self.connections.handle(context, event);
        self.hear(context, happenings);
        self.act(context);
    }

    fn hear(&mut self, context: &mut Context<'_>, happenings: Vec<Happening>) {
        for happening in happenings {
            match happening {
                Happening::Up {
                    wire, local, peer, ..
                } => self.desk.handle_wire_up(wire, local, peer),
                Happening::Received { wire, bytes } => {
                    let envelope = delivered(&bytes);
                    self.desk.handle_received(context.now, wire, &envelope);
                }
                Happening::Down { wire, end } => {
                    self.desk.handle_wire_down(context.now, wire, &end);
                }
                Happening::Accepted {
                    inbound,
                    peer,
                    cluster,
                } => {
                    let session = SessionId(inbound.0);
                    self.desk.open_session(session, peer, cluster);
                }
                Happening::Request { inbound, bytes } => {
                    let left = self.left.entry(SessionId(inbound.0)).or_default();
                    left.push_back(bytes);
                }
                Happening::Gone { inbound, .. } => self.close(context, SessionId(inbound.0)),
            }
        }
    }

    fn close(&mut self, context: &Context<'_>, session: SessionId) {
        self.left.remove(&session);
        self.desk.close_session(context.now, session);
    }

    fn act(&mut self, context: &mut Context<'_>) {
        self.perform(context);
        while let Some((session, bytes)) = self.next_request() {
            let now = context.now;
            let taken = self.desk.handle_envelope(now, session, &delivered(&bytes));
            self.perform(context);
            if let Err(refusal) = taken {
                let inbound = ConnectionId(session.0);
                self.connections.refuse_inbound(context, inbound, &refusal);
                self.close(context, session);
            }
        }
        let (now, core) = (context.events.now(), self.desk.core());
        context.group.acted(now, context.clock, context.me, core);
    }

    /// What a session brought that the desk takes now. The network swallows answers at once, so that
    /// none wait to be sent.
    fn next_request(&mut self) -> Option<(SessionId, Vec<u8>)> {
        let takes = |session: &&SessionId| self.desk.takes(**session, 0);
        let session = *self.left.keys().find(takes)?;
        let left = self.left.get_mut(&session)?;
        let bytes = left.pop_front();
        if left.is_empty() {
            self.left.remove(&session);
        }
        Some((session, bytes?))
    }

    fn perform(&mut self, context: &mut Context<'_>) {
        while let Some(output) = self.desk.poll_output(|| context.clock_now()) {
            match output {
                DeskOutput::Persist(job) => {
                    self.disk.hand_out(job);
                    self.begin_sync(context);
                }
                DeskOutput::Wire(output) => self.connections.perform(context, output),
                DeskOutput::Reply { session, bytes } => {
                    let inbound = ConnectionId(session.0);
                    context.group.answers(&delivered(&bytes));
                    self.connections.send_inbound(context, inbound, &bytes);
                }
                DeskOutput::KnowCluster(cluster) => {
                    self.connections.identity().join(cluster);
                }
                DeskOutput::End(why) => {
                    context.say(format_args!("ends: {why}"));
                    context.group.ended(&why);
                    self.ended = true;
                }
            }
        }
    }

    fn begin_sync(&mut self, context: &mut Context<'_>) {
        let begun = self.disk.begin_sync(context.rng);
        await_sync(context, begun);
    }
}

/// Has the process hear when a sync is over that has begun.
fn await_sync(context: &mut Context<'_>, begun: Option<(u64, Duration)>) {
    if let Some((index, delay)) = begun {
        let process = context.me;
        let event = Event::Persisted { process, index };
        context.events.at(context.events.now() + delay, event);
    }
}
