//! What comes to the ports of a real cluster from those who mean it no good: bytes that are no
//! envelopes, envelopes that are no messages, messages that make no sense, and clients that ask for
//! much and read nothing. A process refuses or closes, keeps its memory, and serves the next one.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with the tests in tests/processes")]
#[path = "processes/harness.rs"]
mod harness;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use harness::{Cluster, Member, is_gone};
use paxos::{Ballot, Body, Entry, Group, GroupId, Incarnation, Reported, Slot, Time};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::coordinator::Request;
use ramkeep_wire::data::{self, Item, Op, RejectRules, ResponseItem};
use ramkeep_wire::envelope::{self, HEADER_LEN, Header, Kind, PROTOCOL_VERSION};
use ramkeep_wire::hello::{Hello, Proof, Refusal, Welcome};
use ramkeep_wire::limits::{MAX_HELLO, MAX_PAYLOAD, MAX_UNSENT, MAX_VALUE};
use ramkeep_wire::{ClientId, ClusterId, Party, PeerId, RpcId, ServerId, TableId, postcards};

/// A process that neither answers nor closes within this is a finding. It gives a handshake 2 s.
const ANSWER: Duration = Duration::from_secs(10);
/// What a process may have more in memory than before, after all that was done to it.
const GROWTH: usize = 96 << 20;
/// Connections that are open at the same time.
const CROWD: usize = 24;

/// Kinds that a peer sends.
const KINDS: [Kind; 17] = [
    Kind::Hello,
    Kind::Welcome,
    Kind::Proof,
    Kind::Refusal,
    Kind::DataRequest,
    Kind::DataResponse,
    Kind::Replicate,
    Kind::ReplicateAck,
    Kind::BackupRequest,
    Kind::BackupResponse,
    Kind::CoordinatorRequest,
    Kind::CoordinatorResponse,
    Kind::Order,
    Kind::OrderReply,
    Kind::StatusRequest,
    Kind::StatusResponse,
    Kind::Group,
];

/// Repeatable random bytes.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| (self.next() >> 32) as u8).collect()
    }
}

/// A cluster with a table `t` that has a large object `big`, and everybody's memory before.
struct Target {
    cluster: Cluster,
    resident: Vec<usize>,
}

impl Target {
    fn start() -> Self {
        let cluster = Cluster::start(&["--servers", "2", "--backups", "1", "--replicas", "2"]);
        assert_eq!(cluster.run(&["table", "create", "t"]).code(), 0);
        let put = cluster.run_with(&["put", "t", "big", "-"], &vec![b'x'; MAX_VALUE]);
        assert_eq!(put.code(), 0, "{put:?}");
        let resident = cluster.members.iter().map(resident).collect();
        Self { cluster, resident }
    }

    /// Everybody is alive, has kept its memory, and the cluster does what it is for.
    fn assert_unharmed(&self, after: &str) {
        for (member, before) in self.cluster.members.iter().zip(&self.resident) {
            assert!(
                !is_gone(member.pid),
                "{after}: {member:?} is gone; {:?}",
                self.cluster.next_event()
            );
            let now = resident(member);
            assert!(
                now < before + GROWTH,
                "{after}: {member:?} grew from {before} to {now}"
            );
        }
        let put = self.cluster.json(&["put", "t", "after", after]);
        assert!(put["version"].as_u64().is_some(), "{put}");
        assert_eq!(self.cluster.json(&["get", "t", "after"])["value"], after);
    }

    fn members(&self) -> &[Member] {
        &self.cluster.members
    }
}

/// Bytes of a process in memory.
fn resident(member: &Member) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", member.pid)).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

fn party_of(member: &Member) -> Party {
    match member.role.as_str() {
        "coordinator" => Party::coordinator(PeerId(member.id.try_into().unwrap())),
        _ => Party::server(ServerId(member.id)),
    }
}

fn connect(member: &Member) -> TcpStream {
    let stream = TcpStream::connect(&member.address).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    stream.set_write_timeout(Some(ANSWER)).unwrap();
    stream
}

fn enveloped(kind: Kind, to: Party, from: Party, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    envelope::append(&mut out, Header::new(kind, 7, to, from), payload);
    out
}

