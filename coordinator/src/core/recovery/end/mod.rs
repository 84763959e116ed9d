//! Where a crashed master's log ends, as far as what the backups show proves it (SAFETY 11 to 16).
//!
//! # Invariants
//! 1. An open replica counts as evidence if it is of a head, its epoch is at least the recorded one,
//!    it is not below the floor, and it was written since its machine booted. Nothing was acknowledged
//!    in any head after one that counts, unless that one carries its active mark.
//! 2. Nothing is believed of a replica's contents but under a certificate that fits.
//! 3. There is an end only if every segment that its digest names is there, closed, as the digest
//!    says. Of one that a recovery master could not prove a copy counts once it was proved here
//!    (SAFETY 27).
//! 4. The end is the longest replica of the last head, open or closed: one that was brought back from
//!    earlier takes nothing away while an honest one is there. Everything that was acknowledged is in
//!    every honest one, so that another may become the end while the longest is not there.
//! 5. What an operator gave up is the only exception, and counts only if it is all that is missing,
//!    and, without a head that counts, if everybody who may have one is asserted dead (SAFETY 19).

mod suspects;

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::certificate::{CertificateKey, Claim, SegmentKind};
use ramkeep_wire::coordinator::Loss;
use ramkeep_wire::entry::{DigestItem, Entry};
use ramkeep_wire::limits::{MAX_ASSERTED_DEAD, MAX_GIVEN_UP};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::LogEnd;
use ramkeep_wire::segment::UnverifiedSegment;
use ramkeep_wire::{BootId, ClusterId, ReplicationEpoch, SegmentId, ServerId};

use suspects::Suspects;

/// Crashed backups that a reason names.
const NAMED: usize = 4;

/// What the replicated state says of a crashed master's log.
#[derive(Clone, Debug)]
pub(super) struct Dead {
    pub(super) cluster: ClusterId,
    pub(super) master: ServerId,
    pub(super) key: CertificateKey,
    /// Open replicas below it never count.
    pub(super) floor: Option<(SegmentId, ReplicationEpoch)>,
    /// The recorded epochs, by segment.
    pub(super) epochs: BTreeMap<SegmentId, ReplicationEpoch>,
    /// What an operator has given up.
    pub(super) accepted: Option<Loss>,
    /// The end, if that is decided: it stays while somebody holds it.
    pub(super) decided: Option<LogEnd>,
}

/// A replica where a living backup holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) by: ServerId,
    /// The boot of that backup's machine.
    pub(super) boot: BootId,
    pub(super) replica: ReplicaInfo,
}

/// What is to be done to know the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Give [`Finder::read`] the bytes of this replica.
    Read(Held),
    /// Give [`Finder::prove`] the bytes of this replica.
    Prove(Held),
    /// It is known.
    Found(Found),
    /// It can't be known from what is there.
    Stuck(Stuck),
}

/// Why there is no end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    /// For people.
    pub(super) why: String,
    /// What would have to be given up.
    pub(super) missing: Option<Loss>,
}

impl From<&str> for Stuck {
    fn from(why: &str) -> Self {
        Self {
            why: why.into(),
            missing: None,
        }
    }
}

/// The end of a log, all of which is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) end: LogEnd,
    /// Bytes of all segments.
    pub(super) bytes: u64,
}

/// What a head's proved bytes say.
#[derive(Debug)]
struct Facts {
    active: bool,
    digest: Option<Vec<DigestItem>>,
}

/// Finds the end of one log.
#[derive(Debug, Default)]
pub(super) struct Finder {
    /// By the claim and the certificate that prove them.
    facts: BTreeMap<Proved, Facts>,
    /// Replicas whose certificate does not fit their bytes.
    aside: BTreeMap<(ServerId, SegmentId), Proved>,
    /// Segments that a recovery master could not prove.
    pub(super) suspects: Suspects,
}

/// An open head's claim, but for what all of a log have in common, and its certificate.
type Proved = (SegmentId, ReplicationEpoch, u32, [u8; 32]);

