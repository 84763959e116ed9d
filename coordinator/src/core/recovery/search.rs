//! What the living backups hold of one crashed master's log, and the bytes of its heads.
//!
//! # Invariants
//! 1. Nothing is judged before every living backup has shown all that it holds, but for those that
//!    enlisted after the crash: they are waited for a lease and [`NEWCOMER_WAIT`], and count as not back yet after that.
//!    While one of them is left out nothing is called missing: it may have it.
//! 2. A backup has one question of a search at a time; an answer to any other is not listened to.
//! 3. Only backups that are known to refuse the dead master are asked.
//! 4. What a backup may show is bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::limits::{MAX_INVENTORY, MAX_REPLICATE_BYTES, SEGMENT_SIZE};
use ramkeep_wire::{BootId, Micros, SegmentId, ServerId};

use super::end::{Dead, Finder, Found, Gone, Held, Step, Stuck};
use crate::limits::{ASK_AGAIN, ASK_SOON, MAX_LISTED, NEWCOMER_WAIT};

/// Asks one backup; gives the question's token.
pub(super) type Ask<'a> = dyn FnMut(ServerId, BackupRequest) -> Option<u64> + 'a;

/// A living backup, as it is for one dead master.
#[derive(Clone, Copy, Debug)]
pub(super) struct Living {
    /// The boot of its machine.
    pub(super) boot: BootId,
    /// It is known to refuse the dead master.
    pub(super) refuses: bool,
    /// It enlisted after the crash.
    pub(super) is_new: bool,
}

/// What one backup showed so far.
#[derive(Debug)]
struct Listing {
    living: Living,
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
    /// To be proved, no more.
    only_proves: bool,
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
    Stuck(Stuck),
}

/// The search for the end of one log.
#[derive(Debug)]
pub(super) struct Search {
    /// Until when backups are waited for that enlisted after the crash.
    patience: Micros,
    /// Only for those it waits now.
    waits_for_new: bool,
    /// All that were to be waited for have shown what they hold.
    listed: bool,
    listings: BTreeMap<ServerId, Listing>,
    reading: Option<Reading>,
}

impl Search {
    /// A backup that has just started shows nothing for as long as a lease.
    pub(super) fn new(now: Micros, lease: Duration) -> Self {
        Self {
            patience: now + lease + NEWCOMER_WAIT,
            waits_for_new: false,
            listed: false,
            listings: BTreeMap::new(),
            reading: None,
        }
    }

    /// Goes on with what is there. `backups` are all living ones.
    pub(super) fn look(
        &mut self,
        now: Micros,
        dead: &Dead,
        backups: &BTreeMap<ServerId, Living>,
        finder: &Finder,
        gone: &mut Gone,
        ask: &mut Ask<'_>,
    ) -> Looked {
        self.follow(now, backups, gone);
        self.ask_for_listings(now, dead.master, ask);
        self.listed = self.judge_listings(now);
        if !self.listed {
            return Looked::Waits;
        }
        if backups.is_empty() {
            return Looked::Stuck(Stuck::from("no backup is there"));
        }
        if self.reading.is_none() {
            match finder.step(dead, &self.shown(), gone) {
                Step::Found(found) => return Looked::Found(found),
                Step::Stuck(stuck) => return Looked::Stuck(self.without_new(stuck)),
                Step::Read(held) => self.reading = Some(Reading::of(now, held, false)),
                Step::Prove(held) => self.reading = Some(Reading::of(now, held, true)),
            }
        }
        if let Some(reading) = &mut self.reading {
            reading.ask(now, ask);
        }
        Looked::Waits
    }

    /// Backups come and go.
    fn follow(&mut self, now: Micros, backups: &BTreeMap<ServerId, Living>, gone: &mut Gone) {
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
        for (server, living) in backups {
            let listing = self.listings.entry(*server).or_insert_with(|| Listing {
                living: *living,
                replicas: Vec::new(),
                complete: false,
                question: Question::due(now),
            });
            listing.living = *living;
        }
    }

