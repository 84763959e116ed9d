//! Operations begun and not finished: a slab whose slots are reused with a new generation.
//!
//! # Invariants
//! 1. A wire id is not reused on a connection while its server owes an answer under it: a slot
//!    with `wire` set is not free, also when nobody waits for its result any more.
//! 2. A slot's item is encoded once, when the operation begins, and lies unchanged until the slot
//!    is free (a scan's end alone is fitted to the tablet it is sent to).
//! 3. Once warm, an operation takes no memory but its result's.

use ramkeep_wire::data::{ITEM_HEADER_LEN, Item, Op};
use ramkeep_wire::{ClientId, KeyHash, Micros, RpcId, ServerId, TableId};

use crate::error::Error;
use crate::limits::{KEEP_BUFFER, MAX_PENDING};
use crate::types::Outcome;

/// An operation, from its begin until its result is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(u64);

impl OpId {
    const CONTROL: u64 = 1 << 63;

    pub(crate) fn control(number: u64) -> Self {
        Self(Self::CONTROL | number)
    }

    fn data(index: u32, generation: u32) -> Self {
        Self(u64::from(generation & 0x7fff_ffff) << 32 | u64::from(index))
    }

    pub(crate) fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Its slot: below [`MAX_PENDING`], unique among the operations not yet taken. For an
    /// operation on data; a request to the coordinator has none.
    #[must_use]
    #[inline]
    pub fn slot(self) -> Option<usize> {
        (!self.is_control()).then_some(self.0 as u32 as usize)
    }

    fn index(self) -> u32 {
        self.0 as u32
    }
}

/// What an operation waits for that can't be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// Nothing but the time.
    Time,
    /// Whichever refresh of the map is answered next.
    AnyMap,
    /// The refresh of the map of this number.
    Map(u64),
    /// The client lease.
    Lease,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not in use.
    Free,
    /// In this server's queue.
    Queued(ServerId),
    /// For something, or until this time; whichever is first.
    Waiting { awaited: Awaited, until: Micros },
    /// On the wire; `wire` says with whom.
    Sent,
    /// It has its result.
    Done,
    /// Nobody wants its result.
    Abandoned,
}

/// One operation.
#[derive(Debug)]
pub(crate) struct Slot {
    generation: u32,
    pub(crate) phase: Phase,
    /// The server that owes an answer under this slot's wire id.
    pub(crate) wire: Option<ServerId>,
    pub(crate) op: Op,
    pub(crate) table: TableId,
    pub(crate) hash: KeyHash,
    /// Where the scan's page ends at the latest.
    pub(crate) until: KeyHash,
    pub(crate) rpc: RpcId,
    /// As whose call it was sent first, and is sent again; 0 if not sent yet, or unremembered.
    pub(crate) client: ClientId,
    /// It may have been applied: an answer to it was lost.
    pub(crate) uncertain: bool,
    /// It is nobody's call, because there is no lease, or no memory for its result.
    pub(crate) unremembered: bool,
    pub(crate) deadline: Micros,
    /// Answers that meant: again.
    pub(crate) attempts: u32,
    /// Who said that the tablet is not its own, last.
    pub(crate) refused_by: Option<ServerId>,
    /// The item, encoded.
    pub(crate) item: Vec<u8>,
    result: Option<Result<Outcome, Error>>,
}

/// What an operation begins with.
pub(crate) struct Begin<'a> {
    pub(crate) op: Op,
    pub(crate) table: TableId,
    pub(crate) hash: KeyHash,
    pub(crate) rpc: RpcId,
    pub(crate) deadline: Micros,
    pub(crate) item: Item<'a>,
}

/// The slab.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    bytes: usize,
}

