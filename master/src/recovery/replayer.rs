//! The half of a recovery that takes a core: proving segments, and replaying them.
//!
//! # Invariants
//! 1. Proving holds no lock; replay holds the writer's for a batch at a time, and the recoveries are
//!    locked only to take a job or to tell what came of one.
//! 2. What can't be proved is not looked into.
//! 3. A replay that failed or was given up is ended with the step that finds out.
//! 4. What a replay appends runs at most [`MAX_AHEAD`] and a batch ahead of what is durable: writes of
//!    clients stand in the same line, and a backup that is far behind is sent bytes without a
//!    certificate, which make nothing durable until it has caught up.

use std::ops::DerefMut;

use ramkeep_wire::LogPosition;
use ramkeep_wire::SegmentId;
use ramkeep_wire::ServerId;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::entry::{DigestItem, Entry};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{LastReport, LostTablet, Recovery};
use ramkeep_wire::segment::{ProvedSegment, VerifiedSegment};

use super::gather::{Fetched, Job};
use super::{Next, Recoveries, RecoveryId};
use crate::store::{Finished, Replay, ReplayError, ReplayId, Step, Store};

/// Bytes appended and not durable, past which a replay waits.
const MAX_AHEAD: u32 = 1 << 20;

/// What came of some work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The replay is known to the store.
    Begun(ReplayId),
    /// The end is proved.
    Digest {
        /// The segments that its digest names.
        items: Vec<DigestItem>,
        /// All of them can be replayed: there is more memory than they can take.
        admitted: bool,
    },
    /// What counts of all segments, all of which are proved, can be replayed.
    Admitted,
    /// There is no memory for what counts, and nothing was appended.
    NoRoom {
        /// Bytes that it takes.
        needs: u64,
        /// Bytes that could be promised.
        room: u64,
    },
    /// A copy of a segment is what it should be.
    Proved {
        /// Which.
        segment: SegmentId,
        /// The memory that its bytes took.
        memory: Vec<u8>,
    },
    /// All that counts of a segment is in the log.
    Replayed {
        /// Which.
        segment: SegmentId,
        /// The memory that its bytes took: fresh memory costs as much as replaying it.
        memory: Vec<u8>,
    },
    /// A copy is not what it should be.
    Bad {
        /// Of which segment.
        segment: SegmentId,
        /// Who gave it.
        from: ServerId,
    },
    /// All is in the log.
    Finished(Finished),
    /// It can't be done here; nothing more comes.
    Failed(String),
}

/// What the driver of a replayer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driven {
    /// There is more to do.
    Worked,
    /// Its recovery was told something, and may have more to ask of backups.
    Told,
    /// The log is rolling over, or its backups are far behind: go on when they have answered.
    WaitsForBackups,
    /// Go on when segments have come.
    WaitsForSegments,
    /// All is in the log, which ends here. There is nothing left to drive.
    Finished(LogPosition),
    /// It failed, or was given up. There is nothing left to drive; what it appended is swept in time.
    Ended,
}

/// How a step went.
#[derive(Debug)]
enum Stepped {
    /// There is more to do.
    Worked,
    /// The log is rolling over: go on in a while.
    Wait,
    /// It needs a job.
    Idle,
    /// This came of it.
    Said(Outcome),
}

#[derive(Debug)]
enum Work {
    Begin,
    Purge,
    Idle,
    Prove { fetched: Fetched, then: Then },
    Admit,
    ReplayEnd,
    Replay { proved: ProvedSegment, at: usize },
    Finish,
    Over,
}

/// What is done with a segment that is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Its digest is told, and it is kept.
    TellDigest,
    /// It is replayed.
    Replay,
    /// What counts of it is noted, as long as the replay is not admitted.
    Measure,
}

/// Proves and replays what it is given.
#[derive(Debug)]
pub struct Replayer {
    key: CertificateKey,
    tablets: Vec<LostTablet>,
    /// Some of the log is lost, and with it versions that were used.
    has_losses: bool,
    replay: Option<Replay>,
    /// The end, once it is proved and until it is replayed.
    end: Option<ProvedSegment>,
    /// What the crashed master reported last.
    last: Option<LastReport>,
    /// There is memory for all that it will append.
    admitted: bool,
    work: Work,
}

