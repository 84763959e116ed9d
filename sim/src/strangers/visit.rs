//! One visit of a stranger, from its connect to its end.

use std::time::Duration;

use ramkeep_rpc::{Handshake, HelloError};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party};

use super::manner::{Manner, StrangerConfig};
use crate::network::ConnectionId;
use crate::node::{Context, delivered};

/// Longest that a stranger stays: longer than it takes to be given up by whom it says nothing.
const STAY: Duration = Duration::from_secs(5);
/// What is no message, whatever is expected.
const GARBAGE: [u8; 40] = [0xff; 40];
/// What is asked so that nobody can read it.
const REQUESTS: [Kind; 5] = [
    Kind::DataRequest,
    Kind::Replicate,
    Kind::BackupRequest,
    Kind::CoordinatorRequest,
    Kind::Order,
];
/// What is asked in the name of others, or without a hello: it would be answered if it were heard.
const HARMLESS: [Kind; 2] = [Kind::Probe, Kind::StatusRequest];
/// What nobody is asked with.
const WRONG_KINDS: [Kind; 9] = [
    Kind::Hello,
    Kind::Welcome,
    Kind::Proof,
    Kind::DataResponse,
    Kind::ReplicateAck,
    Kind::BackupResponse,
    Kind::CoordinatorResponse,
    Kind::OrderReply,
    Kind::ProbeReply,
];

/// What became of a visit by something that the stranger heard.
pub(super) enum Heard {
    /// It goes on.
    Nothing,
    /// The visited ended it, as it should.
    Closed,
    /// The stranger was let in, and wants nothing more.
    LetIn,
    /// There was no connection.
    NotReached,
    /// The visited did what it must not.
    Wrong(String),
}

#[derive(Debug)]
enum Stage {
    Connecting,
    Shaking(Handshake),
    /// It has said what it must not, and waits for what comes of it.
    Said,
}

/// A visit.
#[derive(Debug)]
pub(super) struct Visit {
    connection: ConnectionId,
    address: String,
    until: Micros,
    stage: Stage,
}

impl Visit {
    pub(super) fn begin(context: &mut Context<'_>, address: String) -> Self {
        Self {
            connection: context.connect(&address),
            address,
            until: context.now + STAY,
            stage: Stage::Connecting,
        }
    }

    pub(super) fn connection(&self) -> ConnectionId {
        self.connection
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn until(&self) -> Micros {
        self.until
    }

    /// The connection is there.
    pub(super) fn enter(&mut self, context: &mut Context<'_>, config: &StrangerConfig) -> Heard {
        let to = match config.manner {
            Manner::ForAnother(to) => to,
            Manner::NoHello => {
                self.ask(context, (Party::NONE, Party::NONE), &HARMLESS, &[]);
                return Heard::Nothing;
            }
            Manner::Silent => {
                self.stage = Stage::Said;
                return Heard::Nothing;
            }
            _ => Party::NONE,
        };
        let (nonce, mut out) = (context.rng.bytes(), Vec::new());
        match Handshake::connect(&config.identity, true, to, nonce, &mut out) {
            Ok(handshake) => self.stage = Stage::Shaking(handshake),
            Err(error) => return Heard::Wrong(format!("can't say hello: {error}")),
        }
        context.send(self.connection, &out);
        Heard::Nothing
    }

    /// An envelope comes.
    pub(super) fn hear(
        &mut self,
        context: &mut Context<'_>,
        config: &StrangerConfig,
        bytes: &[u8],
    ) -> Heard {
        match &mut self.stage {
            Stage::Connecting => Heard::Wrong("spoken to before it said anything".to_owned()),
            Stage::Shaking(handshake) => {
                let mut out = Vec::new();
                let outcome = handshake.handle(bytes, &mut out);
                context.send(self.connection, &out);
                match outcome {
                    Ok(None) => Heard::Nothing,
                    Ok(Some(opened)) => self.let_in(context, config, opened.local, opened.peer),
                    Err(error) => refused(&error),
                }
            }
            Stage::Said => match delivered(bytes).header.kind {
                Kind::Refusal => Heard::Closed,
                kind => Heard::Wrong(format!("answered with {kind:?}")),
            },
        }
    }

    fn let_in(
        &mut self,
        context: &mut Context<'_>,
        config: &StrangerConfig,
        local: Party,
        peer: Party,
    ) -> Heard {
        match config.manner {
            // Who does not know its own cluster, or has no id yet, knows no strangers.
            Manner::Hello => return Heard::LetIn,
            Manner::ForAnother(to) if peer == to => return Heard::LetIn,
            Manner::ForAnother(_) => {
                return Heard::Wrong(format!("let in by {peer:?}, for whom it was not"));
            }
            Manner::AsAnother(other) => self.ask(context, (peer, other), &HARMLESS, &[]),
            Manner::ToAnother(other) => self.ask(context, (other, local), &HARMLESS, &[]),
            Manner::WrongKinds => self.ask(context, (peer, local), &WRONG_KINDS, &[]),
            Manner::Garbage => self.ask(context, (peer, local), &REQUESTS, &GARBAGE),
            Manner::NoHello | Manner::Silent => unreachable!("it says no hello"),
        }
        Heard::Nothing
    }

    /// Sends one envelope that is to be refused.
    fn ask(
        &mut self,
        context: &mut Context<'_>,
        (to, from): (Party, Party),
        kinds: &[Kind],
        payload: &[u8],
    ) {
        let kind = *context.rng.choose(kinds);
        let mut bytes = Vec::new();
        envelope::append(&mut bytes, Header::new(kind, 1, to, from), payload);
        context.send(self.connection, &bytes);
        self.stage = Stage::Said;
    }
}

/// A hello that came to nothing: the visited is to refuse, not the stranger.
fn refused(error: &HelloError) -> Heard {
    match error {
        HelloError::Refused(_) => Heard::Closed,
        HelloError::Refuse(Refusal::Cluster(_)) => {
            Heard::Wrong("welcomed as one of another cluster".to_owned())
        }
        HelloError::Refuse(Refusal::Party(party)) => {
            Heard::Wrong(format!("welcomed by {party:?}, for whom it was not"))
        }
        // Who accepts can't know yet that the keys differ.
        HelloError::Refuse(Refusal::Key) => Heard::Closed,
        error => Heard::Wrong(format!(
            "answered its hello with what is no welcome: {error}"
        )),
    }
}