fn proved(replica: &ReplicaInfo) -> Proved {
    let hash = replica.certificate.hash;
    (replica.segment, replica.epoch, replica.length, hash)
}

/// What is known of backups that are not there.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// Segments that a backup showed before it crashed.
    pub(super) held: BTreeMap<SegmentId, ServerId>,
    /// Crashed backups whose frames have not come back.
    pub(super) backups: Vec<ServerId>,
}

impl Dead {
    /// Whether an operator has given up all of it. Without the tail the fence is complete, and it does
    /// not matter who has crashed since.
    fn has_given_up(&self, loss: &Loss) -> bool {
        let Some(accepted) = &self.accepted else {
            return false;
        };
        let covers = |server| accepted.dead.contains(server);
        (accepted.tail && loss.dead.iter().all(covers) || !loss.tail)
            && loss
                .segments
                .iter()
                .all(|one| accepted.segments.contains(one))
    }

    fn gave_up(&self, segment: SegmentId) -> bool {
        let accepted = self.accepted.as_ref();
        accepted.is_some_and(|loss| loss.segments.contains(&segment))
    }

    fn counts(&self, held: &Held) -> bool {
        let replica = &held.replica;
        let recorded = self.epochs.get(&replica.segment);
        is_certified_head(replica)
            && !replica.closed
            && (recorded.is_none_or(|epoch| replica.epoch >= *epoch)
                || mutants::active(Mutant::EndIgnoresEpoch))
            && (self
                .floor
                .is_none_or(|floor| (replica.segment, replica.epoch) >= floor)
                || mutants::active(Mutant::EndIgnoresFloor))
            && !held.is_from_before_boot()
    }

    fn claim(&self, replica: &ReplicaInfo) -> Claim {
        if replica.closed {
            let (segment, kind) = (replica.segment, replica.kind);
            return Claim::closed(self.cluster, self.master, segment, kind, replica.length);
        }
        Claim {
            cluster: self.cluster,
            master: self.master,
            segment: replica.segment,
            kind: replica.kind,
            epoch: replica.epoch,
            length: replica.length,
            closed: false,
        }
    }
}

impl Held {
    fn is_from_before_boot(&self) -> bool {
        self.replica.inherited
            && self.replica.boot != self.boot
            && !mutants::active(Mutant::EndIgnoresReboot)
    }
}

impl Finder {
    /// The next step, given all that every living backup shows.
    pub(super) fn step(&self, dead: &Dead, shown: &[Held], gone: &Gone) -> Step {
        let decided = dead.decided.as_ref();
        let still = decided.and_then(|end| self.check(dead, end, shown, gone));
        still.unwrap_or_else(|| self.choose(dead, shown, gone))
    }

    /// An end that nothing is decided about.
    fn choose(&self, dead: &Dead, shown: &[Held], gone: &Gone) -> Step {
        let mut heads: BTreeMap<SegmentId, Vec<&Held>> = BTreeMap::new();
        for held in shown.iter().filter(|held| dead.counts(held)) {
            if self.may_be_proved(held) {
                heads.entry(held.replica.segment).or_default().push(held);
            }
        }
        let Some((&oldest, _)) = heads.first_key_value() else {
            return self.without_head(dead, shown, gone);
        };
        let mut last = oldest;
        // With one open head there is nothing to choose.
        for (&segment, replicas) in heads.iter().skip(1).rev() {
            let Some(longest) = longest(replicas.iter().copied()) else {
                continue;
            };
            match self.facts.get(&proved(&longest.replica)) {
                None => return Step::Read(*longest),
                Some(facts) if facts.active => {
                    last = segment;
                    break;
                }
                Some(_) => {}
            }
        }
        let open = heads.remove(&last).into_iter().flatten();
        let closed = shown.iter().filter(|held| {
            let replica = &held.replica;
            let is_last = replica.segment == last && replica.closed;
            is_last && is_certified_head(replica) && self.may_be_proved(held)
        });
        let Some(longest) = longest(open.chain(closed)) else {
            return self.without_head(dead, shown, gone);
        };
        match self.facts.get(&proved(&longest.replica)) {
            None => Step::Read(*longest),
            Some(facts) => {
                let last = Some((&longest.replica, facts));
                self.complete(dead, last, shown, gone, None)
            }
        }
    }