impl Slots {
    /// Operations whose slot is taken.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Bytes of the items of those.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Begins an operation. There must be room: [`Slots::len`] below [`MAX_PENDING`].
    pub(crate) fn begin(&mut self, begin: &Begin<'_>) -> OpId {
        let index = self.free.pop().unwrap_or_else(|| self.grow());
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.phase == Phase::Free && slot.wire.is_none());
        slot.op = begin.op;
        slot.table = begin.table;
        slot.hash = begin.hash;
        slot.until = KeyHash(u64::MAX);
        slot.rpc = begin.rpc;
        slot.client = ClientId(0);
        slot.uncertain = false;
        slot.unremembered = false;
        slot.deadline = begin.deadline;
        slot.attempts = 0;
        slot.refused_by = None;
        slot.phase = Phase::Abandoned;
        slot.item.clear();
        let id = wire_id(index, slot.generation);
        Item { id, ..begin.item }.write(&mut slot.item);
        self.bytes += slot.item.len();
        OpId::data(index, slot.generation)
    }

    fn grow(&mut self) -> u32 {
        let index = self.slots.len();
        assert!(index < MAX_PENDING, "room was looked for before");
        self.slots.push(Slot {
            generation: 0,
            phase: Phase::Free,
            wire: None,
            op: Op::Read,
            table: TableId(0),
            hash: KeyHash(0),
            until: KeyHash(0),
            rpc: RpcId(0),
            client: ClientId(0),
            uncertain: false,
            unremembered: false,
            deadline: Micros(0),
            attempts: 0,
            refused_by: None,
            item: Vec::new(),
            result: None,
        });
        index as u32
    }

    /// The slot of an operation that was not taken yet.
    #[inline]
    pub(crate) fn get(&self, op: OpId) -> Option<&Slot> {
        let slot = self.slots.get(op.index() as usize)?;
        (OpId::data(op.index(), slot.generation) == op && slot.phase != Phase::Free).then_some(slot)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, op: OpId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(op.index() as usize)?;
        (OpId::data(op.index(), slot.generation) == op && slot.phase != Phase::Free).then_some(slot)
    }

    /// The operation for which `server` owes an answer under this wire id.
    #[inline]
    pub(crate) fn owed(&self, server: ServerId, id: u32) -> Option<OpId> {
        let index = id & 0xffff;
        let slot = self.slots.get(index as usize)?;
        (wire_id(index, slot.generation) == id && slot.wire == Some(server))
            .then(|| OpId::data(index, slot.generation))
    }

    /// The operation in slot `index`, whatever its phase.
    pub(crate) fn at(&self, index: usize) -> (OpId, &Slot) {
        let slot = &self.slots[index];
        (OpId::data(index as u32, slot.generation), slot)
    }

    /// Slots ever used.
    pub(crate) fn high_water(&self) -> usize {
        self.slots.len()
    }

    /// Gives the operation its result.
    #[inline]
    pub(crate) fn finish(&mut self, op: OpId, result: Result<Outcome, Error>) {
        if let Some(slot) = self.get_mut(op) {
            slot.phase = Phase::Done;
            slot.result = Some(result);
        }
    }

    /// Hands the result out, once.
    #[inline]
    pub(crate) fn take(&mut self, op: OpId) -> Option<Result<Outcome, Error>> {
        let slot = self.get_mut(op)?;
        if slot.phase != Phase::Done {
            return None;
        }
        let result = slot.result.take();
        self.abandon(op);
        result
    }

    /// Nobody wants the result any more.
    pub(crate) fn abandon(&mut self, op: OpId) {
        if let Some(slot) = self.get_mut(op) {
            slot.phase = Phase::Abandoned;
            slot.result = None;
            self.release(op);
        }
    }

    /// The server's answer came, or never will.
    #[inline]
    pub(crate) fn settle(&mut self, op: OpId) {
        if let Some(slot) = self.get_mut(op) {
            slot.wire = None;
            if slot.phase == Phase::Abandoned {
                self.release(op);
            }
        }
    }

    /// Frees the slot unless an answer is owed under its wire id.
    fn release(&mut self, op: OpId) {
        let slot = &mut self.slots[op.index() as usize];
        if slot.wire.is_some() {
            return;
        }
        self.bytes -= slot.item.len();
        if slot.item.capacity() > KEEP_BUFFER {
            slot.item = Vec::new();
        }
        slot.phase = Phase::Free;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(op.index());
    }
}

