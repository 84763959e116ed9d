//! Scans: pages of a table in the order of (hash, key), built a few buckets at a time so that a
//! scan of a sparse table keeps nobody waiting.
//!
//! # Invariants
//! 1. A bucket covers a range of hashes that growth only cuts smaller, and is seen whole at one
//!    moment; the scan goes on after that range. So an object that stays is shown exactly once.
//! 2. A page is shown when the newest object on it, and the newest removal that it may have seen, is
//!    durable.

use std::cmp::Ordering;
use std::collections::VecDeque;

use ramkeep_memory::Guard;
use ramkeep_wire::data::{Item, RESPONSE_ITEM_LEN, ResponseItem, ScanCursor, ScanObject, Status};
use ramkeep_wire::entry::Object;
use ramkeep_wire::envelope::Header;
use ramkeep_wire::limits::{MAX_KEY, MAX_PAYLOAD, MAX_SCAN_PAGE, MAX_VALUE};
use ramkeep_wire::{KeyHash, LogPosition, TableId, Version, key_hash};

use super::Store;
use super::durability::Durable;
use super::entries::{Entries, Found};
use super::replies::Output;
use crate::index::{EntryHashes, Reference};

/// Scans that one connection may have under way.
pub const MAX_SCANS: usize = 16;
/// Buckets of the index looked at in one step.
const BUCKETS_PER_STEP: usize = 256;

const _: () = assert!(MAX_VALUE + MAX_KEY + 64 + RESPONSE_ITEM_LEN <= MAX_PAYLOAD);

/// A page under way.
#[derive(Debug)]
struct Scan {
    header: Header,
    id: u32,
    table: TableId,
    /// Objects are shown from here on,
    at: KeyHash,
    /// and of those with just this hash, the ones after this key (empty: all).
    after: Vec<u8>,
    until: KeyHash,
    page: Vec<u8>,
    /// The log must be durable up to here before the page is shown.
    wait: LogPosition,
}

/// How a page stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// There are buckets to look at.
    Building,
    /// The page is full, there may be more objects.
    Full,
    /// The range is at its end.
    End,
}

/// The scans of one connection; one at a time is worked on.
#[derive(Debug, Default)]
pub(super) struct Scans {
    queue: VecDeque<Scan>,
    scratch: Scratch,
}

/// Kept to save allocations.
#[derive(Debug, Default)]
struct Scratch {
    bucket: Vec<Reference>,
    wanted: Vec<(KeyHash, Reference)>,
}

impl Scans {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Takes on an item, or says at once why not.
    pub(super) fn add(&mut self, header: &Header, item: &Item<'_>) -> Result<(), Status> {
        let cursor = ScanCursor::read(item.value).map_err(|_| Status::Invalid)?;
        if cursor.hash > cursor.until {
            return Err(Status::Invalid);
        }
        if self.queue.len() >= MAX_SCANS {
            return Err(Status::RetryLater);
        }
        self.queue.push_back(Scan {
            header: *header,
            id: item.id,
            table: item.table,
            at: cursor.hash,
            after: cursor.after.to_vec(),
            until: cursor.until,
            page: vec![0],
            wait: LogPosition::ZERO,
        });
        Ok(())
    }

    /// Tells all to ask another server.
    pub(super) fn refuse(&mut self, output: &mut Output<'_>) {
        for scan in self.queue.drain(..) {
            let item = response(scan.id, Status::WrongServer, &[]);
            output.put(Ok(Durable::of_nothing()), false, &scan.header, &item);
        }
    }

