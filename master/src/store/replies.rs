//! Replies on their way out: sent at once with a [`Durable`], or held until there is one.
//!
//! # Invariants
//! 1. No byte of a reply gets to the output without a [`Durable`], and none that shows what was
//!    looked up without the master lease.
//! 2. Held replies go out in the order in which they were held.
//! 3. What is held is bounded: [`Output::is_over`] is asked before each operation.

use std::collections::VecDeque;

use ramkeep_wire::bytes::Reader;
use ramkeep_wire::data::{RESPONSE_ITEM_LEN, ResponseItem, Status};
use ramkeep_wire::envelope::{self, HEADER_LEN, Header};
use ramkeep_wire::limits::{MAX_IN_FLIGHT_ITEMS, MAX_UNSENT, RESPONSE_SPLIT};
use ramkeep_wire::{LogPosition, Version};

use super::answer::Shown;
use super::durability::{Durability, Durable};
use super::session::MasterLease;

/// Held bytes that were sent are cut off once there are so many of them.
const COMPACT_AT: usize = 64 << 10;

/// The envelopes being built at the end of a connection's output.
#[derive(Debug)]
pub(super) struct Replies<'o> {
    out: &'o mut Vec<u8>,
    /// The envelope that takes items: where it starts, and its header.
    open: Option<(usize, Header)>,
}

impl<'o> Replies<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, open: None }
    }

    /// Bytes in the output, with what was there before.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    /// Adds an item to an envelope with this header.
    #[inline]
    pub(super) fn push(&mut self, _: Durable, header: &Header, item: &ResponseItem<'_>) {
        self.make_room(header, RESPONSE_ITEM_LEN + item.value.len());
        item.write(self.out);
    }

    /// Adds an item's bytes to an envelope with this header.
    #[inline]
    fn push_bytes(&mut self, _: Durable, header: &Header, item: &[u8]) {
        self.make_room(header, item.len());
        self.out.extend_from_slice(item);
    }

    /// Has those who asked for what can't be answered ask somebody else. The bytes are an item for
    /// an envelope with this header, or whole envelopes of items.
    #[cold]
    fn refuse(&mut self, header: Option<&Header>, bytes: &[u8]) {
        let Some(header) = header else {
            let mut rest = bytes;
            while let Ok(Some((held, len))) = envelope::parse(rest) {
                self.refuse(Some(&held.header), held.payload);
                rest = &rest[len..];
            }
            return;
        };
        let mut reader = Reader(bytes);
        while let Ok(Some(item)) = ResponseItem::read(&mut reader) {
            let refused = ResponseItem {
                status: Status::WrongServer,
                version: Version(0),
                value: &[],
                ..item
            };
            self.push(Durable::of_nothing(), header, &refused);
        }
    }

    /// Finishes the last envelope.
    pub(super) fn seal(&mut self) {
        if let Some((start, _)) = self.open.take() {
            envelope::seal(self.out, start);
        }
    }

    /// Has an envelope with this header open in which `len` bytes more are not too many.
    #[inline]
    fn make_room(&mut self, header: &Header, len: usize) {
        if let Some((start, open)) = &self.open
            && open == header
            && self.out.len() - start - HEADER_LEN + len <= RESPONSE_SPLIT
        {
            return;
        }
        self.seal();
        self.open = Some((envelope::begin(self.out, *header), *header));
    }
}

/// A reply that waits.
#[derive(Debug)]
struct HeldReply {
    /// Until the log is durable up to here.
    position: LogPosition,
    len: usize,
    /// Of the envelope that it goes in; none for bytes that are whole envelopes.
    header: Option<Header>,
    claim: Claim,
}

/// What a reply tells of, and so what it needs beside a [`Durable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// What was looked up: the lease, and others are asked if it is gone.
    Looked,
    /// What was appended and acknowledged by backups: nothing.
    Backed,
    /// What was appended and has no backups (k = 0), perhaps beside what was looked up: the lease.
    /// It was done, so that nobody else may be asked, however long it takes.
    Unbacked,
}

