//! What a replay will take, found out before its first append: for where all of the log may not fit, and
//! what counts of it may.
//!
//! # Invariants
//! 1. Once it is admitted only what wins of each key is appended, once: no more than was measured.
//! 2. Two keys are one only if their keyed hashes of 128 bits are: whoever chooses keys does not know the
//!    hashes, for they are made under the secret that certifies the crashed master's segments.

use std::collections::BTreeMap;

use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::entry::{self, Entry, completion_len, object_len, tombstone_len};
use ramkeep_wire::limits::MIN_KEY;
use ramkeep_wire::order::LastReport;
use ramkeep_wire::segment::VerifiedSegment;
use ramkeep_wire::{LogPosition, Version};

use super::{Replay, ReplayError, calls};
use crate::index;
use crate::store::Store;
use crate::store::account::Need;

/// One part in so many of a master's memory is not risked for the time that measuring first takes: it stays
/// for what the master serves.
const KEPT_FREE: u64 = 8;

/// No object's entry is shorter.
const SHORTEST_OBJECT: u64 = object_len(MIN_KEY, 0, false) as u64;
const _: () = assert!(3 * tombstone_len(MIN_KEY) <= 4 * object_len(MIN_KEY, 0, false));

/// What is known of a key.
#[derive(Clone, Copy, Debug)]
struct Winner {
    version: Version,
    /// Lengths of the entry and of its tombstone; none if the removal wins.
    lengths: Option<(u32, u32)>,
}

/// What wins of each key.
#[derive(Debug)]
pub(super) struct Winners {
    key: CertificateKey,
    keys: BTreeMap<u128, Winner>,
}

impl Winners {
    fn note(&mut self, key: u128, found: Winner) {
        let known = self.keys.entry(key).or_insert(found);
        let removed = found.lengths.is_none() && found.version == known.version;
        if found.version > known.version || removed {
            *known = found;
        }
    }

    /// Whether an object is to be replayed.
    pub(super) fn wins(&self, entry: &Entry<'_>) -> bool {
        let Entry::Object(object) = entry else {
            return false;
        };
        let winner = self
            .keys
            .get(&self.key.fingerprint(object.table, object.key));
        winner.is_some_and(|one| one.version == object.version && one.lengths.is_some())
    }

    fn need(&self, calls: u64) -> Need {
        let mut need = Need {
            bytes: calls * completion_len(true) as u64,
            longest: completion_len(true),
            beside: calls * calls::CALL_BYTES,
        };
        let mut objects = 0;
        for (len, tombstone) in self.keys.values().filter_map(|winner| winner.lengths) {
            need.bytes += u64::from(len) + u64::from(tombstone);
            need.longest = need.longest.max(len as usize);
            objects += 1;
        }
        need.beside += index::bytes_for(objects);
        need
    }
}

impl Replay {
    /// Admits the replay of a log of so many bytes, if the most that it can take and more is free: then it
    /// need not be measured. That is less if the last report of its master is known.
    pub(crate) fn admit_all(
        &mut self,
        store: &Store,
        bytes: u64,
        last: Option<LastReport>,
    ) -> Result<(), ReplayError> {
        let (tombstones, index) = last.map_or((u64::MAX, u64::MAX), |last| {
            let more = |reported: u64| reported + reported / KEPT_FREE;
            (more(last.reserved), index::bytes_for(more(last.objects)))
        });
        let all = Need {
            // A tombstone is at most by a third longer than its object's entry.
            bytes: bytes + tombstones.min(bytes + bytes / 3),
            longest: 0,
            beside: index.min(index::bytes_for(bytes / SHORTEST_OBJECT)),
        };
        let mut writer = store.writer();
        let kept = writer.stats().memory / KEPT_FREE;
        let bytes = all.bytes + kept;
        writer.admit(self.id, Need { bytes, ..all })?;
        writer.admit(self.id, all)
    }

    /// Takes in what a segment has, for [`Self::admit`]. Any order will do, and more than once.
    pub(crate) fn measure(&mut self, key: &CertificateKey, segment: &VerifiedSegment<'_>) {
        let winners = self.winners.get_or_insert_with(|| Winners {
            key: *key,
            keys: BTreeMap::new(),
        });
        for (at, entry) in segment.entries() {
            // A segment is shorter than 16 MiB.
            let at_position = LogPosition::new(segment.claim().segment, at as u32);
            if let Entry::Completion(completion) = &entry {
                calls::note(&mut self.calls, &self.tablets, completion, at_position);
            }
            let found = match &entry {
                Entry::Object(object) => {
                    let len = entry::entry_len(&segment.contents()[at..]).unwrap_or(0) as u32;
                    let lengths = Some((len, tombstone_len(object.key.len()) as u32));
                    (object.table, object.key, object.version, lengths)
                }
                Entry::Tombstone(dead) => (dead.table, dead.key, dead.version, None),
                _ => continue,
            };
            let (table, key, version, lengths) = found;
            let place = entry.place();
            let tablet = place.and_then(|(table, hash)| self.tablets.tablet_of(table, hash));
            if tablet.is_some_and(|tablet| at_position >= tablet.takeover) {
                let key = winners.key.fingerprint(table, key);
                winners.note(key, Winner { version, lengths });
            }
        }
    }

    /// Admits the replay of what was measured: nothing was appended by then.
    ///
    /// # Errors
    /// [`ReplayError::NoRoom`], and if it was ended.
    pub(crate) fn admit(&mut self, store: &Store) -> Result<Need, ReplayError> {
        let calls = self.calls.len() as u64;
        let need = self.winners.as_ref().map(|winners| winners.need(calls));
        let need = need.unwrap_or_default();
        store.writer().admit(self.id, need)?;
        Ok(need)
    }
}
