//! An echo service and what the tests need around it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ramkeep_rpc::{
    Address, Batch, Identity, Link, Peer, PollMode, Router, Service, Serving, Session, Wake,
    WorkerPool,
};
use ramkeep_wire::envelope::{self, HEADER_LEN, Header, Kind};
use ramkeep_wire::hello::{Hello, Proof, Refusal, SharedKey};
use ramkeep_wire::{ClusterId, Micros, Party, ServerId, postcards};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn key(seed: u8) -> SharedKey {
    SharedKey([seed; 32])
}

pub(crate) fn cluster(seed: u8) -> ClusterId {
    ClusterId([seed; 16])
}

/// A process of the server's cluster that has no number.
pub(crate) fn member(key: Option<SharedKey>) -> Identity {
    Identity::new(key).with_cluster(cluster(1))
}

pub(crate) fn server_identity(key: Option<SharedKey>) -> Identity {
    Identity::new(key)
        .with_cluster(cluster(1))
        .with_party(Party::server(ServerId(7)))
}

pub(crate) fn loopback() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

/// Answers each request with its payload.
pub(crate) struct Echo {
    pub(crate) largest_out: Arc<AtomicUsize>,
}

impl Session for Echo {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        while out.len() <= ramkeep_wire::limits::MAX_UNSENT {
            let Some(request) = batch.next() else { break };
            let header = request.header.reply(Kind::OrderReply);
            envelope::append(out, header, request.payload);
        }
        self.largest_out.fetch_max(out.len(), Ordering::Relaxed);
        Ok(())
    }

    fn poll(&mut self, _now: Micros, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

pub(crate) fn echo_service(largest_out: &Arc<AtomicUsize>) -> Arc<dyn Service> {
    let largest_out = largest_out.clone();
    Arc::new(move |_peer: &Peer, _wake: Wake| -> Box<dyn Session> {
        Box::new(Echo {
            largest_out: largest_out.clone(),
        })
    })
}

pub(crate) fn echo_router(largest_out: &Arc<AtomicUsize>) -> Router {
    Router::new().route(&[Kind::Order], echo_service(largest_out))
}

/// An echo server on loopback.
pub(crate) struct Server {
    pub(crate) pool: WorkerPool,
    pub(crate) serving: Option<Serving>,
    pub(crate) address: Address,
    pub(crate) largest_out: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) fn start(mode: PollMode) -> Self {
        Self::start_as(mode, &server_identity(None))
    }

    pub(crate) fn start_as(mode: PollMode, identity: &Identity) -> Self {
        let largest_out = Arc::new(AtomicUsize::new(0));
        Self::serving(mode, identity, echo_router(&largest_out), largest_out)
    }

    pub(crate) fn routed(mode: PollMode, router: Router) -> Self {
        Self::serving(mode, &server_identity(None), router, Arc::default())
    }

    fn serving(
        mode: PollMode,
        identity: &Identity,
        router: Router,
        largest_out: Arc<AtomicUsize>,
    ) -> Self {
        let pool = WorkerPool::start(1, mode).unwrap();
        let serving = pool.serve(&loopback(), identity, router).unwrap();
        Self {
            address: serving.address().clone(),
            pool,
            serving: Some(serving),
            largest_out,
        }
    }

    pub(crate) async fn link(&self, mode: PollMode) -> Link {
        let identity = member(None);
        Link::connect(&self.address, &identity, Party::NONE, mode)
            .await
            .unwrap()
    }
}

/// A connection driven by hand: what is written are just bytes.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    /// Connects and says nothing.
    pub(crate) fn silent(address: &Address) -> Self {
        let stream = TcpStream::connect(address.as_ip().unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    /// Connects and shakes hands without a key, as nobody.
    pub(crate) fn open(address: &Address) -> Self {
        let mut raw = Self::silent(address);
        let hello = hello(Party::NONE);
        raw.0
            .write_all(&enveloped(Kind::Hello, &postcards::encode(&hello)))
            .unwrap();
        let (header, _) = raw.receive().unwrap();
        assert_eq!(header.kind, Kind::Welcome);
        let proof = Proof { mac: [0; 32] };
        raw.0
            .write_all(&enveloped(Kind::Proof, &postcards::encode(&proof)))
            .unwrap();
        raw
    }

    /// Sends an envelope.
    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        let mut bytes = Vec::new();
        envelope::append(&mut bytes, header, payload);
        self.0.write_all(&bytes).unwrap();
    }

    /// The next envelope; `None` when the server has closed.
    pub(crate) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let mut bytes = vec![0; HEADER_LEN];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return None,
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("the server neither answered nor closed: {error}"),
        }
        let header = envelope::parse_header(&bytes).unwrap().unwrap();
        bytes.resize(HEADER_LEN + header.len as usize, 0);
        self.0.read_exact(&mut bytes[HEADER_LEN..]).unwrap();
        let (envelope, _) = envelope::parse(&bytes).unwrap().unwrap();
        Some((envelope.header, envelope.payload.to_vec()))
    }

    /// Everything that still comes until the server closes.
    pub(crate) fn receive_all(&mut self) -> Vec<(Header, Vec<u8>)> {
        std::iter::from_fn(|| self.receive()).collect()
    }

    /// The refusal that the server closes with, after any answers.
    pub(crate) fn refusal(&mut self) -> Option<Refusal> {
        let (header, payload) = self.receive_all().pop()?;
        (header.kind == Kind::Refusal).then(|| postcards::decode(&payload).unwrap())
    }
}

pub(crate) fn hello(to: Party) -> Hello {
    Hello {
        cluster: cluster(1),
        from: Party::NONE,
        to,
        nonce: [3; 16],
    }
}

/// An envelope from nobody to anybody.
pub(crate) fn enveloped(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let header = Header::new(kind, 9, Party::NONE, Party::NONE);
    envelope::append(&mut out, header, payload);
    out
}