    /// Takes the bytes of a replica that was asked for. Whether its certificate fits them; if not,
    /// the replica is set aside.
    pub(super) fn read(&mut self, dead: &Dead, held: &Held, contents: &[u8]) -> bool {
        let replica = &held.replica;
        let claim = dead.claim(replica);
        let unverified = UnverifiedSegment::new(claim, replica.certificate, contents);
        match unverified.verify(&dead.key) {
            Ok(verified) => {
                let mut facts = Facts {
                    active: false,
                    digest: None,
                };
                for (_, entry) in verified.entries() {
                    match entry {
                        Entry::Digest(digest) => facts.digest = Some(digest.iter().collect()),
                        Entry::Active(_) => facts.active = true,
                        _ => {}
                    }
                }
                self.facts.insert(proved(replica), facts);
                true
            }
            Err(error) => {
                tracing::warn!(backup = %held.by, master = %dead.master,
                    segment = %replica.segment, %error, "a replica is damaged: set aside");
                self.aside
                    .insert((held.by, replica.segment), proved(replica));
                false
            }
        }
    }

    /// Takes the bytes of a closed replica of a suspect.
    pub(super) fn prove(&mut self, dead: &Dead, held: &Held, contents: &[u8]) {
        let replica = &held.replica;
        let unverified = UnverifiedSegment::new(dead.claim(replica), replica.certificate, contents);
        let is_sound = unverified.verify(&dead.key).is_ok();
        if !is_sound {
            tracing::warn!(backup = %held.by, master = %dead.master, segment = %replica.segment,
                "a replica is damaged");
        }
        self.suspects.judge(held, is_sound);
    }

    /// Nothing that was read is believed any more. Heads that were set aside stay so.
    pub(super) fn read_again(&mut self) {
        self.facts.clear();
    }

