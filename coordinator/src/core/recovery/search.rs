//! What the living backups hold of one crashed master's log, and the bytes of its heads.
//!
//! # Invariants
//! 1. Nothing is judged before every living backup has shown all that it holds.
//! 2. A backup has one question of a search at a time; an answer to any other is not listened to.
//! 3. What a backup may show is bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::limits::{MAX_INVENTORY, MAX_REPLICATE_BYTES, SEGMENT_SIZE};
use ramkeep_wire::{BootId, Micros, SegmentId, ServerId};

use super::end::{Dead, Finder, Found, Gone, Held, Step};
use crate::limits::{ASK_AGAIN, ASK_SOON, MAX_LISTED};

/// Asks one backup; gives the question's token.
pub(super) type Ask<'a> = dyn FnMut(ServerId, BackupRequest) -> Option<u64> + 'a;

/// What one backup showed so far.
#[derive(Debug)]
struct Listing {
    boot: BootId,
    replicas: Vec<ReplicaInfo>,
    complete: bool,
    question: Question,
}

/// A question, under way or due.
#[derive(Clone, Copy, Debug)]
struct Question {
    asked: Option<u64>,
    due: Micros,
}

impl Question {
    fn due(at: Micros) -> Self {
        Self {
            asked: None,
            due: at,
        }
    }

    /// Asks if it is time to.
    fn ask(&mut self, now: Micros, ask: impl FnOnce() -> Option<u64>) {
        if self.asked.is_none() && self.due <= now {
            self.asked = ask();
            self.due = now + ASK_SOON;
        }
    }

    fn again(&mut self, now: Micros, wait: Duration) {
        *self = Self::due(now + wait);
    }
}

/// The bytes of a replica as they come.
#[derive(Debug)]
struct Reading {
    held: Held,
    bytes: Vec<u8>,
    question: Question,
}

/// What came of looking.
#[derive(Debug)]
pub(super) enum Looked {
    /// Answers are awaited.
    Waits,
    /// The end is known.
    Found(Found),
    /// It can't be known from what is there.
    Stuck(String),
}

/// The search for the end of one log.
#[derive(Debug, Default)]
pub(super) struct Search {
    listings: BTreeMap<ServerId, Listing>,
    reading: Option<Reading>,
}

impl Search {
    /// Goes on with what is there. `backups` are all living ones with the boot of their machine.
    pub(super) fn look(
        &mut self,
        now: Micros,
        dead: &Dead,
        backups: &BTreeMap<ServerId, BootId>,
        finder: &Finder,
        gone: &mut Gone,
        ask: &mut Ask<'_>,
    ) -> Looked {
        self.follow(now, backups, gone);
        if !self.ask_for_listings(now, dead.master, ask) {
            return Looked::Waits;
        }
        if backups.is_empty() {
            return Looked::Stuck("no backup is there".into());
        }
        if self.reading.is_none() {
            match finder.step(dead, &self.shown(), gone) {
                Step::Found(found) => return Looked::Found(found),
                Step::Stuck(why) => return Looked::Stuck(why),
                Step::Read(held) => {
                    self.reading = Some(Reading {
                        held,
                        bytes: Vec::new(),
                        question: Question::due(now),
                    });
                }
            }
        }
        if let Some(reading) = &mut self.reading {
            reading.ask(now, ask);
        }
        Looked::Waits
    }

    /// Backups come and go.
    fn follow(&mut self, now: Micros, backups: &BTreeMap<ServerId, BootId>, gone: &mut Gone) {
        let listings = &mut self.listings;
        for (server, listing) in listings.extract_if(.., |server, _| !backups.contains_key(server))
        {
            let shown = listing.replicas.iter();
            gone.held
                .extend(shown.map(|replica| (replica.segment, server)));
        }
        if let Some(reading) = &self.reading
            && !backups.contains_key(&reading.held.by)
        {
            self.reading = None;
        }
        for (server, boot) in backups {
            self.listings.entry(*server).or_insert_with(|| Listing {
                boot: *boot,
                replicas: Vec::new(),
                complete: false,
                question: Question::due(now),
            });
        }
    }

    /// Whether all are complete.
    fn ask_for_listings(&mut self, now: Micros, master: ServerId, ask: &mut Ask<'_>) -> bool {
        let mut complete = true;
        for (server, listing) in &mut self.listings {
            if listing.complete {
                continue;
            }
            complete = false;
            let after = listing.replicas.last().map(|replica| replica.segment);
            let request = BackupRequest::Inventory { master, after };
            listing.question.ask(now, || ask(*server, request));
        }
        complete
    }

    fn shown(&self) -> Vec<Held> {
        let all = self.listings.iter();
        all.flat_map(|(by, listing)| {
            let held = |replica: &ReplicaInfo| Held {
                by: *by,
                boot: listing.boot,
                replica: *replica,
            };
            listing.replicas.iter().map(held)
        })
        .collect()
    }

