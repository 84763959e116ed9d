//! A server's port: real sockets, handshake, master and backup, given any bytes after any
//! beginning. It answers or closes, and goes on serving others.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ramkeep_backup::Geometry;
use ramkeep_backup::shell::BackupService;
use ramkeep_coordinator::core::default_settings;
use ramkeep_rpc::{
    Address, Batch, Identity, Peer, PollMode, Router, Serving, Session, Wake, WorkerPool, clock,
};
use ramkeep_server::shell::{ServerOptions, ServerShell};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{Answer, Request, Response, Roles, ServerList, Settings};
use ramkeep_wire::data::{self, Item, Op, RejectRules, ResponseItem, Status};
use ramkeep_wire::envelope::{self, HEADER_LEN, Header, Kind};
use ramkeep_wire::hello::{Hello, Proof, Refusal};
use ramkeep_wire::limits::MAX_VALUE;
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{
    Ballot, ClientId, ClusterId, EndedClients, KeyHash, Micros, Party, PeerId, RpcId, ServerId,
    TableId, postcards,
};

const CLUSTER: ClusterId = ClusterId([1; 16]);
const SERVER: ServerId = ServerId(1);
/// A connection that neither answers nor closes within this is a finding.
const PATIENCE: Duration = Duration::from_secs(5);

struct Server {
    path: PathBuf,
    _serving: [Serving; 2],
    _pool: WorkerPool,
    _directory: tempfile::TempDir,
}

fuzz_target!(|input: &[u8]| {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER.get_or_init(start);
    let Some((&which, bytes)) = input.split_first() else {
        return;
    };
    let mut stream = connect(server);
    if which % 4 != 0 {
        let from = if which & 4 == 0 {
            Party::client(ClientId(3))
        } else {
            Party::server(ServerId(2))
        };
        say_hello(&mut stream, from);
        let bytes = if which % 4 == 1 {
            bytes.to_vec()
        } else {
            enveloped(bytes, from)
        };
        talk(stream, &bytes);
    } else {
        talk(stream, bytes);
    }
    still_serves(server);
});

fn start() -> Server {
    let directory = tempfile::tempdir().expect("a directory");
    let pool = WorkerPool::start(1, PollMode::Never).expect("a worker");
    let at_leader = Address::Unix(directory.path().join("leader"));
    let identity = Identity::new(None)
        .with_party(Party::coordinator(PeerId(1)))
        .with_cluster(CLUSTER);
    let open = |_: &Peer, _: Wake| -> Box<dyn Session> { Box::new(Leader) };
    let router = Router::new().route(&[Kind::CoordinatorRequest], Arc::new(open));
    let leader = pool
        .serve(&at_leader, &identity, router)
        .expect("a socket for the leader");
    let geometry = Geometry::new(4, 8 << 20).expect("a possible geometry");
    let backup = BackupService::open(&directory.path().join("frames"), geometry, clock::now())
        .expect("new frames");
    let options = ServerOptions {
        roles: Roles {
            master: true,
            backup: true,
        },
        coordinators: vec![at_leader.to_string()],
        memory: 64 << 20,
        prefault: false,
    };
    let identity = Identity::new(None);
    let runtime = pool.runtime().clone();
    let shell = ServerShell::new(options, Some(backup), identity.clone(), runtime)
        .expect("a boot id and random bytes");
    let path = directory.path().join("socket");
    let serving = pool
        .serve(&Address::Unix(path.clone()), &identity, shell.router())
        .expect("a socket");
    let addresses = vec![serving.address().to_string()];
    pool.runtime().spawn(shell.clone().run(addresses));
    let joined = pool.runtime().block_on(shell.joined());
    assert_eq!(joined, SERVER);
    let plane = shell.plane().expect("it has a master");
    plane
        .master()
        .store()
        .take_tablets(&[TabletGrant {
            table: TableId(1),
            first: KeyHash(0),
            last: KeyHash(u64::MAX),
        }])
        .expect("the first tablet");
    let server = Server {
        path,
        _serving: [leader, serving],
        _pool: pool,
        _directory: directory,
    };
    write_big_value(&server);
    server
}

/// The leader of the coordinators, who takes in whoever comes.
struct Leader;

