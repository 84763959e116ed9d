//! A table: reading, writing, removing, counting, many at a time, and scanning.

use std::sync::Arc;
use std::time::Duration;

use ramkeep_wire::{TableId, Version, key_hash};

use crate::client::Shared;
use crate::error::Error;
use crate::scan::Scan;
use crate::shell::{Lane, many, one};
use crate::types::{Object, Operation, Outcome, Reject, ScanPosition};

/// A table of a cluster. Cheap to clone, and usable from any task and thread.
///
/// All calls end at the client's deadline at the latest. They may be given up by dropping their
/// future; a mutation may be applied nonetheless.
pub struct Table {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
    id: TableId,
    name: Arc<str>,
    deadline: Duration,
}

impl Clone for Table {
    fn clone(&self) -> Self {
        let (shared, name) = (self.shared.clone(), self.name.clone());
        Self::new(shared, self.id, name, self.deadline)
    }
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table")
            .field("id", &self.id)
            .field("name", &self.name)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl Table {
    pub(crate) fn new(
        shared: Arc<Shared>,
        id: TableId,
        name: Arc<str>,
        deadline: Duration,
    ) -> Self {
        let lane = shared.next_lane();
        Self {
            shared,
            lane,
            id,
            name,
            deadline,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> TableId {
        self.id
    }

    /// The same table with another deadline for what is begun through it.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            deadline,
            ..self.clone()
        }
    }

    /// The object of a key; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::TableNotFound`], [`Error::TooLarge`], [`Error::EmptyKey`], [`Error::Timeout`] and
    /// [`Error::Unavailable`], as all operations.
    pub async fn read(&self, key: impl AsRef<[u8]>) -> Result<Option<Object>, Error> {
        let table = self.id;
        let key = key.as_ref();
        read_outcome(self.one(Operation::Read { table, key }).await)
    }

    /// Sets a key's value, whatever was there, and returns the new version. Acknowledged means
    /// durable on all backups.
    ///
    /// # Errors
    /// Also [`Error::OutOfMemory`] and [`Error::NotEnoughBackups`].
    pub async fn write(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<Version, Error> {
        self.write_with(key, value, Reject::never()).await
    }

    /// Sets a key's value unless `reject` applies.
    ///
    /// # Errors
    /// Also [`Error::Rejected`].
    pub async fn write_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        reject: Reject,
    ) -> Result<Version, Error> {
        let (table, key, value) = (self.id, key.as_ref(), value.as_ref());
        let operation = Operation::Write {
            table,
            key,
            value,
            reject,
        };
        written_outcome(self.one(operation).await)
    }

    /// Removes a key's object and returns the version of what was removed, if anything was.
    ///
    /// # Errors
    /// As all operations.
    pub async fn remove(&self, key: impl AsRef<[u8]>) -> Result<Option<Version>, Error> {
        self.remove_with(key, Reject::never()).await
    }

    /// Removes a key's object unless `reject` applies.
    ///
    /// # Errors
    /// Also [`Error::Rejected`].
    pub async fn remove_with(
        &self,
        key: impl AsRef<[u8]>,
        reject: Reject,
    ) -> Result<Option<Version>, Error> {
        let (table, key) = (self.id, key.as_ref());
        removed_outcome(self.one(Operation::Remove { table, key, reject }).await)
    }

    /// Adds to a counter and returns the sum. A counter is 8 bytes, little-endian, two's complement; an
    /// absent one counts as 0.
    ///
    /// # Errors
    /// Also [`Error::NotACounter`], and [`Error::Overflow`] if the sum is past the ends of `i64`: nothing
    /// is changed then.
    pub async fn increment(&self, key: impl AsRef<[u8]>, delta: i64) -> Result<i64, Error> {
        let (table, key) = (self.id, key.as_ref());
        match self.one(Operation::Increment { table, key, delta }).await? {
            Outcome::Incremented { value, .. } => Ok(value),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads many keys, batched per server. The results are in the order of the keys; each is
    /// read by itself, not all at one moment.
    ///
    /// # Errors
    /// The first error of any read.
    pub async fn multi_read<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Result<Vec<Option<Object>>, Error> {
        let table = self.id;
        let operation = |index: usize| Operation::Read {
            table,
            key: keys[index].as_ref(),
        };
        let results = many(&self.lane, keys.len(), operation, self.deadline).await;
        results.into_iter().map(read_outcome).collect()
    }

    /// Writes many objects, batched per server: one result for each, in order. They are not
    /// applied together: each may succeed or fail by itself, and those of one key in any order.
    pub async fn multi_write<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &self,
        items: &[(K, V)],
    ) -> Vec<Result<Version, Error>> {
        let table = self.id;
        let operation = |index: usize| Operation::Write {
            table,
            key: items[index].0.as_ref(),
            value: items[index].1.as_ref(),
            reject: Reject::never(),
        };
        let results = many(&self.lane, items.len(), operation, self.deadline).await;
        results.into_iter().map(written_outcome).collect()
    }

    /// Removes many objects, batched per server: one result for each, in order.
    pub async fn multi_remove<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Vec<Result<Option<Version>, Error>> {
        let table = self.id;
        let operation = |index: usize| Operation::Remove {
            table,
            key: keys[index].as_ref(),
            reject: Reject::never(),
        };
        let results = many(&self.lane, keys.len(), operation, self.deadline).await;
        results.into_iter().map(removed_outcome).collect()
    }

    /// All objects, in the order of their keys' hashes. An object that is there throughout comes
    /// once; one written or removed meanwhile may or may not come.
    pub fn scan(&self) -> Scan {
        Scan::new(self.clone(), ScanPosition::default())
    }

    /// All objects whose keys' hashes are not below that of `key`, in the order of the hashes.
    pub fn scan_from(&self, key: impl AsRef<[u8]>) -> Scan {
        let hash = key_hash(self.id, key.as_ref());
        Scan::new(
            self.clone(),
            ScanPosition {
                hash,
                ..ScanPosition::default()
            },
        )
    }

    pub(crate) async fn one(&self, operation: Operation<'_>) -> Result<Outcome, Error> {
        one(&self.lane, operation, self.deadline).await
    }
}

fn read_outcome(outcome: Result<Outcome, Error>) -> Result<Option<Object>, Error> {
    match outcome? {
        Outcome::Read(object) => Ok(object),
        other => Err(unexpected(&other)),
    }
}

fn written_outcome(outcome: Result<Outcome, Error>) -> Result<Version, Error> {
    match outcome? {
        Outcome::Written(version) => Ok(version),
        other => Err(unexpected(&other)),
    }
}

fn removed_outcome(outcome: Result<Outcome, Error>) -> Result<Option<Version>, Error> {
    match outcome? {
        Outcome::Removed(version) => Ok(version),
        other => Err(unexpected(&other)),
    }
}

pub(crate) fn unexpected(outcome: &Outcome) -> Error {
    Error::Protocol(format!("an outcome of another operation: {outcome:?}"))
}