    /// The replicas that were set aside, or of a suspect and damaged.
    pub(super) fn aside(&self) -> impl Iterator<Item = (ServerId, SegmentId)> + '_ {
        self.aside.keys().copied().chain(self.suspects.damaged())
    }

    /// Whether a closed replica counts as what it is said to be: none if it must be read first.
    fn is_sound(&self, dead: &Dead, held: &Held) -> Option<bool> {
        match dead.gave_up(held.replica.segment) || mutants::active(Mutant::BelieveInventories) {
            true => Some(true),
            false => self.suspects.is_sound(held),
        }
    }

    fn is_aside(&self, held: &Held) -> bool {
        let known = self.aside.get(&(held.by, held.replica.segment));
        known == Some(&proved(&held.replica))
    }

    fn may_be_proved(&self, held: &Held) -> bool {
        !self.is_aside(held) && self.may_have_digest(&held.replica)
    }

    /// A head is open on all its backups, digest and all, before anything depends on it. One that is
    /// not proves nothing.
    fn may_have_digest(&self, replica: &ReplicaInfo) -> bool {
        let facts = self.facts.get(&proved(replica));
        facts.is_none_or(|facts| facts.digest.is_some())
    }

    /// Whether all of a log is still there whose end is decided; `None` if nobody holds that end.
    fn check(&self, dead: &Dead, end: &LogEnd, shown: &[Held], gone: &Gone) -> Option<Step> {
        if *end == LogEnd::NOTHING {
            return Some(Step::Found(found(*end, &[])));
        }
        let is_end = |held: &&Held| {
            let replica = &held.replica;
            let fits = match end.is_closed() {
                true => replica.closed && replica.certificate == end.certificate,
                false => replica.length >= end.length,
            };
            fits && replica.segment == end.segment
                && replica.certificate.is_some()
                && self.may_have_digest(replica)
        };
        let mut copies = shown.iter().filter(|held| !self.is_aside(held));
        let held = copies.find(is_end)?;
        Some(match self.facts.get(&proved(&held.replica)) {
            None => Step::Read(*held),
            Some(facts) => {
                match self.complete(dead, Some((&held.replica, facts)), shown, gone, None) {
                    // This copy may be longer.
                    Step::Found(Found { bytes, .. }) => Step::Found(Found { end: *end, bytes }),
                    step => step,
                }
            }
        })
    }

    /// No head counts: what was written last is lost, unless a backup comes back. What is left then
    /// ends with the newest head, open or closed, that can be proved.
    fn without_head(&self, dead: &Dead, shown: &[Held], gone: &Gone) -> Step {
        let left = shown
            .iter()
            .filter(|held| is_certified_head(&held.replica) && self.may_be_proved(held));
        let rank = |held: &&Held| {
            let ReplicaInfo {
                segment,
                closed,
                length,
                epoch,
                ..
            } = held.replica;
            (segment, closed, length, epoch)
        };
        let newest = left.max_by_key(rank);
        let facts = newest.map(|held| self.facts.get(&proved(&held.replica)));
        let last = match (newest, facts) {
            (Some(held), Some(None)) => return Step::Read(*held),
            (Some(held), Some(Some(facts))) => Some((&held.replica, facts)),
            _ => None,
        };
        let why = self.no_head(dead, shown);
        self.complete(dead, last, shown, gone, Some(why))
    }

    /// Whether all that the last head's digest names is there, or given up; and, if there is a reason
    /// why nothing proves that it is the last, that, too.
    fn complete(
        &self,
        dead: &Dead,
        last: Option<(&ReplicaInfo, &Facts)>,
        shown: &[Held],
        gone: &Gone,
        no_end: Option<String>,
    ) -> Step {
        let closed = shown
            .iter()
            .filter(|held| held.replica.closed && !self.is_aside(held));
        // What is named under each: known to be sound, or to be read first.
        let (mut sound, mut unread) = (BTreeSet::new(), BTreeMap::new());
        for held in closed {
            let name = as_named(&held.replica);
            match self.is_sound(dead, held) {
                Some(true) => drop(sound.insert(name)),
                Some(false) => {}
                None => drop(unread.insert(name, held)),
            }
        }
        let is_there = |item: &DigestItem| sound.contains(&named(item));
        let own = last.map(|(replica, _)| replica.segment);
        let digest = last
            .into_iter()
            .flat_map(|(_, facts)| facts.digest.iter().flatten());
        let others = digest.filter(|item| Some(item.segment) != own);
        let (there, missing): (Vec<&DigestItem>, Vec<_>) = others.partition(|item| is_there(item));
        let mut unproved = missing.iter().filter_map(|item| unread.get(&named(item)));
        if let Some(held) = unproved.next() {
            return Step::Prove(**held);
        }
        let missing = match mutants::active(Mutant::MissingSegmentIgnored) {
            true => Vec::new(),
            false => missing,
        };
        let end = last.map_or(LogEnd::NOTHING, |(replica, _)| end_of(replica));
        if missing.is_empty() && no_end.is_none() {
            return Step::Found(found(end, &there));
        }
        // What is given up stays so: who accepts names all of it.
        let forgets = mutants::active(Mutant::NameWhatIsNew);
        let given_up = (there.iter()).filter(|item| dead.gave_up(item.segment) && !forgets);
        let named = missing.iter().chain(given_up);
        let mut segments: Vec<_> = named.map(|item| item.segment).collect();
        segments.sort_unstable();
        segments.dedup();
        let loss = Loss {
            dead: gone.backups.clone(),
            segments,
            tail: no_end.is_some(),
        };
        if dead.has_given_up(&loss) {
            return Step::Found(found(end, &there));
        }
        let mut whys: Vec<String> = no_end.into_iter().collect();
        if !missing.is_empty() {
            whys.push(self.name_missing(&missing, shown, gone));
        } else if !gone.backups.is_empty() {
            whys.push(maybe_with(gone));
        }
        let can_be_named =
            loss.segments.len() <= MAX_GIVEN_UP && loss.dead.len() <= MAX_ASSERTED_DEAD;
        Step::Stuck(Stuck {
            why: whys.join("; "),
            missing: can_be_named.then_some(loss),
        })
    }

    /// Names the first of the missing segments, and who may have it.
    fn name_missing(&self, missing: &[&DigestItem], shown: &[Held], gone: &Gone) -> String {
        let Some(first) = missing.first() else {
            return String::new();
        };
        let is_damaged = self.aside().any(|(_, segment)| segment == first.segment);
        let what = if is_damaged {
            "has no copy that proves itself"
        } else {
            "is missing"
        };
        let mut why = format!("{:?} of {} bytes {what}", first.segment, first.length);
        if missing.len() > 1 {
            why += &format!(", with {} more", missing.len() - 1);
        }
        let damaged = |held: &Held| self.aside().any(|one| one == (held.by, first.segment));
        let other = shown
            .iter()
            .find(|held| held.replica.segment == first.segment && !damaged(held));
        if let Some(held) = other {
            let state = if held.replica.closed {
                "closed"
            } else {
                "open"
            };
            let length = held.replica.length;
            why += &format!("; {:?} has it {state} with {length} bytes", held.by);
        }
        if let Some(by) = gone.held.get(&first.segment) {
            why += &format!("; {by:?}, which crashed, held it");
        } else if !gone.backups.is_empty() {
            why += &format!("; {}", maybe_with(gone));
        }
        why
    }

    fn no_head(&self, dead: &Dead, shown: &[Held]) -> String {
        let mut why =
            String::from("no backup that is there holds an open head of its log that counts");
        let open = |held: &&Held| !held.replica.closed && held.replica.kind == SegmentKind::Head;
        let old = shown.iter().filter(open).find(|held| !dead.counts(held));
        if let Some(held) = old {
            let (segment, by) = (held.replica.segment, held.by);
            let what = if held.is_from_before_boot() {
                "is from before a restart of its machine"
            } else {
                "was outdated by a change of backups"
            };
            why += &format!("; that of {segment:?} at {by:?} {what}");
        }
        why
    }
}

