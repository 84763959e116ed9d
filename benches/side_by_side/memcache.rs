//! Memcached's meta commands: `mg` and `ms`. A multi-get is many `mg` in one write.

use crate::protocol::{BadReply, Batch, Op, Progress, Protocol, line};
use crate::workload::{Asked, VALUE_BYTES, is_value, key, value};

/// Replies come in the order of the requests.
#[derive(Default)]
pub(crate) struct Memcache {
    /// Sequence number of the next reply.
    next: u32,
}

impl Protocol for Memcache {
    #[inline]
    fn encode(&mut self, op: Op, batch: Batch, asked: &Asked, out: &mut Vec<u8>) {
        for n in batch.sequences().map(|s| asked.key_number(s)) {
            if matches!(op, Op::Get | Op::MultiGet) {
                out.extend_from_slice(b"mg ");
                out.extend_from_slice(&key(n));
                out.extend_from_slice(b" v\r\n");
            } else {
                out.extend_from_slice(b"ms ");
                out.extend_from_slice(&key(n));
                out.extend_from_slice(b" 100\r\n");
                out.extend_from_slice(&value(n));
                out.extend_from_slice(b"\r\n");
            }
        }
    }

    #[inline]
    fn parse(&mut self, op: Op, input: &[u8], asked: &Asked) -> Result<Progress, BadReply> {
        let mut progress = Progress::default();
        while let Some(bytes) = self.reply(op, &input[progress.consumed..], asked)? {
            progress.consumed += bytes;
            progress.completed += 1;
            self.next = self.next.wrapping_add(1);
        }
        Ok(progress)
    }
}

impl Memcache {
    /// The bytes of one whole reply.
    #[inline]
    fn reply(&self, op: Op, input: &[u8], asked: &Asked) -> Result<Option<usize>, BadReply> {
        let Some((head, used)) = line(input) else {
            return Ok(None);
        };
        match (head, op) {
            (b"HD", Op::Set) => Ok(Some(used)),
            (b"VA 100", Op::Get | Op::MultiGet) => {
                let whole = used + VALUE_BYTES + 2;
                if input.len() < whole {
                    return Ok(None);
                }
                let n = asked.key_number(self.next);
                if !is_value(n, &input[used..used + VALUE_BYTES]) {
                    return Err(BadReply::WrongValue(n));
                }
                Ok(Some(whole))
            }
            _ => Err(BadReply::unexpected(head)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_are_checked_and_misses_refused() {
        let mut asked = Asked::new();
        asked.put(0, 5);
        let hit = [b"VA 100\r\n".as_slice(), &value(5), b"\r\n"].concat();
        let progress = Memcache::default().parse(Op::Get, &hit, &asked).unwrap();
        assert_eq!(
            progress,
            Progress {
                consumed: hit.len(),
                completed: 1
            }
        );
        let cut = Memcache::default()
            .parse(Op::Get, &hit[..50], &asked)
            .unwrap();
        assert_eq!(cut, Progress::default());
        asked.put(0, 6);
        let wrong = Memcache::default().parse(Op::Get, &hit, &asked);
        assert!(matches!(wrong, Err(BadReply::WrongValue(6))));
        let miss = Memcache::default().parse(Op::Get, b"EN\r\n", &asked);
        assert!(matches!(miss, Err(BadReply::Unexpected(_))));
    }
}
