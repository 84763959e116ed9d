//! Gathering a crashed master's segments: who holds what, the end and its digest, and whole
//! segments, newest first, from several backups at a time.
//!
//! # Invariants
//! 1. A copy is asked for only if its holder says of it what the decided end, or the digest, says.
//! 2. A segment is done when it was replayed; a copy that is not what it should be is set aside, and
//!    the next one is fetched. Without another the recovery fails and says which segment it was.
//! 3. Bytes fetched or waiting to be replayed are at most [`MAX_BYTES`], requests in flight at most
//!    [`MAX_ASKS`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::Claim;
use ramkeep_wire::coordinator::ServerList;
use ramkeep_wire::entry::DigestItem;
use ramkeep_wire::limits::{MAX_REPLICATE_BYTES, SEGMENT_SIZE};
use ramkeep_wire::order::{LogEnd, Recovery};
use ramkeep_wire::{Certificate, ClusterId, Micros, SegmentId, SegmentKind, ServerId};

use super::BadReplica;
use super::inventory::{Inventory, RETRY};

/// Bytes of segments fetched and not yet replayed, in one recovery.
pub const MAX_BYTES: usize = 8 * SEGMENT_SIZE;
/// Requests in flight for one recovery.
pub const MAX_ASKS: usize = 16;
/// The longest wait that a backup can ask for: above any lease.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Names a request of one recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AskId(u64);

/// A segment's bytes, not proved yet.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Who gave them.
    pub from: ServerId,
    /// What they are said to be.
    pub claim: Claim,
    /// What must prove it.
    pub certificate: Certificate,
    /// The bytes.
    pub contents: Vec<u8>,
}

/// Work for a replayer.
#[derive(Clone, Debug)]
pub enum Job {
    /// Prove the end, tell its digest, replay it.
    End(Fetched),
    /// Prove a segment and replay it.
    Segment(Fetched),
    /// All are replayed.
    Finish,
}

/// A segment that is needed.
#[derive(Clone, Copy, Debug)]
struct Needed {
    length: u32,
    certificate: Certificate,
    /// Being fetched, or with the replayer.
    taken: bool,
}

/// A segment being fetched.
#[derive(Debug)]
struct Fetch {
    segment: SegmentId,
    from: ServerId,
    kind: SegmentKind,
    length: u32,
    certificate: Certificate,
    contents: Vec<u8>,
    asked: bool,
}

#[derive(Clone, Copy, Debug)]
enum Asked {
    Inventory,
    /// From this offset on.
    Bytes(SegmentId, u32),
}

/// The asking half of a recovery.
#[derive(Debug)]
pub(super) struct Gather {
    cluster: ClusterId,
    master: ServerId,
    end: LogEnd,
    inventory: Inventory,
    needed: BTreeMap<SegmentId, Needed>,
    has_digest: bool,
    fetches: Vec<Fetch>,
    asks: BTreeMap<AskId, (ServerId, Asked)>,
    last_ask: u64,
    jobs: VecDeque<Job>,
    /// Bytes of segments in `fetches` and with the replayer.
    bytes: usize,
    replayed: (u32, u64),
    finishing: bool,
    /// Memory of segments that are replayed: at most as much as was ever in use.
    spare: Vec<Vec<u8>>,
    bad: Vec<BadReplica>,
}

impl Gather {
    pub(super) fn new(cluster: ClusterId, order: &Recovery) -> Self {
        let end = Needed {
            length: order.end.length,
            certificate: order.end.certificate,
            taken: false,
        };
        Self {
            cluster,
            master: order.master,
            end: order.end,
            inventory: Inventory::default(),
            needed: BTreeMap::from([(order.end.segment, end)]),
            has_digest: false,
            fetches: Vec::new(),
            asks: BTreeMap::new(),
            last_ask: 0,
            jobs: VecDeque::new(),
            bytes: 0,
            replayed: (0, 0),
            finishing: false,
            spare: Vec::new(),
            bad: Vec::new(),
        }
    }