impl Awaited {
    /// Whether the answer to the refresh of this number ends the wait.
    pub(crate) fn has_map(self, number: u64) -> bool {
        match self {
            Self::AnyMap => true,
            Self::Map(awaited) => awaited <= number,
            Self::Time | Self::Lease => false,
        }
    }
}

impl Slot {
    /// The planted fault of another rpc id for the same operation.
    pub(crate) fn call_anew(&mut self, rpc: RpcId) {
        self.rpc = rpc;
        self.item[ITEM_HEADER_LEN..ITEM_HEADER_LEN + 8].copy_from_slice(&rpc.0.to_le_bytes());
    }

    /// Fits a scan's end to the tablet it is sent to.
    pub(crate) fn end_scan_at(&mut self, last: KeyHash) {
        debug_assert!(self.op == Op::Scan);
        self.until = last;
        let at = ITEM_HEADER_LEN + 8;
        self.item[at..at + 8].copy_from_slice(&last.0.to_le_bytes());
    }

    /// The key that a scan goes on after.
    pub(crate) fn scan_after(&self) -> &[u8] {
        debug_assert!(self.op == Op::Scan);
        &self.item[ITEM_HEADER_LEN + 16..]
    }
}

#[inline]
fn wire_id(index: u32, generation: u32) -> u32 {
    generation << 16 | index
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::data::RejectRules;

    use super::*;

    fn begin(slots: &mut Slots) -> OpId {
        let item = Item {
            op: Op::Read,
            id: 0,
            table: TableId(1),
            rpc: RpcId(0),
            rules: RejectRules::default(),
            key: b"k",
            value: b"",
        };
        slots.begin(&Begin {
            op: Op::Read,
            table: TableId(1),
            hash: KeyHash(0),
            rpc: RpcId(0),
            deadline: Micros(0),
            item,
        })
    }

    fn wire_id_of(slots: &Slots, op: OpId) -> u32 {
        let item = &slots.get(op).unwrap().item;
        u32::from_le_bytes(item[4..8].try_into().unwrap())
    }

    #[test]
    fn a_slot_is_reused_under_another_id() {
        let mut slots = Slots::default();
        let first = begin(&mut slots);
        let first_id = wire_id_of(&slots, first);
        slots.abandon(first);
        let second = begin(&mut slots);
        assert_eq!(first.slot(), second.slot());
        assert_ne!(first, second);
        assert_ne!(first_id, wire_id_of(&slots, second));
        assert!(slots.get(first).is_none());
        assert_eq!(slots.len(), 1);
    }

    #[test]
    fn a_slot_is_not_reused_while_an_answer_is_owed() {
        let mut slots = Slots::default();
        let first = begin(&mut slots);
        slots.get_mut(first).unwrap().wire = Some(ServerId(1));
        let id = wire_id_of(&slots, first);
        slots.abandon(first);
        assert_ne!(begin(&mut slots).slot(), first.slot());
        assert_eq!(slots.owed(ServerId(2), id), None, "another server's");
        assert_eq!(slots.owed(ServerId(1), id), Some(first));
        slots.settle(first);
        assert_eq!(slots.owed(ServerId(1), id), None);
        assert_eq!(begin(&mut slots).slot(), first.slot());
    }

    #[test]
    fn a_result_is_handed_out_once() {
        let mut slots = Slots::default();
        let op = begin(&mut slots);
        assert_eq!(slots.take(op), None);
        slots.finish(op, Err(Error::TableNotFound));
        assert_eq!(slots.take(op), Some(Err(Error::TableNotFound)));
        assert_eq!(slots.take(op), None);
        assert_eq!((slots.len(), slots.bytes()), (0, 0));
    }
}
