//! The writer: the one place where log, index and account change, together.
//!
//! # Invariants
//! 1. An object is in the log before the index shows it; a tombstone before the index forgets.
//! 2. A version of a key is never used twice: an overwrite takes the next, a new key takes the safe
//!    version, and a removal raises the safe version above what it removed.
//! 3. A mutation that is refused has changed nothing.
//! 4. What a call changes stands in one entry group with its completion.

use ramkeep_memory::Guard;
use ramkeep_wire::coordinator::MasterStats;
use ramkeep_wire::data::{RejectRules, Status};
use ramkeep_wire::entry::{NewEntry, Object, Tombstone, completion_len, tombstone_len};
use ramkeep_wire::limits::{MAX_KEY, MAX_VALUE, MIN_KEY};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{LogPosition, Version};

use super::account::{Account, Demand};
use super::answer::{Answer, Refused, Shown};
use super::completions::{Completions, Fresh};
use super::durability::Durable;
use super::entries::{Entries, Found};
use super::log::{AppendError, Log, MAX_GROUP_ENTRIES};
use super::replay::Replays;
use super::sweep::Sweep;
use super::tablets::Owned;
use crate::index::{IndexWriter, Reference};

/// Everything that only one may change at a time.
#[derive(Debug)]
pub struct Writer {
    pub(super) log: Log,
    pub(super) index: IndexWriter,
    pub(super) account: Account,
    pub(super) sweep: Sweep,
    pub(super) replays: Replays,
    pub(super) completions: Completions,
}

/// The object that a mutation meets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Current {
    pub(super) reference: Reference,
    pub(super) version: Version,
    len: usize,
    value_len: usize,
    /// Its value as a counter.
    counter: Option<i64>,
    end: u32,
}

impl Current {
    #[inline]
    fn of(found: &Found<'_>) -> Self {
        let object = &found.object;
        Self {
            reference: found.reference,
            version: object.version,
            len: found.len(),
            value_len: object.value.len(),
            counter: object.value.try_into().ok().map(i64::from_le_bytes),
            end: found.end(),
        }
    }
}

impl Writer {
    /// The log.
    #[must_use]
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The log, for replication to move its durable position on.
    pub fn log_mut(&mut self) -> &mut Log {
        &mut self.log
    }

    /// Sets a key's value, unless `rules` refuse. Nobody asks for the result again.
    #[inline]
    pub fn write(
        &mut self,
        guard: &Guard,
        owned: Owned<'_>,
        value: &[u8],
        rules: RejectRules,
    ) -> Answer {
        self.write_as(None, guard, owned, value, rules)
    }

    #[inline]
    pub(super) fn write_as(
        &mut self,
        call: Option<Fresh>,
        guard: &Guard,
        owned: Owned<'_>,
        value: &[u8],
        rules: RejectRules,
    ) -> Answer {
        if !(MIN_KEY..=MAX_KEY).contains(&owned.key().len()) || value.len() > MAX_VALUE {
            return Answer::refused(Status::TooLarge);
        }
        let current = self.current(guard, owned);
        if let Some(rejected) = self.rejected(current, rules) {
            return rejected;
        }
        match self.put(guard, owned, value, current, (call, None)) {
            Ok((version, shown)) => Answer::appended(version, shown),
            Err(Refused(status)) => Answer::refused(status),
        }
    }

    /// Removes a key's object, unless `rules` refuse. Removing what is not there is done at once,
    /// with version 0. Nobody asks for the result again.
    #[inline]
    pub fn remove(&mut self, guard: &Guard, owned: Owned<'_>, rules: RejectRules) -> Answer {
        self.remove_as(None, guard, owned, rules)
    }

    #[inline]
    pub(super) fn remove_as(
        &mut self,
        call: Option<Fresh>,
        guard: &Guard,
        owned: Owned<'_>,
        rules: RejectRules,
    ) -> Answer {
        let current = self.current(guard, owned);
        if let Some(rejected) = self.rejected(current, rules) {
            return rejected;
        }
        let Some(current) = current else {
            return Answer::new(Status::Ok, Version(0), self.log.durability().miss());
        };
        match self.kill(call, owned, &current) {
            Ok(shown) => Answer::appended(current.version, shown),
            Err(Refused(status)) => Answer::refused(status),
        }
    }

