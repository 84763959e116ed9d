//! The store as a whole: what its readers share, and the one mutex around its writer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwap;
use crossbeam_utils::CachePadded;
use parking_lot::{Mutex, MutexGuard};
use ramkeep_memory::{Guard, SegmentMemory};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::MasterStats;
use ramkeep_wire::data::Status;
use ramkeep_wire::limits::SEGMENT_SIZE;
use ramkeep_wire::order::{RecoveredTablet, TabletGrant};
use ramkeep_wire::{ClusterId, EndedClients, KeyHash, LogPosition, SegmentId, ServerId, TableId};

use super::account::Account;
use super::completions::Completions;
use super::durability::Durability;
use super::entries::Entries;
use super::log::{Log, LogConfig, LogError};
use super::replay::Replays;
use super::sweep::Sweep;
use super::tablets::{NotTaken, Tablets};
use super::writer::Writer;
use crate::index::Index;

/// Bytes of the smallest object with its room in the index, rounded down: bounds the index.
const INDEX_SHARE: u64 = 2;

/// Whose store it is and how much memory it may use.
#[derive(Clone, Copy, Debug)]
pub struct StoreConfig {
    /// The cluster.
    pub cluster: ClusterId,
    /// The master.
    pub master: ServerId,
    /// Certifies segments; none when there are no replicas, so that nothing is waited for.
    pub key: Option<CertificateKey>,
    /// Bytes for segments and index together.
    pub memory: u64,
    /// Bytes of a segment; [`SEGMENT_SIZE`] but in tests.
    pub segment_size: u32,
    /// The id of the log's first segment.
    pub first_segment: SegmentId,
}

