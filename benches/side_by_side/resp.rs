//! RESP2, as redis speaks it: GET, MGET, SET, and SET followed by WAIT.

use crate::protocol::{BadReply, Batch, Op, Progress, Protocol, decimal, line};
use crate::workload::{Asked, VALUE_BYTES, is_value, key, value};

/// Replicas that a durable write waits for.
const REPLICAS: u32 = 2;

/// Replies come in the order of the requests.
#[derive(Default)]
pub(crate) struct Resp {
    /// Sequence number of the next reply.
    next: u32,
    /// Values of the MGET reply that have not been seen yet.
    values_left: u32,
    /// SETs acknowledged by the primary alone.
    not_durable: u32,
}

impl Protocol for Resp {
    #[inline]
    fn encode(&mut self, op: Op, batch: Batch, asked: &Asked, out: &mut Vec<u8>) {
        if op == Op::MultiGet {
            extend_number(out, b'*', batch.count + 1);
            out.extend_from_slice(b"$4\r\nMGET\r\n");
        }
        for n in batch.sequences().map(|s| asked.key_number(s)) {
            match op {
                Op::Get => out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$20\r\n"),
                Op::MultiGet => out.extend_from_slice(b"$20\r\n"),
                Op::Set | Op::DurableSet => out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$20\r\n"),
            }
            out.extend_from_slice(&key(n));
            out.extend_from_slice(b"\r\n");
            if matches!(op, Op::Set | Op::DurableSet) {
                out.extend_from_slice(b"$100\r\n");
                out.extend_from_slice(&value(n));
                out.extend_from_slice(b"\r\n");
            }
        }
        if op == Op::DurableSet {
            out.extend_from_slice(b"*3\r\n$4\r\nWAIT\r\n$1\r\n2\r\n$1\r\n0\r\n");
        }
    }

    #[inline]
    fn parse(&mut self, op: Op, input: &[u8], asked: &Asked) -> Result<Progress, BadReply> {
        let mut progress = Progress::default();
        while let Some((bytes, completed)) = self.reply(op, &input[progress.consumed..], asked)? {
            progress.consumed += bytes;
            progress.completed += completed;
        }
        Ok(progress)
    }
}

impl Resp {
    /// One whole reply: its bytes and the requests that it completes.
    #[inline]
    fn reply(
        &mut self,
        op: Op,
        input: &[u8],
        asked: &Asked,
    ) -> Result<Option<(usize, u32)>, BadReply> {
        let Some((head, used)) = line(input) else {
            return Ok(None);
        };
        match (head.first(), op) {
            (Some(b'*'), Op::MultiGet) if self.values_left == 0 => {
                self.values_left = number(head)?;
                Ok(Some((used, 0)))
            }
            (Some(b'$'), Op::Get | Op::MultiGet) => {
                if number(head)? as usize != VALUE_BYTES {
                    return Err(BadReply::unexpected(head));
                }
                let whole = used + VALUE_BYTES + 2;
                if input.len() < whole {
                    return Ok(None);
                }
                let n = asked.key_number(self.next);
                if !is_value(n, &input[used..used + VALUE_BYTES]) {
                    return Err(BadReply::WrongValue(n));
                }
                self.next = self.next.wrapping_add(1);
                self.values_left = self.values_left.saturating_sub(1);
                Ok(Some((whole, 1)))
            }
            (Some(b'+'), Op::Set) if head == b"+OK" => Ok(Some((used, 1))),
            (Some(b'+'), Op::DurableSet) if head == b"+OK" => {
                self.not_durable += 1;
                Ok(Some((used, 0)))
            }
            (Some(b':'), Op::DurableSet) => match number(head)? {
                REPLICAS => Ok(Some((used, std::mem::take(&mut self.not_durable)))),
                fewer => Err(BadReply::NotDurable(fewer)),
            },
            _ => Err(BadReply::unexpected(head)),
        }
    }
}

/// The number after the type byte of a reply's head line.
#[inline]
fn number(head: &[u8]) -> Result<u32, BadReply> {
    decimal(&head[1..]).ok_or_else(|| BadReply::unexpected(head))
}

fn extend_number(out: &mut Vec<u8>, kind: u8, n: u32) {
    use std::io::Write as _;
    write!(out, "{}{n}\r\n", kind as char).expect("writing to a Vec cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(numbers: &[u32]) -> Asked {
        let mut asked = Asked::new();
        for (sequence, &n) in numbers.iter().enumerate() {
            asked.put(sequence as u32, n);
        }
        asked
    }

    fn bulk(n: u32) -> Vec<u8> {
        [b"$100\r\n".as_slice(), &value(n), b"\r\n"].concat()
    }

    #[test]
    fn replies_count_when_they_are_whole_wherever_they_are_cut() {
        let stream = [bulk(5), bulk(9)].concat();
        for cut in 0..stream.len() {
            let (mut resp, asked) = (Resp::default(), asked(&[5, 9]));
            let first = resp.parse(Op::Get, &stream[..cut], &asked).unwrap();
            let rest = resp
                .parse(Op::Get, &stream[first.consumed..], &asked)
                .unwrap();
            assert_eq!(first.consumed + rest.consumed, stream.len());
            assert_eq!(first.completed + rest.completed, 2);
        }
    }

    #[test]
    fn another_keys_value_and_a_missing_key_are_refused() {
        let wrong = Resp::default().parse(Op::Get, &bulk(6), &asked(&[5]));
        assert!(matches!(wrong, Err(BadReply::WrongValue(5))));
        let missing = Resp::default().parse(Op::Get, b"$-1\r\n", &asked(&[5]));
        assert!(matches!(missing, Err(BadReply::Unexpected(_))));
    }

    #[test]
    fn durable_writes_complete_only_with_the_wait() {
        let (mut resp, asked) = (Resp::default(), asked(&[1, 2]));
        let half = resp
            .parse(Op::DurableSet, b"+OK\r\n+OK\r\n", &asked)
            .unwrap();
        assert_eq!(half.completed, 0);
        let whole = resp.parse(Op::DurableSet, b":2\r\n", &asked).unwrap();
        assert_eq!(whole.completed, 2);
        let fewer = resp.parse(Op::DurableSet, b"+OK\r\n:1\r\n", &asked);
        assert!(matches!(fewer, Err(BadReply::NotDurable(1))));
    }

    #[test]
    fn a_multi_get_is_one_request_of_many_keys() {
        let (mut resp, asked, mut out) = (Resp::default(), asked(&[1, 2]), Vec::new());
        resp.encode(Op::MultiGet, Batch { first: 0, count: 2 }, &asked, &mut out);
        assert!(out.starts_with(b"*3\r\n$4\r\nMGET\r\n$20\r\n"));
        let stream = [b"*2\r\n".to_vec(), bulk(1), bulk(2)].concat();
        let progress = resp.parse(Op::MultiGet, &stream, &asked).unwrap();
        assert_eq!(
            progress,
            Progress {
                consumed: stream.len(),
                completed: 2
            }
        );
    }
}
