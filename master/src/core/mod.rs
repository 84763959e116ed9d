//! The master's core: the store, its replication, and what it owes the coordinator.
//!
//! # Invariants
//! 1. Lock order: control, then recoveries, then the store's writer. Messages to one backup leave in the order in
//!    which replication derived them, because they are handed over under the control lock.
//! 2. Orders with a lower ballot than one seen are refused.
//! 3. Once fenced, always fenced: nothing is replicated, granted or recorded any more.
//! 4. The end of the lease is published before the messages leave that it depends on.
//!
//! Pure: the shell brings the time, carries what comes out, and brings back what was answered.

mod scrub;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use ramkeep_memory::Slot;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{
    Answer, Heartbeat, MasterStats, Refused, Request, Response, ServerEntry, ServerList,
    ServerState, Settings,
};
use ramkeep_wire::limits::MAX_DAMAGED_REPORTED;
use ramkeep_wire::order::{Command, Order, OrderReply, Recovery, TabletGrant};
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{
    Ballot, ClusterId, ListVersion, LogPosition, Micros, ReplicationEpoch, SegmentId, ServerId,
};

pub use scrub::{CHUNK, ScrubAsk};

use crate::lease::LeaseEnd;
use crate::recovery::Recoveries;
use crate::replication::lease::{RENEWALS_PER_LEASE, SUSPECT_EIGHTHS};
use crate::replication::{AckEffect, Config, LogSegment, Output, ReplicatedLog, Replication};
use crate::store::{Gate, Log, MasterLease, NotTaken, Store, StoreConfig, StoreError};
use scrub::Scrub;

/// How long after a coordinator could not be asked it is asked again.
const RETRY_REQUEST: Duration = Duration::from_millis(20);

/// Buckets of the index looked at in one tick for what dropped tables left.
const SWEEP_BUCKETS: usize = 4_096;

/// Who the master is and what it may use.
#[derive(Clone, Debug)]
pub struct MasterConfig {
    /// Issued at enlistment.
    pub me: ServerId,
    /// The cluster.
    pub cluster: ClusterId,
    /// Certifies this master's replicas.
    pub key: CertificateKey,
    /// The cluster's constants.
    pub settings: Settings,
    /// Bytes for log and index.
    pub memory: u64,
    /// Seeds the placement of replicas.
    pub seed: u64,
}

/// Takes what the master sends to backups.
pub trait Sink {
    /// A replication message with its bytes.
    fn replicate(&mut self, to: ServerId, message: &Replicate<'_>);
    /// Replicas that are not needed any more.
    fn free(&mut self, to: ServerId, segments: Vec<SegmentId>);
}

/// The master of one server.
#[derive(Debug)]
pub struct Master {
    config: MasterConfig,
    store: Store,
    control: Mutex<Control>,
    lease: LeaseEnd,
    recoveries: Mutex<Recoveries>,
    /// Of the server list that was taken in last; the shell looks here for new servers to connect.
    list_version: AtomicU64,
}

#[derive(Debug)]
struct Control {
    replication: Replication,
    ballot: Ballot,
    list: ServerList,
    gate: Gate,
    /// With k = 0: the lease from the coordinator (SAFETY 7).
    granted: Micros,
    outputs: Vec<(Output, Slot)>,
    requests: Vec<Request>,
    /// Records that failed and are tried again from the time given.
    failed_records: Vec<(Micros, SegmentId, ReplicationEpoch, bool)>,
    scrub: Scrub,
}

impl Master {
    /// A master with an empty log and no tablets.
    ///
    /// # Errors
    /// If the memory is too small for a log.
    pub fn new(config: MasterConfig) -> Result<Self, StoreError> {
        let settings = &config.settings;
        let replicas = usize::from(settings.replicas);
        let store = Store::new(StoreConfig {
            cluster: config.cluster,
            master: config.me,
            key: (replicas > 0).then_some(config.key),
            segment_size: settings.segment_size,
            memory: config.memory,
            first_segment: SegmentId(1),
        })?;
        let lease_us = u64::from(settings.lease_us);
        let replication = Replication::new(Config {
            me: config.me,
            replicas,
            slow_backup_us: lease_us * SUSPECT_EIGHTHS / RENEWALS_PER_LEASE,
            slow_copy_us: lease_us * SLOW_COPY_LEASES,
            renew_us: lease_us / RENEWALS_PER_LEASE,
            retry_us: lease_us,
            coordinator_fresh_us: u64::from(settings.heartbeat_us) * FRESH_HEARTBEATS,
            backup_wait_us: u64::from(settings.backup_wait_us),
            seed: config.seed,
        });
        let control = Control {
            replication,
            ballot: Ballot::default(),
            list: ServerList::default(),
            gate: Gate::Open,
            granted: Micros(0),
            outputs: Vec::new(),
            requests: Vec::new(),
            failed_records: Vec::new(),
            scrub: Scrub::default(),
        };
        Ok(Self {
            recoveries: Mutex::new(Recoveries::new(config.cluster)),
            config,
            store,
            control: Mutex::new(control),
            lease: LeaseEnd::default(),
            list_version: AtomicU64::new(0),
        })
    }