    /// Adds `operand` (8 bytes, little-endian, two's complement) to a counter, unless `rules`
    /// refuse; an absent one counts as 0. A sum that does not fit in 64 bits changes
    /// nothing ([`Status::Overflow`]), nor does an operand of another length ([`Status::Invalid`]).
    pub(super) fn increment_as(
        &mut self,
        call: Option<Fresh>,
        guard: &Guard,
        owned: Owned<'_>,
        operand: &[u8],
        rules: RejectRules,
    ) -> Answer {
        let Ok(operand) = operand.try_into().map(i64::from_le_bytes) else {
            return Answer::refused(Status::Invalid);
        };
        let current = self.current(guard, owned);
        if let Some(rejected) = self.rejected(current, rules) {
            return rejected;
        }
        let counter = match current {
            None => 0,
            Some(Current {
                counter: Some(counter),
                ..
            }) => counter,
            Some(current) => {
                return Answer::new(
                    Status::NotACounter,
                    current.version,
                    self.seen(Some(&current)),
                );
            }
        };
        let Some(sum) = counter.checked_add(operand) else {
            let version = current.map_or(Version(0), |current| current.version);
            return Answer::new(Status::Overflow, version, self.seen(current.as_ref()));
        };
        match self.put(guard, owned, &sum.to_le_bytes(), current, (call, Some(sum))) {
            Ok((version, shown)) => Answer::appended(version, shown).with_counter(sum),
            Err(Refused(status)) => Answer::refused(status),
        }
    }

    /// What this master reports of its memory.
    #[must_use]
    pub fn stats(&self) -> MasterStats {
        let index = self.index.index().bytes();
        let segments = self.log.segment_count();
        MasterStats {
            memory: self.account.budget(),
            used: segments as u64 * self.log.segment_size() as u64 + index + self.account.kept,
            live: self.account.live,
            reserved: self.account.reserved,
            index,
            objects: self.account.objects,
            payload: self.account.payload,
            segments: segments as u32,
            under_replicated: 0,
            room: self.account.room(&self.log, index, 0),
        }
    }

    #[inline]
    pub(super) fn current(&self, guard: &Guard, owned: Owned<'_>) -> Option<Current> {
        let entries = Entries {
            memory: self.log.memory(),
            guard,
        };
        entries
            .find(self.index.index(), owned)
            .map(|found| Current::of(&found))
    }

    /// The answer to an operation that its rules refuse: a read, for it appends nothing (SAFETY 1).
    #[inline]
    fn rejected(&self, current: Option<Current>, rules: RejectRules) -> Option<Answer> {
        let version = current.map(|current| current.version);
        rules.reject(version).then(|| {
            let shown = self.seen(current.as_ref());
            Answer::new(Status::Rejected, version.unwrap_or_default(), shown)
        })
    }

    /// When an answer may be shown that tells of `current`, or of its absence.
    fn seen(&self, current: Option<&Current>) -> Shown {
        let durability = self.log.durability();
        match current {
            Some(current) => durability.entry(current.reference.slot(), current.end),
            None => durability.miss(),
        }
    }

    /// Writes a key's next version, with the completion of the call and what it made of a counter.
    #[inline]
    fn put(
        &mut self,
        guard: &Guard,
        owned: Owned<'_>,
        value: &[u8],
        current: Option<Current>,
        (call, counter): (Option<Fresh>, Option<i64>),
    ) -> Result<(Version, Shown), Refused> {
        let version = current.map_or_else(|| self.first_version(), |old| old.version.next());
        let object = NewEntry::Object(Object {
            table: owned.table(),
            version,
            expiry: None,
            key: owned.key(),
            value,
        });
        let completion = call.map(|call| call.completion(owned, version, counter));
        let end = self.place(guard, owned, object, value.len(), current, completion)?;
        Ok((version, self.appended(end)))
    }

    /// Appends an object, whose value has `value` bytes, with the tombstone of the one it replaces and
    /// a completion, and shows it in the index.
    #[inline]
    pub(super) fn place(
        &mut self,
        guard: &Guard,
        owned: Owned<'_>,
        object: NewEntry<'_>,
        value: usize,
        current: Option<Current>,
        completion: Option<NewEntry<'_>>,
    ) -> Result<LogPosition, Refused> {
        let key = owned.key();
        let len = object.encoded_len();
        let new_key = current.is_none().then_some(key.len());
        // The object stands last; what there is of the others before it.
        let (mut group, mut first, mut bytes) = ([object; MAX_GROUP_ENTRIES], 2, len);
        if let Some(old) = &current {
            first -= 1;
            group[first] = self.tombstone(owned, old);
            bytes += tombstone_len(key.len());
        }
        if let Some(completion) = completion {
            first -= 1;
            group[first] = completion;
            bytes += completion.encoded_len();
        }
        let (reference, end) = self.append(&group[first..], bytes, new_key)?;
        *self.log.live_mut(reference) += len as u64;
        let entries = Entries {
            memory: self.log.memory(),
            guard,
        };
        match current {
            None => self
                .index
                .insert(owned.hash(), reference, &entries)
                .expect("the index has the buckets that the budget can pay for"),
            Some(old) => {
                let replaced = self.index.replace(owned.hash(), old.reference, reference);
                assert!(replaced, "the index lost the object that was found in it");
                *self.log.live_mut(old.reference) -= old.len as u64;
                *self.log.live_mut(reference) += tombstone_len(key.len()) as u64;
                self.account.removed(key.len(), old.value_len, old.len);
            }
        }
        self.account.added(key.len(), value, len);
        Ok(end)
    }

