//! How bytes flow: in pieces, in floods, held back, and to a stop.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::{PATIENCE, Raw, Server, enveloped};
use ramkeep_rpc::{
    Batch, CallError, Caller, Closed, Peer, PollMode, Router, Service, Session, Wake,
};
use ramkeep_wire::Micros;
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;

#[test]
fn requests_that_come_byte_by_byte_are_answered() {
    for mode in [PollMode::Adaptive, PollMode::Never] {
        let server = Server::start(mode);
        let mut raw = Raw::open(&server.address);
        for payload in [b"".as_slice(), b"x", b"more than one byte"] {
            for byte in enveloped(Kind::Order, payload) {
                raw.0.write_all(&[byte]).unwrap();
            }
            assert_eq!(raw.receive().unwrap().1, payload);
        }
    }
}

#[test]
fn thousands_of_requests_at_once_are_answered_in_order() {
    const REQUESTS: u32 = 50_000;
    let server = Server::start(PollMode::Adaptive);
    let mut raw = Raw::open(&server.address);
    let mut reader = Raw(raw.0.try_clone().unwrap());
    let receiving = std::thread::spawn(move || {
        for expected in 0..REQUESTS {
            let (_, payload) = reader.receive().unwrap();
            assert_eq!(payload, expected.to_le_bytes());
        }
    });
    let mut bytes = Vec::new();
    for number in 0..REQUESTS {
        bytes.extend(enveloped(Kind::Order, &number.to_le_bytes()));
    }
    raw.0.write_all(&bytes).unwrap();
    receiving.join().unwrap();
}

