//! What a client's library is asked, and what it says, in other words.

use ramkeep_client::{Error, Operation, Outcome as Told, Reject};
use ramkeep_wire::TableId;
use ramkeep_wire::data::RejectRules;

use crate::history::Action;

/// The same for the client's library.
pub(super) fn operation<'a>(table: TableId, key: &'a [u8], action: &'a Action) -> Operation<'a> {
    match action {
        Action::Read => Operation::Read { table, key },
        Action::Write { value, rules } => Operation::Write {
            table,
            key,
            value,
            reject: reject(rules),
        },
        Action::Remove { rules } => Operation::Remove {
            table,
            key,
            reject: reject(rules),
        },
        Action::Increment { by } => Operation::Increment {
            table,
            key,
            delta: *by,
        },
    }
}

fn reject(rules: &RejectRules) -> Reject {
    match rules {
        rules if rules.exists => Reject::exists(),
        rules if rules.absent => Reject::absent(),
        rules => rules
            .unless_version
            .map_or_else(Reject::never, Reject::unless_version),
    }
}

/// For the trace.
pub(super) fn describe(action: &Action) -> String {
    match action {
        Action::Write { value, rules } => {
            let shown = String::from_utf8_lossy(&value[..value.len().min(16)]).into_owned();
            format!("write {shown} ({} bytes) {rules:?}", value.len())
        }
        other => format!("{other:?}"),
    }
}

/// For the trace.
pub(super) fn describe_result(result: &Result<Told, Error>) -> String {
    match result {
        Ok(Told::Read(Some(object))) => {
            let value = &object.value[..object.value.len().min(16)];
            format!("{} {}", object.version, String::from_utf8_lossy(value))
        }
        Ok(Told::Page(page)) => format!("a page of {} objects", page.objects.len()),
        Ok(Told::Answer(_)) => "by the coordinator".into(),
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("error: {error}"),
    }
}
