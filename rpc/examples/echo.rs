//! What the transport costs: round trips of one request at a time through a link and a worker,
//! beside a bare echo over the same kind of socket with the same bytes. Both ends of both poll,
//! each on a thread of its own, and the two are measured in turns.
//!
//! `cargo run --release -p ramkeep-rpc --example echo -- [rounds] [payload bytes] [turns] [depths]`
#![forbid(unsafe_code)]

use std::error::Error;
use std::future::poll_fn;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use ramkeep_rpc::{
    Batch, Identity, Link, Peer, PollMode, Router, Session, Wake, WorkerPool, poll_until,
};
use ramkeep_wire::envelope::{self, HEADER_LEN, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party};

struct Echo;

impl Session for Echo {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for request in batch {
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

/// Times in nanoseconds, sorted.
struct Times(Vec<u64>);

impl Times {
    fn at(&self, part: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * part) as usize] as f64 / 1_000.0
    }
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

/// The bare echo's client; its server is a thread that ends with the connection.
fn bare_stream(len: usize) -> Result<TcpStream, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (peer, _) = listener.accept()?;
    for end in [&stream, &peer] {
        end.set_nodelay(true)?;
        end.set_nonblocking(true)?;
    }
    std::thread::spawn(move || -> std::io::Result<()> {
        let mut bytes = vec![0; len];
        while spin_read(&peer, &mut bytes)? {
            (&peer).write_all(&bytes)?;
        }
        Ok(())
    });
    Ok(stream)
}

fn bare(stream: &TcpStream, len: usize, rounds: usize) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut bytes = vec![7; len];
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        (&*stream).write_all(&bytes)?;
        spin_read(stream, &mut bytes)?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

async fn linked(link: &Link, payload: &[u8], rounds: usize) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds as u64 {
        let start = Instant::now();
        let header = link.header(Kind::Order, round);
        link.send(|out| envelope::append(out, header, payload))?;
        let answered = std::cell::Cell::new(false);
        poll_until(
            link,
            None,
            |envelope| answered.set(envelope.header.correlation == round),
            |_| match answered.get() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            },
        )
        .await?;
        times.push(start.elapsed().as_nanos() as u64);
    }
    poll_fn(|_| Poll::Ready(())).await;
    Ok(times)
}

/// Requests that are answered a second, `depth` of them under way.
async fn throughput(
    link: &Link,
    payload: &[u8],
    depth: usize,
    batches: usize,
) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    for _ in 0..batches {
        link.send(|out| {
            for correlation in 0..depth as u64 {
                envelope::append(out, link.header(Kind::Order, correlation), payload);
            }
        })?;
        let answered = std::cell::Cell::new(0);
        poll_until(
            link,
            None,
            |_| answered.set(answered.get() + 1),
            |_| match answered.get() == depth {
                true => Poll::Ready(()),
                false => Poll::Pending,
            },
        )
        .await?;
    }
    Ok((depth * batches) as f64 / start.elapsed().as_secs_f64())
}

fn argument(index: usize, default: usize) -> Result<usize, Box<dyn Error>> {
    match std::env::args().nth(index) {
        Some(text) => Ok(text.parse()?),
        None => Ok(default),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (rounds, len, turns) = (argument(1, 50_000)?, argument(2, 100)?, argument(3, 5)?);
    let pool = WorkerPool::start(1, PollMode::Adaptive)?;
    let open = |_: &Peer, _: Wake| -> Box<dyn Session> { Box::new(Echo) };
    let router = Router::new().route(&[Kind::Order], Arc::new(open));
    let serving = pool.serve(&"127.0.0.1:0".parse()?, &Identity::new(None), router)?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let link = runtime.block_on(Link::connect(
        serving.address(),
        &Identity::new(None),
        Party::NONE,
        PollMode::Adaptive,
    ))?;

    let payload = vec![7; len];
    let (mut bare_times, mut link_times) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        let stream = bare_stream(len + HEADER_LEN)?;
        bare(&stream, len + HEADER_LEN, rounds / 10)?;
        bare_times.extend(bare(&stream, len + HEADER_LEN, rounds)?);
        drop(stream);
        runtime.block_on(linked(&link, &payload, rounds / 10))?;
        link_times.extend(runtime.block_on(linked(&link, &payload, rounds))?);
    }
    let depths = [1, 16, 64, 256];
    for depth in depths.into_iter().take(argument(4, depths.len())?) {
        let rate = runtime.block_on(throughput(&link, &payload, depth, rounds / 10))?;
        println!("depth {depth:>3}: {rate:>9.0} requests/s");
    }
    bare_times.sort_unstable();
    link_times.sort_unstable();
    let (bare, link) = (Times(bare_times), Times(link_times));
    println!("{len} bytes of payload, microseconds");
    for (name, times) in [("bare", &bare), ("link", &link)] {
        println!(
            "{name}: p50 {:6.2}  p90 {:6.2}  p99 {:6.2}  p99.9 {:7.2}",
            times.at(0.5),
            times.at(0.9),
            times.at(0.99),
            times.at(0.999)
        );
    }
    println!("ratio of medians {:.3}", link.at(0.5) / bare.at(0.5));
    Ok(())
}