fn is_certified_head(replica: &ReplicaInfo) -> bool {
    replica.kind == SegmentKind::Head && replica.certificate.is_some()
}

/// The one with the most bytes; of several, an open one, under whose certificate others serve, too.
fn longest<'a>(replicas: impl Iterator<Item = &'a Held>) -> Option<&'a Held> {
    if mutants::active(Mutant::ShortestEnd) {
        return replicas.min_by_key(|held| held.replica.length);
    }
    replicas.max_by_key(|held| (held.replica.length, !held.replica.closed))
}

fn as_named(replica: &ReplicaInfo) -> (SegmentId, u32, [u8; 32]) {
    (replica.segment, replica.length, replica.certificate.hash)
}

fn named(item: &DigestItem) -> (SegmentId, u32, [u8; 32]) {
    (item.segment, item.length, item.certificate.hash)
}

fn end_of(replica: &ReplicaInfo) -> LogEnd {
    LogEnd {
        segment: replica.segment,
        length: replica.length,
        epoch: if replica.closed {
            LogEnd::NOTHING.epoch
        } else {
            replica.epoch
        },
        certificate: replica.certificate,
    }
}

fn found(end: LogEnd, others: &[&DigestItem]) -> Found {
    let others = others.iter().map(|item| u64::from(item.length));
    let bytes = u64::from(end.length) + others.sum::<u64>();
    Found { end, bytes }
}

fn maybe_with(gone: &Gone) -> String {
    let named: Vec<_> = gone.backups.iter().take(NAMED).collect();
    let more = match gone.backups.len() - named.len() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!("it may be with one that crashed: {named:?}{more}")
}

#[cfg(test)]
mod tests;