    /// Works on the first scan for a while.
    pub(super) fn step(&mut self, store: &Store, guard: &Guard, output: &mut Output<'_>) {
        let Some(scan) = self.queue.front_mut() else {
            return;
        };
        // Each time anew: the table may have been dropped since the last step.
        if !store.tablets().owns_range(scan.table, scan.at, scan.until) {
            let item = response(scan.id, Status::WrongServer, &[]);
            output.put(Ok(Durable::of_nothing()), false, &scan.header, &item);
            self.queue.pop_front();
            return;
        }
        let mut progress = Progress::Building;
        for _ in 0..BUCKETS_PER_STEP {
            progress = scan.bucket(store, guard, &mut self.scratch);
            if progress != Progress::Building {
                break;
            }
        }
        if progress == Progress::Building {
            return;
        }
        scan.page[0] = u8::from(progress == Progress::Full);
        // What is not on the page may have been removed just before.
        let durability = store.durability();
        let shown = durability
            .miss()
            .and_then(|_| durability.reached(scan.wait).ok_or(scan.wait));
        let shown = shown.map_err(|position| position.max(scan.wait));
        output.put(
            shown,
            false,
            &scan.header,
            &response(scan.id, Status::Ok, &scan.page),
        );
        self.queue.pop_front();
    }
}

fn response(id: u32, status: Status, value: &[u8]) -> ResponseItem<'_> {
    ResponseItem {
        id,
        status,
        version: Version(0),
        value,
    }
}

impl Scan {
    /// Puts the objects of the next bucket on the page.
    fn bucket(&mut self, store: &Store, guard: &Guard, scratch: &mut Scratch) -> Progress {
        let hashes = store.index().bucket_at(self.at, &mut scratch.bucket);
        let entries = store.entries(guard);
        scratch
            .bucket
            .iter()
            .for_each(|reference| entries.prefetch(*reference));
        scratch.wanted.clear();
        let wanted = scratch
            .bucket
            .iter()
            .filter_map(|&reference| self.wants(entries, reference));
        scratch.wanted.extend(wanted);
        sort(entries, &mut scratch.wanted);
        for &(_, reference) in &scratch.wanted {
            let object = object_at(entries, reference);
            if !self.put(store, &Found { object, reference }) {
                return Progress::Full;
            }
        }
        self.after.clear();
        match hashes.end().0.checked_add(1).map(KeyHash) {
            Some(next) if next <= self.until => {
                self.at = next;
                Progress::Building
            }
            _ => Progress::End,
        }
    }

    /// The hash of the object at `reference`, if it is one that the page is to show.
    fn wants(&self, entries: Entries<'_>, reference: Reference) -> Option<(KeyHash, Reference)> {
        let object = object_at(entries, reference);
        if object.table != self.table {
            return None;
        }
        let hash = key_hash(object.table, object.key);
        let follows = hash > self.at
            || (hash == self.at && (self.after.is_empty() || object.key > &self.after[..]));
        (follows && hash <= self.until).then_some((hash, reference))
    }

    /// Puts an object on the page if there is room; the first always has it.
    fn put(&mut self, store: &Store, found: &Found<'_>) -> bool {
        let Object {
            version,
            key,
            value,
            ..
        } = found.object;
        let len = found.len();
        if self.page.len() > 1 && self.page.len() + len > MAX_SCAN_PAGE {
            return false;
        }
        ScanObject {
            version,
            key,
            value,
        }
        .write(&mut self.page);
        if let Err(position) = store
            .durability()
            .entry(found.reference.slot(), found.end())
        {
            self.wait = self.wait.max(position);
        }
        true
    }
}

/// Orders by hash, then by key.
fn sort(entries: Entries<'_>, wanted: &mut [(KeyHash, Reference)]) {
    let key = |reference| object_at(entries, reference).key;
    wanted.sort_unstable_by(|(hash_a, a), (hash_b, b)| match hash_a.cmp(hash_b) {
        Ordering::Equal => key(*a).cmp(key(*b)),
        unequal => unequal,
    });
}

fn object_at<'g>(entries: Entries<'g>, reference: Reference) -> Object<'g> {
    entries
        .object(reference)
        .expect("the index refers to objects that the guard keeps readable")
}