    /// Who this is.
    #[must_use]
    pub fn me(&self) -> ServerId {
        self.config.me
    }

    /// The log, index and tablets.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether this master was decided crashed: it serves nothing any more, and its process ends.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.lease.is_fenced()
    }

    /// Whether this master may answer what was looked up before `now` was read (SAFETY 1).
    #[must_use]
    #[inline]
    pub fn lease(&self, now: Micros) -> MasterLease {
        self.lease.at(now)
    }

    /// How often a master without backups is to report, at least: reports renew its lease. None
    /// with backups, which grant it.
    #[must_use]
    pub fn renew_every(&self) -> Option<Duration> {
        let settings = &self.config.settings;
        let part = u64::from(settings.lease_us) / COORDINATOR_RENEWALS;
        (settings.replicas == 0).then(|| Duration::from_micros(part))
    }

    /// Whether segments are copied anew: [`Master::pump`] is then to be called every millisecond.
    #[must_use]
    pub fn is_healing(&self) -> bool {
        self.control.lock().replication.is_healing()
    }

    /// Sends what is due to backups. Returns whether more has become durable: held replies may go.
    pub fn pump(&self, now: Micros, sink: &mut impl Sink) -> bool {
        if self.is_fenced() {
            return false;
        }
        let mut control = self.control.lock();
        let control = &mut *control;
        let mut writer = self.store.writer();
        let (outputs, requests) = (&mut control.outputs, &mut control.requests);
        let log = writer.log_mut();
        let mut slots = SlotLog { log, last: None };
        let without_backups = self.config.settings.replicas == 0;
        let moved = {
            let mut collect = |output| outputs.push((output, Slot(0)));
            control.replication.pump(now, &mut slots, &mut collect)
        };
        for (output, slot) in outputs.iter_mut() {
            if let Output::Replicate { message, .. } = output
                && let Some(found) = slots.slot(message.segment)
            {
                *slot = found;
            }
        }
        // Pinned before the writer is let go, so that no slot named above can be freed.
        let guard = self.store.pin();
        drop(writer);
        let until = if without_backups {
            control.granted
        } else {
            control.replication.lease_until()
        };
        self.publish(now, until);
        for (output, slot) in outputs.drain(..) {
            match output {
                Output::Replicate { to, message } => {
                    let range = message.offset as usize..message.length as usize;
                    let bytes = self
                        .store
                        .memory()
                        .slice(&guard, slot, range)
                        .expect("replication sends only what was appended");
                    sink.replicate(to, &Replicate { bytes, ..message });
                }
                Output::Free { to, segments } => sink.free(to, segments),
                Output::RecordEpoch {
                    segment,
                    epoch,
                    backups,
                } => {
                    let master = self.config.me;
                    requests.push(Request::RecordEpoch {
                        master,
                        segment,
                        epoch,
                        backups,
                    });
                }
            }
        }
        self.set_gate(now, control);
        moved
    }

    /// Replies wait for a lease to come back for as long as a lease is.
    fn publish(&self, now: Micros, until: Micros) {
        let patience = Duration::from_micros(self.config.settings.lease_us.into());
        self.lease.publish(now, until, patience);
    }

