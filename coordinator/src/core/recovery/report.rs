//! Recoveries as `status` shows them.

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{AcceptedLoss, Answer, Loss, RecoveryReport, Refused, Request};

use super::Walk;
use crate::core::Coordinator;
use crate::state::RecoveryRecord;

/// Recoveries that `status` shows; others count, too.
const MAX_REPORTS: usize = 64;
/// Partitions that a phase names.
const MAX_NAMED: usize = 4;
/// Bytes of a phase.
const MAX_PHASE: usize = 512;

impl Coordinator {
    /// The recoveries under way, the longest first.
    pub(in crate::core) fn recovery_reports(&self) -> Vec<RecoveryReport> {
        let mut walks: Vec<_> = self.recoveries.walks.iter().collect();
        walks.sort_by_key(|(master, walk)| (walk.since, **master));
        let walks = walks.into_iter().take(MAX_REPORTS);
        walks
            .map(|(master, walk)| {
                let (mut phase, stuck) = self.phase(*master, walk);
                let end = phase.floor_char_boundary(MAX_PHASE);
                phase.truncate(end);
                let since = self.now.since(walk.since).as_micros();
                RecoveryReport {
                    master: *master,
                    phase,
                    stuck,
                    tablets: u32::try_from(walk.lost).unwrap_or(u32::MAX),
                    since_us: u64::try_from(since).unwrap_or(u64::MAX),
                    missing: walk.missing.clone(),
                }
            })
            .collect()
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
            return replays(record, walk);
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

fn replays(record: &RecoveryRecord, walk: &Walk) -> (String, bool) {
    let mut stuck = false;
    let mut texts = Vec::new();
    for part in &record.partitions {
        let by = part.by;
        let replay = walk.replays.get(&part.attempt);
        texts.push(match replay {
            Some(replay) if replay.cannot.is_some() => {
                stuck = true;
                format!("{by:?} can't: {}", replay.cannot.as_deref().unwrap_or(""))
            }
            Some(replay) => match replay.progress {
                Some((done, of)) if of > 0 => {
                    format!("{by:?} replays: {done} of {of} segments")
                }
                _ => format!("{by:?} replays"),
            },
            None => format!("{by:?} is to replay"),
        });
    }
    let more = texts.len().saturating_sub(MAX_NAMED);
    texts.truncate(MAX_NAMED);
    if more > 0 {
        texts.push(format!("{more} more"));
    }
    (texts.join("; "), stuck)
}