fn hello(to: Party, from: Party, cluster: ClusterId) -> Vec<u8> {
    let hello = Hello {
        cluster,
        from,
        to,
        nonce: [9; 16],
    };
    enveloped(Kind::Hello, to, from, &postcards::encode(&hello))
}

/// The next envelope, whole.
fn receive(stream: &mut TcpStream) -> (Kind, Vec<u8>) {
    let mut answer = vec![0; HEADER_LEN];
    stream.read_exact(&mut answer).unwrap();
    let header = envelope::parse_header(&answer).unwrap().unwrap();
    answer.resize(HEADER_LEN + header.len as usize, 0);
    stream.read_exact(&mut answer[HEADER_LEN..]).unwrap();
    (header.kind, answer.split_off(HEADER_LEN))
}

/// The cluster of a process, as it says to one who knows none: a server by its refusal.
fn cluster_of(member: &Member) -> ClusterId {
    let mut stream = connect(member);
    let nobody = hello(party_of(member), Party::NONE, ClusterId::default());
    stream.write_all(&nobody).unwrap();
    match receive(&mut stream) {
        (Kind::Welcome, welcome) => postcards::decode::<Welcome>(&welcome).unwrap().cluster,
        (_, refusal) => match postcards::decode(&refusal).unwrap() {
            Refusal::Cluster(cluster) => cluster,
            other => panic!("{other}"),
        },
    }
}

/// A connection that has opened as it should.
fn greeted(member: &Member, from: Party) -> TcpStream {
    let cluster = cluster_of(member);
    let mut stream = connect(member);
    let to = party_of(member);
    stream.write_all(&hello(to, from, cluster)).unwrap();
    let (kind, welcome) = receive(&mut stream);
    assert_eq!(kind, Kind::Welcome);
    let welcome: Welcome = postcards::decode(&welcome).unwrap();
    assert_eq!(welcome.party, to);
    let proof = postcards::encode(&Proof { mac: [0; 32] });
    stream
        .write_all(&enveloped(Kind::Proof, to, from, &proof))
        .unwrap();
    stream
}

/// Sends bytes, says that no more will come, and reads to the end. What was the last refusal?
fn send(mut stream: TcpStream, bytes: &[u8]) -> Option<Refusal> {
    // It may have refused by now, and read no more.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    last_refusal(&read_to_end(&mut stream))
}

/// Reads until the peer closes, which it must.
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut received = Vec::new();
    let begun = Instant::now();
    match stream.read_to_end(&mut received) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!(
            "neither an answer nor an end in {:?}: {error}",
            begun.elapsed()
        ),
    }
    received
}

/// Everything received must be envelopes.
fn last_refusal(mut received: &[u8]) -> Option<Refusal> {
    let mut last = None;
    while let Some((envelope, len)) = envelope::parse(received).unwrap() {
        last = match envelope.header.kind {
            Kind::Refusal => Some(postcards::decode(envelope.payload).unwrap()),
            _ => None,
        };
        received = &received[len..];
    }
    last
}

fn assert_malformed(refusal: &Option<Refusal>, what: &str) {
    assert!(
        matches!(refusal, Some(Refusal::Malformed(_))),
        "{what}: {refusal:?}"
    );
}

