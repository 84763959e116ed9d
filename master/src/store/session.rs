//! One connection's data operations: envelopes of items in, envelopes of results out, and the
//! replies that wait in between.
//!
//! # Invariants
//! 1. The writer's lock is taken at the first mutation of a batch and kept to the batch's end.
//! 2. Tablets are looked up in a state loaded after the operation came in; for mutations, in the
//!    state that the writer's lock keeps from changing.
//! 3. An answer to what appended nothing goes out only if the master lease was held after it was
//!    looked up (SAFETY 1). What was appended needs no lease: it needs its backups.

use parking_lot::MutexGuard;
use ramkeep_memory::Guard;
use ramkeep_wire::data::{DataError, Item, Items, Op, ResponseItem, Status};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{KeyHash, Version, key_hash};

use super::Store;
use super::answer::{Answer, Shown};
use super::calls::Caller;
use super::durability::Durable;
use super::replies::{Held, Output};
use super::scan::Scans;
use super::tablets::Tablets;
use super::writer::Writer;

/// Items whose memory is fetched together: their buckets, then their objects, then the work.
const WINDOW: usize = 16;

/// Whether this master may answer reads (SAFETY 1). Judged after looking, before answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MasterLease {
    /// From everybody it is needed from.
    Held,
    /// Not now: what was looked up waits.
    Lost,
    /// For too long: who asks is told to ask somebody else.
    Gone,
}

/// The data operations of one connection.
#[derive(Debug, Default)]
pub struct DataSession {
    held: Held,
    scans: Scans,
}

/// The operations that were read from a connection in one go.
#[derive(Debug)]
pub struct Batch<'s> {
    store: &'s Store,
    guard: Guard,
    tablets: arc_swap::Guard<std::sync::Arc<Tablets>>,
    writer: Option<MutexGuard<'s, Writer>>,
    scans: &'s mut Scans,
    output: Output<'s>,
    /// Whose envelope is being read.
    caller: Caller,
    /// The output was this long before.
    start: usize,
    /// What it answers was judged.
    ended: bool,
}

impl DataSession {
    /// For a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a batch, whose answers are appended to `out`. It must be ended.
    #[must_use = "a batch that is not ended answers nothing"]
    pub fn begin<'s>(&'s mut self, store: &'s Store, out: &'s mut Vec<u8>) -> Batch<'s> {
        Batch {
            store,
            guard: store.pin(),
            tablets: store.tablets(),
            writer: None,
            scans: &mut self.scans,
            start: out.len(),
            ended: false,
            caller: Caller::default(),
            output: Output::new(out, &mut self.held),
        }
    }

    /// Appends the replies that may be shown by now to `out`, and works on scans. True if something
    /// was appended. `lease` judges by a clock that it reads when it is called.
    pub fn release(
        &mut self,
        store: &Store,
        lease: impl Fn() -> MasterLease,
        out: &mut Vec<u8>,
    ) -> bool {
        if !self.holds() {
            return false;
        }
        let start = out.len();
        let mut output = Output::new(out, &mut self.held);
        let judged = lease();
        output
            .held
            .release(store.durability(), judged, &mut output.replies);
        output.replies.seal();
        if !self.scans.is_empty() && !output.is_over() {
            let scanned = output.replies.len();
            if judged == MasterLease::Gone {
                self.scans.refuse(&mut output);
            } else if judged == MasterLease::Held {
                self.scans.step(store, &store.pin(), &mut output);
                output.judge(scanned, lease());
            }
        }
        output.replies.seal();
        out.len() > start
    }

    /// Whether replies wait: [`release`](Self::release) is to be called again.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.held.is_empty() || !self.scans.is_empty()
    }

    /// Whether there is work that waits for nothing but another [`release`](Self::release).
    #[must_use]
    pub fn works(&self) -> bool {
        !self.scans.is_empty() && !self.held.is_full()
    }

    /// Whether so much waits that nothing more should be read from the connection.
    #[must_use]
    pub fn full(&self) -> bool {
        self.held.is_full()
    }
}

