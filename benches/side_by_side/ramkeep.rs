//! Ramkeep's side: a cluster of real processes, and data envelopes on a plain socket.
//!
//! The client here is the same bare engine that drives the others, not `ramkeep-client`: one
//! envelope per batch, built and checked with the wire crate. Writes carry no rpc id, as the other
//! systems have nothing like it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use ramkeep_wire::bytes::Reader;
use ramkeep_wire::coordinator::{Answer, Request, Response, Table, TabletState};
use ramkeep_wire::data::{self, Item, RejectRules, ResponseItem, Status};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::{self, Hello, Proof, Refusal, Side, Welcome};
use ramkeep_wire::postcards::{decode, encode};
use ramkeep_wire::{ClientId, ClusterId, MapVersion, Party, RpcId, ServerId, TableId};
use serde::Deserialize;

use crate::engine::{Session, Wait};
use crate::process::{Child, Cores, START, connect, eventually, find, free_port};
use crate::protocol::{BadReply, Batch, Op, Progress, Protocol};
use crate::workload::{Asked, is_value, key, value};
use crate::{Failure, Outcome};

/// Memory of the server: room for everything that the write tests append.
const MEMORY: &str = "2GiB";
/// The same in bytes. All of it is made resident before anything is measured, as the others' memory
/// is by their first writes: Ramkeep's log moves on to fresh memory with every write.
const MEMORY_BYTES: u64 = 2 << 30;
/// How long that may take.
const RESIDENT_WITHIN: Duration = Duration::from_secs(60);
/// Name of the table that is used.
const TABLE: &str = "side_by_side";

/// A line of `ramkeep up --json`.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Event {
    Process { role: String, pid: u32 },
    Ready { coordinators: Vec<SocketAddr> },
}

/// A running cluster with one master and a table in it.
pub(crate) struct Cluster {
    _up: Child,
    pids: Vec<u32>,
    server: Party,
    address: SocketAddr,
    table: TableId,
}

impl Cluster {
    /// Starts one server and, as backups, as many further processes as there are replicas.
    pub(crate) fn start(cores: Cores, replicas: usize) -> Outcome<Self> {
        let own = std::env::current_exe()?.with_file_name("ramkeep");
        let program = Some(own)
            .filter(|file| file.is_file())
            .or_else(|| find("ramkeep"));
        let program = program.ok_or_else(|| {
            Failure::new("there is no ramkeep beside this program: `cargo build --release` first")
        })?;
        let args = format!(
            "up --coordinators 1 --servers 1 --backups {replicas} --replicas {replicas} \
             --memory {MEMORY} --prefault --port {} --json",
            free_port()?
        );
        let args: Vec<OsString> = args.split_whitespace().map(OsString::from).collect();
        let mut up = Child::start(cores, &program, &args)?;
        let mut pids = Vec::new();
        let coordinator = loop {
            match serde_json::from_str(&up.line()?)? {
                Event::Process { role, pid } if role == "server" => pids.insert(0, pid),
                Event::Process { role, pid } if role == "backup" => pids.push(pid),
                Event::Process { .. } => {}
                Event::Ready { coordinators } => {
                    let first = coordinators.first().copied();
                    break first.ok_or_else(|| Failure::new("a cluster without a coordinator"))?;
                }
            }
        };
        if let Some(server) = pids.first() {
            wait_until_resident(*server)?;
        }
        let mut control = Control::open(coordinator, Party::NONE)?;
        let table = control.create_table()?;
        let owner = table
            .tablets
            .first()
            .map_or(ServerId(0), |tablet| tablet.owner);
        let address = control.address(owner)?;
        let server = Party::server(owner);
        Ok(Self {
            _up: up,
            pids,
            server,
            address,
            table: table.table,
        })
    }

    /// The server's process and its backups'.
    pub(crate) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// Opens a connection to the master.
    pub(crate) fn open(&self, wait: Wait) -> Outcome<Session> {
        let control = Control::open(self.address, self.server)?;
        let data = Data {
            server: self.server,
            table: self.table,
        };
        Session::new(control.stream, Box::new(data), wait)
    }
}

