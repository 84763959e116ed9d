//! Recoveries as `status` shows them.

use std::collections::VecDeque;

use ramkeep_wire::coordinator::{
    AcceptedLoss, Answer, Loss, RecoveryMoments, RecoveryReport, Refused, Request, Shortage,
};
use ramkeep_wire::{Micros, ServerId};

use super::replay::Said;
use super::walk::Walk;
use super::{Recoveries, View};
use crate::core::Coordinator;
use crate::state::RecoveryRecord;

/// Recoveries that `status` shows; others count, too.
const MAX_REPORTS: usize = 64;
/// Partitions that a phase names.
const MAX_NAMED: usize = 4;
/// Bytes of a phase.
const MAX_PHASE: usize = 512;

/// Recoveries that came to their end and are still shown.
const MAX_ENDED: usize = 16;

/// When what came, as far as it came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    pub(super) fenced: Option<Micros>,
    pub(super) end: Option<Micros>,
    pub(super) planned: Option<Micros>,
    pub(super) replayed: Option<Micros>,
    committed: Option<Micros>,
}

/// A recovery that is over.
#[derive(Debug)]
pub(super) struct Ended {
    master: ServerId,
    since: Micros,
    moments: Moments,
}

/// A recovery is over: no tablet of this master is left.
pub(super) fn note_ended(ended: &mut VecDeque<Ended>, now: Micros, master: ServerId, walk: &Walk) {
    if ended.len() == MAX_ENDED {
        ended.pop_front();
    }
    ended.push_back(Ended {
        master,
        since: walk.since,
        moments: Moments {
            committed: Some(now),
            ..walk.moments
        },
    });
}

impl Moments {
    /// Counted from `since`.
    fn report(&self, since: Micros) -> RecoveryMoments {
        let after = |moment: Option<Micros>| moment.map(|at| micros(at, since));
        RecoveryMoments {
            fenced_us: after(self.fenced),
            end_us: after(self.end),
            planned_us: after(self.planned),
            replayed_us: after(self.replayed),
            committed_us: after(self.committed),
        }
    }
}

fn micros(now: Micros, since: Micros) -> u64 {
    u64::try_from(now.since(since).as_micros()).unwrap_or(u64::MAX)
}

impl Recoveries {
    /// The last ones that are over, the newest last.
    pub(in crate::core) fn finished(&self, now: Micros) -> Vec<RecoveryReport> {
        let ended = self.ended.iter().map(|ended| RecoveryReport {
            master: ended.master,
            phase: "recovered".into(),
            stuck: false,
            tablets: 0,
            since_us: micros(now, ended.since),
            moments: ended.moments.report(ended.since),
            missing: None,
        });
        ended.collect()
    }
}

impl Coordinator {
    /// The recoveries under way, the longest first.
    #[must_use]
    pub fn recovery_reports(&self) -> Vec<RecoveryReport> {
        let mut walks: Vec<_> = self.recoveries.walks.iter().collect();
        walks.sort_by_key(|(master, walk)| (walk.since, **master));
        let walks = walks.into_iter().take(MAX_REPORTS);
        walks
            .map(|(master, walk)| {
                let (mut phase, stuck) = self.phase(*master, walk);
                let end = phase.floor_char_boundary(MAX_PHASE);
                phase.truncate(end);
                RecoveryReport {
                    master: *master,
                    phase,
                    stuck,
                    tablets: u32::try_from(walk.lost).unwrap_or(u32::MAX),
                    since_us: micros(self.now, walk.since),
                    moments: walk.moments.report(walk.since),
                    missing: walk.missing.clone(),
                }
            })
            .collect()
    }

    /// What is lacking, or would be should a server die.
    #[must_use]
    pub fn shortages(&self) -> Vec<Shortage> {
        self.view().shortages()
    }

    /// An operator gives up what is missing of a log. Refused unless it is all that is.
    pub(in crate::core) fn accept_loss(&mut self, token: u64, accepted: AcceptedLoss) {
        let AcceptedLoss { master, loss } = &accepted;
        if self.state.losses().of(*master) == Some(loss) {
            return self.reply(token, Answer::Noted);
        }
        let walk = self.recoveries.walks.get(master);
        let why = match walk.map(|walk| walk.missing.as_ref()) {
            None => format!("no tablet waits for the log of {master:?}"),
            Some(None) => format!("nothing of the log of {master:?} is known to be missing"),
            Some(Some(missing)) if missing == loss => {
                return self.propose_request(token, Request::AcceptLoss(accepted));
            }
            Some(Some(missing)) => format!(
                "this is not what is missing of the log of {master:?}: {}",
                describe(missing)
            ),
        };
        self.refuse(token, Refused::Invalid(why));
    }

    fn phase(&self, master: ServerId, walk: &Walk) -> (String, bool) {
        if let Some(why) = &walk.stuck {
            return (why.clone() + &set_aside(walk), true);
        }
        if let Some(record) = self.state.recoveries().by_master(master) {
            return replays(record, walk, &self.view());
        }
        let phase = match &walk.search {
            _ if let Some(waits) = &walk.waits => waits.clone(),
            _ if walk.found.is_some() => "the plan is decided".into(),
            Some(search) => search.phase() + &set_aside(walk),
            None => "backups are told of the crash".into(),
        };
        (phase, false)
    }
}

/// Bytes in words.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} bytes"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// A loss in words.
fn describe(loss: &Loss) -> String {
    let mut parts = Vec::new();
    if loss.tail {
        parts.push("the tail".to_owned());
    }
    if !loss.segments.is_empty() {
        let more = loss.segments.len().saturating_sub(MAX_NAMED);
        let named: Vec<_> = loss.segments.iter().take(MAX_NAMED).collect();
        parts.push(match more {
            0 => format!("{named:?}"),
            more => format!("{named:?} and {more} more"),
        });
    }
    format!("{}, with {:?} dead", parts.join(" and "), loss.dead)
}

/// Damaged replicas that were met.
fn set_aside(walk: &Walk) -> String {
    let mut aside = walk.finder.aside();
    match aside.next() {
        None => String::new(),
        Some((by, segment)) => {
            let more = match aside.count() {
                0 => String::new(),
                more => format!(", and {more} more"),
            };
            format!("; damaged replicas: {segment:?} at {by:?}{more}")
        }
    }
}

fn replays(record: &RecoveryRecord, walk: &Walk, view: &View<'_>) -> (String, bool) {
    let mut stuck = false;
    let mut texts = Vec::new();
    for part in &record.partitions {
        let by = part.by;
        let replay = walk.replays.get(&part.attempt);
        if let Some(lacks) = view.lacks_backups(by) {
            stuck = true;
            texts.push(format!("{by:?} is to replay; {}", lacks.text));
            continue;
        }
        texts.push(match replay.map(|replay| &replay.said) {
            Some(Said::Cannot(why)) => {
                stuck = true;
                format!("{by:?} can't: {why}")
            }
            Some(Said::NoRoom { needs }) => {
                let takes = size(*needs);
                format!("{by:?} has no room for its part, which takes {takes}")
            }
            Some(Said::Replays { done, of }) if *of > 0 => {
                format!("{by:?} replays: {done} of {of} segments")
            }
            Some(Said::Replays { .. }) => format!("{by:?} replays"),
            Some(Said::NotReady) => format!("{by:?} waits for backups of its own"),
            Some(Said::Nothing) | None => format!("{by:?} is to replay"),
        });
    }
    let more = texts.len().saturating_sub(MAX_NAMED);
    texts.truncate(MAX_NAMED);
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    (texts.join("; "), stuck)
}