    /// Segments replayed, segments in all (0: not known yet), bytes replayed.
    pub(super) fn progress(&self) -> (u32, u32, u64) {
        let (segments, bytes) = self.replayed;
        let of = segments + self.needed.len() as u32;
        (segments, if self.has_digest { of } else { 0 }, bytes)
    }

    pub(super) fn take_list(&mut self, list: &ServerList) {
        self.inventory.take_list(list, self.master);
        let gone: Vec<_> = self.fetches.iter().map(|fetch| fetch.from).collect();
        let is_gone = |server: &ServerId| !self.inventory.backups.contains_key(server);
        let gone: Vec<_> = gone.into_iter().filter(is_gone).collect();
        gone.into_iter()
            .for_each(|server| self.give_up_fetches(server));
        let backups = &self.inventory.backups;
        self.asks
            .retain(|_, (server, _)| backups.contains_key(server));
    }

    pub(super) fn take_bad(&mut self) -> Vec<BadReplica> {
        std::mem::take(&mut self.bad)
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        let done = self.has_digest && self.needed.is_empty() && !self.finishing;
        if self.jobs.is_empty() && done {
            self.finishing = true;
            return Some(Job::Finish);
        }
        self.jobs.pop_front()
    }

    /// The next request to send; an error if the recovery can't succeed.
    pub(super) fn poll_ask(
        &mut self,
        now: Micros,
    ) -> Result<Option<(ServerId, AskId, BackupRequest)>, String> {
        self.leave_lost();
        self.check_missing()?;
        if self.asks.len() >= MAX_ASKS {
            return Ok(None);
        }
        if let Some(ask) = self.ask_inventory(now) {
            return Ok(Some(ask));
        }
        while self.begin_fetch(now) {}
        Ok(self.ask_bytes(now))
    }

    fn ask(
        &mut self,
        to: ServerId,
        asked: Asked,
        request: BackupRequest,
    ) -> (ServerId, AskId, BackupRequest) {
        self.last_ask += 1;
        let id = AskId(self.last_ask);
        self.asks.insert(id, (to, asked));
        if let Some(backup) = self.inventory.backups.get_mut(&to) {
            backup.in_flight += 1;
        }
        (to, id, request)
    }

    fn ask_inventory(&mut self, now: Micros) -> Option<(ServerId, AskId, BackupRequest)> {
        let (server, backup) = self
            .inventory
            .backups
            .iter_mut()
            .find(|(_, backup)| !backup.complete && !backup.asked && backup.may_ask(now))?;
        backup.asked = true;
        let (server, after, master) = (*server, backup.after, self.master);
        Some(self.ask(
            server,
            Asked::Inventory,
            BackupRequest::Inventory { master, after },
        ))
    }

