//! What an item asks for, done once.
//!
//! # Invariants
//! 1. A call is looked up, run and saved under one hold of the writer's lock.
//! 2. The answer to a call that has run is a read: it waits for what the first run appended, and for the
//!    master lease (SAFETY 1).

use ramkeep_memory::Guard;
use ramkeep_wire::data::{Item, Op, Status};
use ramkeep_wire::{ClientId, RpcId};

use super::answer::Answer;
use super::completions::Admission;
use super::tablets::Owned;
use super::writer::Writer;

/// Whose calls an envelope carries.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// Who; 0: nobody whose calls are remembered.
    pub client: ClientId,
    /// All its calls up to this one are over.
    pub ack: RpcId,
}

impl Writer {
    /// Does what an item asks for, unless its call has run: then what came of it comes again, as a
    /// read (SAFETY 1). `gate` refuses what has not run.
    #[inline]
    pub fn call(
        &mut self,
        guard: &Guard,
        owned: Owned<'_>,
        caller: Caller,
        item: &Item<'_>,
        gate: Option<Status>,
    ) -> Answer {
        let call = match self.completions.admit(caller.client, caller.ack, item.rpc) {
            Admission::Fresh(call) => Some(call),
            Admission::Unremembered => None,
            Admission::Known(saved) => {
                let shown = self.log.durability().reached(saved.until);
                let answer = Answer::new(saved.status, saved.version, shown.ok_or(saved.until));
                return Answer {
                    counter: saved.counter(),
                    ..answer
                };
            }
            Admission::Refused(status) => return Answer::refused(status),
        };
        let answer = match (gate, item.op) {
            (Some(status), _) => Answer::refused(status),
            (None, Op::Write) => self.write_as(call, guard, owned, item.value, item.rules),
            (None, Op::Remove) => self.remove_as(call, guard, owned, item.rules),
            (None, Op::Increment) => self.increment_as(call, guard, owned, item.value, item.rules),
            (None, Op::Read | Op::Scan) => Answer::refused(Status::Invalid),
        };
        if let Some(call) = call
            && answer.status != Status::RetryLater
        {
            self.completions.save(call, owned, &answer);
        }
        answer
    }
}
