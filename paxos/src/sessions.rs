//! `(client, sequence) → result`: kept in the replicated state, so that a retried command runs
//! once. As the linearizable RPCs of RIFL (Lee et al., SOSP 2015, section 3).
//!
//! # Invariants
//! 1. A sequence number of a client that has a result never runs again.
//! 2. Results go only when their client says that it has them, or is gone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_RESULTS;
use crate::mutants::{self, Mutant};

/// What is to be done with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission<R> {
    /// It has not run: run it, then call [`Sessions::finish`].
    Run,
    /// It has run, with this result.
    Replay(R),
    /// It has run, and its client said that it has the result.
    Stale,
    /// Too many results of this client are not acknowledged: refused, nothing has run.
    Full,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Session<R> {
    /// Results of all numbers below are received.
    acked: u64,
    results: BTreeMap<u64, R>,
}

/// The results of all clients.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sessions<K: Ord, R> {
    clients: BTreeMap<K, Session<R>>,
}

impl<K: Ord, R> Default for Sessions<K, R> {
    fn default() -> Self {
        let clients = BTreeMap::new();
        Self { clients }
    }
}

impl<K: Ord, R: Clone> Sessions<K, R> {
    /// Looks at a command before it runs. `acked`: the client has the results of all lower
    /// numbers.
    pub fn admit(&mut self, client: K, sequence: u64, acked: u64) -> Admission<R> {
        if mutants::active(Mutant::DoubleApply) {
            return Admission::Run;
        }
        let empty = || Session {
            acked: 0,
            results: BTreeMap::new(),
        };
        let session = self.clients.entry(client).or_insert_with(empty);
        if acked > session.acked {
            session.acked = acked;
            session.results = session.results.split_off(&acked);
        }
        if let Some(result) = session.results.get(&sequence) {
            Admission::Replay(result.clone())
        } else if sequence < session.acked {
            Admission::Stale
        } else if session.results.len() >= MAX_RESULTS {
            Admission::Full
        } else {
            Admission::Run
        }
    }

    /// Keeps the result of a command that was admitted.
    pub fn finish(&mut self, client: &K, sequence: u64, result: R) {
        if let Some(session) = self.clients.get_mut(client) {
            session.results.insert(sequence, result);
        }
    }

    /// The client is gone and will not ask again.
    pub fn expire(&mut self, client: &K) {
        self.clients.remove(client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_once_and_its_result_stays_until_acknowledged() {
        let mut sessions = Sessions::<u32, &str>::default();
        assert_eq!(sessions.admit(1, 5, 0), Admission::Run);
        sessions.finish(&1, 5, "five");
        assert_eq!(sessions.admit(1, 5, 0), Admission::Replay("five"));
        assert_eq!(sessions.admit(2, 5, 0), Admission::Run, "another client");
        assert_eq!(sessions.admit(1, 6, 6), Admission::Run);
        assert_eq!(sessions.admit(1, 5, 0), Admission::Stale, "acknowledged");
        sessions.expire(&1);
        assert_eq!(sessions.admit(1, 1, 0), Admission::Run);
    }

    #[test]
    fn a_client_that_acknowledges_nothing_is_refused_in_the_end() {
        let mut sessions = Sessions::<u32, u64>::default();
        for sequence in 0..MAX_RESULTS as u64 {
            assert_eq!(sessions.admit(1, sequence, 0), Admission::Run);
            sessions.finish(&1, sequence, sequence);
        }
        assert_eq!(sessions.admit(1, 1_000, 0), Admission::Full);
        assert_eq!(sessions.admit(1, 3, 0), Admission::Replay(3));
        assert_eq!(sessions.admit(1, 1_000, 10), Admission::Run);
    }
}