#[test]
fn who_does_not_say_hello_properly_is_told_so_and_let_go() {
    let target = Target::start();
    let mut noise = Noise(0x5eed);
    for member in target.members() {
        let (to, nobody) = (party_of(member), Party::NONE);
        let good = hello(to, nobody, cluster_of(member));
        for _ in 0..20 {
            let len = noise.next() as usize % 3_000 + 4;
            assert_malformed(&send(connect(member), &noise.bytes(len)), "noise");
        }
        for cut in 0..good.len() {
            assert_eq!(send(connect(member), &good[..cut]), None, "cut at {cut}");
        }
        for at in (0..good.len()).step_by(3).filter(|at| !(4..6).contains(at)) {
            let mut bytes = good.clone();
            bytes[at] ^= 0x41;
            let refusal = send(connect(member), &bytes);
            // A longer length makes it wait for more.
            let waits = (8..12).contains(&at) && refusal.is_none();
            assert!(
                waits || matches!(refusal, Some(Refusal::Malformed(_))),
                "{at}: {refusal:?}"
            );
        }
        let mut other = good.clone();
        other[4] ^= 0x40;
        let refusal = send(connect(member), &other);
        assert_eq!(refusal, Some(Refusal::Version(PROTOCOL_VERSION)));
        for request in [
            "GET / HTTP/1.1\r\n\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "\x16\x03\x01\x02\x00\x01",
        ] {
            assert_malformed(&send(connect(member), request.as_bytes()), request);
        }
        let long = enveloped(Kind::Hello, to, nobody, &vec![0; MAX_HELLO]);
        assert_malformed(&send(connect(member), &long), "a long hello");
        let mut oversized = good.clone();
        oversized[8..12].copy_from_slice(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
        assert_malformed(&send(connect(member), &oversized), "an oversized hello");
        let stranger = hello(to, nobody, ClusterId([0xee; 16]));
        assert!(matches!(
            send(connect(member), &stranger),
            Some(Refusal::Cluster(_))
        ));
        let astray = hello(Party::server(ServerId(4_711)), nobody, cluster_of(member));
        assert_eq!(send(connect(member), &astray), Some(Refusal::Party(to)));
        for kind in KINDS
            .into_iter()
            .filter(|kind| !matches!(kind, Kind::Hello | Kind::Refusal))
        {
            let rude = enveloped(kind, to, nobody, b"no hello before");
            assert_malformed(&send(connect(member), &rude), "no hello");
        }
        let mut keyed = hello(to, nobody, cluster_of(member));
        keyed.extend(enveloped(
            Kind::Proof,
            to,
            nobody,
            &postcards::encode(&Proof { mac: [1; 32] }),
        ));
        assert_eq!(send(connect(member), &keyed), Some(Refusal::Key));
    }
    target.assert_unharmed("strangers");
}

#[test]
fn who_says_hello_and_then_nonsense_is_refused() {
    let target = Target::start();
    let mut noise = Noise(0xbad);
    for member in target.members() {
        let to = party_of(member);
        let froms = [
            Party::NONE,
            Party::client(ClientId(900)),
            Party::server(ServerId(900)),
            Party::coordinator(PeerId(900)),
        ];
        for from in froms {
            assert_malformed(&send(greeted(member, from), &noise.bytes(500)), "noise");
            for kind in KINDS {
                for len in [0, 1, 19, 57, 600] {
                    let payload = noise.bytes(len);
                    send(greeted(member, from), &enveloped(kind, to, from, &payload));
                }
                let mut damaged = enveloped(kind, to, from, &noise.bytes(64));
                damaged[HEADER_LEN + 5] ^= 1;
                assert_malformed(&send(greeted(member, from), &damaged), "damaged");
                let mut oversized = enveloped(kind, to, from, b"short");
                oversized[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
                assert_malformed(&send(greeted(member, from), &oversized), "oversized");
                let cut = &enveloped(kind, to, from, &noise.bytes(900))[..500];
                assert_eq!(send(greeted(member, from), cut), None, "cut short");
            }
            let other = Party::client(ClientId(901));
            let forged = enveloped(Kind::DataRequest, to, other, &noise.bytes(40));
            assert_malformed(&send(greeted(member, from), &forged), "of another sender");
            let astray = Party::server(ServerId(4_711));
            let served = match member.role.as_str() {
                "coordinator" => Kind::CoordinatorRequest,
                _ => Kind::StatusRequest,
            };
            let astray = enveloped(served, astray, from, b"");
            assert_eq!(
                send(greeted(member, from), &astray),
                Some(Refusal::Party(to))
            );
        }
    }
    target.assert_unharmed("nonsense");
}

#[test]
fn a_crowd_that_says_half_of_everything_costs_bounded_memory() {
    let target = Target::start();
    let mut crowd = Vec::new();
    for member in target.members() {
        let from = Party::client(ClientId(900));
        let whole = enveloped(
            Kind::DataRequest,
            party_of(member),
            from,
            &vec![0; MAX_PAYLOAD],
        );
        for _ in 0..CROWD {
            let mut stream = greeted(member, from);
            stream.write_all(&whole[..whole.len() - 1]).unwrap();
            crowd.push(stream);
            // And some who never finish a hello: they are let go by themselves.
            let mut silent = connect(member);
            silent.write_all(&whole[..7]).unwrap();
            crowd.push(silent);
        }
    }
    target.assert_unharmed("a waiting crowd");
    for (number, stream) in crowd
        .iter_mut()
        .enumerate()
        .filter(|(number, _)| number % 2 == 1)
    {
        assert_eq!(
            read_to_end(stream),
            b"",
            "connection {number} that never said hello"
        );
    }
    drop(crowd);
    target.assert_unharmed("a crowd that has left");
}

/// The payload of the next envelope, which must be a response.
fn read_response(stream: &mut TcpStream) -> Vec<u8> {
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let header = envelope::parse_header(&header).unwrap().unwrap();
    assert_eq!(header.kind, Kind::DataResponse);
    let mut payload = vec![0; header.len as usize];
    stream.read_exact(&mut payload).unwrap();
    payload
}

/// An envelope that asks for the large object `count` times.
fn greedy(to: Party, from: Party, table: TableId, count: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let start = envelope::begin(&mut out, Header::new(Kind::DataRequest, 7, to, from));
    let items = data::begin_request(&mut out, ClientId(0), RpcId(0));
    for id in 0..count {
        let (key, value) = (&b"big"[..], &b""[..]);
        let (rpc, rules) = (RpcId(0), RejectRules::default());
        Item {
            op: Op::Read,
            id,
            table,
            rpc,
            rules,
            key,
            value,
        }
        .write(&mut out);
    }
    data::set_count(&mut out, items, count);
    envelope::seal(&mut out, start);
    out
}

#[test]
fn who_asks_for_much_and_reads_nothing_keeps_nobody_waiting() {
    let target = Target::start();
    let from = Party::client(ClientId(900));
    let table = TableId(1);
    let mut greedy_ones = Vec::new();
    for member in target.cluster.of_role("server") {
        let to = party_of(member);
        for (envelopes, items) in [(64, 1), (16, 40)] {
            let mut stream = greeted(member, from);
            let request = greedy(to, from, table, items as u32).repeat(envelopes);
            stream.write_all(&request).unwrap();
            greedy_ones.push((stream, envelopes, items));
        }
    }
    target.assert_unharmed("the greedy");
    // Those who read in the end get answers to all that they asked for, if not the object each time.
    for (mut stream, envelopes, items) in greedy_ones {
        let (mut answers, mut bytes) = (0, 0);
        while answers < envelopes * items {
            let payload = read_response(&mut stream);
            bytes += payload.len();
            let mut reader = Reader(&payload);
            while ResponseItem::read(&mut reader).unwrap().is_some() {
                answers += 1;
            }
        }
        assert_eq!(answers, envelopes * items);
        assert!(bytes < envelopes * (MAX_UNSENT + 2 * MAX_VALUE));
    }
    target.assert_unharmed("the greedy, served");
}

#[test]
fn requests_too_large_to_make_sense_do_not_fill_a_coordinator() {
    let target = Target::start();
    let coordinator = target.cluster.of_role("coordinator")[0];
    let from = Party::client(ClientId(900));
    let name = "n".repeat(MAX_PAYLOAD - 100);
    let request = postcards::encode(&Request::DropTable { name, once: None });
    let request = enveloped(
        Kind::CoordinatorRequest,
        party_of(coordinator),
        from,
        &request,
    );
    let askers: Vec<_> = (0..4)
        .map(|_| {
            let (mut stream, request) = (greeted(coordinator, from), request.clone());
            std::thread::spawn(move || {
                for _ in 0..32 {
                    stream.write_all(&request).unwrap();
                }
                stream
            })
        })
        .collect();
    let mut streams: Vec<_> = askers
        .into_iter()
        .map(|asker| asker.join().unwrap())
        .collect();
    target.assert_unharmed("large requests");
    for stream in &mut streams {
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(last_refusal(&read_to_end(stream)), None);
    }
}

/// A message of a coordinator that is none, or of another group.
fn lie(from: u32, to: u32, group: Option<GroupId>, body: Body) -> paxos::Envelope {
    paxos::Envelope {
        group,
        from: paxos::PeerId(from),
        incarnation: Incarnation([0xbb; 16]),
        to: paxos::PeerId(to),
        body,
    }
}

/// All that a coordinator can say, at its most extreme.
fn lies(from: u32) -> Vec<Body> {
    let ballot = Ballot {
        round: u64::MAX,
        peer: paxos::PeerId(from),
    };
    let (slot, stamp, last) = (Slot(u64::MAX), Time(u64::MAX), Slot(u64::MAX));
    let member = |id| paxos::Member {
        id: paxos::PeerId(id),
        incarnation: Incarnation([0xbb; 16]),
        address: "127.0.0.1:1".into(),
    };
    let group = Group {
        id: GroupId([0xcc; 16]),
        generation: u32::MAX,
        members: (from..from + 3).map(member).collect(),
    };
    let entries = vec![
        Entry::Commands(vec![vec![0xff; 1 << 18].into()]),
        Entry::Reconfigure(group.clone()),
        Entry::Noop,
    ];
    let reported = |entry: &Entry| Reported {
        slot,
        ballot,
        entry: entry.clone(),
    };
    let with_ballot = |entry: &Entry| (ballot, entry.clone());
    let yes = true;
    vec![
        Body::Ask {
            address: "127.0.0.1:1".into(),
        },
        Body::Ask {
            address: "a".repeat(1 << 20),
        },
        Body::Fresh {
            asker: Incarnation([0; 16]),
        },
        Body::Grouped {
            group: group.clone(),
        },
        Body::Join {
            address: "nowhere at all".into(),
            decided: slot,
        },
        Body::PreVote { ballot },
        Body::PreVoted {
            ballot,
            yes,
            decided: slot,
        },
        Body::Prepare { ballot, from: slot },
        Body::Promise {
            ballot,
            from: Slot(0),
            accepted: entries.iter().map(reported).collect(),
            next: Some(slot),
            trimmed: slot,
        },
        Body::Nack {
            ballot,
            promised: ballot,
        },
        Body::Accept {
            ballot,
            first: slot,
            entries: entries.clone(),
            commit: slot,
            stamp,
        },
        Body::Accepted {
            ballot,
            first: Slot(0),
            last,
            stamp,
            decided: slot,
        },
        Body::Heartbeat {
            ballot,
            commit: slot,
            stamp,
        },
        Body::HeartbeatAck {
            ballot,
            stamp,
            decided: slot,
        },
        Body::Learn {
            from: Slot(0),
            snapshot: Some((slot, u64::MAX)),
        },
        Body::Page {
            first: slot,
            entries: entries.iter().map(with_ballot).collect(),
            decided: slot,
        },
        Body::SnapshotPage {
            slot,
            group,
            total: u64::MAX,
            crc: 0,
            offset: u64::MAX,
            bytes: vec![0xee; 1 << 19].into(),
            decided: slot,
        },
    ]
}

#[test]
fn who_lies_as_a_coordinator_is_refused_or_not_heard() {
    let target = Target::start();
    for member in target.cluster.of_role("coordinator") {
        let me = u32::try_from(member.id).unwrap();
        let to = party_of(member);
        let said = |from: u32, message: &paxos::Envelope| {
            let from = Party::coordinator(PeerId(from));
            let message = enveloped(Kind::Group, to, from, &postcards::encode(message));
            send(greeted(member, from), &message)
        };
        // A stranger, another number of the group, and the very one that is spoken to.
        for from in [900, me % 3 + 1, me] {
            for body in lies(from) {
                for group in [None, Some(GroupId([0xcc; 16]))] {
                    let message = lie(from, me, group, body.clone());
                    assert_eq!(said(from, &message), None, "{message:?}");
                    let astray = lie(from, u32::MAX, group, body.clone());
                    assert_eq!(said(from, &astray), None, "{astray:?}");
                    let forged = lie(from + 1, me, group, body.clone());
                    assert_malformed(&said(from, &forged), "of another coordinator");
                }
            }
        }
        let ballot = Ballot::default();
        let whole = postcards::encode(&lie(900, me, None, Body::PreVote { ballot }));
        let from = Party::coordinator(PeerId(900));
        for cut in 0..whole.len() {
            let message = enveloped(Kind::Group, to, from, &whole[..cut]);
            assert_malformed(&send(greeted(member, from), &message), "cut short");
        }
        let long = enveloped(Kind::Group, to, from, &[whole.as_slice(), &[0]].concat());
        assert_malformed(&send(greeted(member, from), &long), "too long");
        for from in [Party::NONE, Party::server(ServerId(1))] {
            let message = enveloped(Kind::Group, to, from, &whole);
            let refused = send(greeted(member, from), &message);
            assert_malformed(&refused, "who is no coordinator");
        }
    }
    target.assert_unharmed("liars");
}
