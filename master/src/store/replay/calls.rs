//! Completions of the crashed master: into this master's log, and known to its store, at the end.

use ramkeep_wire::data::Status;
use ramkeep_wire::entry::{Completion, NewEntry};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{KeyHash, LogPosition, TableId};

use super::apply::waits;
use super::{ReplayError, ReplayId};
use crate::store::account::Demand;
use crate::store::answer::Refused;
use crate::store::completions::Completions;
use crate::store::tablets::Tablets;
use crate::store::writer::{Writer, refusal};

/// Completions appended under one hold of the writer's lock.
const APPENDED_AT_ONCE: usize = 256;
/// What one takes beside the log.
pub(super) const CALL_BYTES: u64 = 64;

/// Keeps a completion that stands at `at`, if somebody may still ask for it here. What its client
/// said of other calls counts wherever it stands.
pub(super) fn note(
    calls: &mut Completions,
    tablets: &Tablets,
    completion: &Completion,
    at: LogPosition,
) {
    let Completion {
        client, ack, rpc, ..
    } = *completion;
    let wanted = calls.heard(client, ack, rpc);
    let (table, hash): (TableId, KeyHash) = (completion.table, completion.hash);
    let tablet = tablets.tablet_of(table, hash);
    if wanted && tablet.is_some_and(|tablet| at >= tablet.takeover) {
        calls.replayed(completion, LogPosition::ZERO);
    }
}

/// Appends what is left of them; false if the log is rolling over or there is more: it is to be
/// called again then.
pub(super) fn append(
    writer: &mut Writer,
    id: ReplayId,
    calls: &mut Completions,
) -> Result<bool, ReplayError> {
    for _ in 0..APPENDED_AT_ONCE {
        let Some(completion) = calls.pop() else {
            return Ok(true);
        };
        let Completion {
            client, ack, rpc, ..
        } = completion;
        if mutants::active(Mutant::CompletionsNotReplayed)
            || !writer.completions.heard(client, ack, rpc)
        {
            continue;
        }
        let entry = NewEntry::Completion(completion);
        let index_bytes = writer.index.index().bytes();
        let demand = Demand {
            group: entry.encoded_len(),
            new_key: None,
        };
        let appended = writer.spend(id, demand.group as u64, |writer| {
            if !writer.account.admits(&writer.log, index_bytes, demand) {
                return Err(Refused(Status::OutOfMemory));
            }
            let segments = writer.account.segments(&writer.log, index_bytes);
            let appended = writer.log.append(&[entry], segments).map_err(refusal)?;
            writer.completions.replayed(&completion, appended.end);
            Ok(true)
        });
        if let Err(refused) = appended {
            calls.replayed(&completion, LogPosition::ZERO);
            return waits(refused).map(|()| false);
        }
    }
    Ok(calls.len() == 0)
}
