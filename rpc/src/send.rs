//! What goes out: one reused buffer per connection, written by as few system calls as can be.

use std::io;

use crate::socket::{Moved, Socket};

/// A send buffer that stays allocated when empty; what grew past it is given back.
pub(crate) const SEND_BUFFER: usize = 1 << 20;

/// Bytes appended and not yet taken by the socket.
#[derive(Default)]
pub(crate) struct SendQueue {
    bytes: Vec<u8>,
    sent: usize,
}

impl SendQueue {
    /// Bytes not yet taken by the socket.
    #[inline]
    pub(crate) fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Where to append.
    #[inline]
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        if self.sent > 0 && self.sent >= self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.bytes
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
