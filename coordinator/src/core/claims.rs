//! Who says that it goes on with a living server's directory: refused while that server answers.
//!
//! # Invariants
//! 1. Nobody takes the identity of a server that still runs (SAFETY 30): it is asked where it was, and what
//!    it says later than [`HEARD_LATER`] after the claim counts. Before, it may have said so and died.
//! 2. A server that is not there any more holds up nobody: that nobody of its identity is at its addresses
//!    is proof, those that the claimant has itself left aside; silence has the time that a suspicion has.

use std::time::Duration;

use ramkeep_wire::coordinator::{Enlist, Refused, Request};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command as OrderCommand, Order};
use ramkeep_wire::{Micros, ServerId};

use super::{Coordinator, Output};

/// Claims that are looked into at the same time.
const MAX_CLAIMS: usize = 64;
/// Between two questions to a server whose identity is claimed.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// What a server sent before it died has come by then.
const HEARD_LATER: Duration = Duration::from_millis(200);

/// A server that says that it goes on with the directory of a living one.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) token: u64,
    request: Enlist,
    original: ServerId,
    /// Where the original was, and the claimant is not.
    elsewhere: Vec<String>,
    since: Micros,
    next: Micros,
}

impl Coordinator {
    /// Enlists a server, once it is known that the one whose directory it has is not there any more.
    pub(super) fn enlist(&mut self, token: u64, request: Enlist) {
        let Some((original, elsewhere)) = self.claimed(&request) else {
            return self.propose_request(token, Request::Enlist(request));
        };
        let mut asked = self.claims.iter_mut();
        if let Some(known) = asked.find(|claim| claim.request.nonce == request.nonce) {
            known.token = token;
            return;
        }
        if self.claims.len() >= MAX_CLAIMS {
            return self.refuse(token, Refused::Limit("claims that are looked into".into()));
        }
        let now = self.now;
        if let Some(watch) = self.watches.get_mut(&original) {
            watch.suspect(now);
        }
        self.claims.push(Claim {
            token,
            request,
            original,
            elsewhere,
            since: now,
            next: now,
        });
        self.look = true;
    }

    /// The living server whose directory this one has, and where that may be. Where the claimant listens
    /// itself, it is not.
    fn claimed(&self, request: &Enlist) -> Option<(ServerId, Vec<String>)> {
        let original = request.replaces?;
        let found = self.state.living(original).ok()?;
        let is_retry = self.state.servers().by_nonce(&request.nonce).is_some();
        let mut elsewhere = found.addresses.clone();
        elsewhere.retain(|address| !request.addresses.contains(address));
        let nowhere = elsewhere.is_empty() || is_retry || mutants::active(Mutant::KillTheOriginal);
        (!nowhere).then_some((original, elsewhere))
    }

    /// Asks those whose identity is claimed, and lets in whose original is decided crashed.
    pub(super) fn look_into_claims(&mut self) {
        let state = &self.state;
        let gone = |claim: &mut Claim| state.living(claim.original).is_err();
        let granted: Vec<Claim> = self.claims.extract_if(.., gone).collect();
        self.grant(granted);
        let (now, ballot) = (self.now, self.ballot());
        for claim in self.claims.iter_mut().filter(|claim| claim.next <= now) {
            claim.next = now + ASK_EVERY;
            self.outputs.push_back(Output::Order {
                server: claim.original,
                addresses: claim.elsewhere.clone(),
                order: Order {
                    ballot,
                    command: OrderCommand::Probe,
                },
            });
        }
    }

    /// When [`Coordinator::look_into_claims`] has something to do.
    pub(super) fn claims_due(&self) -> Option<Micros> {
        self.claims.iter().map(|claim| claim.next).min()
    }

    fn grant(&mut self, granted: Vec<Claim>) {
        for claim in granted {
            self.propose_request(claim.token, Request::Enlist(claim.request));
        }
    }

    /// No process of this identity is where it was: who has its directory goes on with it.
    pub(super) fn claim_is_free(&mut self, original: ServerId) {
        let of = |claim: &mut Claim| claim.original == original;
        let granted = self.claims.extract_if(.., of).collect();
        self.grant(granted);
    }

    /// A server gave a sign of life: who claims its identity is refused.
    pub(super) fn claim_is_refused(&mut self, original: ServerId) {
        let now = self.now;
        let later =
            |claim: &mut Claim| claim.original == original && now.since(claim.since) >= HEARD_LATER;
        let refused: Vec<Claim> = self.claims.extract_if(.., later).collect();
        for claim in refused {
            let found = self.state.servers().by_id(original);
            let address = found.and_then(|found| found.addresses.first());
            let claimant = claim.request.addresses.first();
            tracing::warn!(server = %original, ?address, ?claimant,
                "a copy of the directory of a server that runs was started: it is refused");
            let refused = Refused::Claimed {
                server: original,
                address: address.cloned().unwrap_or_default(),
            };
            self.refuse(claim.token, refused);
        }
    }
}
