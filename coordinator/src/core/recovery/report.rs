//! Recoveries as `status` shows them.

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::RecoveryReport;

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
                }
            })
            .collect()
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
