//! The client lease: the right to have this client's completions kept.
//!
//! Taken with the first mutation and renewed while the client lives. Mutations wait for it a moment;
//! without one they go out under client 0, whose calls are not remembered.

use std::time::Duration;

use ramkeep_wire::coordinator::Request;
use ramkeep_wire::{ClientId, Micros};

use crate::limits::LEASE_PATIENCE;

/// Try again after this long when the coordinator gave none.
const RETRY: Duration = Duration::from_secs(1);

/// The lease and when to ask about it.
#[derive(Debug)]
pub(crate) struct Lease {
    nonce: [u8; 16],
    client: ClientId,
    length: Duration,
    wanted: bool,
    ask_at: Micros,
    /// Mutations wait for the lease until then; 0: none was wanted yet.
    waits_until: Micros,
}

impl Lease {
    /// Not held. `nonce` is random.
    pub(crate) fn new(nonce: [u8; 16]) -> Self {
        Self {
            nonce,
            client: ClientId(0),
            length: RETRY,
            wanted: false,
            ask_at: Micros(0),
            waits_until: Micros(0),
        }
    }

    /// Whose calls these are; 0 until the lease is held.
    pub(crate) fn client(&self) -> ClientId {
        self.client
    }

    /// A mutation begins. Returns the request to send, if one is due.
    #[inline]
    pub(crate) fn want(&mut self, now: Micros) -> Option<Request> {
        if self.waits_until == Micros(0) {
            self.waits_until = now + LEASE_PATIENCE;
        }
        if self.wanted {
            return None;
        }
        self.wanted = true;
        self.due(now)
    }

    /// Until when a mutation is to wait for the lease, if it is.
    pub(crate) fn waits(&self, now: Micros) -> Option<Micros> {
        (self.client == ClientId(0) && now < self.waits_until).then_some(self.waits_until)
    }

    /// A mutation waits for the lease; it is asked for at the next look at the time.
    pub(crate) fn want_soon(&mut self) {
        self.wanted = true;
    }

    /// The request that gives the lease back, if it is held.
    pub(crate) fn farewell(&self) -> Option<Request> {
        let client = self.client;
        (client != ClientId(0)).then_some(Request::CloseClientLease { client })
    }

    /// The request that is due.
    pub(crate) fn due(&mut self, now: Micros) -> Option<Request> {
        if !self.wanted || now < self.ask_at {
            return None;
        }
        self.ask_at = now + self.length.max(RETRY * 3) / 3;
        Some(if self.client == ClientId(0) {
            Request::OpenClientLease { nonce: self.nonce }
        } else {
            Request::RenewClientLease {
                client: self.client,
            }
        })
    }

    /// When [`Lease::due`] may have something.
    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        self.wanted.then_some(self.ask_at)
    }

    pub(crate) fn opened(&mut self, now: Micros, client: ClientId, lease_us: u64) {
        self.client = client;
        self.length = Duration::from_micros(lease_us);
        self.ask_at = now + self.length.max(RETRY * 3) / 3;
    }

    /// The coordinators don't know the lease: another will be asked for, under another nonce.
    pub(crate) fn lost(&mut self, now: Micros) {
        self.client = ClientId(0);
        let number = u64::from_le_bytes(self.nonce[..8].try_into().expect("8 of 16 bytes"));
        self.nonce[..8].copy_from_slice(&number.wrapping_add(1).to_le_bytes());
        self.ask_at = now;
        self.waits_until = now + LEASE_PATIENCE;
    }

    /// The coordinators gave no lease, or did not renew it now: they will be asked again.
    pub(crate) fn refused(&mut self, now: Micros) {
        self.waits_until = self.waits_until.min(now);
        self.ask_at = now + RETRY;
    }
}