    fn set_gate(&self, now: Micros, control: &mut Control) {
        let unvouched = self.config.settings.replicas == 0 && now >= control.granted;
        let gate = if self.is_fenced() || unvouched {
            Gate::NotReady
        } else if control.replication.too_few_backups(now) {
            Gate::NotEnoughBackups
        } else {
            Gate::Open
        };
        if gate != control.gate {
            control.gate = gate;
            self.store.set_write_gate(gate);
        }
    }

    /// Takes in an acknowledgement from the current connection to a backup. Call
    /// [`Master::pump`] after a run of these.
    pub fn handle_ack(&self, now: Micros, from: ServerId, ack: &ReplicateAck) {
        self.handle_ack_if(now, from, ack, || true);
    }

    /// The same if the connection `is_current`: asked when no [`Master::link_down`] can come
    /// between the question and its use.
    pub fn handle_ack_if(
        &self,
        now: Micros,
        from: ServerId,
        ack: &ReplicateAck,
        is_current: impl FnOnce() -> bool,
    ) {
        let effect = {
            let mut control = self.control.lock();
            if !is_current() {
                return;
            }
            control.replication.handle_ack(now, from, ack)
        };
        if effect == AckEffect::Fenced {
            self.fence();
        }
    }

    /// The connection to a backup is there. It counts if the backup is in the server list, and
    /// not as crashed.
    pub fn link_up(&self, server: ServerId) {
        let mut control = self.control.lock();
        let listed = listed(&control.list, server);
        if listed.is_some_and(|entry| entry.roles.backup && entry.state != ServerState::Crashed) {
            control.replication.link_up(server);
        }
    }

    /// The connection to a backup broke, or could not be made.
    pub fn link_down(&self, server: ServerId) {
        self.control.lock().replication.link_down(server);
    }

    /// Carries out an order of the coordinator.
    pub fn handle_order(&self, order: Order) -> OrderReply {
        let mut control = self.control.lock();
        if order.ballot < control.ballot {
            return OrderReply::StaleBallot(control.ballot);
        }
        control.ballot = order.ballot;
        match order.command {
            Command::Probe => OrderReply::Done,
            Command::UpdateServers(list) => {
                self.take_list(&mut control, list);
                OrderReply::Done
            }
            Command::TakeTablets(grants) => {
                self.take_tablets(&control, || self.store.take_tablets(&grants))
            }
            Command::TakeRecovered(recovered) => {
                self.take_tablets(&control, || self.store.take_recovered(&recovered))
            }
            Command::Recover(order) => self.recover(&control, order),
            Command::DropTable(table) => {
                // Nothing was served of it if the order came before.
                let _ = self.store.drop_table(table);
                OrderReply::Done
            }
        }
    }

    fn recover(&self, control: &Control, order: Recovery) -> OrderReply {
        if self.is_fenced() || !control.replication.ready() {
            return OrderReply::NotReady;
        }
        // Before anything is replayed, let alone served: what these did may be forgotten.
        self.store.clients_ended(&order.ended);
        self.recoveries()
            .handle_order(&self.store, order, &control.list)
    }