    /// An answer came in, or got lost.
    pub(super) fn answered(
        &mut self,
        now: Micros,
        dead: &Dead,
        finder: &mut Finder,
        server: ServerId,
        token: u64,
        answer: Option<(BackupResponse, Vec<u8>)>,
    ) {
        if let Some(reading) = &mut self.reading
            && reading.question.asked == Some(token)
        {
            match reading.answered(now, answer) {
                Read::On => {}
                Read::Whole => {
                    finder.read(dead, &reading.held, &reading.bytes);
                    self.reading = None;
                }
                Read::Changed => {
                    self.reading = None;
                    self.list_again(now, server);
                }
            }
        } else if let Some(listing) = self.listings.get_mut(&server)
            && listing.question.asked == Some(token)
        {
            listing.answered(now, dead.master, answer);
        }
    }

    fn list_again(&mut self, now: Micros, server: ServerId) {
        if let Some(listing) = self.listings.get_mut(&server) {
            listing.replicas.clear();
            listing.complete = false;
            listing.question.again(now, ASK_SOON);
        }
    }

    /// When it has something to ask.
    pub(super) fn due(&self) -> Option<Micros> {
        let listings = self.listings.values().filter(|listing| !listing.complete);
        let listings = listings.map(|listing| listing.question);
        let reading = self.reading.iter().map(|reading| reading.question);
        let open = listings.chain(reading).filter(|q| q.asked.is_none());
        open.map(|question| question.due).min()
    }

    /// What it waits for, for people.
    pub(super) fn phase(&self) -> String {
        if let Some(reading) = &self.reading {
            let (segment, by) = (reading.held.replica.segment, reading.held.by);
            return format!("{by:?} is read: the head {segment:?}");
        }
        let complete = self.listings.values().filter(|listing| listing.complete);
        format!(
            "backups answer: {} of {}",
            complete.count(),
            self.listings.len()
        )
    }
}

impl Listing {
    fn answered(
        &mut self,
        now: Micros,
        master: ServerId,
        answer: Option<(BackupResponse, Vec<u8>)>,
    ) {
        match answer {
            Some((BackupResponse::Inventory(page), _)) if self.takes(master, &page) => {
                self.complete = page.len() < MAX_INVENTORY;
                self.replicas.extend(page);
                self.question = Question::due(now);
            }
            Some((BackupResponse::NotYet { wait_us }, _)) => {
                let wait = Duration::from_micros(wait_us);
                self.question.again(now, wait.clamp(MIN_WAIT, ASK_AGAIN));
            }
            None => self.question.again(now, ASK_SOON),
            Some((response, _)) => {
                tracing::warn!(%master, ?response, "a backup does not show what it holds");
                self.replicas.clear();
                self.question.again(now, ASK_AGAIN);
            }
        }
    }

    /// Whether a page makes sense after what is there.
    fn takes(&self, master: ServerId, page: &[ReplicaInfo]) -> bool {
        let mut last = self.replicas.last().map_or(SegmentId(0), |r| r.segment);
        let ordered = page.iter().all(|replica| {
            let after = std::mem::replace(&mut last, replica.segment) < replica.segment;
            after && replica.master == master
        });
        let room = MAX_LISTED.saturating_sub(self.replicas.len());
        ordered && page.len() <= MAX_INVENTORY.min(room)
    }
}

/// A wait of nothing would be a loop.
const MIN_WAIT: Duration = Duration::from_millis(1);

enum Read {
    On,
    Whole,
    Changed,
}

impl Reading {
    fn ask(&mut self, now: Micros, ask: &mut Ask<'_>) {
        let replica = &self.held.replica;
        let left = (replica.length as usize).saturating_sub(self.bytes.len());
        let request = BackupRequest::Fetch {
            master: replica.master,
            segment: replica.segment,
            offset: self.bytes.len() as u32,
            length: left.min(MAX_REPLICATE_BYTES) as u32,
        };
        let by = self.held.by;
        self.question.ask(now, || ask(by, request));
    }

    fn answered(&mut self, now: Micros, answer: Option<(BackupResponse, Vec<u8>)>) -> Read {
        let wanted = self.held.replica.length as usize;
        let left = wanted.saturating_sub(self.bytes.len());
        match answer {
            None => {
                self.question.again(now, ASK_SOON);
                Read::On
            }
            Some((BackupResponse::NotYet { wait_us }, _)) => {
                let wait = Duration::from_micros(wait_us);
                self.question.again(now, wait.clamp(MIN_WAIT, ASK_AGAIN));
                Read::On
            }
            Some((BackupResponse::Bytes { replica, .. }, bytes))
                if replica == self.held.replica
                    && wanted <= SEGMENT_SIZE
                    && bytes.len() <= left
                    && (!bytes.is_empty() || left == 0) =>
            {
                self.bytes.extend_from_slice(&bytes);
                self.question = Question::due(now);
                if bytes.len() == left {
                    Read::Whole
                } else {
                    Read::On
                }
            }
            Some(_) => Read::Changed,
        }
    }
}
