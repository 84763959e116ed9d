//! Where a story is played: one master, some backups, clients that do what they are told.

mod after;

use std::collections::BTreeSet;
use std::time::Duration;

use paxos::limits::Timing;
use ramkeep_coordinator::limits::SNAPSHOT_AFTER;
use ramkeep_coordinator::state::State;
use ramkeep_wire::coordinator::{Roles, Settings};
use ramkeep_wire::data::RejectRules;
use ramkeep_wire::{LogPosition, Micros, SegmentId, ServerId, TableId};

use super::Outcome as Played;
use crate::check::check_history;
use crate::check::log_end::MasterRecord;
use crate::history::{Action, Operation, Outcome, Place};
use crate::inspect::{self, Held};
use crate::network::{Delays, Direction, ProcessId};
use crate::node::Node;
use crate::trace::Lines;
use crate::workload::client::ClientConfig;
use crate::workload::tables::AdminConfig;
use crate::workload::{Step, Workload};
use crate::world::{World, WorldConfig};

/// Replicas of each segment.
pub(super) const REPLICAS: u8 = 2;
const SEGMENT: u32 = 8 << 10;
/// Frames of each backup.
const FRAMES: u32 = 256;

/// A cluster with one master and a script.
#[derive(Debug)]
pub struct Stage {
    /// The cluster.
    pub world: World,
    /// The machines of the coordinators.
    pub coordinators: Vec<usize>,
    /// The first coordinator's machine.
    pub coordinator: usize,
    /// The master's machine.
    pub master: usize,
    /// The backups' machines.
    pub backups: Vec<usize>,
    clients: Vec<usize>,
}

impl Stage {
    /// A cluster with so many backups and two clients, ready to serve.
    pub fn new(backups: usize, lines: Lines) -> Result<Self, String> {
        Self::build(REPLICAS, 1, backups, FRAMES, lines)
    }

    /// The same, with another number of copies.
    pub fn with(replicas: u8, backups: usize, lines: Lines) -> Result<Self, String> {
        Self::build(replicas, 1, backups, FRAMES, lines)
    }

    /// The same, whose backups have so many frames.
    pub fn with_frames(frames: u32, backups: usize, lines: Lines) -> Result<Self, String> {
        Self::build(REPLICAS, 1, backups, frames, lines)
    }

    /// The same with a group of so many coordinators.
    pub fn with_group(group: u32, backups: usize, lines: Lines) -> Result<Self, String> {
        Self::build(REPLICAS, group, backups, FRAMES, lines)
    }

    fn build(
        replicas: u8,
        group: u32,
        backups: usize,
        frames: u32,
        lines: Lines,
    ) -> Result<Self, String> {
        let mut world = World::new(WorldConfig {
            seed: 1,
            settings: Settings {
                replicas,
                lease_us: 50_000,
                backup_wait_us: 500_000,
                heartbeat_us: 50_000,
                suspect_us: 400_000,
                segment_size: SEGMENT,
            },
            delays: Delays {
                usual: (50, 60),
                late_per_mille: 0,
                late: (0, 0),
            },
            sync: vec![(500, 600)],
            timing: Timing::default(),
            partition_bytes: 1 << 30,
            snapshot_after: SNAPSHOT_AFTER,
            reconnect: Duration::from_millis(10),
            lines,
        });
        let coordinators = world.add_coordinators(group);
        let coordinator = coordinators[0];
        let roles = |master| Roles {
            master,
            backup: !master,
        };
        let memory = 60 * u64::from(SEGMENT);
        let master = world.add_server(roles(true), 1, memory);
        let backups = (0..backups)
            .map(|_| world.add_server(roles(false), frames, memory))
            .collect();
        let clients = (0..2)
            .map(|number| {
                let config = ClientConfig {
                    tables: 1,
                    number,
                    coordinators: world.coordinators(),
                    sessions: 1,
                    deadline: Duration::from_secs(5),
                    depth: 64,
                    think: 0,
                };
                let workload = Workload::scripted(world.rng.fork(number.into()), number, vec![]);
                world.add_client(config, workload)
            })
            .collect();
        let mut stage = Self {
            world,
            coordinators,
            coordinator,
            master,
            backups,
            clients,
        };
        stage.until("the clients know their table", |stage| {
            stage.clients.iter().all(|c| stage.table_of(*c).is_some())
        })?;
        // The backups that joined late are connected as well.
        stage.pass(300);
        Ok(stage)
    }

    fn table_of(&self, client: usize) -> Option<TableId> {
        self.world.client(client)?.tables().first().copied()
    }

    /// The clients' table.
    #[must_use]
    pub fn table(&self) -> TableId {
        self.table_of(self.clients[0]).unwrap_or_default()
    }