/// Replies that wait, first in, first out.
#[derive(Debug, Default)]
pub(super) struct Held {
    replies: VecDeque<HeldReply>,
    bytes: Vec<u8>,
    /// Bytes before this are sent.
    sent: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.replies.len() >= MAX_IN_FLIGHT_ITEMS || self.bytes.len() - self.sent > MAX_UNSENT
    }

    #[inline]
    pub(super) fn push(
        &mut self,
        position: LogPosition,
        appended: bool,
        header: &Header,
        item: &ResponseItem<'_>,
    ) {
        let len = RESPONSE_ITEM_LEN + item.value.len();
        item.write(&mut self.bytes);
        self.replies.push_back(HeldReply {
            position,
            len,
            header: Some(*header),
            claim: if appended {
                Claim::Backed
            } else {
                Claim::Looked
            },
        });
    }

    /// Takes whole envelopes back from the output, from `start` on.
    fn take_back(&mut self, out: &mut Vec<u8>, start: usize, claim: Claim) {
        if start < out.len() {
            let (position, len) = (LogPosition::ZERO, out.len() - start);
            self.bytes.extend_from_slice(&out[start..]);
            self.replies.push_back(HeldReply {
                position,
                len,
                header: None,
                claim,
            });
            out.truncate(start);
        }
    }

    /// Sends what is durable by now, and may be told under this lease.
    pub(super) fn release(
        &mut self,
        durability: &Durability,
        lease: MasterLease,
        replies: &mut Replies<'_>,
    ) {
        while let Some(first) = self.replies.front() {
            let bytes = &self.bytes[self.sent..self.sent + first.len];
            if first.claim != Claim::Backed && lease != MasterLease::Held {
                if lease == MasterLease::Lost || first.claim == Claim::Unbacked {
                    break;
                }
                replies.refuse(first.header.as_ref(), bytes);
                self.sent += first.len;
                self.replies.pop_front();
                continue;
            }
            let Some(durable) = durability.reached(first.position) else {
                break;
            };
            match &first.header {
                Some(header) => replies.push_bytes(durable, header, bytes),
                None => {
                    replies.seal();
                    replies.out.extend_from_slice(bytes);
                }
            }
            self.sent += first.len;
            self.replies.pop_front();
        }
        self.compact();
    }

    /// Cuts off sent bytes, seldom enough that each byte is moved at most once on the average.
    fn compact(&mut self) {
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent >= COMPACT_AT && self.sent * 2 >= self.bytes.len() {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// Where answers go: out, or to those that wait.
#[derive(Debug)]
pub(super) struct Output<'s> {
    pub(super) replies: Replies<'s>,
    pub(super) held: &'s mut Held,
    /// Something was appended that has no backups to wait for.
    unbacked: bool,
}

impl<'s> Output<'s> {
    pub(super) fn new(out: &'s mut Vec<u8>, held: &'s mut Held) -> Self {
        Self {
            replies: Replies::new(out),
            held,
            unbacked: false,
        }
    }
}

impl Output<'_> {
    /// Sends an item or holds it.
    #[inline]
    pub(super) fn put(
        &mut self,
        shown: Shown,
        appended: bool,
        header: &Header,
        item: &ResponseItem<'_>,
    ) {
        match shown {
            Ok(durable) => {
                self.unbacked |= appended;
                self.replies.push(durable, header, item);
            }
            Err(position) => self.held.push(position, appended, header, item),
        }
    }

    /// Ends the envelopes in the output from `start` on, all of answers that were not held. Without
    /// the lease they are taken back, and wait for it.
    #[inline]
    pub(super) fn judge(&mut self, start: usize, lease: MasterLease) {
        self.replies.seal();
        if lease != MasterLease::Held {
            let claim = if self.unbacked {
                Claim::Unbacked
            } else {
                Claim::Looked
            };
            self.held.take_back(self.replies.out, start, claim);
        }
    }

    /// Whether there is so much that waits or is unsent that operations are refused.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.replies.len() > MAX_UNSENT || self.held.is_full()
    }
}
