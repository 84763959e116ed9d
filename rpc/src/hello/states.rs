//! What a side of a handshake waits for: one type a state, each with what it has said so far.

use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::hello::{Hello, Proof, Refusal, SharedKey, Side, Welcome, mac};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ClusterId, Party};
use subtle::ConstantTimeEq;

use super::refusing::{HelloError, append, refuse};
use crate::identity::{Apart, Identity, Side as One, is_for, may_meet};

/// Where a handshake is.
#[derive(Debug)]
pub(super) enum State {
    AwaitHello(AwaitHello),
    AwaitWelcome(AwaitWelcome),
    AwaitProof(AwaitProof),
    /// A connection is open, or refused.
    Ended,
}

/// What follows from an envelope.
pub(super) enum Next {
    Await(State),
    Open {
        peer: Party,
        local: Party,
        cluster: ClusterId,
    },
}

impl State {
    /// The kind of envelope that comes next.
    pub(super) fn expects(&self) -> Kind {
        match self {
            Self::AwaitHello(_) => Kind::Hello,
            Self::AwaitWelcome(_) => Kind::Welcome,
            Self::AwaitProof(_) => Kind::Proof,
            Self::Ended => panic!("a handshake that has ended was given more bytes"),
        }
    }
}

/// The accepting side, before anybody has said anything.
#[derive(Debug)]
pub(super) struct AwaitHello {
    pub(super) identity: Identity,
    pub(super) nonce: [u8; 16],
}

impl AwaitHello {
    pub(super) fn handle(
        self,
        header: &Header,
        hello: Hello,
        out: &mut Vec<u8>,
    ) -> Result<Next, HelloError> {
        // Read once: the process may enlist between two reads.
        let (local, cluster) = (self.identity.party(), self.identity.cluster());
        if header.from != hello.from || header.to != hello.to {
            return refuse(Refusal::Malformed("hello unlike its header".to_owned()));
        }
        let accepting = One {
            party: local,
            cluster,
        };
        match may_meet(connecting(&hello), accepting) {
            Err(Apart::Cluster) if mutants::active(Mutant::HelloAnyCluster) => {}
            Err(apart) => return refuse(apart.refusal(cluster)),
            Ok(()) => {}
        }
        if !is_for(local, hello.to) {
            return refuse(Refusal::Party(local));
        }
        let key = self.identity.key().cloned();
        let mut welcome = Welcome {
            cluster,
            party: local,
            nonce: self.nonce,
            mac: [0; 32],
        };
        welcome.mac = mac(key.as_ref(), Side::Accepting, &hello, &welcome);
        append(out, Kind::Welcome, local, hello.from, &welcome);
        let state = AwaitProof {
            key,
            hello,
            welcome,
        };
        Ok(Next::Await(State::AwaitProof(state)))
    }
}

/// The connecting side, which has said hello.
#[derive(Debug)]
pub(super) struct AwaitWelcome {
    pub(super) key: Option<SharedKey>,
    pub(super) hello: Hello,
}

impl AwaitWelcome {
    pub(super) fn handle(self, welcome: &Welcome, out: &mut Vec<u8>) -> Result<Next, HelloError> {
        let Self { key, hello } = self;
        let expected = |side| mac(key.as_ref(), side, &hello, welcome);
        if !bool::from(expected(Side::Accepting).ct_eq(&welcome.mac)) {
            return refuse(Refusal::Key);
        }
        let accepting = One {
            party: welcome.party,
            cluster: welcome.cluster,
        };
        if let Err(apart) = may_meet(connecting(&hello), accepting) {
            return refuse(apart.refusal(hello.cluster));
        }
        if !is_for(welcome.party, hello.to) {
            return refuse(Refusal::Party(welcome.party));
        }
        let proof = Proof {
            mac: expected(Side::Connecting),
        };
        append(out, Kind::Proof, hello.from, hello.to, &proof);
        Ok(Next::Open {
            peer: welcome.party,
            local: hello.from,
            cluster: welcome.cluster,
        })
    }
}

/// The accepting side, which has said welcome.
#[derive(Debug)]
pub(super) struct AwaitProof {
    key: Option<SharedKey>,
    hello: Hello,
    welcome: Welcome,
}

impl AwaitProof {
    pub(super) fn handle(self, proof: &Proof) -> Result<Next, HelloError> {
        let Self {
            key,
            hello,
            welcome,
        } = self;
        let expected = mac(key.as_ref(), Side::Connecting, &hello, &welcome);
        if !bool::from(expected.ct_eq(&proof.mac)) {
            return refuse(Refusal::Key);
        }
        Ok(Next::Open {
            peer: hello.from,
            local: welcome.party,
            cluster: hello.cluster,
        })
    }
}

fn connecting(hello: &Hello) -> One {
    One {
        party: hello.from,
        cluster: hello.cluster,
    }
}