impl Replayer {
    pub(super) fn new(order: &Recovery) -> Self {
        Self {
            key: order.key,
            tablets: order.tablets.clone(),
            has_losses: order.given_up.is_some(),
            replay: None,
            end: None,
            last: order.last,
            admitted: false,
            work: Work::Begin,
        }
    }

    /// Does a piece of its recovery's work: proves one segment, replays one batch, takes a job, or
    /// tells what came of one. Whoever drives it stops with [`Driven::Finished`] or
    /// [`Driven::Ended`].
    pub fn drive<R: DerefMut<Target = Recoveries>>(
        &mut self,
        id: RecoveryId,
        store: &Store,
        recoveries: impl FnOnce() -> R,
    ) -> Driven {
        if is_far_ahead(store) {
            return Driven::WaitsForBackups;
        }
        match self.step(store) {
            Stepped::Worked => Driven::Worked,
            Stepped::Wait => Driven::WaitsForBackups,
            Stepped::Idle => match recoveries().next_job(id) {
                Next::Job(job) => {
                    self.give(job);
                    Driven::Worked
                }
                Next::Nothing => Driven::WaitsForSegments,
                Next::Ended => self.abandon(store),
            },
            Stepped::Said(outcome) => self.tell(id, store, &mut recoveries(), outcome),
        }
    }

    fn tell(
        &mut self,
        id: RecoveryId,
        store: &Store,
        recoveries: &mut Recoveries,
        outcome: Outcome,
    ) -> Driven {
        let driven = match &outcome {
            Outcome::Failed(_) | Outcome::NoRoom { .. } => self.abandon(store),
            Outcome::Finished(finished) => Driven::Finished(finished.end),
            _ => Driven::Told,
        };
        recoveries.handle_outcome(id, outcome);
        driven
    }

    /// Hands over the next job; the last one must be done.
    fn give(&mut self, job: Job) {
        assert!(matches!(self.work, Work::Idle), "a job at a time");
        self.work = match job {
            Job::End(fetched) => Work::Prove {
                fetched,
                then: Then::TellDigest,
            },
            Job::Admit => Work::Admit,
            Job::ReplayEnd => Work::ReplayEnd,
            Job::Proof(fetched) => Work::Prove {
                fetched,
                then: Then::Measure,
            },
            Job::Segment(fetched) => Work::Prove {
                fetched,
                then: Then::Replay,
            },
            Job::Finish => Work::Finish,
        };
    }

    fn step(&mut self, store: &Store) -> Stepped {
        match self.try_step(store) {
            Ok(stepped) => stepped,
            Err(ReplayError::NoRoom { needs, room }) => {
                self.work = Work::Over;
                Stepped::Said(Outcome::NoRoom { needs, room })
            }
            Err(error) => self.fail(format!("the replay failed: {error}")),
        }
    }

    fn abandon(&mut self, store: &Store) -> Driven {
        if let Some(replay) = self.replay.take() {
            store.end_replay(replay.id());
        }
        Driven::Ended
    }

    fn fail(&mut self, reason: String) -> Stepped {
        self.work = Work::Over;
        Stepped::Said(Outcome::Failed(reason))
    }

    fn try_step(&mut self, store: &Store) -> Result<Stepped, ReplayError> {
        match std::mem::replace(&mut self.work, Work::Over) {
            Work::Begin => {
                let mut replay = store.begin_replay(&self.tablets)?;
                if self.has_losses {
                    replay.skip_lost_versions();
                }
                let id = replay.id();
                self.replay = Some(replay);
                self.work = Work::Purge;
                Ok(Stepped::Said(Outcome::Begun(id)))
            }
            Work::Purge => {
                let more = self.replay()?.purge(store)?;
                self.work = if more { Work::Purge } else { Work::Idle };
                Ok(Stepped::Worked)
            }
            Work::Idle => {
                self.work = Work::Idle;
                Ok(Stepped::Idle)
            }
            Work::Prove { fetched, then } => self.prove(store, fetched, then),
            Work::Admit => {
                let need = self.replay()?.admit(store)?;
                tracing::info!(bytes = need.total(), "there is memory for what counts");
                self.admitted = true;
                self.work = Work::Idle;
                Ok(Stepped::Said(Outcome::Admitted))
            }
            Work::ReplayEnd => {
                let proved = self.end.take().ok_or(ReplayError::Ended)?;
                self.go_on(store, proved, 0)
            }
            Work::Replay { proved, at } => self.go_on(store, proved, at),
            Work::Finish => {
                let Some(finished) = self.replay()?.finish(store)? else {
                    self.work = Work::Finish;
                    return Ok(Stepped::Wait);
                };
                Ok(Stepped::Said(Outcome::Finished(finished)))
            }
            Work::Over => Err(ReplayError::Ended),
        }
    }