    /// Appends the tombstone of an object with the completion of the call, and takes the object out
    /// of the index.
    #[inline]
    fn kill(
        &mut self,
        call: Option<Fresh>,
        owned: Owned<'_>,
        old: &Current,
    ) -> Result<Shown, Refused> {
        let end = match call {
            _ if mutants::active(Mutant::LoseTombstone) => self.log.appended_position(),
            None => self.append_tombstone(owned, old)?,
            Some(call) => self.append_removal(call, owned, old)?,
        };
        self.log.raise_safe_version(old.version.next());
        self.log.durability().removed(end);
        self.take_out(owned, old);
        Ok(self.appended(end))
    }

    /// Appends the tombstone of an object, for which there is always room.
    #[inline]
    pub(super) fn append_tombstone(
        &mut self,
        owned: Owned<'_>,
        old: &Current,
    ) -> Result<LogPosition, Refused> {
        let tombstone = self.tombstone(owned, old);
        let segments = self.account.segments(&self.log, self.index.index().bytes());
        let appended = self.log.append(&[tombstone], segments).map_err(refusal)?;
        *self.log.live_mut(appended.reference(0)) += tombstone_len(owned.key().len()) as u64;
        Ok(appended.end)
    }

    /// Appends the tombstone of an object with a completion. There is always room for the tombstone; if
    /// there is none for both, the removal is to be asked for by somebody who is not remembered.
    #[inline]
    fn append_removal(
        &mut self,
        call: Fresh,
        owned: Owned<'_>,
        old: &Current,
    ) -> Result<LogPosition, Refused> {
        let index_bytes = self.index.index().bytes();
        let tombstone_len = tombstone_len(owned.key().len());
        let demand = Demand {
            group: tombstone_len + completion_len(false),
            new_key: None,
        };
        if !self.account.admits(&self.log, index_bytes, demand) {
            return Err(Refused(Status::NotRemembered));
        }
        let completion = call.completion(owned, old.version, None);
        let group = [completion, self.tombstone(owned, old)];
        let segments = self.account.segments(&self.log, index_bytes);
        let appended = self.log.append(&group, segments).map_err(refusal)?;
        *self.log.live_mut(appended.reference(1)) += tombstone_len as u64;
        Ok(appended.end)
    }

    /// Takes an object, whose tombstone is in the log, out of index and account.
    #[inline]
    pub(super) fn take_out(&mut self, owned: Owned<'_>, old: &Current) {
        let removed = self.index.remove(owned.hash(), old.reference);
        assert!(removed, "the index lost the object that was found in it");
        *self.log.live_mut(old.reference) -= old.len as u64;
        self.account
            .removed(owned.key().len(), old.value_len, old.len);
    }

    fn tombstone<'k>(&self, owned: Owned<'k>, old: &Current) -> NewEntry<'k> {
        NewEntry::Tombstone(Tombstone {
            table: owned.table(),
            version: old.version,
            segment: self.log.segment_of(old.reference),
            key: owned.key(),
        })
    }

    /// Appends a group of `len` bytes within the account, whose last entry is an object: who sees
    /// the object durable knows that all of the group is.
    #[inline]
    fn append(
        &mut self,
        group: &[NewEntry<'_>],
        len: usize,
        new_key: Option<usize>,
    ) -> Result<(Reference, LogPosition), Refused> {
        let index_bytes = self.index.index().bytes();
        if !self.account.admits(
            &self.log,
            index_bytes,
            Demand {
                group: len,
                new_key,
            },
        ) {
            return Err(Refused(Status::OutOfMemory));
        }
        let segments = self.account.segments(&self.log, index_bytes);
        let appended = self.log.append(group, segments).map_err(refusal)?;
        Ok((appended.reference(group.len() - 1), appended.end))
    }

    fn first_version(&self) -> Version {
        if mutants::active(Mutant::ReuseVersion) {
            Version(1)
        } else {
            self.log.safe_version()
        }
    }

    /// When a mutation that ends at `end` may be acknowledged.
    #[inline]
    fn appended(&self, end: LogPosition) -> Shown {
        if mutants::active(Mutant::AckEarly) {
            return Ok(Durable::planted());
        }
        self.log.durability().reached(end).ok_or(end)
    }
}

#[cold]
pub(super) fn refusal(error: AppendError) -> Refused {
    Refused(match error {
        AppendError::Full => Status::OutOfMemory,
        AppendError::Rolling => Status::RetryLater,
        AppendError::TooLarge => Status::TooLarge,
    })
}
