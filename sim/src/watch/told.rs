//! What a server tells its clients: whether some of it was looked up and appended nothing.

use std::collections::BTreeMap;

use ramkeep_wire::Version;
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::data::{Items, Op, ResponseItem, Status};
use ramkeep_wire::envelope::{self, Envelope};

/// What is asked on one connection and not answered.
#[derive(Debug, Default)]
pub(super) struct Asked(BTreeMap<(u64, u32), Op>);

impl Asked {
    /// Notes what an envelope asks for.
    pub(super) fn note(&mut self, envelope: &Envelope<'_>) {
        let Ok(mut items) = Items::read(envelope.payload) else {
            return;
        };
        while let Ok(Some(item)) = items.next_item() {
            self.0
                .insert((envelope.header.correlation, item.id), item.op);
        }
    }

    /// Whether the envelopes in `out` tell of something that was looked up (SAFETY 1).
    pub(super) fn is_told(&mut self, out: &[u8]) -> bool {
        let (mut rest, mut told) = (out, false);
        while let Ok(Some((envelope, len))) = envelope::parse(rest) {
            let mut reader = Reader(envelope.payload);
            while let Ok(Some(item)) = ResponseItem::read(&mut reader) {
                let op = self.0.remove(&(envelope.header.correlation, item.id));
                told |= op.is_some_and(|op| was_looked_up(op, &item));
            }
            rest = &rest[len..];
        }
        told
    }
}

fn was_looked_up(op: Op, item: &ResponseItem<'_>) -> bool {
    match item.status {
        Status::Ok => match op {
            Op::Read | Op::Scan => true,
            Op::Remove => item.version == Version(0),
            Op::Write | Op::Increment => false,
        },
        Status::Absent | Status::Rejected | Status::NotACounter | Status::Overflow => true,
        _ => false,
    }
}