    /// Lets so many milliseconds pass.
    pub fn pass(&mut self, milliseconds: u64) {
        self.pass_us(milliseconds * 1_000);
    }

    /// Lets so many microseconds pass.
    pub fn pass_us(&mut self, microseconds: u64) {
        let end = self.world.events.now() + Duration::from_micros(microseconds);
        self.world.events.at(end, crate::world::Event::Step(0));
        while self.world.events.now() < end && self.world.step().is_some() {}
    }

    /// Lets one event happen.
    pub fn step(&mut self) {
        self.world.step();
    }

    /// Lets time pass until something holds, for 30 seconds at most.
    pub fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Played {
        let end = self.world.events.now() + Duration::from_secs(30);
        while !holds(self) {
            if self.world.events.now() > end || self.world.step().is_none() {
                return Err(format!("it never came to this: {what}"));
            }
        }
        Ok(())
    }

    /// The process on a machine.
    #[must_use]
    pub fn process(&self, machine: usize) -> ProcessId {
        self.world.machines[machine]
            .process
            .expect("the script knows who runs")
    }

    /// A client begins something.
    pub fn begin(&mut self, client: usize, key: &str, action: Action) {
        let process = self.process(self.clients[client]);
        let key = key.as_bytes().to_vec();
        self.world.with(process, |node, context| {
            if let Node::Client(node) = node {
                node.books.workload_mut().add(Step::Key(key, action));
                node.poke(context);
            }
        });
    }

    /// A client begins a write.
    pub fn begin_write(&mut self, client: usize, key: &str, value: &str) {
        let rules = RejectRules::default();
        let value = value.as_bytes().to_vec();
        self.begin(client, key, Action::Write { value, rules });
    }

    /// A client writes and is answered.
    pub fn write(&mut self, key: &str, value: &str) -> Played {
        self.begin_write(0, key, value);
        self.until("a write is answered", |stage| stage.idle())?;
        match &self.last(key).outcome {
            Outcome::Written { .. } => Ok(()),
            other => Err(format!("the write of {key} was answered {other:?}")),
        }
    }

    /// Whether no client waits for an answer.
    #[must_use]
    pub fn idle(&self) -> bool {
        (self.clients.iter()).all(|c| self.world.client(*c).is_some_and(|c| c.is_idle()))
    }

    /// The last operation on a key.
    #[must_use]
    pub fn last(&self, key: &str) -> &Operation {
        self.operations(key).last().expect("the script began one")
    }

    /// All operations on a key.
    #[must_use]
    pub fn operations(&self, key: &str) -> &[Operation] {
        let place = (self.table(), key.as_bytes().to_vec());
        self.world.history.of(&place)
    }

    /// Nobody told a client what it had no right to tell.
    pub fn innocent(&self) -> Played {
        match self.world.wrongs.first() {
            None => Ok(()),
            Some(wrong) => Err(wrong.clone()),
        }
    }

    /// Whether the last operation on a key is answered.
    #[must_use]
    pub fn answered(&self, key: &str) -> bool {
        self.last(key).returned != u64::MAX
    }

    /// The master's id.
    #[must_use]
    pub fn master_id(&self) -> ServerId {
        self.world
            .server(self.master)
            .map(|node| node.server())
            .unwrap_or_default()
    }

    /// Whether so many bytes of the head are appended and not durable.
    #[must_use]
    pub fn master_has(&self, bytes: u64) -> bool {
        let Some(master) = self.world.server(self.master).and_then(|n| n.master()) else {
            return false;
        };
        let durable = master.store().durability().position();
        let appended = master.store().writer().log().appended_position();
        appended.0 >= durable.0 + bytes
    }

    /// The head of the master's log.
    #[must_use]
    pub fn head(&self) -> SegmentId {
        inspect::head(&self.world, self.master).unwrap_or_default()
    }

    /// The machines of a segment's backups, as the master counts on them.
    #[must_use]
    pub fn backups_of(&self, segment: SegmentId) -> Vec<usize> {
        let Some(master) = self.world.server(self.master).and_then(|n| n.master()) else {
            return Vec::new();
        };
        let ids = master.backups_of(segment);
        let runs = |m: &usize| {
            self.world
                .server(*m)
                .is_some_and(|node| ids.contains(&node.server()))
        };
        self.backups.iter().copied().filter(runs).collect()
    }

    /// Nothing from one machine reaches the other for so many milliseconds, and the other way.
    pub fn cut(&mut self, one: usize, two: usize, direction: Direction, milliseconds: u64) {
        let until = self.now() + Duration::from_millis(milliseconds);
        let (one, two) = (self.process(one), self.process(two));
        (self.world.network).cut(&mut self.world.events, one, two, direction, until);
    }

    /// The true time.
    #[must_use]
    pub fn now(&self) -> Micros {
        self.world.events.now()
    }