#[test]
fn a_peer_that_never_reads_is_not_read_from_for_ever() {
    // What the sockets of both directions may hold on top of what the server keeps.
    const SOCKETS: usize = 64 << 20;
    let server = Server::start(PollMode::Adaptive);
    let mut raw = Raw::open(&server.address);
    raw.0
        .set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let request = enveloped(Kind::Order, &[7; 60_000]);
    let (mut pushed, mut whole) = (0, 0);
    let mut cut = None;
    while cut.is_none() {
        assert!(pushed < SOCKETS, "the server takes requests without end");
        let mut at = 0;
        while at < request.len() {
            match raw.0.write(&request[at..]) {
                Ok(count) => at += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    cut = Some(at);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        pushed += at;
        whole += usize::from(cut.is_none());
    }
    let largest = server.largest_out.load(Ordering::Relaxed);
    assert!(largest <= 2 * MAX_UNSENT + (2 << 20), "{largest} bytes");

    // Once it reads, everything is answered.
    let mut writer = raw.0.try_clone().unwrap();
    writer.set_write_timeout(None).unwrap();
    let rest = request[cut.unwrap()..].to_vec();
    let writing = std::thread::spawn(move || writer.write_all(&rest).unwrap());
    for _ in 0..=whole {
        assert_eq!(raw.receive().unwrap().1, [7; 60_000]);
    }
    writing.join().unwrap();
}

/// Echoes, and counts how often it was called in vain: when its replies leave no room.
struct Counting {
    in_vain: Arc<AtomicU64>,
}

impl Session for Counting {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        if out.len() > MAX_UNSENT {
            self.in_vain.fetch_add(1, Ordering::SeqCst);
        }
        while out.len() <= MAX_UNSENT {
            let Some(request) = batch.next() else { break };
            envelope::append(out, request.header.reply(Kind::OrderReply), request.payload);
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

#[test]
fn a_session_without_room_is_not_called_while_its_peer_reads_slowly() {
    const REQUESTS: usize = 500;
    let in_vain = Arc::<AtomicU64>::default();
    let counted = in_vain.clone();
    let service = Arc::new(move |_: &Peer, _: Wake| -> Box<dyn Session> {
        Box::new(Counting {
            in_vain: counted.clone(),
        })
    });
    let router = Router::new().route(&[Kind::Order], service);
    let server = Server::routed(PollMode::Adaptive, router);
    let mut raw = Raw::open(&server.address);
    let mut writer = raw.0.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        let request = enveloped(Kind::Order, &[7; 100_000]);
        for _ in 0..REQUESTS {
            writer.write_all(&request).unwrap();
        }
    });
    for _ in 0..REQUESTS {
        // One at a time, so that the server's queue stays about full.
        assert_eq!(raw.receive().unwrap().1, [7; 100_000]);
    }
    writing.join().unwrap();
    assert_eq!(in_vain.load(Ordering::SeqCst), 0);
}

#[test]
fn a_peer_that_ended_its_side_gets_what_is_unsent() {
    const REQUESTS: usize = 300;
    let server = Server::start(PollMode::Adaptive);
    let mut raw = Raw::open(&server.address);
    let mut writer = raw.0.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for _ in 0..REQUESTS {
            writer
                .write_all(&enveloped(Kind::Order, &[7; 60_000]))
                .unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // As slow as the other side's end of the writing, and then more: replies are left over.
    for _ in 0..REQUESTS / 3 {
        assert_eq!(raw.receive().unwrap().1.len(), 60_000);
    }
    let rest = raw.receive_all();
    writing.join().unwrap();
    assert_eq!(rest.len(), REQUESTS - REQUESTS / 3);
}

/// Holds every reply until a number has been released that is at least the request's.
struct Holding {
    released: Arc<AtomicU64>,
    asked: mpsc::Sender<(u64, Wake)>,
}

struct HoldingSession {
    released: Arc<AtomicU64>,
    asked: mpsc::Sender<(u64, Wake)>,
    wake: Wake,
    held: Vec<Header>,
}

impl Service for Holding {
    fn open(&self, _peer: &Peer, wake: Wake) -> Box<dyn Session> {
        Box::new(HoldingSession {
            released: self.released.clone(),
            asked: self.asked.clone(),
            wake,
            held: Vec::new(),
        })
    }
}

impl Session for HoldingSession {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        _out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for request in batch {
            self.held
                .push(request.header.reply(Kind::CoordinatorResponse));
            // The test may be over.
            let _ = self
                .asked
                .send((request.header.correlation, self.wake.clone()));
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, out: &mut Vec<u8>) -> bool {
        let released = self.released.load(Ordering::SeqCst);
        let before = out.len();
        self.held.retain(|header| {
            let keep = header.correlation > released;
            if !keep {
                envelope::append(out, *header, b"");
            }
            keep
        });
        out.len() > before
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

fn holding_server(mode: PollMode) -> (Server, Arc<AtomicU64>, mpsc::Receiver<(u64, Wake)>) {
    let released = Arc::new(AtomicU64::new(0));
    let (asked, requests) = mpsc::channel();
    let service = Holding {
        released: released.clone(),
        asked,
    };
    let router = Router::new()
        .route(&[Kind::CoordinatorRequest], Arc::new(service))
        .route(&[Kind::Order], common::echo_service(&Arc::default()));
    (Server::routed(mode, router), released, requests)
}

#[tokio::test]
async fn a_held_reply_goes_out_when_its_session_is_woken() {
    for mode in [PollMode::Never, PollMode::Adaptive, PollMode::Always] {
        let (server, released, requests) = holding_server(mode);
        let releasing = std::thread::spawn(move || {
            for (correlation, wake) in requests {
                released.store(correlation, Ordering::SeqCst);
                wake.wake();
            }
        });
        let caller = Caller::new(server.link(mode).await);
        for _ in 0..500 {
            let answer = caller.call(Kind::CoordinatorRequest, b"", PATIENCE).await;
            assert_eq!(answer.as_deref(), Ok([].as_slice()), "{mode}");
        }
        drop(caller);
        server.pool.shutdown();
        drop(server.serving);
        releasing.join().unwrap();
    }
}

#[test]
fn a_connection_carries_several_services() {
    let (server, released, _requests) = holding_server(PollMode::Adaptive);
    let mut raw = Raw::open(&server.address);
    let mut bytes = Vec::new();
    let mut expected = BTreeSet::new();
    for number in 0..300_u32 {
        let kind = if number % 3 == 0 {
            Kind::CoordinatorRequest
        } else {
            expected.insert(number.to_le_bytes().to_vec());
            Kind::Order
        };
        bytes.extend(enveloped(kind, &number.to_le_bytes()));
    }
    released.store(u64::MAX, Ordering::SeqCst);
    raw.0.write_all(&bytes).unwrap();
    let mut held = 0;
    for _ in 0..300 {
        match raw.receive().unwrap() {
            (header, payload) if header.kind == Kind::OrderReply => {
                assert!(expected.remove(&payload));
            }
            _ => held += 1,
        }
    }
    assert!(expected.is_empty());
    assert_eq!(held, 100);
}

#[test]
fn a_peer_that_ended_its_side_gets_what_was_held() {
    for mode in [PollMode::Adaptive, PollMode::Never] {
        let (server, released, requests) = holding_server(mode);
        let mut raw = Raw::open(&server.address);
        let request = enveloped(Kind::CoordinatorRequest, b"x").repeat(3);
        raw.0.write_all(&request).unwrap();
        raw.0.shutdown(Shutdown::Write).unwrap();
        for _ in 0..3 {
            requests.recv_timeout(PATIENCE).unwrap();
        }
        released.store(u64::MAX, Ordering::SeqCst);
        assert_eq!(raw.receive_all().len(), 3, "{mode}");
    }
}

#[test]
fn a_peer_that_ended_its_side_is_not_waited_for_for_ever() {
    let (server, _released, requests) = holding_server(PollMode::Adaptive);
    let mut raw = Raw::open(&server.address);
    raw.0
        .write_all(&enveloped(Kind::CoordinatorRequest, b"x"))
        .unwrap();
    raw.0.shutdown(Shutdown::Write).unwrap();
    requests.recv_timeout(PATIENCE).unwrap();
    assert!(raw.receive().is_none(), "closed, its reply still held");
}

#[tokio::test]
async fn stopping_lets_held_replies_go_out() {
    let (mut server, released, requests) = holding_server(PollMode::Adaptive);
    let caller = Caller::new(server.link(PollMode::Adaptive).await);
    let serving = server.serving.take().unwrap();
    let call = tokio::spawn({
        let caller = caller.clone();
        async move { caller.call(Kind::CoordinatorRequest, b"", PATIENCE).await }
    });
    let (correlation, _) = tokio::task::spawn_blocking(move || requests.recv().unwrap())
        .await
        .unwrap();
    let stopping = tokio::spawn(serving.stop(PATIENCE));
    released.store(correlation, Ordering::SeqCst);
    assert_eq!(call.await.unwrap(), Ok(Vec::new()));
    stopping.await.unwrap();
    let refused = caller.call(Kind::CoordinatorRequest, b"", PATIENCE).await;
    let stopped = CallError::Closed(Closed::Refused(Refusal::Stopping));
    assert_eq!(refused, Err(stopped));
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let (mut server, _released, requests) = holding_server(PollMode::Adaptive);
    let caller = Caller::new(server.link(PollMode::Adaptive).await);
    let serving = server.serving.take().unwrap();
    let call = tokio::spawn(async move {
        caller
            .call(Kind::CoordinatorRequest, b"", Duration::MAX)
            .await
    });
    tokio::task::spawn_blocking(move || requests.recv().unwrap())
        .await
        .unwrap();
    serving.stop(Duration::from_millis(1)).await;
    let stopped = CallError::Closed(Closed::Refused(Refusal::Stopping));
    assert_eq!(call.await.unwrap(), Err(stopped));
}

#[test]
fn a_process_that_ends_closes_its_connections() {
    let server = Server::start(PollMode::Adaptive);
    let mut raw = Raw::open(&server.address);
    raw.0.write_all(&enveloped(Kind::Order, b"x")).unwrap();
    assert_eq!(raw.receive().unwrap().1, b"x");
    server.pool.shutdown();
    let mut byte = [0];
    assert!(matches!(raw.0.read(&mut byte), Ok(0) | Err(_)));
}
