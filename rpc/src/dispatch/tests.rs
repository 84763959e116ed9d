//! Sessions behind a connection, by the bytes that they are offered.

use parking_lot::Mutex;
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::{ClusterId, Party, ServerId};

use super::*;
use crate::hello::refusal_envelope;

const NOW: Micros = Micros(1);

fn ours() -> Party {
    Party::server(ServerId(1))
}

fn theirs() -> Party {
    Party::server(ServerId(2))
}

fn sent(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    envelope::append(&mut out, Header::new(kind, 1, ours(), theirs()), payload);
    out
}

/// What sessions were offered: the name of each, and payloads.
type Log = Arc<Mutex<Vec<(&'static str, Vec<u8>)>>>;

/// Answers with the payload, holds `hold`, refuses `refuse`, fills the queue with `fill`, and takes no
/// `later` before it was polled.
struct Actor {
    name: &'static str,
    log: Log,
    held: Vec<u8>,
    polled: bool,
}

impl Session for Actor {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        while out.len() <= MAX_UNSENT {
            // A look ahead: what is left stays in the batch.
            if !self.polled && self.name == "lazy" {
                return Ok(());
            }
            let Some(request) = batch.next() else { break };
            let payload = request.payload.to_vec();
            self.log.lock().push((self.name, payload.clone()));
            let reply = request.header.reply(Kind::OrderReply);
            match &payload[..] {
                b"refuse" => return Err(Refusal::Busy),
                b"hold" => envelope::append(&mut self.held, reply, &payload),
                b"fill" => out.resize(MAX_UNSENT + 1, 0),
                _ => envelope::append(out, reply, &payload),
            }
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, out: &mut Vec<u8>) -> bool {
        self.polled = true;
        out.append(&mut self.held);
        !out.is_empty()
    }

    fn holds(&self) -> bool {
        !self.held.is_empty()
    }
}

struct Stage {
    dispatch: Dispatch,
    log: Log,
    out: Vec<u8>,
}

impl Stage {
    /// `orders` answers orders, `data` what clients ask.
    fn new(orders: &'static str, data: &'static str) -> Self {
        let log = Log::default();
        let service = |name| {
            let log = log.clone();
            Arc::new(move |_: &Peer, _: Wake| -> Box<dyn Session> {
                Box::new(Actor {
                    name,
                    log: log.clone(),
                    held: Vec::new(),
                    polled: false,
                })
            })
        };
        let router = Router::new()
            .route(&[Kind::Order, Kind::Probe], service(orders))
            .route(&[Kind::DataRequest], service(data));
        let peer = Peer {
            party: theirs(),
            cluster: ClusterId::default(),
            address: "here".to_owned(),
        };
        Self {
            dispatch: Dispatch::new(Arc::new(router), peer, Wake::new()),
            log,
            out: Vec::new(),
        }
    }

    fn handle(&mut self, bytes: &[u8]) -> Dispatched {
        (self.dispatch).handle(NOW, ours(), bytes, &mut self.out)
    }

    fn offered(&self) -> Vec<(&'static str, String)> {
        let mut log = self.log.lock();
        let text = |payload: Vec<u8>| String::from_utf8(payload).unwrap();
        log.drain(..).map(|(name, p)| (name, text(p))).collect()
    }

    fn answers(&mut self) -> Vec<String> {
        let (mut found, mut rest) = (Vec::new(), &self.out[..]);
        while let Some((envelope, len)) = envelope::parse(rest).unwrap() {
            found.push(String::from_utf8(envelope.payload.to_vec()).unwrap());
            rest = &rest[len..];
        }
        self.out.clear();
        found
    }
}

fn done(taken: usize) -> Dispatched {
    Dispatched {
        taken,
        needed: HEADER,
        outcome: Ok(true),
    }
}

/// What is needed of the next envelope while nothing of it is there.
const HEADER: usize = envelope::HEADER_LEN;

fn all_of(requests: &[(Kind, &str)]) -> Vec<u8> {
    let bytes = requests.iter();
    bytes
        .flat_map(|(kind, text)| sent(*kind, text.as_bytes()))
        .collect()
}

#[test]
fn envelopes_are_offered_in_order_in_runs_of_one_service() {
    let mut stage = Stage::new("orders", "data");
    let bytes = all_of(&[
        (Kind::Order, "1"),
        (Kind::Probe, "2"),
        (Kind::DataRequest, "3"),
        (Kind::Order, "4"),
    ]);
    assert_eq!(stage.handle(&bytes), done(bytes.len()));
    let offered = [
        ("orders", "1"),
        ("orders", "2"),
        ("data", "3"),
        ("orders", "4"),
    ];
    assert_eq!(
        stage.offered(),
        offered.map(|(name, p)| (name, p.to_owned()))
    );
    assert_eq!(stage.answers(), ["1", "2", "3", "4"]);
    assert!(!stage.dispatch.left() && !stage.dispatch.holds());
}

#[test]
fn bytes_that_are_not_whole_wait_for_the_rest() {
    let bytes = all_of(&[(Kind::Order, "first"), (Kind::Order, "second")]);
    for cut in 0..bytes.len() {
        let mut stage = Stage::new("orders", "data");
        let first = stage.handle(&bytes[..cut]);
        assert!(first.outcome.is_ok());
        let left = cut - first.taken;
        assert!(first.needed > left, "{left} of {}", first.needed);
        let second = stage.handle(&bytes[first.taken..]);
        assert_eq!(first.taken + second.taken, bytes.len());
        assert_eq!(stage.answers(), ["first", "second"]);
    }
}

#[test]
fn what_came_before_the_end_is_handled() {
    let ends: [(Vec<u8>, Parting); 5] = [
        (
            sent(Kind::DataResponse, b""),
            Parting::Refuse(Refusal::Malformed(
                "DataResponse is not served here".to_owned(),
            )),
        ),
        (
            refusal_envelope(&Refusal::Stopping, theirs(), ours()),
            Parting::Told(Refusal::Stopping),
        ),
        (sent(Kind::Order, b"refuse"), Parting::Refuse(Refusal::Busy)),
        (
            {
                let mut bytes = Vec::new();
                let to = Party::server(ServerId(3));
                envelope::append(&mut bytes, Header::new(Kind::Order, 1, to, theirs()), b"");
                bytes
            },
            Parting::Refuse(Refusal::Party(ours())),
        ),
        (
            vec![1; 4],
            Parting::Refuse(Refusal::Malformed(
                "not a Ramkeep envelope (magic 0x01010101)".to_owned(),
            )),
        ),
    ];
    for (end, parting) in ends {
        let mut stage = Stage::new("orders", "data");
        let mut bytes = all_of(&[(Kind::Order, "before"), (Kind::DataRequest, "too")]);
        let before = bytes.len();
        bytes.extend(end);
        bytes.extend(sent(Kind::Order, b"after"));
        let dispatched = stage.handle(&bytes);
        assert_eq!(dispatched.outcome, Err(parting));
        assert!(dispatched.taken >= before);
        assert_eq!(stage.answers(), ["before", "too"]);
    }
}

#[test]
fn a_full_queue_ends_a_turn_and_the_rest_is_offered_again() {
    let mut stage = Stage::new("orders", "data");
    let requests = [
        (Kind::Order, "fill"),
        (Kind::Order, "same session"),
        (Kind::DataRequest, "another"),
    ];
    let bytes = all_of(&requests);
    let first = stage.handle(&bytes);
    assert_eq!(first.taken, all_of(&requests[..1]).len());
    assert_eq!((first.needed, first.outcome), (0, Ok(true)));
    assert!(stage.dispatch.left() && !Dispatch::may_offer(&stage.out));
    stage.out.clear();
    assert!(Dispatch::may_offer(&stage.out));
    let rest = &bytes[first.taken..];
    assert_eq!(stage.handle(rest), done(rest.len()));
    assert_eq!(stage.answers(), ["same session", "another"]);
    assert!(!stage.dispatch.left());
}

#[test]
fn held_replies_are_released_by_a_poll() {
    let mut stage = Stage::new("orders", "data");
    assert!(!stage.dispatch.poll(NOW, &mut stage.out), "nobody is open");
    let bytes = all_of(&[(Kind::Order, "hold"), (Kind::DataRequest, "at once")]);
    assert_eq!(stage.handle(&bytes), done(bytes.len()));
    assert!(stage.dispatch.holds());
    assert_eq!(stage.answers(), ["at once"]);
    assert!(stage.dispatch.poll(NOW, &mut stage.out));
    assert!(!stage.dispatch.holds());
    assert_eq!(stage.answers(), ["hold"]);
}

#[test]
fn who_leaves_all_of_it_must_have_a_reason() {
    let bytes = all_of(&[(Kind::DataRequest, "hold"), (Kind::Order, "1")]);
    let mut stage = Stage::new("lazy", "data");
    let first = stage.handle(&bytes);
    let taken = all_of(&[(Kind::DataRequest, "hold")]).len();
    assert_eq!((first.taken, first.outcome), (taken, Ok(true)));
    let rest = &bytes[taken..];
    let waits = Dispatched {
        taken: 0,
        needed: 0,
        outcome: Ok(false),
    };
    assert_eq!(stage.handle(rest), waits, "a reply is held");
    stage.dispatch.poll(NOW, &mut stage.out);
    assert_eq!(stage.handle(rest), done(rest.len()));

    let mut stage = Stage::new("lazy", "data");
    let busy = Err(Parting::Refuse(Refusal::Busy));
    assert_eq!(stage.handle(rest).outcome, busy);
}