    /// The recoveries on this master: to be driven, and to be asked.
    pub fn recoveries(&self) -> MutexGuard<'_, Recoveries> {
        self.recoveries.lock()
    }

    fn take_tablets(
        &self,
        control: &Control,
        take: impl FnOnce() -> Result<Vec<LogPosition>, NotTaken>,
    ) -> OrderReply {
        if self.is_fenced() || !control.replication.ready() {
            return OrderReply::NotReady;
        }
        match take() {
            Ok(positions) => OrderReply::Taken(positions),
            Err(why) => {
                tracing::error!(%why, "tablets were given that can't be taken");
                OrderReply::NotReady
            }
        }
    }

    fn take_list(&self, control: &mut Control, list: ServerList) {
        if list.version <= control.list.version {
            return;
        }
        let before = std::mem::replace(&mut control.list, list);
        let Control {
            replication, list, ..
        } = control;
        // One that is not listed any more was crashed when it was forgotten.
        let gone = before.servers.iter().map(|entry| entry.server);
        for server in gone.filter(|server| listed(list, *server).is_none()) {
            replication.crashed(server);
        }
        for entry in &list.servers {
            let known = listed(&before, entry.server);
            let is_crashed = entry.state == ServerState::Crashed;
            if entry.server == self.config.me {
                if is_crashed {
                    self.fence();
                }
                continue;
            }
            if let (None, Some(old)) = (known, entry.replaces) {
                replication.inherited(entry.server, old);
            }
            if is_crashed && known.is_none_or(|known| known.state != ServerState::Crashed) {
                replication.crashed(entry.server);
            }
        }
        replication.recovering(list.servers.iter().any(waits_for_recovery));
        self.recoveries().take_list(list);
        self.list_version.store(list.version.0, Ordering::Release);
    }

    fn fence(&self) {
        self.lease.fence();
        self.store.set_write_gate(Gate::NotReady);
    }

    /// Requests to the coordinator that are due. Each is answered by
    /// [`Master::handle_answer`], also when the coordinator could not be reached.
    pub fn poll_request(&self) -> Option<Request> {
        let mut control = self.control.lock();
        if control.requests.is_empty() {
            None
        } else {
            Some(control.requests.remove(0))
        }
    }

    /// What the coordinator answered to `asked`, which was sent at `sent`; `None`: it could not be
    /// reached.
    pub fn handle_answer(
        &self,
        now: Micros,
        sent: Micros,
        asked: &Request,
        response: Option<&Response>,
    ) {
        let mut control = self.control.lock();
        let heard = response.map(|_| sent);
        control.replication.coordinator_answered(heard);
        if let Some(response) = response {
            control.ballot = control.ballot.max(response.ballot);
            if response.answer == Answer::Refused(Refused::Crashed) {
                self.fence();
            }
        }
        let answer = response.map(|response| &response.answer);
        match (asked, answer) {
            (Request::RecordEpoch { segment, epoch, .. }, Some(Answer::EpochRecorded)) => {
                control.replication.epoch_recorded(*segment, *epoch);
            }
            (Request::RecordEpoch { segment, epoch, .. }, refused) => {
                let too_low = refused == Some(&Answer::Refused(Refused::Epoch));
                control
                    .failed_records
                    .push((now + RETRY_REQUEST, *segment, *epoch, too_low));
            }
            (
                _,
                Some(Answer::Heard {
                    list,
                    lease_us,
                    ended,
                }),
            ) => {
                self.store.clients_ended(ended);
                if *lease_us > 0 {
                    let until = sent + Duration::from_micros((*lease_us).into());
                    control.granted = control.granted.max(until);
                    if self.config.settings.replicas == 0 {
                        self.publish(now, control.granted);
                    }
                }
                if let Some(list) = list {
                    self.take_list(&mut control, list.clone());
                }
            }
            _ => {}
        }
    }

    /// Lets time pass: call every few milliseconds, then [`Master::pump`].
    pub fn handle_tick(&self, now: Micros) {
        let mut control = self.control.lock();
        let control = &mut *control;
        let replication = &mut control.replication;
        control
            .failed_records
            .retain(|(due, segment, epoch, too_low)| {
                if *due <= now {
                    replication.epoch_refused(*segment, *epoch, *too_low);
                }
                *due > now
            });
        self.set_gate(now, control);
        self.store.sweep(SWEEP_BUCKETS);
    }

    /// The report to send now.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        let mut damaged = self.recoveries().bad_replicas();
        let control = self.control.lock();
        // Neither hides the other.
        let own = control.scrub.found.len().min(MAX_DAMAGED_REPORTED / 2);
        damaged.truncate(MAX_DAMAGED_REPORTED - own);
        let left = MAX_DAMAGED_REPORTED - damaged.len();
        damaged.extend(control.scrub.found.iter().take(left));
        Heartbeat {
            server: self.config.me,
            list: control.list.version,
            ready: control.replication.ready(),
            floor: control.replication.floor(),
            master: Some(self.stats_with(&control)),
            backup: None,
            damaged,
            resident: 0,
        }
    }

    /// What the master uses its memory for.
    #[must_use]
    pub fn stats(&self) -> MasterStats {
        self.stats_with(&self.control.lock())
    }

    fn stats_with(&self, control: &Control) -> MasterStats {
        let under_replicated =
            u32::try_from(control.replication.under_replicated()).unwrap_or(u32::MAX);
        MasterStats {
            under_replicated,
            ..self.store.stats()
        }
    }

    /// Version of the server list that was taken in last.
    #[must_use]
    pub fn list_version(&self) -> ListVersion {
        ListVersion(self.list_version.load(Ordering::Acquire))
    }

    /// The server list, if it is another than the one of this version.
    #[must_use]
    pub fn list_after(&self, known: ListVersion) -> Option<ServerList> {
        let newer = self.list_version() != known;
        newer.then(|| self.control.lock().list.clone())
    }

    /// Seeds choices that are not replication's.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.config.seed
    }

    /// The living backups with their addresses: whom to keep connected.
    #[must_use]
    pub fn backups(&self) -> Vec<(ServerId, Vec<String>)> {
        let control = self.control.lock();
        let wanted = |entry: &&ServerEntry| {
            entry.roles.backup
                && entry.state != ServerState::Crashed
                && entry.server != self.config.me
        };
        let entries = control.list.servers.iter().filter(wanted);
        entries
            .map(|entry| (entry.server, entry.addresses.clone()))
            .collect()
    }

    /// Where a living server listens, this one included.
    #[must_use]
    pub fn addresses_of(&self, server: ServerId) -> Vec<String> {
        let control = self.control.lock();
        listed(&control.list, server).map_or_else(Vec::new, |entry| entry.addresses.clone())
    }

    /// The tablets it serves.
    #[must_use]
    pub fn tablets(&self) -> Vec<TabletGrant> {
        self.store
            .tablets()
            .iter()
            .map(|owned| owned.range)
            .collect()
    }

    /// The backups of a segment, for status and tests.
    #[must_use]
    pub fn backups_of(&self, segment: SegmentId) -> Vec<ServerId> {
        self.control.lock().replication.backups_of(segment)
    }
}

