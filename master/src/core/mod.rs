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

mod orders;
mod reports;
mod scrub;
mod slots;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use ramkeep_memory::Slot;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{Request, ServerEntry, ServerList, ServerState, Settings};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::replicate::{Replicate, ReplicateAck};
use ramkeep_wire::{
    Ballot, ClusterId, EndedRound, ListVersion, Micros, ReplicationEpoch, SegmentId, ServerId,
};

pub use scrub::{CHUNK, ScrubAsk};

use crate::lease::LeaseEnd;
use crate::recovery::Recoveries;
use crate::replication::lease::{RENEWALS_PER_LEASE, SUSPECT_EIGHTHS};
use crate::replication::{AckEffect, Config, Output, Replication};
use crate::store::{Gate, MasterLease, Store, StoreConfig, StoreError};
use scrub::Scrub;
use slots::SlotLog;

/// Buckets of the index looked at in one tick for what dropped tables left.
const SWEEP_BUCKETS: usize = 4_096;

/// A backup may keep the copy of a closed segment waiting for this many lease lengths before it is
/// replaced.
const SLOW_COPY_LEASES: u64 = 4;

/// A leader that answered what was sent so many heartbeats ago is there to record a change.
const FRESH_HEARTBEATS: u64 = 2;

/// Reports of a master without backups in one lease.
const COORDINATOR_RENEWALS: u64 = 4;

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
    /// The client leases that have ended, as far as they were heard of.
    clients: EndedRound,
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
            clients: EndedRound::default(),
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
        let mut slots = SlotLog::new(log);
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

    /// The recoveries on this master: to be driven, and to be asked.
    pub fn recoveries(&self) -> MutexGuard<'_, Recoveries> {
        self.recoveries.lock()
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

/// A server's entry in a list, which is ordered by id.
fn listed(list: &ServerList, server: ServerId) -> Option<&ServerEntry> {
    let found = list.servers.binary_search_by_key(&server, |e| e.server);
    found.ok().map(|at| &list.servers[at])
}
