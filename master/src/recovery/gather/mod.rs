//! Gathering a crashed master's segments: who holds what, the end and its digest, and whole
//! segments, newest first, from several backups at a time.
//!
//! # Invariants
//! 1. A copy is asked for only if its holder says of it what the decided end, or the digest, says.
//! 2. A segment is done when it was replayed; a copy that is not what it should be is set aside, and
//!    the next one is fetched. Without another the segment is lost. Then nothing more is replayed; the
//!    others are proved, so that the recovery fails once, and names all that are lost.
//! 3. Bytes fetched or waiting to be replayed are at most [`MAX_BYTES`], requests in flight at most
//!    [`MAX_ASKS`].
//! 4. Nothing is replayed before that was admitted: at once where there is memory for all of the log, else
//!    once all of it is proved and measured; then it is fetched again (SAFETY 26).

mod fetching;
mod missing;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::Claim;
use ramkeep_wire::coordinator::{DamagedReplica, ServerList};
use ramkeep_wire::entry::DigestItem;
use ramkeep_wire::limits::SEGMENT_SIZE;
use ramkeep_wire::order::{LogEnd, OrderReply, Recovery};
use ramkeep_wire::{Certificate, ClusterId, Micros, SegmentId, ServerId};

use super::inventory::{Inventory, RETRY};
use fetching::Fetch;

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
    /// Prove the end, tell its digest, and keep it.
    End(Fetched),
    /// All is proved: is there memory for what counts?
    Admit,
    /// Replay the end.
    ReplayEnd,
    /// Prove a segment, and measure what counts of it.
    Proof(Fetched),
    /// Prove a segment and replay it.
    Segment(Fetched),
    /// All are replayed.
    Finish,
}

/// What segments are fetched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aim {
    /// To be proved, since not all are, or not all can be.
    Prove,
    /// None, until it is said whether there is memory for what counts.
    Admit,
    /// To be replayed.
    Replay,
}

/// Why it can't be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// For people.
    pub(super) why: String,
    /// The segments of which no copy proves itself, in order, if it is for those.
    pub(super) unproved: Vec<SegmentId>,
    /// The bytes of memory that it takes and those that are to be had, if it is for those.
    pub(super) no_room: Option<(u64, u64)>,
}

impl Failure {
    pub(super) fn no_room(needs: u64, room: u64) -> Self {
        Self {
            no_room: Some((needs, room)),
            ..format!("it needs {needs} bytes of memory, and {room} are to be had").into()
        }
    }

    pub(super) fn reply(&self) -> OrderReply {
        let why = self.why.clone();
        if let Some((needs, room)) = self.no_room {
            OrderReply::NoRoom { needs, room }
        } else if self.unproved.is_empty() {
            OrderReply::CannotRecover(why)
        } else {
            let segments = self.unproved.clone();
            OrderReply::CannotProve { segments, why }
        }
    }
}

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self {
            why,
            unproved: Vec::new(),
            no_room: None,
        }
    }
}

/// A segment that is needed.
#[derive(Clone, Copy, Debug)]
struct Needed {
    length: u32,
    certificate: Certificate,
    /// Being fetched, or with the replayer.
    taken: bool,
    /// A copy of it was proved.
    proved: bool,
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
    aim: Aim,
    /// There is memory for what will be appended.
    admitted: bool,
    /// The replayer was asked.
    asked_admission: bool,
    needed: BTreeMap<SegmentId, Needed>,
    /// Needed, and to be had from nobody.
    lost: BTreeMap<SegmentId, Needed>,
    /// These may be missing.
    given_up: Vec<SegmentId>,
    has_digest: bool,
    /// The end is proved, and not replayed.
    end_waits: bool,
    fetches: Vec<Fetch>,
    asks: BTreeMap<AskId, (ServerId, Asked)>,
    last_ask: u64,
    /// Whole segments for the replayer.
    fetched: VecDeque<Fetched>,
    /// Bytes of segments in `fetches` and with the replayer.
    bytes: usize,
    replayed: (u32, u64),
    finishing: bool,
    /// Memory of segments that are replayed: at most as much as was ever in use.
    spare: Vec<Vec<u8>>,
    bad: Vec<DamagedReplica>,
}

