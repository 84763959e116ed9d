//! Segments on their way: which is fetched next, from whom, and what comes of it.
//!
//! # Invariants
//! 1. A segment is fetched from one backup at a time; what it costs counts until it was replayed.

use ramkeep_wire::backup::{BackupRequest, ReplicaInfo};
use ramkeep_wire::certificate::Claim;
use ramkeep_wire::limits::MAX_REPLICATE_BYTES;
use ramkeep_wire::{Certificate, Micros, SegmentId, SegmentKind, ServerId};

use super::{Aim, AskId, Asked, Fetched, Gather, Inventory, MAX_BYTES, Needed};

/// Bytes asked for at a time. With its header the answer fits the buffers of connections as they are,
/// and a backup has others to answer in between.
const FETCH_BYTES: u32 = 248 << 10;

const _: () = assert!(FETCH_BYTES as usize <= MAX_REPLICATE_BYTES);

/// A segment being fetched.
#[derive(Debug)]
pub(super) struct Fetch {
    pub(super) segment: SegmentId,
    pub(super) from: ServerId,
    kind: SegmentKind,
    length: u32,
    certificate: Certificate,
    contents: Vec<u8>,
    asked: bool,
}

impl Gather {
    pub(super) fn ask_bytes(&mut self, now: Micros) -> Option<(ServerId, AskId, BackupRequest)> {
        let backups = &self.inventory.backups;
        let may_ask = |fetch: &&mut Fetch| {
            let backup = backups.get(&fetch.from);
            !fetch.asked && backup.is_some_and(|backup| backup.may_ask(now))
        };
        let fetch = self.fetches.iter_mut().find(may_ask)?;
        fetch.asked = true;
        let offset = fetch.contents.len() as u32;
        let request = BackupRequest::Fetch {
            master: self.master,
            segment: fetch.segment,
            offset,
            length: (fetch.length - offset).min(FETCH_BYTES),
        };
        let (from, segment) = (fetch.from, fetch.segment);
        Some(self.ask(from, Asked::Bytes(segment, offset), request))
    }

    /// Begins to fetch the newest segment that has a copy within reach, if there is room.
    pub(super) fn begin_fetch(&mut self, now: Micros) -> bool {
        let mut chosen = None;
        for (&segment, needed) in self.needed.iter().rev() {
            if needed.taken || (needed.proved && self.aim == Aim::Prove) {
                continue;
            }
            // The first always has room.
            if self.bytes > 0 && self.bytes + needed.length as usize > MAX_BYTES {
                break;
            }
            let usable = |(server, info): &(ServerId, &ReplicaInfo)| {
                let backup = self.inventory.backups.get(server);
                self.fits(segment, needed, info) && backup.is_some_and(|b| b.may_ask(now))
            };
            let load = |(server, _): &(ServerId, &ReplicaInfo)| {
                let backup = self.inventory.backups.get(server);
                backup.map_or((usize::MAX, u64::MAX), |b| (b.in_flight, b.fetches))
            };
            let copies = self.inventory.copies(segment).filter(usable);
            if let Some((from, info)) = copies.min_by_key(load) {
                chosen = Some((segment, *needed, from, info.kind));
                break;
            }
        }
        let Some((segment, needed, from, kind)) = chosen else {
            return false;
        };
        let Needed {
            length,
            certificate,
            ..
        } = needed;
        self.set_taken(segment, true);
        self.bytes += length as usize;
        if let Some(backup) = self.inventory.backups.get_mut(&from) {
            backup.fetches += 1;
        }
        let contents = self.memory(length as usize);
        self.fetches.push(Fetch {
            segment,
            from,
            kind,
            length,
            certificate,
            contents,
            asked: false,
        });
        true
    }

    fn memory(&mut self, length: usize) -> Vec<u8> {
        let mut memory = self.spare.pop().unwrap_or_default();
        memory.reserve_exact(length);
        memory
    }

    fn set_taken(&mut self, segment: SegmentId, taken: bool) {
        if let Some(needed) = self.needed.get_mut(&segment) {
            needed.taken = taken;
        }
    }

    pub(super) fn ask_again(&mut self, asked: Asked) {
        if let Asked::Bytes(segment, _) = asked
            && let Some(fetch) = self
                .fetches
                .iter_mut()
                .find(|fetch| fetch.segment == segment)
        {
            fetch.asked = false;
        }
    }

    pub(super) fn handle_bytes(
        &mut self,
        (segment, offset): (SegmentId, u32),
        from: ServerId,
        replica: &ReplicaInfo,
        bytes: &[u8],
    ) {
        // An answer to a fetch that was given up and begun anew may come beside the new one's.
        let of_this = |fetch: &Fetch| {
            fetch.segment == segment
                && fetch.from == from
                && fetch.contents.len() == offset as usize
        };
        let Some(at) = self.fetches.iter().position(of_this) else {
            return;
        };
        let Some(needed) = self.needed.get(&segment).copied() else {
            return;
        };
        let fetch = &self.fetches[at];
        let left = fetch.length as usize - fetch.contents.len();
        let right = replica.segment == segment && self.fits(segment, &needed, replica);
        if !right || bytes.len() > left || (bytes.is_empty() && left > 0) {
            self.handle_bad(segment, from);
            return;
        }
        let fetch = &mut self.fetches[at];
        fetch.contents.extend_from_slice(bytes);
        fetch.asked = false;
        if fetch.contents.len() == fetch.length as usize {
            let fetch = self.fetches.swap_remove(at);
            let fetched = self.claimed(fetch);
            self.fetched.push_back(fetched);
        }
    }

    /// A whole segment with what it is said to be.
    fn claimed(&self, fetch: Fetch) -> Fetched {
        let Fetch {
            segment,
            from,
            kind,
            length,
            certificate,
            contents,
            ..
        } = fetch;
        let closed = Claim::closed(self.cluster, self.master, segment, kind, length);
        let is_end = segment == self.end.segment;
        let claim = if is_end && !self.end.is_closed() {
            Claim {
                kind: SegmentKind::Head,
                epoch: self.end.epoch,
                closed: false,
                ..closed
            }
        } else {
            closed
        };
        Fetched {
            from,
            claim,
            certificate,
            contents,
        }
    }

    pub(super) fn give_up_fetch(&mut self, segment: SegmentId) {
        if let Some(at) = self
            .fetches
            .iter()
            .position(|fetch| fetch.segment == segment)
        {
            self.fetches.swap_remove(at);
            self.release(segment);
        }
    }

    pub(super) fn give_up_fetches(&mut self, server: ServerId) {
        self.give_up_where(|_, fetch| fetch.from == server);
    }

    pub(super) fn leave_lost(&mut self) {
        self.give_up_where(|inventory, fetch| inventory.is_lost(fetch.from));
    }

    fn give_up_where(&mut self, given_up: impl Fn(&Inventory, &Fetch) -> bool) {
        let inventory = &self.inventory;
        let is_given_up = |fetch: &mut Fetch| given_up(inventory, fetch);
        let fetches: Vec<_> = self.fetches.extract_if(.., is_given_up).collect();
        fetches.iter().for_each(|fetch| self.release(fetch.segment));
    }

    /// A segment is neither being fetched nor with the replayer any more.
    pub(super) fn release(&mut self, segment: SegmentId) {
        if let Some(needed) = self.needed.get_mut(&segment)
            && std::mem::replace(&mut needed.taken, false)
        {
            self.bytes -= needed.length as usize;
        }
    }
}