    fn ask_for_listings(&mut self, now: Micros, master: ServerId, ask: &mut Ask<'_>) {
        for (server, listing) in self.listings.iter_mut().filter(|(_, one)| one.is_open()) {
            let after = listing.replicas.last().map(|replica| replica.segment);
            let request = BackupRequest::Inventory { master, after };
            listing.question.ask(now, || ask(*server, request));
        }
    }

    /// Whether every living backup that is to be waited for refuses the master and has shown what it
    /// holds.
    fn judge_listings(&mut self, now: Micros) -> bool {
        let open = |is_new: bool| {
            let mut listings = self.listings.values();
            listings.any(|one| !one.complete && one.living.is_new == is_new)
        };
        let (old, new) = (open(false), open(true));
        self.waits_for_new = !old && new && now < self.patience;
        !old && !self.waits_for_new
    }

    /// Whether that was so when it looked last.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// Why it can't go on, should one have been left out that may have what is missing.
    fn without_new(&self, stuck: Stuck) -> Stuck {
        let mut left_out = self.listings.iter().filter(|(_, one)| !one.complete);
        match left_out.next() {
            None => stuck,
            Some((server, _)) => Stuck {
                why: format!("{}; {server:?} has not shown yet what it holds", stuck.why),
                missing: None,
            },
        }
    }

