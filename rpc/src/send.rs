//! What goes out: one reused buffer per connection, written by as few system calls as can be.

use std::io;

use ramkeep_wire::limits::MAX_UNSENT;

use crate::dispatch::Outbox;
use crate::socket::{Moved, Socket};

/// A send buffer that stays allocated when empty; what grew past it is given back.
pub(crate) const SEND_BUFFER: usize = 1 << 20;

/// Sent bytes at the front are taken away once they are so many, or half of all: rarely enough that
/// moving up the rest costs little beside the sending.
const COMPACT_AFTER: usize = MAX_UNSENT / 2;

/// Bytes appended and not yet taken by the socket.
#[derive(Default)]
pub(crate) struct SendQueue {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox for SendQueue {
    #[inline]
    fn buffer(&mut self) -> &mut Vec<u8> {
        if self.compacts() {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.bytes
    }

    /// Bytes that were sent may still be in it. Judged by this, both sides agree on when it is full.
    #[inline]
    fn occupied(&self) -> usize {
        if self.compacts() {
            self.unsent()
        } else {
            self.bytes.len()
        }
    }

    #[inline]
    fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }
}

impl SendQueue {
    #[inline]
    fn compacts(&self) -> bool {
        self.sent > 0 && self.sent >= COMPACT_AFTER.min(self.bytes.len() / 2)
    }

    /// Writes what the socket takes, and says how much that was.
    #[inline]
    pub(crate) fn flush(&mut self, socket: &Socket) -> io::Result<usize> {
        let before = self.sent;
        while self.sent < self.bytes.len() {
            match socket.send(&self.bytes[self.sent..])? {
                Moved::Bytes(0) => return Err(io::ErrorKind::WriteZero.into()),
                Moved::Bytes(count) => self.sent += count,
                Moved::Blocked => return Ok(self.sent - before),
            }
        }
        let moved = self.sent - before;
        self.bytes.clear();
        self.sent = 0;
        if self.bytes.capacity() > SEND_BUFFER {
            self.bytes.shrink_to(SEND_BUFFER);
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(len: usize, sent: usize) -> SendQueue {
        SendQueue {
            bytes: (0..len).map(|at| at as u8).collect(),
            sent,
        }
    }

    #[test]
    fn who_appends_finds_what_was_said_to_be_occupied() {
        let most = MAX_UNSENT + 1_000;
        for len in [0, 1, 2, 1_000, MAX_UNSENT, most] {
            for sent in [0, 1, len / 3, len / 2, len / 2 + 1, len.saturating_sub(1)] {
                let mut queue = queue(len, sent.min(len));
                let (occupied, unsent) = (queue.occupied(), queue.unsent());
                assert_eq!(queue.buffer().len(), occupied, "{sent} of {len}");
                assert_eq!(queue.unsent(), unsent);
            }
        }
    }

    #[test]
    fn a_queue_that_is_half_sent_has_room_and_keeps_the_rest() {
        let mut queue = queue(2 * MAX_UNSENT, COMPACT_AFTER);
        assert_eq!(queue.occupied(), 2 * MAX_UNSENT - COMPACT_AFTER);
        queue.sent = MAX_UNSENT + 7;
        assert!(queue.occupied() < MAX_UNSENT);
        let rest = queue.bytes[queue.sent..].to_vec();
        assert_eq!(*queue.buffer(), rest);
    }
}