/// Waits until a process has all its memory.
fn wait_until_resident(pid: u32) -> Outcome<()> {
    let end = Instant::now() + RESIDENT_WITHIN;
    while Instant::now() < end {
        let pages = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
        let resident = pages
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse::<u64>().ok());
        if resident.unwrap_or(0) * rustix::param::page_size() as u64 >= MEMORY_BYTES {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Failure::new("the server's memory was not resident in time"))
}

/// A connection on which one envelope at a time is exchanged.
struct Control {
    stream: TcpStream,
    peer: Party,
}

impl Control {
    /// Connects and introduces itself, as a cluster without a key wants it.
    fn open(address: SocketAddr, to: Party) -> Outcome<Self> {
        let stream = connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(START))?;
        let mut control = Self { stream, peer: to };
        // Without a key nothing hangs on the nonce.
        let hello = Hello {
            cluster: ClusterId::default(),
            from: Party::NONE,
            to,
            nonce: [0; 16],
        };
        let welcome: Welcome = decode(&control.ask(Kind::Hello, &encode(&hello))?)?;
        control.peer = welcome.party;
        let mac = hello::mac(None, Side::Connecting, &hello, &welcome);
        control.tell(Kind::Proof, &encode(&Proof { mac }))?;
        Ok(control)
    }

    fn tell(&mut self, kind: Kind, payload: &[u8]) -> Outcome<()> {
        let mut out = Vec::new();
        envelope::append(
            &mut out,
            Header::new(kind, 0, self.peer, Party::NONE),
            payload,
        );
        Ok(self.stream.write_all(&out)?)
    }

    /// Sends an envelope; the payload of the one that answers.
    fn ask(&mut self, kind: Kind, payload: &[u8]) -> Outcome<Vec<u8>> {
        self.tell(kind, payload)?;
        let mut input = vec![0; envelope::HEADER_LEN];
        self.stream.read_exact(&mut input)?;
        let header = envelope::parse_header(&input)?;
        let header = header.ok_or_else(|| Failure::new("half an envelope"))?;
        input.resize(envelope::HEADER_LEN + header.len as usize, 0);
        self.stream.read_exact(&mut input[envelope::HEADER_LEN..])?;
        let whole = envelope::parse(&input)?;
        let (answer, _) = whole.ok_or_else(|| Failure::new("half an envelope"))?;
        if answer.header.kind == Kind::Refusal {
            return Err(decode::<Refusal>(answer.payload)?.into());
        }
        Ok(answer.payload.to_vec())
    }

    fn coordinator(&mut self, request: &Request) -> Outcome<Answer> {
        let answer = self.ask(Kind::CoordinatorRequest, &encode(request))?;
        Ok(decode::<Response>(&answer)?.answer)
    }

    /// The table, once its owner serves it.
    fn create_table(&mut self) -> Outcome<Table> {
        eventually("a table that is served", || {
            let answer = self.coordinator(&Request::CreateTable {
                name: TABLE.into(),
                once: None,
            });
            let Ok(Answer::Table(table)) = answer else {
                return None;
            };
            table
                .tablets
                .iter()
                .all(|t| t.state == TabletState::Normal)
                .then_some(table)
        })
    }

    fn address(&mut self, server: ServerId) -> Outcome<SocketAddr> {
        let answer = self.coordinator(&Request::Map {
            known: MapVersion(0),
        })?;
        let Answer::Map(Some(map)) = answer else {
            return Err(Failure::new(format!("the coordinator answered {answer:?}")));
        };
        let of = map
            .servers
            .iter()
            .filter(|(id, _)| *id == server)
            .flat_map(|(_, at)| at);
        let tcp = of.filter_map(|address| address.parse().ok()).next();
        tcp.ok_or_else(|| Failure::new("the master has no address of loopback"))
    }
}

/// Data envelopes: a batch is one request; its items are answered in any order.
struct Data {
    server: Party,
    table: TableId,
}

