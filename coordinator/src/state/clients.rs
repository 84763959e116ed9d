//! Client leases, as far as they are replicated: who has one.

use std::collections::BTreeMap;

use ramkeep_wire::coordinator::Refused;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{ClientId, EndedClients};
use serde::{Deserialize, Serialize};

use crate::limits::MAX_CLIENTS;

/// The clients that hold a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    last: u64,
    leases: BTreeMap<ClientId, [u8; 16]>,
    nonces: BTreeMap<[u8; 16], ClientId>,
}

impl Clients {
    /// Gives a lease, the same for the same nonce.
    pub(super) fn open(&mut self, nonce: [u8; 16]) -> Result<ClientId, Refused> {
        if let Some(client) = self.nonces.get(&nonce) {
            return Ok(*client);
        }
        if self.leases.len() >= MAX_CLIENTS {
            return Err(Refused::Limit(format!("{MAX_CLIENTS} client leases")));
        }
        self.last += 1;
        let client = ClientId(self.last);
        self.leases.insert(client, nonce);
        self.nonces.insert(nonce, client);
        Ok(client)
    }

    /// Ends a lease; one that is not there has ended already.
    pub(super) fn expire(&mut self, client: ClientId) {
        if let Some(nonce) = self.leases.remove(&client) {
            self.nonces.remove(&nonce);
        }
    }

    /// Whether the client holds a lease.
    #[must_use]
    pub fn holds(&self, client: ClientId) -> bool {
        self.leases.contains_key(&client)
    }

    /// The holder of the lease that was taken with `nonce`.
    #[must_use]
    pub fn by_nonce(&self, nonce: &[u8; 16]) -> Option<ClientId> {
        self.nonces.get(nonce).copied()
    }

    /// What masters are told of leases that have ended, from a client on.
    #[must_use]
    pub fn ended_from(&self, from: ClientId) -> EndedClients {
        let next = ClientId(self.last + 1);
        let from = match mutants::active(Mutant::FirstClientsOnly) {
            true => ClientId(0),
            false => from.min(next),
        };
        let holding = self.leases.range(from..).map(|(client, _)| *client);
        EndedClients::page(from, holding, next)
    }

    /// All who hold a lease, by id.
    pub fn iter(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.leases.keys().copied()
    }
}