impl Gather {
    pub(super) fn new(cluster: ClusterId, order: &Recovery) -> Self {
        let end = Needed {
            length: order.end.length,
            certificate: order.end.certificate,
            taken: false,
            proved: false,
        };
        // Nothing may be left, and an operator has accepted that.
        let nothing = order.end == LogEnd::NOTHING;
        let end = (!nothing).then_some((order.end.segment, end));
        Self {
            cluster,
            master: order.master,
            end: order.end,
            inventory: Inventory::default(),
            aim: Aim::Replay,
            admitted: nothing,
            asked_admission: false,
            needed: end.into_iter().collect(),
            lost: BTreeMap::new(),
            given_up: order.given_up.clone().unwrap_or_default(),
            has_digest: nothing,
            end_waits: false,
            fetches: Vec::new(),
            asks: BTreeMap::new(),
            last_ask: 0,
            fetched: VecDeque::new(),
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
        let of = segments + (self.needed.len() + self.lost.len()) as u32;
        (segments, if self.has_digest { of } else { 0 }, bytes)
    }

    /// Nothing more is gathered.
    pub(super) fn rest(&mut self) {
        self.fetches.clear();
        self.fetched.clear();
        self.spare.clear();
        self.asks.clear();
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

    pub(super) fn take_bad(&mut self) -> Vec<DamagedReplica> {
        std::mem::take(&mut self.bad)
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        if self.aim == Aim::Admit {
            let asked = std::mem::replace(&mut self.asked_admission, true);
            return (!asked).then_some(Job::Admit);
        }
        let replays = self.aim == Aim::Replay;
        if replays && std::mem::take(&mut self.end_waits) {
            return Some(Job::ReplayEnd);
        }
        let done = self.has_digest && self.needed.is_empty() && self.lost.is_empty();
        if done && !self.finishing {
            self.finishing = true;
            return Some(Job::Finish);
        }
        let fetched = self.fetched.pop_front()?;
        Some(if fetched.claim.segment == self.end.segment {
            Job::End(fetched)
        } else if replays {
            Job::Segment(fetched)
        } else {
            Job::Proof(fetched)
        })
    }

    /// The next request to send; an error if the recovery can't succeed.
    pub(super) fn poll_ask(
        &mut self,
        now: Micros,
    ) -> Result<Option<(ServerId, AskId, BackupRequest)>, Failure> {
        self.leave_lost();
        self.note_missing(now);
        self.judge(now)?;
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

    /// Whether a copy, as its holder describes it, can be what is needed.
    fn fits(&self, segment: SegmentId, needed: &Needed, info: &ReplicaInfo) -> bool {
        if segment == self.end.segment && !self.end.is_closed() {
            return info.length >= needed.length;
        }
        info.closed && info.length == needed.length && info.certificate == needed.certificate
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

    /// The end is proved: these are the segments of the log. There is memory for all of it if it is
    /// admitted.
    pub(super) fn handle_digest(
        &mut self,
        items: Vec<DigestItem>,
        admitted: bool,
    ) -> Result<(), String> {
        self.has_digest = true;
        self.end_waits = true;
        if let Some(end) = self.needed.get_mut(&self.end.segment) {
            end.proved = true;
        }
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
                proved: false,
            };
            self.needed.insert(item.segment, needed);
        }
        self.admitted = admitted;
        if !admitted {
            self.aim = Aim::Prove;
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

    /// There is memory for what counts.
    pub(super) fn handle_admitted(&mut self) {
        self.admitted = true;
        if self.aim == Aim::Admit {
            self.aim = Aim::Replay;
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

    /// The replayer has proved a segment, and gives its memory back.
    pub(super) fn handle_proved(&mut self, segment: SegmentId, mut memory: Vec<u8>) {
        memory.clear();
        self.spare.push(memory);
        self.release(segment);
        if let Some(needed) = self.needed.get_mut(&segment) {
            needed.proved = true;
        }
    }

    /// A copy is not what it should be.
    pub(super) fn handle_bad(&mut self, segment: SegmentId, from: ServerId) {
        self.inventory.put_aside(segment, from);
        self.bad.push(DamagedReplica {
            backup: from,
            master: self.master,
            segment,
        });
        self.fetches.retain(|fetch| fetch.segment != segment);
        self.release(segment);
    }
}