fn waits_for_recovery(entry: &ServerEntry) -> bool {
    entry.roles.master && entry.state == ServerState::Crashed && !entry.recovered
}

/// A server's entry in a list, which is ordered by id.
fn listed(list: &ServerList, server: ServerId) -> Option<&ServerEntry> {
    let found = list.servers.binary_search_by_key(&server, |e| e.server);
    found.ok().map(|at| &list.servers[at])
}

/// A backup may keep the copy of a closed segment waiting for this many lease lengths before it is
/// replaced.
const SLOW_COPY_LEASES: u64 = 4;

/// A leader that answered what was sent so many heartbeats ago is there to record a change.
const FRESH_HEARTBEATS: u64 = 2;

/// Reports of a master without backups in one lease.
const COORDINATOR_RENEWALS: u64 = 4;

/// The log as replication sees it.
struct SlotLog<'a> {
    log: &'a mut Log,
    last: Option<(SegmentId, Slot)>,
}

impl SlotLog<'_> {
    fn slot(&mut self, id: SegmentId) -> Option<Slot> {
        if let Some((known, slot)) = self.last
            && known == id
        {
            return Some(slot);
        }
        let slot = self.log.info(id)?.slot;
        self.last = Some((id, slot));
        Some(slot)
    }
}

impl ReplicatedLog for SlotLog<'_> {
    fn open_heads(&self) -> [Option<SegmentId>; 2] {
        [self.log.previous_head(), Some(self.log.head())]
    }

    fn segment(&self, id: SegmentId) -> Option<LogSegment> {
        let info = self.log.info(id)?;
        Some(LogSegment {
            kind: info.kind,
            length: info.length,
            sealed: info.sealed,
        })
    }

    fn certify(
        &mut self,
        id: SegmentId,
        epoch: ReplicationEpoch,
    ) -> (u32, ramkeep_wire::Certificate) {
        self.log.certify(id, epoch)
    }

    fn set_durable(&mut self, id: SegmentId, length: u32) {
        self.log.set_durable(id, length);
    }

    fn predecessor_closed(&mut self, id: SegmentId) {
        self.log.predecessor_closed(id);
    }

    fn active_end(&self, id: SegmentId) -> Option<u32> {
        self.log.active_end(id)
    }
}