    fn shown(&self) -> Vec<Held> {
        let all = self.listings.iter();
        all.flat_map(|(by, listing)| {
            let held = |replica: &ReplicaInfo| Held {
                by: *by,
                boot: listing.living.boot,
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
                    let (held, bytes) = (&reading.held, &reading.bytes);
                    if reading.only_proves {
                        finder.prove(dead, held, bytes);
                    } else {
                        finder.read(dead, held, bytes);
                    }
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
        let listings = self.listings.values().filter(|listing| listing.is_open());
        let listings = listings.map(|listing| listing.question);
        // It goes on once all have shown what they hold.
        let reading = self.reading.iter().filter(|_| self.listed);
        let reading = reading.map(|reading| reading.question);
        let open = listings.chain(reading).filter(|q| q.asked.is_none());
        let patience = self.waits_for_new.then_some(self.patience);
        open.map(|question| question.due).chain(patience).min()
    }

    /// What it waits for, for people.
    pub(super) fn phase(&self) -> String {
        if let Some(reading) = &self.reading {
            let (segment, by) = (reading.held.replica.segment, reading.held.by);
            let what = if reading.only_proves { "" } else { "the head " };
            return format!("{by:?} is read: {what}{segment:?}");
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
    /// Whether there is something to ask.
    fn is_open(&self) -> bool {
        !self.complete && self.living.refuses
    }

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
    fn of(now: Micros, held: Held, only_proves: bool) -> Self {
        Self {
            held,
            only_proves,
            bytes: Vec::new(),
            question: Question::due(now),
        }
    }

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

#[cfg(test)]
mod tests {
    use ramkeep_wire::certificate::{Certificate, CertificateKey, SegmentKind};
    use ramkeep_wire::{ClusterId, ReplicationEpoch};

    use super::*;

    const M: ServerId = ServerId(1);
    const B: ServerId = ServerId(2);
    const NOW: Micros = Micros(1_000_000);
    const LEASE: Duration = Duration::from_millis(200);

    fn dead() -> Dead {
        Dead {
            cluster: ClusterId([1; 16]),
            master: M,
            key: CertificateKey([1; 32]),
            floor: None,
            epochs: BTreeMap::new(),
            accepted: None,
            decided: None,
        }
    }

    /// One that was there when M crashed, and has heard of it.
    fn there() -> Living {
        Living {
            boot: BootId([0; 16]),
            refuses: true,
            is_new: false,
        }
    }

    fn closed(segment: u64) -> ReplicaInfo {
        ReplicaInfo {
            master: M,
            segment: SegmentId(segment),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(1),
            length: 1,
            closed: true,
            certificate: Certificate::NONE,
            boot: BootId([0; 16]),
            inherited: false,
        }
    }

    struct Bench {
        search: Search,
        finder: Finder,
        gone: Gone,
        backups: BTreeMap<ServerId, Living>,
        now: Micros,
        asked: Vec<(u64, ServerId, BackupRequest)>,
        tokens: u64,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                search: Search::new(NOW, LEASE),
                finder: Finder::default(),
                gone: Gone::default(),
                backups: BTreeMap::from([(B, there())]),
                now: NOW,
                asked: Vec::new(),
                tokens: 0,
            }
        }

        fn look(&mut self) -> Looked {
            let (asked, tokens) = (&mut self.asked, &mut self.tokens);
            let mut ask = |server, request| {
                *tokens += 1;
                asked.push((*tokens, server, request));
                Some(*tokens)
            };
            let (finder, gone) = (&self.finder, &mut self.gone);
            let (now, backups) = (self.now, &self.backups);
            self.search
                .look(now, &dead(), backups, finder, gone, &mut ask)
        }

        /// The answer to the only question since the last one.
        fn answer(&mut self, response: Option<BackupResponse>) -> BackupRequest {
            assert_eq!(self.asked.len(), 1, "{:?}", self.asked);
            let (token, server, request) = self.asked.remove(0);
            let answer = response.map(|response| (response, Vec::new()));
            let finder = &mut self.finder;
            self.search
                .answered(self.now, &dead(), finder, server, token, answer);
            request
        }

        fn waits(&mut self) {
            assert!(matches!(self.look(), Looked::Waits));
        }

        /// Until the next question is due.
        fn pass(&mut self) {
            self.now = self.search.due().expect("something to ask").max(self.now);
        }
    }

    #[test]
    fn an_inventory_comes_in_pages_and_the_shorter_one_is_the_last() {
        let mut bench = Bench::new();
        let most = MAX_INVENTORY as u64;
        bench.waits();
        let page = (1..=most).map(closed).collect();
        let first = bench.answer(Some(BackupResponse::Inventory(page)));
        let asks = |after| BackupRequest::Inventory { master: M, after };
        assert_eq!(first, asks(None));
        bench.waits();
        let second = bench.answer(Some(BackupResponse::Inventory(vec![closed(most + 1)])));
        assert_eq!(second, asks(Some(SegmentId(most))));
        assert!(matches!(bench.look(), Looked::Stuck(_)), "no head is there");
        assert_eq!(bench.search.shown().len(), MAX_INVENTORY + 1);
        assert!(bench.asked.is_empty());
    }

    #[test]
    fn a_page_that_makes_no_sense_is_not_taken() {
        let of_another = ReplicaInfo {
            master: B,
            ..closed(1)
        };
        let too_many = (1..=MAX_INVENTORY as u64 + 1).map(closed).collect();
        for page in [
            vec![closed(2), closed(1)],
            vec![closed(1), closed(1)],
            vec![of_another],
            too_many,
        ] {
            let mut bench = Bench::new();
            bench.waits();
            bench.answer(Some(BackupResponse::Inventory(page)));
            assert!(bench.search.shown().is_empty());
            bench.waits();
            assert!(bench.asked.is_empty(), "it is asked again after a while");
            bench.pass();
            bench.waits();
            assert_eq!(bench.asked.len(), 1);
        }
    }

    #[test]
    fn who_is_not_ready_or_not_reached_is_asked_again() {
        let mut bench = Bench::new();
        bench.waits();
        bench.answer(Some(BackupResponse::NotYet { wait_us: 70_000 }));
        assert_eq!(bench.search.due(), Some(Micros(NOW.0 + 70_000)));
        bench.pass();
        bench.waits();
        bench.answer(None);
        bench.pass();
        bench.waits();
        bench.answer(Some(BackupResponse::Inventory(Vec::new())));
        assert!(matches!(bench.look(), Looked::Stuck(_)));
    }

    #[test]
    fn a_late_answer_to_an_earlier_question_is_not_listened_to() {
        let mut bench = Bench::new();
        bench.waits();
        let (token, ..) = bench.asked.remove(0);
        bench.backups.clear();
        assert!(
            matches!(bench.look(), Looked::Stuck(_)),
            "no backup is there"
        );
        bench.backups.insert(B, there());
        bench.waits();
        let late = Some((BackupResponse::Inventory(vec![closed(1)]), Vec::new()));
        let finder = &mut bench.finder;
        bench.search.answered(NOW, &dead(), finder, B, token, late);
        assert!(bench.search.shown().is_empty());
    }

    #[test]
    fn who_enlisted_after_the_crash_is_asked_once_it_refuses_and_waited_for_only_so_long() {
        let newcomer = ServerId(3);
        let mut bench = Bench::new();
        let unheard = Living {
            refuses: false,
            is_new: true,
            ..there()
        };
        bench.backups.insert(newcomer, unheard);
        bench.waits();
        bench.answer(Some(BackupResponse::Inventory(vec![closed(1)])));
        bench.waits();
        assert!(bench.asked.is_empty() && !bench.search.is_listed());
        bench.pass();
        assert_eq!(bench.now, NOW + LEASE + NEWCOMER_WAIT);
        let Looked::Stuck(stuck) = bench.look() else {
            panic!("it waits for ever");
        };
        assert!(bench.search.is_listed());
        assert!(stuck.why.contains("server-3 has not shown"), "{stuck:?}");
        assert_eq!(stuck.missing, None, "it may have what is missing");
        // Another search does not begin with that.
        bench.search = Search::new(bench.now, LEASE);
        bench.backups.insert(
            newcomer,
            Living {
                refuses: true,
                ..unheard
            },
        );
        bench.waits();
        assert_eq!(bench.asked.len(), 2);
        for (token, server, _) in std::mem::take(&mut bench.asked) {
            let page = Some((BackupResponse::Inventory(Vec::new()), Vec::new()));
            let (now, finder) = (bench.now, &mut bench.finder);
            bench
                .search
                .answered(now, &dead(), finder, server, token, page);
        }
        let Looked::Stuck(stuck) = bench.look() else {
            panic!("all have shown what they hold");
        };
        assert!(stuck.missing.is_some());
    }

    /// Seed 2950 of the simulator: the question was due, and was not put.
    #[test]
    fn a_reading_that_waits_for_another_backups_inventory_is_not_due() {
        let mut bench = Bench::new();
        bench.waits();
        bench.answer(Some(BackupResponse::Inventory(vec![closed(1)])));
        let held = Held {
            by: B,
            boot: BootId([0; 16]),
            replica: closed(1),
        };
        bench.search.reading = Some(Reading::of(NOW, held, false));
        bench.waits();
        let another = Living {
            refuses: false,
            ..there()
        };
        bench.backups.insert(ServerId(3), another);
        bench.waits();
        bench.answer(None);
        assert_eq!(bench.search.due(), None, "it refuses nobody yet");
        bench.backups.insert(ServerId(3), there());
        bench.waits();
        let (token, server, _) = bench.asked.remove(0);
        let page = Some((BackupResponse::Inventory(Vec::new()), Vec::new()));
        let (now, finder) = (bench.now, &mut bench.finder);
        bench
            .search
            .answered(now, &dead(), finder, server, token, page);
        bench.waits();
        bench.pass();
        bench.waits();
        let fetches = matches!(bench.asked[..], [(_, B, BackupRequest::Fetch { .. })]);
        assert!(fetches, "it goes on: {:?}", bench.asked);
    }

    #[test]
    fn what_a_backup_showed_is_remembered_when_it_is_gone() {
        let mut bench = Bench::new();
        bench.waits();
        bench.answer(Some(BackupResponse::Inventory(vec![closed(3)])));
        bench.backups.clear();
        bench.look();
        assert_eq!(bench.gone.held.get(&SegmentId(3)), Some(&B));
    }
}
