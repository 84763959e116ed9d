//! Client leases in the state: whose end is told to masters.

use ramkeep_wire::limits::MAX_CLIENTS_NAMED;
use ramkeep_wire::{EndedRound, KnownEnded};

use super::*;

#[test]
fn the_end_of_each_lease_is_told_however_many_elder_clients_live() {
    let mut state = bootstrapped();
    let clients = 3 * MAX_CLIENTS_NAMED as u64 + 7;
    for nonce in 1..=clients {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&nonce.to_le_bytes());
        let open = Command::OpenClientLease { nonce: bytes };
        state.apply(&open).unwrap();
    }
    let gone = [3, clients - 3, clients].map(ClientId);
    for client in gone {
        state.apply(&Command::ExpireClientLease { client }).unwrap();
    }
    let (mut known, mut round) = (KnownEnded::default(), EndedRound::default());
    // A few more than there are pages.
    for _ in 0..6 {
        let page = state.clients().ended_from(round.wants());
        assert!(page.except.len() <= MAX_CLIENTS_NAMED);
        known.learn(&page);
        round.took(&page);
    }
    for client in (1..=clients).map(ClientId) {
        assert_eq!(known.has(client), gone.contains(&client), "{client:?}");
    }
    assert!(!known.has(ClientId(clients + 1)), "it is still to come");
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_clients_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let story = the_end_of_each_lease_is_told_however_many_elder_clients_live;
    assert!(mutants::fails(Mutant::FirstClientsOnly, story));
    story();
}
