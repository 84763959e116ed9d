//! From a response item to what the caller gets. An item that can't be an answer to its operation
//! is an error: the server breaks the protocol.

use bytes::Bytes;
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::data::{Op, ResponseItem, ScanObject, Status};
use ramkeep_wire::limits::{MAX_KEY, MAX_VALUE, MIN_KEY};
use ramkeep_wire::{KeyHash, Version, key_hash};

use super::slots::Slot;
use crate::error::Error;
use crate::types::{Object, Outcome, Page, ScanPosition};

type Answer = Result<Outcome, Error>;

/// What the item means for the operation in `slot`. Not for statuses which mean: again.
#[inline]
pub(crate) fn outcome(slot: &Slot, item: &ResponseItem<'_>) -> Result<Answer, &'static str> {
    match item.status {
        Status::Stale => Err("the server calls a call over that is not"),
        Status::Ok => done(slot, item).map(Ok),
        Status::Absent => absent(slot.op).map(Ok),
        Status::Rejected => Ok(Err(Error::Rejected {
            version: some(item.version),
        })),
        Status::OutOfMemory => Ok(Err(Error::OutOfMemory)),
        Status::NotEnoughBackups => Ok(Err(Error::NotEnoughBackups)),
        Status::TooLarge => Ok(Err(Error::TooLarge)),
        Status::NotACounter => Ok(Err(Error::NotACounter)),
        Status::Overflow => Ok(Err(Error::Overflow)),
        Status::Invalid => Ok(Err(Error::Protocol(
            "the server calls the operation invalid".to_owned(),
        ))),
        Status::RetryLater | Status::WrongServer | Status::LeaseOver | Status::NotRemembered => {
            Err("a status that is no result")
        }
    }
}

fn some(version: Version) -> Option<Version> {
    (version != Version(0)).then_some(version)
}

fn absent(op: Op) -> Result<Outcome, &'static str> {
    match op {
        Op::Read => Ok(Outcome::Read(None)),
        Op::Remove => Ok(Outcome::Removed(None)),
        Op::Write | Op::Increment | Op::Scan => Err("an absent object where none is asked for"),
    }
}

#[inline]
fn done(slot: &Slot, item: &ResponseItem<'_>) -> Result<Outcome, &'static str> {
    match slot.op {
        Op::Read if item.value.len() > MAX_VALUE => Err("a value over its limit"),
        Op::Read => {
            let version = some(item.version).ok_or("an object without a version")?;
            let value = Bytes::copy_from_slice(item.value);
            Ok(Outcome::Read(Some(Object { value, version })))
        }
        Op::Write => (some(item.version).map(Outcome::Written)).ok_or("a write without a version"),
        Op::Remove => Ok(Outcome::Removed(some(item.version))),
        Op::Increment => {
            let value = (item.value.try_into()).map_err(|_| "a counter that is not 8 bytes")?;
            let version = some(item.version).ok_or("a counter without a version")?;
            let value = i64::from_le_bytes(value);
            Ok(Outcome::Incremented { value, version })
        }
        Op::Scan => page(slot, item.value).map(|page| Outcome::Page(Box::new(page))),
    }
}

/// Reads a page and finds where the next begins: after its last object, or past the end of the
/// tablet that was asked for.
fn page(slot: &Slot, page: &[u8]) -> Result<Page, &'static str> {
    const MALFORMED: &str = "a malformed page of a scan";
    let page = Bytes::copy_from_slice(page);
    let mut reader = Reader(&page);
    let more = match reader.u8() {
        Ok(flag @ 0..=1) => flag == 1,
        _ => return Err(MALFORMED),
    };
    let mut last = (slot.hash, slot.scan_after());
    let mut objects = Vec::new();
    while let Some(object) = ScanObject::read(&mut reader).map_err(|_| MALFORMED)? {
        let sizes = (object.key.len(), object.value.len());
        if !(MIN_KEY..=MAX_KEY).contains(&sizes.0) || sizes.1 > MAX_VALUE {
            return Err(MALFORMED);
        }
        let at = (key_hash(slot.table, object.key), object.key);
        if at <= last || at.0 > slot.until {
            return Err("a page of a scan that is out of order");
        }
        last = at;
        let version = some(object.version).ok_or(MALFORMED)?;
        let value = page.slice_ref(object.value);
        objects.push((page.slice_ref(object.key), Object { value, version }));
    }
    let next = match (more, objects.last()) {
        (true, None) => return Err("an empty page of a scan that has more"),
        (true, Some((key, _))) => Some(ScanPosition {
            hash: last.0,
            after: key.clone(),
        }),
        (false, _) => (slot.until.0.checked_add(1)).map(|next| ScanPosition {
            hash: KeyHash(next),
            after: Bytes::new(),
        }),
    };
    Ok(Page { objects, next })
}
