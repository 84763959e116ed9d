//! As much of gRPC and protobuf as etcd's unary calls need, over `h2`.
//!
//! # Invariants
//! 1. A call succeeds only with HTTP status 200, gRPC status 0 and one whole message.

use bytes::{Buf as _, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use tokio::net::TcpStream;

use crate::{Failure, Outcome};

/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Flow-control window of a stream; no answer comes near it.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow-control window of a connection: room for the answers of all its streams.
const CONNECTION_WINDOW: u32 = 1 << 24;

/// A connection on which any number of calls may be under way. Clones share it.
#[derive(Clone)]
pub(crate) struct Channel {
    sender: SendRequest<Bytes>,
}

impl Channel {
    /// Connects; the connection is driven by a task of the current runtime.
    pub(crate) async fn connect(address: std::net::SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(stream)
            .await
            .map_err(broken)?;
        // What ends the connection also ends the calls on it, which say so.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender })
    }

    /// One unary call; `message` is the protobuf of the request. Returns that of the answer.
    pub(crate) async fn call(&mut self, path: &'static str, message: &[u8]) -> Outcome<Bytes> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path_uri(path)?)
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|e| Failure::new(e.to_string()))?;
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        framed.extend_from_slice(&[0]);
        framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
        framed.extend_from_slice(message);
        std::future::poll_fn(|cx| self.sender.poll_ready(cx))
            .await
            .map_err(broken)?;
        let (response, mut out) = self.sender.send_request(request, false).map_err(broken)?;
        out.send_data(framed.freeze(), true).map_err(broken)?;
        let response = response.await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            return Err(Failure::new(format!("etcd: HTTP {}", response.status())));
        }
        // An answer without a body has its trailers in the place of its headers.
        if response.headers().contains_key("grpc-status") {
            succeeded(response.headers())?;
        }
        let mut body = response.into_body();
        let mut received = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(broken)?;
            body.flow_control()
                .release_capacity(data.len())
                .map_err(broken)?;
            received.extend_from_slice(&data);
        }
        let trailers = body.trailers().await.map_err(broken)?;
        succeeded(&trailers.ok_or_else(|| Failure::new("etcd: an answer without trailers"))?)?;
        unframed(received.freeze())
    }
}

fn path_uri(path: &'static str) -> Outcome<http::Uri> {
    http::Uri::builder()
        .scheme("http")
        .authority("127.0.0.1")
        .path_and_query(path)
        .build()
        .map_err(|e| Failure::new(e.to_string()))
}

// By value: it is what `map_err` gives.
#[allow(clippy::needless_pass_by_value)]
fn broken(error: h2::Error) -> Failure {
    Failure::new(format!("etcd: {error}"))
}

fn succeeded(trailers: &HeaderMap) -> Outcome<()> {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        Some("0") => Ok(()),
        status => Err(Failure::new(format!(
            "etcd: gRPC status {}: {}",
            status.unwrap_or("missing"),
            text("grpc-message").unwrap_or_default()
        ))),
    }
}

/// The one message of an answer.
fn unframed(mut received: Bytes) -> Outcome<Bytes> {
    let whole = received.len() >= PREFIX && received.get_u8() == 0;
    if !whole || received.get_u32() as usize != received.len() {
        return Err(Failure::new("etcd: not one whole, uncompressed message"));
    }
    Ok(received)
}

/// The value of a field: the two kinds that etcd's answers have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// An integer.
    Number(u64),
    /// Bytes, text or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message, in order; ends early at what can't be read.
pub(crate) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        let tag = varint(&mut message)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut message)?),
            2 => {
                let len = usize::try_from(varint(&mut message)?).ok()?;
                let (bytes, rest) = message.split_at_checked(len)?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    })
}

/// Appends a field of bytes.
pub(crate) fn append_bytes(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    debug_assert!(field < 16 && bytes.len() < 128, "one byte each");
    message.extend_from_slice(&[field << 3 | 2, bytes.len() as u8]);
    message.extend_from_slice(bytes);
}

fn varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_protobuf_lays_them_out() {
        // Field 1: message; field 2: 150; field 3: "ab".
        let message = [0x0a, 2, 0x08, 1, 0x10, 0x96, 0x01, 0x1a, 2, b'a', b'b'];
        let found: Vec<_> = fields(&message).collect();
        assert_eq!(
            found,
            [
                (1, Value::Bytes(&[0x08, 1])),
                (2, Value::Number(150)),
                (3, Value::Bytes(b"ab")),
            ]
        );
    }

    #[test]
    fn a_message_that_is_cut_off_ends_the_fields() {
        assert_eq!(fields(&[0x0a, 5, 1]).count(), 0);
        assert_eq!(fields(&[0x08, 0x80]).count(), 0);
    }

    #[test]
    fn an_answer_is_one_whole_message() {
        assert_eq!(
            unframed(Bytes::from_static(&[0, 0, 0, 0, 1, 7])).unwrap()[..],
            [7]
        );
        for bad in [&[][..], &[0, 0, 0, 0, 2, 7], &[1, 0, 0, 0, 1, 7]] {
            assert!(unframed(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_gone_wrong_call_says_why() {
        let mut trailers = HeaderMap::new();
        assert!(succeeded(&trailers).is_err());
        trailers.insert("grpc-status", "14".parse().unwrap());
        trailers.insert("grpc-message", "no leader".parse().unwrap());
        let error = succeeded(&trailers).unwrap_err().to_string();
        assert!(
            error.contains("14") && error.contains("no leader"),
            "{error}"
        );
    }
}
