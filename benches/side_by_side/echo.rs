//! A bare echo over TCP: what the kernel's loopback alone costs, with both sides polling.
//!
//! The server does nothing but answer so many bytes with so many bytes; no system that speaks TCP
//! through sockets can be faster. It polls while a connection is open and sleeps in `accept`
//! otherwise, so that it costs the other systems' turns nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use crate::engine::Wait;
use crate::protocol::{BadReply, Batch, Op, Progress, Protocol};
use crate::workload::Asked;

/// Bytes of a request and of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Sizes {
    /// Bytes of the echo's request: as a Ramkeep read (envelope, batch, item, key)
    #[arg(long = "echo-request", default_value_t = Self::REQUEST, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) request: u32,
    /// Bytes of the echo's response: as a Ramkeep read's (envelope, item, value)
    #[arg(long = "echo-response", default_value_t = Self::RESPONSE, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) response: u32,
}

impl Sizes {
    /// Of a Ramkeep read's request: envelope, batch header, item header, key.
    const REQUEST: u32 = 40 + 20 + 16 + 20;
    /// Of its response: envelope, item header, value.
    const RESPONSE: u32 = 40 + 20 + 100;
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            request: Self::REQUEST,
            response: Self::RESPONSE,
        }
    }
}

/// Serves one connection after the other until killed. Prints its port as the first line.
pub(crate) fn serve(sizes: Sizes, wait: Wait) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", listener.local_addr()?.port())?;
    stdout.flush()?;
    loop {
        let (stream, _) = listener.accept()?;
        // A client that goes away in the middle is the end of its connection only.
        let _ended = converse(stream, sizes, wait);
    }
}

fn converse(mut stream: TcpStream, sizes: Sizes, wait: Wait) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    let response = vec![b'.'; sizes.response as usize];
    let mut input = vec![0; 64 * 1024];
    let mut waiting = 0;
    loop {
        match stream.read(&mut input) {
            Ok(0) => return Ok(()),
            Ok(n) => waiting += n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => wait.pause(),
            Err(e) => return Err(e),
        }
        while waiting >= sizes.request as usize {
            waiting -= sizes.request as usize;
            stream.write_all(&response)?;
        }
    }
}

/// The client's side: requests are bytes without meaning.
pub(crate) struct Echo(pub(crate) Sizes);

impl Protocol for Echo {
    #[inline]
    fn encode(&mut self, _: Op, batch: Batch, _: &Asked, out: &mut Vec<u8>) {
        out.resize(out.len() + (batch.count * self.0.request) as usize, b'.');
    }

    #[inline]
    fn parse(&mut self, _: Op, input: &[u8], _: &Asked) -> Result<Progress, BadReply> {
        let size = self.0.response as usize;
        let completed = input.len() / size;
        Ok(Progress {
            consumed: completed * size,
            completed: completed as u32,
        })
    }
}
