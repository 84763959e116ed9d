//! What the client costs: reads of one key, one at a time, beside a bare echo of as many bytes over
//! a socket whose ends both poll; then with many tasks, and many keys at a time. The server answers
//! every read with the same value, and does nothing else.
//!
//! `cargo run --release -p ramkeep-client --example latency -- [rounds] [turns]`
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use ramkeep_client::{Client, PollMode, Table};
use ramkeep_rpc::{Batch, Identity, Peer, Router, Session, Wake, WorkerPool};
use ramkeep_wire::coordinator::{
    Answer, Response, Table as Described, Tablet, TabletMap, TabletState,
};
use ramkeep_wire::data::{
    ITEM_HEADER_LEN, Items, REQUEST_HEADER_LEN, RESPONSE_ITEM_LEN, ResponseItem, Status,
};
use ramkeep_wire::envelope::{self, HEADER_LEN, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::RESPONSE_SPLIT;
use ramkeep_wire::{
    Ballot, ClusterId, KeyHash, LogPosition, MapVersion, Micros, Party, PeerId, ServerId, TableId,
    Version, postcards,
};

const KEY: [u8; 20] = [b'k'; 20];
const VALUE: [u8; 100] = [b'v'; 100];
const REQUEST: usize = HEADER_LEN + REQUEST_HEADER_LEN + ITEM_HEADER_LEN + KEY.len();
const RESPONSE: usize = HEADER_LEN + RESPONSE_ITEM_LEN + VALUE.len();

/// Coordinator and server in one.
struct Player {
    address: Arc<std::sync::OnceLock<String>>,
}

impl Player {
    fn map(&self) -> TabletMap {
        let tablet = Tablet {
            table: TableId(1),
            first: KeyHash(0),
            last: KeyHash(u64::MAX),
            owner: ServerId(1),
            takeover: LogPosition::ZERO,
            state: TabletState::Normal,
        };
        TabletMap {
            version: MapVersion(1),
            tables: vec![Described {
                table: TableId(1),
                name: "t".into(),
                tablets: vec![tablet],
            }],
            servers: vec![(
                ServerId(1),
                self.address.get().cloned().into_iter().collect(),
            )],
        }
    }
}

impl Session for Player {
    fn handle_batch(
        &mut self,
        _: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for request in batch {
            if request.header.kind == Kind::CoordinatorRequest {
                let ballot = Ballot {
                    round: 1,
                    peer: PeerId(1),
                };
                let answer = Answer::Map(Some(self.map()));
                let payload = postcards::encode(&Response::new(ballot, answer));
                envelope::append(
                    out,
                    request.header.reply(Kind::CoordinatorResponse),
                    &payload,
                );
                continue;
            }
            let header = request.header.reply(Kind::DataResponse);
            let malformed =
                |error: ramkeep_wire::data::DataError| Refusal::Malformed(error.to_string());
            let mut items = Items::read(request.payload).map_err(malformed)?;
            let mut start = envelope::begin(out, header);
            while let Some(item) = items.next_item().map_err(malformed)? {
                let (id, status, version, value) = (item.id, Status::Ok, Version(1), &VALUE[..]);
                ResponseItem {
                    id,
                    status,
                    version,
                    value,
                }
                .write(out);
                if out.len() - start > RESPONSE_SPLIT {
                    envelope::seal(out, start);
                    start = envelope::begin(out, header);
                }
            }
            envelope::seal(out, start);
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

fn serve(
    party: Party,
    kind: Kind,
    address: &Arc<std::sync::OnceLock<String>>,
    pool: &WorkerPool,
) -> Result<String, Box<dyn Error>> {
    let identity = Identity::new(None)
        .with_cluster(ClusterId([1; 16]))
        .with_party(party);
    let address = address.clone();
    let open = move |_: &Peer, _: Wake| -> Box<dyn Session> {
        Box::new(Player {
            address: address.clone(),
        })
    };
    let router = Router::new().route(&[kind], Arc::new(open));
    let serving = pool.serve(&"127.0.0.1:0".parse()?, &identity, router)?;
    Ok(serving.address().to_string())
}

fn spin_read(stream: &TcpStream, into: &mut [u8]) -> std::io::Result<bool> {
    let mut filled = 0;
    while filled < into.len() {
        match (&*stream).read(&mut into[filled..]) {
            Ok(0) => return Ok(false),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn bare_stream() -> Result<TcpStream, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    for end in [&stream, &peer] {
        end.set_nodelay(true)?;
        end.set_nonblocking(true)?;
    }
    std::thread::spawn(move || -> std::io::Result<()> {
        let (mut request, response) = ([0; REQUEST], [0; RESPONSE]);
        // Sleeps between the turns that are measured, so as not to take the other server's core.
        loop {
            peer.set_nonblocking(false)?;
            (&peer).read_exact(&mut request)?;
            peer.set_nonblocking(true)?;
            (&peer).write_all(&response)?;
            while request[0] != 0 {
                if !spin_read(&peer, &mut request)? {
                    return Ok(());
                }
                (&peer).write_all(&response)?;
            }
        }
    });
    Ok(stream)
}

/// Times in nanoseconds, sorted.
struct Times(Vec<u64>);

/// Rounds of one, then of the other: what disturbs the machine disturbs both.
const CHUNK: usize = 1_000;
/// Rounds of each chunk until both ends poll again.
const WARM_UP: usize = 100;

impl Times {
    fn add(&mut self, chunk: &Self) {
        self.0.extend(&chunk.0[WARM_UP..]);
    }

    fn at(&self, part: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * part) as usize] as f64 / 1_000.0
    }

    fn print(mut self, what: &str) -> f64 {
        self.0.sort_unstable();
        let (p50, p99, p999) = (self.at(0.5), self.at(0.99), self.at(0.999));
        println!("{what:24} p50 {p50:7.2} us   p99 {p99:7.2}   p999 {p999:7.2}");
        p50
    }
}

fn bare(stream: &TcpStream, rounds: usize) -> Result<Times, Box<dyn Error>> {
    let (mut request, mut response) = ([1; REQUEST], [0; RESPONSE]);
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds {
        request[0] = u8::from(round + 1 < rounds);
        let start = Instant::now();
        (&*stream).write_all(&request)?;
        spin_read(stream, &mut response)?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    Ok(Times(times))
}

async fn reads(table: &Table, rounds: usize) -> Result<Times, ramkeep_client::Error> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        let object = table.read(KEY).await?;
        times.push(start.elapsed().as_nanos() as u64);
        assert!(object.is_some_and(|object| object.value == VALUE[..]));
    }
    Ok(Times(times))
}

async fn tasks(table: &Table, depth: usize, rounds: usize) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let table = table.clone();
            tokio::spawn(async move { reads(&table, rounds / depth).await })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok((rounds / depth * depth) as f64 / start.elapsed().as_secs_f64())
}

async fn many(table: &Table, count: usize, rounds: usize) -> Result<f64, ramkeep_client::Error> {
    let keys = vec![KEY; count];
    let start = Instant::now();
    for _ in 0..rounds / count {
        assert_eq!(table.multi_read(&keys).await?.len(), count);
    }
    Ok((rounds / count * count) as f64 / start.elapsed().as_secs_f64())
}

async fn measure(coordinator: &str, rounds: usize, turns: usize) -> Result<(), Box<dyn Error>> {
    let client = Client::builder()
        .coordinators([coordinator])
        .poll_mode(PollMode::Adaptive)
        .connect()
        .await?;
    let table = client.table("t").await?;
    let stream = bare_stream()?;
    for _ in 0..turns {
        let (mut echoes, mut times) = (Times(Vec::new()), Times(Vec::new()));
        for _ in 0..rounds / CHUNK {
            echoes.add(&bare(&stream, CHUNK)?);
            times.add(&reads(&table, CHUNK).await?);
        }
        let echo = echoes.print("bare echo");
        let read = times.print("read");
        println!("ratio {:.2}", read / echo);
        for depth in [8, 64] {
            println!(
                "{depth} tasks: {:.0} reads/s",
                tasks(&table, depth, rounds * 8).await?
            );
        }
        for count in [100, 1_000] {
            println!(
                "multi_read of {count}: {:.0} objects/s",
                many(&table, count, rounds * 32).await?
            );
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<usize>());
    let rounds = arguments.next().transpose()?.unwrap_or(50_000);
    let turns = arguments.next().transpose()?.unwrap_or(3);
    let pool = WorkerPool::start(1, PollMode::Adaptive)?;
    let address = Arc::new(std::sync::OnceLock::new());
    let server = serve(
        Party::server(ServerId(1)),
        Kind::DataRequest,
        &address,
        &pool,
    )?;
    address.get_or_init(|| server);
    let coordinator = serve(
        Party::coordinator(PeerId(1)),
        Kind::CoordinatorRequest,
        &address,
        &pool,
    )?;
    println!("on a current-thread runtime");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(measure(&coordinator, rounds, turns))?;
    println!("on a multi-thread runtime");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(measure(&coordinator, rounds, 1))
}