/// A store can't be made.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The budget doesn't hold an empty store.
    #[error("{memory} bytes of memory are too few: an empty master needs {least}")]
    TooSmall {
        /// The budget.
        memory: u64,
        /// The smallest possible.
        least: u64,
    },
    /// The system refuses address space.
    #[error("no address space for the master's memory: {0}")]
    Address(#[from] io::Error),
    /// See [`LogError`].
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Whether mutations are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gate {
    /// Yes.
    Open = 0,
    /// No: this master may not serve yet, or no longer.
    NotReady = 1,
    /// No: fewer backups than replicas are wanted are there.
    NotEnoughBackups = 2,
}

/// The objects of one master: many lock-free readers, one writer at a time.
#[derive(Debug)]
pub struct Store {
    memory: SegmentMemory,
    index: Arc<Index>,
    durability: Arc<Durability>,
    tablets: ArcSwap<Tablets>,
    gate: AtomicU8,
    /// Apart from what every read loads.
    writer: CachePadded<Mutex<Writer>>,
}

impl Store {
    /// An empty store that owns nothing.
    ///
    /// # Errors
    /// If the budget is too small, or the system has no address space for it.
    pub fn new(config: StoreConfig) -> Result<Self, StoreError> {
        let segment_size = u64::from(config.segment_size.clamp(1, SEGMENT_SIZE as u32));
        let slots = u32::try_from(config.memory / segment_size).unwrap_or(u32::MAX);
        let buckets = config.memory / INDEX_SHARE / size_of::<ramkeep_memory::Line>() as u64;
        let (index, index_writer) = Index::new(usize::try_from(buckets).unwrap_or(usize::MAX))?;
        let least = index.bytes() + 2 * segment_size;
        if config.memory < least {
            return Err(StoreError::TooSmall {
                memory: config.memory,
                least,
            });
        }
        let memory = SegmentMemory::new(slots, segment_size as usize)?;
        let log_config = LogConfig {
            cluster: config.cluster,
            master: config.master,
            key: config.key,
            segment_size: config.segment_size,
            max_segments: slots as usize,
        };
        let log = Log::starting_at(log_config, memory.clone(), config.first_segment)?;
        Ok(Self {
            memory,
            index,
            durability: Arc::clone(log.durability()),
            tablets: ArcSwap::from_pointee(Tablets::default()),
            gate: AtomicU8::new(Gate::Open as u8),
            writer: CachePadded::new(Mutex::new(Writer {
                log,
                index: index_writer,
                account: Account::new(config.memory),
                sweep: Sweep::default(),
                replays: Replays::default(),
                completions: Completions::default(),
            })),
        })
    }

    /// A guard under which objects can be read. Made per batch, not kept.
    #[must_use]
    pub fn pin(&self) -> Guard {
        self.memory.pin()
    }

    /// Makes all segment memory resident, so that no write waits for the system to find and clear
    /// pages. Takes as long as that takes.
    pub fn populate(&self) {
        self.memory.populate_all();
    }

    /// The tablets as they are now.
    #[must_use]
    pub fn tablets(&self) -> arc_swap::Guard<Arc<Tablets>> {
        self.tablets.load()
    }

    /// The right to change things, when nobody else has it.
    pub fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock()
    }

    /// The segments' memory: replication sends what is published in it.
    #[must_use]
    pub fn memory(&self) -> &SegmentMemory {
        &self.memory
    }

    /// Has the system back the memory that will be needed next, so that no operation pays for page
    /// faults. For a thread of its own, about ten times a second.
    pub fn populate_ahead(&self) {
        self.index.populate_ahead();
        self.memory.populate_next();
    }

    /// What of the log is durable.
    #[must_use]
    #[inline]
    pub fn durability(&self) -> &Durability {
        &self.durability
    }

    /// What this master reports of its memory.
    #[must_use]
    pub fn stats(&self) -> MasterStats {
        self.writer().stats()
    }

    /// Opens or closes the gate for mutations. Those that got through before go on.
    pub fn set_write_gate(&self, gate: Gate) {
        self.gate.store(gate as u8, Ordering::Release);
    }

    /// The status that refuses mutations now, if the gate is closed.
    #[must_use]
    #[inline]
    pub fn write_refusal(&self) -> Option<Status> {
        match self.gate.load(Ordering::Acquire) {
            0 => None,
            2 => Some(Status::NotEnoughBackups),
            _ => Some(Status::RetryLater),
        }
    }

    /// Serves tablets from now on; returns where the log stood when each was taken over, in the
    /// order of the grants: a recovered one was when its replay began. Repeating it changes nothing.
    ///
    /// # Errors
    /// If a grant overlaps a tablet that is owned or under recovery, and is not the same; nothing
    /// has changed then.
    pub fn take_tablets(&self, grants: &[TabletGrant]) -> Result<Vec<LogPosition>, NotTaken> {
        let mut writer = self.writer();
        self.take(&mut writer, grants)
    }

    /// The same for tablets that were recovered here.
    ///
    /// # Errors
    /// As for [`take_tablets`](Self::take_tablets); and if the replay that began there was given up
    /// or is not finished.
    pub fn take_recovered(
        &self,
        recovered: &[RecoveredTablet],
    ) -> Result<Vec<LogPosition>, NotTaken> {
        let mut writer = self.writer();
        let tablets = self.tablets.load();
        for RecoveredTablet { range, takeover } in recovered {
            let owned = tablets.tablet_of(range.table, range.first);
            let known = match owned.filter(|owned| owned.range == *range) {
                Some(owned) => Some(owned.takeover),
                None => writer.replays.takeover(range)?,
            };
            if known != Some(*takeover) {
                return Err(NotTaken::NotReplayed(*range));
            }
        }
        let grants: Vec<TabletGrant> = recovered.iter().map(|one| one.range).collect();
        self.take(&mut writer, &grants)
    }

    fn take(
        &self,
        writer: &mut Writer,
        grants: &[TabletGrant],
    ) -> Result<Vec<LogPosition>, NotTaken> {
        // What is left of an earlier stay must not come to light again.
        if grants.iter().any(|grant| writer.sweep.is_pending(grant)) {
            while writer.sweep(&self.pin(), usize::MAX) {}
        }
        let mut tablets = Tablets::clone(&self.tablets.load());
        let now = writer.log.appended_position();
        let taken = grants
            .iter()
            .map(|grant| {
                let began = writer.replays.takeover(grant)?;
                Ok(tablets.take(*grant, began.unwrap_or(now))?)
            })
            .collect::<Result<_, NotTaken>>()?;
        grants.iter().for_each(|grant| writer.replay_taken(grant));
        self.tablets.store(Arc::new(tablets));
        Ok(taken)
    }

    /// Serves nothing of a table from now on; false if nothing was served of it. Its objects are
    /// gone at once for clients, their memory after [`sweep`](Self::sweep).
    pub fn drop_table(&self, table: TableId) -> bool {
        self.drop_tables(&[table])
    }

    /// The same for several; false if nothing was served of any.
    pub fn drop_tables(&self, tables: &[TableId]) -> bool {
        let mut writer = self.writer();
        for table in tables {
            writer.drop_replays(*table);
        }
        let mut served = Tablets::clone(&self.tablets.load());
        let dropped = served.drop_tables(tables);
        if dropped.is_empty() {
            return false;
        }
        let whole = |table: &TableId| TabletGrant {
            table: *table,
            first: KeyHash(0),
            last: KeyHash(u64::MAX),
        };
        let ranges: Vec<TabletGrant> = dropped.iter().map(whole).collect();
        writer.completions.forget_where(&ranges);
        self.tablets.store(Arc::new(served));
        for table in dropped {
            writer.sweep.add(table);
        }
        true
    }

    /// These clients' leases have ended: what they did may be forgotten, and nothing of theirs runs any
    /// more.
    pub fn clients_ended(&self, ended: &EndedClients) {
        self.writer().completions.clients_ended(ended);
    }

    /// Sweeps some of what dropped tables left, at most `buckets` buckets of the index; true if
    /// there is more to do.
    pub fn sweep(&self, buckets: usize) -> bool {
        let guard = self.pin();
        self.writer().sweep(&guard, buckets)
    }

    #[inline]
    pub(super) fn entries<'g>(&'g self, guard: &'g Guard) -> Entries<'g> {
        Entries {
            memory: &self.memory,
            guard,
        }
    }

    #[inline]
    pub(super) fn index(&self) -> &Index {
        &self.index
    }
}