impl Session for Leader {
    fn handle_batch(
        &mut self,
        _: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for asked in batch {
            let answer = match postcards::decode(asked.payload) {
                Ok(Request::Enlist(_)) => Answer::Enlisted {
                    server: SERVER,
                    cluster: CLUSTER,
                    key: CertificateKey([2; 32]),
                    settings: Settings {
                        replicas: 0,
                        ..default_settings()
                    },
                    list: ServerList::default(),
                },
                Ok(Request::Heartbeat(_)) => Answer::Heard {
                    list: None,
                    lease_us: 200_000,
                    ended: EndedClients::default(),
                    over: Vec::new(),
                },
                _ => Answer::Noted,
            };
            let ballot = Ballot::default();
            let response = postcards::encode(&Response::new(ballot, answer));
            let header = asked.header.reply(Kind::CoordinatorResponse);
            envelope::append(out, header, &response);
        }
        Ok(())
    }

    fn poll(&mut self, _: Micros, _: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

fn connect(server: &Server) -> UnixStream {
    let stream = UnixStream::connect(&server.path).expect("the server listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream
}

fn read_envelope(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LEN];
    stream.read_exact(&mut bytes).expect("an answer in time");
    let header = envelope::parse_header(&bytes)
        .expect("an envelope")
        .expect("whole");
    bytes.resize(HEADER_LEN + header.len as usize, 0);
    stream
        .read_exact(&mut bytes[HEADER_LEN..])
        .expect("an answer in time");
    bytes
}

fn say_hello(stream: &mut UnixStream, from: Party) {
    let hello = Hello {
        cluster: CLUSTER,
        from,
        to: Party::server(SERVER),
        nonce: [3; 16],
    };
    let mut out = Vec::new();
    let header = Header::new(Kind::Hello, 0, hello.to, from);
    envelope::append(&mut out, header, &postcards::encode(&hello));
    stream.write_all(&out).expect("a hello is taken");
    read_envelope(stream);
    let mut out = Vec::new();
    let header = Header::new(Kind::Proof, 0, hello.to, from);
    envelope::append(
        &mut out,
        header,
        &postcards::encode(&Proof { mac: [0; 32] }),
    );
    stream.write_all(&out).expect("a proof is taken");
}

/// Cuts the bytes into payloads of good envelopes: kind, length, payload.
fn enveloped(mut bytes: &[u8], from: Party) -> Vec<u8> {
    let mut out = Vec::new();
    while let [kind, len, rest @ ..] = bytes {
        let (payload, rest) = rest.split_at(usize::from(*len).min(rest.len()));
        let kind = Kind::from_code(u16::from(kind % 42)).unwrap_or(Kind::DataRequest);
        let header = Header::new(kind, 9, Party::server(SERVER), from);
        envelope::append(&mut out, header, payload);
        bytes = rest;
    }
    out
}

/// Sends and reads until the server closes, which it must once it has seen the end.
fn talk(mut stream: UnixStream, bytes: &[u8]) {
    // It may have closed by now.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut chunk = [0; 64 << 10];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
            // The fuzzer's own alarm.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => panic!("neither an answer nor an end: {error}"),
        }
    }
}

fn request(op: Op, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header::new(
        Kind::DataRequest,
        1,
        Party::server(SERVER),
        Party::client(ClientId(1)),
    );
    let start = envelope::begin(&mut out, header);
    let items = data::begin_request(&mut out, ClientId(1), RpcId(0));
    let (table, rules) = (TableId(1), RejectRules::default());
    Item {
        op,
        id: 1,
        table,
        rpc: RpcId(0),
        rules,
        key,
        value,
    }
    .write(&mut out);
    data::set_count(&mut out, items, 1);
    envelope::seal(&mut out, start);
    out
}

fn ask(server: &Server, bytes: &[u8]) -> Status {
    let mut stream = connect(server);
    say_hello(&mut stream, Party::client(ClientId(1)));
    stream.write_all(bytes).expect("a request is taken");
    let answer = read_envelope(&mut stream);
    let (envelope, _) = envelope::parse(&answer)
        .expect("an envelope")
        .expect("whole");
    assert_eq!(envelope.header.kind, Kind::DataResponse);
    let mut reader = ramkeep_wire::bytes::Reader(envelope.payload);
    let item = ResponseItem::read(&mut reader).expect("an item");
    item.expect("one item").status
}

/// So that small requests may have large answers. Its key is one byte, 0.
fn write_big_value(server: &Server) {
    let status = ask(server, &request(Op::Write, &[0], &vec![7; MAX_VALUE]));
    assert_eq!(status, Status::Ok);
}

fn still_serves(server: &Server) {
    let status = ask(server, &request(Op::Read, &[1], b""));
    assert!(
        matches!(status, Status::Ok | Status::Absent | Status::WrongServer),
        "{status:?}"
    );
}