    fn replay(&mut self) -> Result<&mut Replay, ReplayError> {
        self.replay.as_mut().ok_or(ReplayError::Ended)
    }

    fn prove(
        &mut self,
        store: &Store,
        fetched: Fetched,
        then: Then,
    ) -> Result<Stepped, ReplayError> {
        let Fetched {
            from,
            claim,
            certificate,
            contents,
        } = fetched;
        let segment = claim.segment;
        self.work = Work::Idle;
        let Ok(proved) = ProvedSegment::prove(claim, certificate, contents, &self.key) else {
            return Ok(Stepped::Said(Outcome::Bad { segment, from }));
        };
        match then {
            Then::Measure => {
                self.measure(&proved)?;
                let memory = proved.into_contents();
                Ok(Stepped::Said(Outcome::Proved { segment, memory }))
            }
            Then::Replay => {
                self.work = Work::Replay { proved, at: 0 };
                Ok(Stepped::Worked)
            }
            Then::TellDigest => self.tell_digest(store, proved),
        }
    }

    fn measure(&mut self, proved: &ProvedSegment) -> Result<(), ReplayError> {
        if !self.admitted {
            let key = self.key;
            self.replay()?.measure(&key, &proved.segment());
        }
        Ok(())
    }

    /// The end is proved: it says how long the log is, and so whether to measure it first.
    fn tell_digest(&mut self, store: &Store, end: ProvedSegment) -> Result<Stepped, ReplayError> {
        let Some(items) = digest_of(&end.segment()) else {
            let segment = end.segment().claim().segment;
            return Ok(self.fail(format!("the log's end, {segment:?}, has no digest")));
        };
        let lengths = items.iter().map(|item| u64::from(item.length));
        let bytes = lengths.sum::<u64>() + end.segment().contents().len() as u64;
        let last = self.last;
        let admitted = self.replay()?.admit_all(store, bytes, last);
        self.admitted = admitted.is_ok() || mutants::active(Mutant::ReplayBeforeProof);
        self.measure(&end)?;
        self.end = Some(end);
        let admitted = self.admitted;
        Ok(Stepped::Said(Outcome::Digest { items, admitted }))
    }

    fn go_on(
        &mut self,
        store: &Store,
        proved: ProvedSegment,
        at: usize,
    ) -> Result<Stepped, ReplayError> {
        let (at, stepped) = match self.replay()?.step(store, &proved.segment(), at)? {
            Step::At(next) => (next, Stepped::Worked),
            Step::Wait(again) => (again, Stepped::Wait),
            Step::Done => {
                self.work = Work::Idle;
                let segment = proved.segment().claim().segment;
                let memory = proved.into_contents();
                return Ok(Stepped::Said(Outcome::Replayed { segment, memory }));
            }
        };
        self.work = Work::Replay { proved, at };
        Ok(stepped)
    }
}

fn is_far_ahead(store: &Store) -> bool {
    let appended = store.writer().log().appended_position();
    appended.bytes_since(store.durability().position()) >= MAX_AHEAD
}

fn digest_of(segment: &VerifiedSegment<'_>) -> Option<Vec<DigestItem>> {
    segment.entries().find_map(|(_, entry)| match entry {
        Entry::Digest(digest) => Some(digest.iter().collect()),
        _ => None,
    })
}