    fn ask_bytes(&mut self, now: Micros) -> Option<(ServerId, AskId, BackupRequest)> {
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
            length: (fetch.length - offset).min(MAX_REPLICATE_BYTES as u32),
        };
        let (from, segment) = (fetch.from, fetch.segment);
        Some(self.ask(from, Asked::Bytes(segment, offset), request))
    }

    /// Whether a copy, as its holder describes it, can be what is needed.
    fn fits(&self, segment: SegmentId, needed: &Needed, info: &ReplicaInfo) -> bool {
        if segment == self.end.segment {
            return info.length >= needed.length;
        }
        info.closed && info.length == needed.length && info.certificate == needed.certificate
    }

    /// Begins to fetch the newest segment that has a copy within reach, if there is room.
    fn begin_fetch(&mut self, now: Micros) -> bool {
        let mut chosen = None;
        for (&segment, needed) in self.needed.iter().rev() {
            if needed.taken {
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

    /// Takes in an answer, or that there was none.
    pub(super) fn handle_answer(
        &mut self,
        now: Micros,
        id: AskId,
        answer: Option<(BackupResponse, &[u8])>,
    ) {
        let Some((from, asked)) = self.asks.remove(&id) else {
            return;
        };
        let Some(backup) = self.inventory.backups.get_mut(&from) else {
            return;
        };
        backup.in_flight = backup.in_flight.saturating_sub(1);
        if let Asked::Inventory = asked {
            backup.asked = false;
        }
        match (asked, answer) {
            (_, Some((BackupResponse::NotYet { wait_us }, _))) => {
                backup.answered();
                backup.wait_until(now + Duration::from_micros(wait_us).clamp(RETRY, MAX_WAIT));
                self.ask_again(asked);
            }
            (Asked::Inventory, Some((BackupResponse::Inventory(page), _))) => {
                if self.inventory.take_page(from, self.master, &page) {
                    self.answered(from);
                    self.reject_misfits();
                } else {
                    self.failed(now, from);
                }
            }
            (
                Asked::Bytes(segment, offset),
                Some((BackupResponse::Bytes { replica, .. }, bytes)),
            ) => {
                self.answered(from);
                self.handle_bytes((segment, offset), from, &replica, bytes);
            }
            (Asked::Bytes(segment, _), Some((BackupResponse::Unknown, _))) => {
                self.answered(from);
                self.inventory.put_aside(segment, from);
                self.give_up_fetch(segment);
            }
            _ => {
                self.failed(now, from);
                if let Asked::Bytes(segment, _) = asked {
                    self.give_up_fetch(segment);
                }
            }
        }
    }

    fn answered(&mut self, from: ServerId) {
        if let Some(backup) = self.inventory.backups.get_mut(&from) {
            backup.answered();
        }
    }

    fn failed(&mut self, now: Micros, from: ServerId) {
        if let Some(backup) = self.inventory.backups.get_mut(&from) {
            backup.failed(now);
        }
    }

    fn ask_again(&mut self, asked: Asked) {
        if let Asked::Bytes(segment, _) = asked
            && let Some(fetch) = self
                .fetches
                .iter_mut()
                .find(|fetch| fetch.segment == segment)
        {
            fetch.asked = false;
        }
    }

    fn handle_bytes(
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
            let job = self.job(fetch);
            self.jobs.push_back(job);
        }
    }

    fn job(&self, fetch: Fetch) -> Job {
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
        let claim = if is_end {
            Claim {
                kind: SegmentKind::Head,
                epoch: self.end.epoch,
                closed: false,
                ..closed
            }
        } else {
            closed
        };
        let fetched = Fetched {
            from,
            claim,
            certificate,
            contents,
        };
        if is_end {
            Job::End(fetched)
        } else {
            Job::Segment(fetched)
        }
    }

    /// The end is proved: these are the segments of the log.
    pub(super) fn handle_digest(&mut self, items: Vec<DigestItem>) -> Result<(), String> {
        self.has_digest = true;
        for item in items {
            if item.segment == self.end.segment {
                continue;
            }
            if item.length as usize > SEGMENT_SIZE {
                return Err(format!(
                    "the digest names {} bytes of {:?}",
                    item.length, item.segment
                ));
            }
            let needed = Needed {
                length: item.length,
                certificate: item.certificate,
                taken: false,
            };
            self.needed.insert(item.segment, needed);
        }
        self.reject_misfits();
        Ok(())
    }

    /// Sets aside what is closed and yet not what the digest names: it was changed since.
    fn reject_misfits(&mut self) {
        if !self.has_digest {
            return;
        }
        let mut misfits = Vec::new();
        for (&segment, needed) in self.needed.iter().filter(|(_, needed)| !needed.taken) {
            let copies = self.inventory.copies(segment);
            let wrong = copies.filter(|(_, info)| info.closed && !self.fits(segment, needed, info));
            misfits.extend(wrong.map(|(server, _)| (segment, server)));
        }
        for (segment, server) in misfits {
            self.handle_bad(segment, server);
        }
    }

    /// The replayer is done with a segment, and gives its memory back.
    pub(super) fn handle_replayed(&mut self, segment: SegmentId, mut memory: Vec<u8>) {
        memory.clear();
        self.spare.push(memory);
        if let Some(done) = self.needed.remove(&segment) {
            self.bytes -= done.length as usize;
            self.replayed.0 += 1;
            self.replayed.1 += u64::from(done.length);
        }
    }

    /// A copy is not what it should be.
    pub(super) fn handle_bad(&mut self, segment: SegmentId, from: ServerId) {
        self.inventory.put_aside(segment, from);
        self.bad.push(BadReplica {
            backup: from,
            master: self.master,
            segment,
        });
        self.fetches.retain(|fetch| fetch.segment != segment);
        self.release(segment);
    }

    fn give_up_fetch(&mut self, segment: SegmentId) {
        if let Some(at) = self
            .fetches
            .iter()
            .position(|fetch| fetch.segment == segment)
        {
            self.fetches.swap_remove(at);
            self.release(segment);
        }
    }

    fn give_up_fetches(&mut self, server: ServerId) {
        let of_server = |fetch: &&Fetch| fetch.from == server;
        let segments: Vec<_> = self
            .fetches
            .iter()
            .filter(of_server)
            .map(|f| f.segment)
            .collect();
        segments
            .into_iter()
            .for_each(|segment| self.give_up_fetch(segment));
    }

    /// A segment is neither being fetched nor with the replayer any more.
    fn release(&mut self, segment: SegmentId) {
        if let Some(needed) = self.needed.get_mut(&segment)
            && std::mem::replace(&mut needed.taken, false)
        {
            self.bytes -= needed.length as usize;
        }
    }

    fn leave_lost(&mut self) {
        let lost = |fetch: &&Fetch| self.inventory.is_lost(fetch.from);
        let servers: Vec<_> = self
            .fetches
            .iter()
            .filter(lost)
            .map(|fetch| fetch.from)
            .collect();
        servers
            .into_iter()
            .for_each(|server| self.give_up_fetches(server));
    }

    /// Fails if a segment is to be had from nobody, now that everybody has been asked.
    fn check_missing(&self) -> Result<(), String> {
        if self.end.length as usize > SEGMENT_SIZE {
            return Err(format!("an end of {} bytes can't be", self.end.length));
        }
        if !self.inventory.is_settled() {
            return Ok(());
        }
        let is_missing = |(segment, needed): &(&SegmentId, &Needed)| {
            let usable = |(server, info): (ServerId, &ReplicaInfo)| {
                !self.inventory.is_lost(server) && self.fits(**segment, needed, info)
            };
            !needed.taken && !self.inventory.copies(**segment).any(usable)
        };
        match self.needed.iter().rev().find(is_missing) {
            Some((&segment, _)) => Err(self.describe_missing(segment)),
            None => Ok(()),
        }
    }

    fn describe_missing(&self, segment: SegmentId) -> String {
        let damaged: Vec<_> = self.inventory.set_aside(segment).collect();
        let mut other = Vec::new();
        let mut silent = Vec::new();
        for (server, info) in self.inventory.copies(segment) {
            if self.inventory.is_lost(server) {
                silent.push(server);
            } else {
                other.push((server, info.length, info.closed));
            }
        }
        let master = self.master;
        let mut text = format!("no backup has {segment:?} of {master:?} whole");
        let mut add = |what: &str, who: String| text.push_str(&format!("; {what} {who}"));
        if !damaged.is_empty() {
            add("damaged on", format!("{damaged:?}"));
        }
        for (server, length, closed) in other {
            let state = if closed { "closed" } else { "open" };
            add(
                "another state on",
                format!("{server:?} ({length} bytes, {state})"),
            );
        }
        if !silent.is_empty() {
            add("held by silent", format!("{silent:?}"));
        }
        text
    }
}