impl Batch<'_> {
    /// Does what an envelope asks for, item by item, in order.
    ///
    /// # Errors
    /// If the payload can't be read. Some items before were done; the connection should be closed.
    pub fn envelope(&mut self, header: &Header, payload: &[u8]) -> Result<(), DataError> {
        let reply = header.reply(Kind::DataResponse);
        let mut items = Items::read(payload)?;
        self.caller = Caller {
            client: items.client,
            ack: items.ack,
        };
        if items.remaining() > 1 {
            return self.many(&reply, &mut items);
        }
        while let Some(item) = items.next_item()? {
            self.item(&reply, &item, key_hash(item.table, item.key));
        }
        Ok(())
    }

    /// Ends the batch: the writer is free for others, and answers are shown or wait. `lease` judges
    /// by a clock that it reads when it is called, which is when all is looked up.
    pub fn end(mut self, lease: impl FnOnce() -> MasterLease) {
        self.writer = None;
        let (early, late) = if mutants::active(Mutant::LeaseBeforeLooking) {
            (Some(lease()), None)
        } else {
            (None, Some(lease))
        };
        if !self.scans.is_empty() && !self.output.is_over() {
            self.scans.step(self.store, &self.guard, &mut self.output);
        }
        let lease = late.map_or(early, |judge| Some(judge()));
        self.ended = true;
        self.output
            .judge(self.start, lease.unwrap_or(MasterLease::Gone));
    }

    /// Whether so much waits that nothing more should be read from the connection.
    #[must_use]
    pub fn full(&self) -> bool {
        self.output.is_over()
    }

    /// The right to change things that the batch holds, if it has changed something.
    pub fn writer(&mut self) -> Option<&mut Writer> {
        self.writer.as_deref_mut()
    }

    /// Does items in windows, so that the memory of all items in one is fetched at the same time.
    fn many<'a>(&mut self, reply: &Header, items: &mut Items<'a>) -> Result<(), DataError> {
        let mut window: [Option<(Item<'a>, KeyHash)>; WINDOW] = [None; WINDOW];
        loop {
            let mut filled = 0;
            while filled < WINDOW
                && let Some(item) = items.next_item()?
            {
                let hash = key_hash(item.table, item.key);
                self.store.index().prefetch(hash);
                window[filled] = Some((item, hash));
                filled += 1;
            }
            if filled == 0 {
                return Ok(());
            }
            let entries = self.store.entries(&self.guard);
            for (_, hash) in window[..filled].iter().flatten() {
                entries.prefetch_likely(self.store.index(), *hash);
            }
            for (item, hash) in window[..filled].iter().flatten() {
                self.item(reply, item, *hash);
            }
        }
    }

    #[inline]
    fn item(&mut self, reply: &Header, item: &Item<'_>, hash: KeyHash) {
        if self.output.is_over() {
            return self.refuse(reply, item.id, Status::RetryLater);
        }
        match item.op {
            Op::Read => self.read(reply, item, hash),
            Op::Write | Op::Remove | Op::Increment => {
                let answer = self.mutate(item, hash);
                self.answer(reply, item.id, &answer);
            }
            Op::Scan => {
                if let Err(status) = self.scans.add(reply, item) {
                    self.refuse(reply, item.id, status);
                }
            }
        }
    }

    #[inline]
    fn read(&mut self, reply: &Header, item: &Item<'_>, hash: KeyHash) {
        let Some(owned) = self.tablets.owned_at(item.table, item.key, hash) else {
            return self.refuse(reply, item.id, Status::WrongServer);
        };
        let read = self.store.read(&self.guard, owned);
        let (status, version, value) = match read.object {
            Some(object) => (Status::Ok, object.version, object.value),
            None => (Status::Absent, Version(0), &[][..]),
        };
        let item = ResponseItem {
            id: item.id,
            status,
            version,
            value,
        };
        self.output.put(read.shown, false, reply, &item);
    }

    #[inline]
    fn mutate(&mut self, item: &Item<'_>, hash: KeyHash) -> Answer {
        let writer = self.writer.get_or_insert_with(|| {
            let writer = self.store.writer();
            self.tablets = self.store.tablets();
            writer
        });
        let Some(owned) = self.tablets.owned_at(item.table, item.key, hash) else {
            return Answer::refused(Status::WrongServer);
        };
        let gate = self.store.write_refusal();
        writer.call(&self.guard, owned, self.caller, item, gate)
    }

    #[inline]
    fn answer(&mut self, reply: &Header, id: u32, answer: &Answer) {
        let counter = answer.counter.map(i64::to_le_bytes);
        let value = counter.as_ref().map_or(&[][..], |bytes| &bytes[..]);
        let item = ResponseItem {
            id,
            status: answer.status,
            version: answer.version,
            value,
        };
        self.output.put(answer.shown, answer.appended, reply, &item);
    }

    #[cold]
    fn refuse(&mut self, reply: &Header, id: u32, status: Status) {
        let shown: Shown = Ok(Durable::of_nothing());
        self.output.put(
            shown,
            false,
            reply,
            &ResponseItem {
                id,
                status,
                version: Version(0),
                value: &[],
            },
        );
    }
}

impl Drop for Batch<'_> {
    /// What was not judged is not shown.
    fn drop(&mut self) {
        if !self.ended {
            self.output.judge(self.start, MasterLease::Lost);
        }
    }
}