    /// Breaks what connections there are between two machines.
    pub fn sever(&mut self, one: usize, two: usize) {
        let (one, two) = (self.process(one), self.process(two));
        for connection in self.world.network.connections_between(one, two) {
            (self.world.network).sever(&mut self.world.events, connection, (100, 200));
        }
    }

    /// Breaks what connections there are between two machines. The first learns of it at once; what
    /// it has sent arrives so many milliseconds later.
    pub fn sever_late(&mut self, one: usize, two: usize, milliseconds: u64) {
        let late = self.now() + Duration::from_millis(milliseconds);
        let (one, two) = (self.process(one), self.process(two));
        for connection in self.world.network.connections_between(one, two) {
            (self.world.network).sever_late(&mut self.world.events, connection, one, late);
        }
    }

    /// What the backups hold of the master's segments.
    pub fn held(&mut self) -> Vec<Held> {
        let master = self.master_id();
        inspect::held(&mut self.world, master)
    }

    /// What the coordinator has recorded of the master.
    pub fn record(&self) -> Result<MasterRecord, String> {
        let coordinator =
            inspect::recorded(&self.world).ok_or("the coordinators have decided nothing")?;
        inspect::master_record(&coordinator, self.master_id())
            .ok_or_else(|| "the coordinator does not know the master".into())
    }

    /// Whether all that clients were told survives the loss of the master and of these machines.
    pub fn survives(&mut self, down: &[usize]) -> Played {
        self.survives_and(down, 0)
    }

    /// The same, and the loss of any `more` machines.
    pub fn survives_and(&mut self, down: &[usize], more: usize) -> Played {
        let record = self.record()?;
        self.is_replayed_by(&record, down, more)
    }

    /// The same, by what the coordinator had recorded.
    pub fn is_replayed_by(&mut self, record: &MasterRecord, down: &[usize], more: usize) -> Played {
        let held = inspect::held(&mut self.world, record.master);
        let down: BTreeSet<usize> = down.iter().copied().collect();
        // Every key is the master's, and nobody had it before.
        let owned = |_: &Place| Some(LogPosition::ZERO);
        inspect::check_master(&self.world, &held, record, &owned, &down, more)
            .map(|_| ())
            .map_err(|why| why.to_string())
    }

    /// Begins to write more than the head has room for.
    pub fn begin_fill(&mut self) {
        let head = self.head();
        for number in 0..=SEGMENT / 900 {
            let key = format!("fill{}-{number}", head.0);
            self.begin_write(0, &key, &".".repeat(900));
        }
    }

    /// Fills the head so that the log rolls over.
    pub fn roll(&mut self) -> Played {
        let head = self.head();
        let mut number = 0;
        while self.head() == head {
            self.write(&format!("fill{}-{number}", head.0), &".".repeat(900))?;
            number += 1;
        }
        Ok(())
    }

    /// The machine of the coordinator that leads.
    pub fn leader(&self) -> Result<usize, String> {
        self.world.leader().ok_or_else(|| "nobody leads".into())
    }

    /// Adds one who makes and drops so many tables.
    pub fn add_admin(&mut self, rounds: u32, think: u64) -> usize {
        let coordinators = self.world.coordinators();
        self.world.add_admin(AdminConfig {
            leases: 0,
            number: 0,
            coordinators,
            think,
            rounds,
        })
    }

    /// Operations of clients that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        let clients = self.clients.iter().filter_map(|m| self.world.client(*m));
        clients.map(|client| client.failed()).sum()
    }

    /// What the coordinators have decided.
    pub fn state(&self) -> Result<std::sync::Arc<State>, String> {
        inspect::recorded(&self.world).ok_or_else(|| "the coordinators have decided nothing".into())
    }

    /// Nothing was found that coordinators did, or told those who make and drop tables.
    pub fn group_is_sound(&self) -> Played {
        let admins = (0..self.world.machines.len()).filter_map(|m| self.world.admin(m));
        let complaints = admins.flat_map(|admin| &admin.complaints);
        let found = self.world.group.findings().iter().chain(complaints).next();
        found.map_or(Ok(()), |found| Err(found.clone()))
    }

    /// Everything is as it should be in the end.
    pub fn close(mut self) -> Played {
        self.group_is_sound()?;
        self.world.network.heal(&mut self.world.events);
        for machine in 0..self.world.machines.len() {
            if self.world.machines[machine].process.is_none() {
                self.world.start(machine);
            }
        }
        self.until("everybody is answered", Stage::idle)?;
        self.innocent()?;
        self.group_is_sound()?;
        let violations = check_history(&self.world.history);
        match violations.first() {
            None => Ok(()),
            Some((place, why)) => Err(format!("{place:?}: {why}")),
        }
    }
}

/// An error unless something holds.
pub(super) fn ensure(holds: bool, what: &str) -> Played {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}