impl Protocol for Data {
    #[inline]
    fn encode(&mut self, op: Op, batch: Batch, asked: &Asked, out: &mut Vec<u8>) {
        let correlation = u64::from(batch.first);
        let header = Header::new(Kind::DataRequest, correlation, self.server, Party::NONE);
        let start = envelope::begin(out, header);
        let count_at = data::begin_request(out, ClientId(0), RpcId(0));
        for id in batch.sequences() {
            let n = asked.key_number(id);
            let (key, value) = (key(n), value(n));
            let (op, value) = match op {
                Op::Get | Op::MultiGet => (data::Op::Read, &[][..]),
                Op::Set | Op::DurableSet => (data::Op::Write, &value[..]),
            };
            let rules = RejectRules::default();
            Item {
                op,
                id,
                table: self.table,
                rpc: RpcId(0),
                rules,
                key: &key,
                value,
            }
            .write(out);
        }
        data::set_count(out, count_at, batch.count);
        envelope::seal(out, start);
    }

    #[inline]
    fn parse(&mut self, op: Op, input: &[u8], asked: &Asked) -> Result<Progress, BadReply> {
        let mut progress = Progress::default();
        let reads = matches!(op, Op::Get | Op::MultiGet);
        while let Some((answer, bytes)) = envelope::parse(&input[progress.consumed..])? {
            if answer.header.kind != Kind::DataResponse {
                return Err(BadReply::unexpected(answer.payload));
            }
            progress.consumed += bytes;
            let mut reader = Reader(answer.payload);
            while let Some(item) = ResponseItem::read(&mut reader)? {
                check(&item, reads, asked)?;
                progress.completed += 1;
            }
        }
        Ok(progress)
    }
}

#[inline]
fn check(item: &ResponseItem<'_>, reads: bool, asked: &Asked) -> Result<(), BadReply> {
    if item.status != Status::Ok {
        return Err(BadReply::Unexpected(format!("{:?}", item.status)));
    }
    let n = asked.key_number(item.id);
    if reads && !is_value(n, item.value) {
        return Err(BadReply::WrongValue(n));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::Version;

    use super::*;
    use crate::echo::Sizes;

    const DATA: Data = Data {
        server: Party(1),
        table: TableId(1),
    };

    fn answer(items: &[(u32, u32, Status)]) -> Vec<u8> {
        let mut out = Vec::new();
        let header = Header::new(Kind::DataResponse, 0, Party::NONE, Party(1));
        let start = envelope::begin(&mut out, header);
        for &(id, n, status) in items {
            let value = value(n);
            ResponseItem {
                id,
                status,
                version: Version(1),
                value: &value,
            }
            .write(&mut out);
        }
        envelope::seal(&mut out, start);
        out
    }

    fn asked() -> Asked {
        let mut asked = Asked::new();
        asked.put(0, 5);
        asked.put(1, 9);
        asked
    }

    #[test]
    fn items_are_known_by_their_id_in_any_order_and_in_any_envelope() {
        let (mut data, asked) = (DATA, asked());
        let one = answer(&[(1, 9, Status::Ok), (0, 5, Status::Ok)]);
        let progress = data.parse(Op::MultiGet, &one, &asked).unwrap();
        assert_eq!(
            progress,
            Progress {
                consumed: one.len(),
                completed: 2
            }
        );
        let two = [answer(&[(1, 9, Status::Ok)]), answer(&[(0, 5, Status::Ok)])].concat();
        let cut = data.parse(Op::Get, &two[..two.len() - 1], &asked).unwrap();
        assert_eq!(cut.completed, 1);
    }

    #[test]
    fn a_wrong_value_and_a_refusal_end_the_run() {
        let (mut data, asked) = (DATA, asked());
        let wrong = data.parse(Op::Get, &answer(&[(0, 9, Status::Ok)]), &asked);
        assert!(matches!(wrong, Err(BadReply::WrongValue(5))));
        let absent = data.parse(Op::Get, &answer(&[(0, 5, Status::Absent)]), &asked);
        assert!(matches!(absent, Err(BadReply::Unexpected(_))));
    }

    #[test]
    fn the_echo_has_the_sizes_of_a_read() {
        let (mut data, asked, mut out) = (DATA, asked(), Vec::new());
        data.encode(Op::Get, Batch { first: 0, count: 1 }, &asked, &mut out);
        let sizes = Sizes::default();
        assert_eq!(out.len(), sizes.request as usize);
        assert_eq!(answer(&[(0, 5, Status::Ok)]).len(), sizes.response as usize);
    }
}
