//! What must hold after any commands.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn any_server() -> impl Strategy<Value = ServerId> {
    (1..12_u64).prop_map(ServerId)
}

fn any_name() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(String::from)
}

fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        3 => (0..40_u8, prop::option::weighted(0.2, 1..12_u64))
            .prop_map(|(nonce, replaces)| enlist(nonce, replaces)),
        1 => any_server().prop_map(|server| Command::DeclareCrashed { server }),
        1 => any_server().prop_map(|server| Command::Fenced { server }),
        4 => any_server().prop_map(|server| Command::ServerReady { server }),
        2 => any_name().prop_map(|name| Command::CreateTable { name, once: None }),
        2 => any_name().prop_map(|name| Command::DropTable { name, once: None }),
        3 => (any_server(), 1..6_u32).prop_map(|(owner, table)| Command::TableDropped {
            table: TableId(table),
            owner,
        }),
        2 => (any_server(), prop::collection::vec(1..6_u32, 0..4)).prop_map(|(owner, tables)| {
            let tables = tables.into_iter().map(TableId).collect();
            Command::TablesDropped { owner, tables }
        }),
        3 => (any_server(), 1..6_u32, 1..4_u128, 0..4_u128).prop_map(|(owner, table, of, piece)| {
            let bound = |n: u128| (n << 64) / of;
            taken(owner, TabletGrant {
                table: TableId(table),
                first: KeyHash(bound(piece.min(of - 1)) as u64),
                last: KeyHash((bound(piece.min(of - 1) + 1) - 1) as u64),
            })
        }),
        3 => (any_server(), 1..4_u64, 1..5_u32, prop::collection::vec(any_server(), 0..3))
            .prop_map(|(master, segment, number, backups)| epoch(master, segment, number, &backups)),
        2 => (any_server(), 1..4_u64, 1..5_u32).prop_map(|(master, segment, epoch)| {
            Command::RaiseFloor {
                master,
                segment: SegmentId(segment),
                epoch: ReplicationEpoch(epoch),
            }
        }),
        4 => (any_server(), 1..3_u64, any_server(), 1..6_u32, 1..4_u128)
            .prop_map(|(master, segment, by, table, of)| {
                let bound = |n: u128| (n << 64) / of;
                let piece = |n| range(TableId(table), bound(n) as u64, (bound(n + 1) - 1) as u64);
                let pieces: Vec<_> = (0..of).map(piece).collect();
                let half = pieces.len() / 2;
                if half == 0 {
                    plan(master, segment, &[(&pieces, by)])
                } else {
                    plan(master, segment, &[(&pieces[..half], by), (&pieces[half..], by)])
                }
            }),
        6 => (any_server(), 1..6_u32, any_server()).prop_map(|(master, attempt, by)| {
            Command::AssignRecovery { master, attempt, by }
        }),
        1 => (0..9_u8).prop_map(|nonce| Command::OpenClientLease { nonce: [nonce; 16] }),
        1 => (1..9_u64).prop_map(|client| Command::ExpireClientLease { client: ClientId(client) }),
    ]
}

/// Whether the tablets of each table run from the first hash to the last.
fn covers_all_hashes(state: &State) -> bool {
    state.tables().iter().all(|record| {
        let tablets = &record.table.tablets;
        let ends = tablets.first().is_some_and(|t| t.first == KeyHash(0))
            && tablets.last().is_some_and(|t| t.last == KeyHash(u64::MAX));
        let joined = tablets
            .windows(2)
            .all(|pair| pair[0].last.0.checked_add(1) == Some(pair[1].first.0));
        ends && joined && tablets.iter().all(|t| t.first <= t.last)
    })
}

/// Some commands as they would have to be to do something in this state.
fn fitting(state: &State, command: &Command) -> Command {
    match command {
        Command::PlanRecovery { master, end, parts } => {
            let mut down = state
                .tables()
                .lost()
                .filter(|t| t.state == TabletState::Down);
            let servers = state.servers().iter();
            let mut ready = servers.filter(|(_, server)| server.is_ready_master());
            let (Some(tablet), Some((by, _))) = (down.next(), ready.next()) else {
                return command.clone();
            };
            if parts.len() == 1 && *master == tablet.owner {
                return command.clone();
            }
            let (first, last) = (tablet.first.0, tablet.last.0);
            let middle = first + (last - first) / 2;
            let mut grants = vec![range(tablet.table, first, middle)];
            if middle < last {
                grants.push(range(tablet.table, middle + 1, last));
            }
            let record = state.recoveries().by_master(tablet.owner);
            Command::PlanRecovery {
                master: tablet.owner,
                end: record.map_or(*end, |record| record.end),
                parts: grants.into_iter().map(|grant| (vec![grant], by)).collect(),
            }
        }
        Command::AssignRecovery { attempt, by, .. } => {
            let planned = state.recoveries().iter();
            let mut parts = planned.flat_map(|(master, record)| {
                let parts = record.partitions.iter();
                parts.map(move |part| (master, part.clone()))
            });
            match parts.next() {
                Some((master, part)) if attempt % 7 == 0 => Command::GiveBackPartition {
                    master,
                    attempt: part.attempt,
                },
                Some((master, part)) if attempt % 3 > 0 => {
                    let taken: Vec<_> = part.tablets.iter().map(|lost| (lost.range, 99)).collect();
                    recovered(master, part.attempt, part.by, &taken)
                }
                Some((master, part)) => Command::AssignRecovery {
                    master,
                    attempt: part.attempt,
                    by: *by,
                },
                None => command.clone(),
            }
        }
        _ => command.clone(),
    }
}

/// What is wrong with the recoveries of `state`, if anything, by itself or after `before`.
fn wrong_recoveries(before: &State, state: &State) -> Option<String> {
    let lost: Vec<_> = state.tables().lost().collect();
    for (master, record) in state.recoveries().iter() {
        let own = |t: &&&ramkeep_wire::coordinator::Tablet| t.owner == master;
        let waiting: BTreeSet<_> = lost
            .iter()
            .filter(own)
            .filter(|t| t.state == TabletState::Recovering)
            .map(|t| range(t.table, t.first.0, t.last.0))
            .collect();
        let given: Vec<_> = record
            .partitions
            .iter()
            .flat_map(|part| part.tablets.iter().map(|lost| lost.range))
            .collect();
        let needed = record.partitions.iter().all(|part| {
            let mut tablets = part.tablets.iter();
            tablets.any(|lost| waiting.contains(&lost.range))
        });
        let count = given.len();
        let given: BTreeSet<_> = given.into_iter().collect();
        if !needed
            || given.len() != count
            || !waiting.is_subset(&given)
            || !lost.iter().any(|t| own(&t))
        {
            return Some(format!("{master:?}: {waiting:?} wait, {given:?} are given"));
        }
        let attempts: BTreeSet<_> = record.partitions.iter().map(|p| p.attempt).collect();
        if attempts.len() != record.partitions.len()
            || attempts.last().is_some_and(|last| *last > record.attempts)
        {
            return Some(format!("{master:?}: tries {attempts:?}"));
        }
        if let Some(old) = before.recoveries().by_master(master)
            && (old.end != record.end || old.attempts > record.attempts)
        {
            return Some(format!("{master:?}: another end, or fewer tries"));
        }
    }
    for (id, server) in state.servers().iter() {
        let waits = lost.iter().any(|tablet| tablet.owner == id);
        let living = lost.iter().any(|t| t.owner == id && !server.is_crashed());
        if living || server.recovered != (server.fenced && !waits) {
            return Some(format!("{id:?}: {server:?}"));
        }
    }
    let unplanned = lost.iter().find(|t| {
        let record = state.recoveries().by_master(t.owner);
        t.state == TabletState::Recovering && record.is_none()
    });
    unplanned.map(|tablet| format!("{tablet:?} has no plan"))
}

proptest! {
    #[test]
    fn the_same_commands_give_the_same_bytes(
        commands in prop::collection::vec(any_command(), 0..120)
    ) {
        let (mut one, mut other) = (bootstrapped(), bootstrapped());
        for command in &commands {
            let command = &fitting(&one, command);
            let outcome = one.apply(command);
            // The other goes through its bytes at each step, as a snapshot would.
            other = postcards::decode(&postcards::encode(&other)).unwrap();
            prop_assert_eq!(outcome, other.apply(command));
        }
        prop_assert_eq!(postcards::encode(&one), postcards::encode(&other));
    }

    #[test]
    fn what_must_hold_holds_after_any_commands(
        commands in prop::collection::vec(any_command(), 0..200)
    ) {
        let mut state = bootstrapped();
        let mut nonces: BTreeMap<ServerId, [u8; 16]> = BTreeMap::new();
        let mut names: BTreeMap<TableId, String> = BTreeMap::new();
        let mut clients = BTreeSet::new();
        let mut open = BTreeMap::new();
        for command in &commands {
            let before = state.clone();
            // Plans of what is down, and takeovers of what is being replayed, don't come by chance.
            let command = &fitting(&before, command);
            let outcome = state.apply(command);
            if outcome.is_err() {
                prop_assert_eq!(&before, &state, "a refused command changed something");
            }
            match (&outcome, command) {
                (Ok(Applied::Server(server)), Command::Enlist { request, .. }) => {
                    prop_assert_eq!(*nonces.entry(*server).or_insert(request.nonce), request.nonce);
                }
                (Ok(Applied::Table(table)), Command::CreateTable { name, .. }) => {
                    prop_assert_eq!(names.entry(*table).or_insert_with(|| name.clone()), name);
                }
                (Ok(Applied::Client(client)), Command::OpenClientLease { nonce }) => {
                    let known = open.insert(*nonce, *client) == Some(*client);
                    prop_assert!(known || clients.insert(*client), "a client id was reused");
                }
                (Ok(_), Command::ExpireClientLease { client }) => {
                    open.retain(|_, holder| holder != client);
                }
                _ => {}
            }
            prop_assert!(covers_all_hashes(&state));
            prop_assert_eq!(wrong_recoveries(&before, &state), None);
            let changed = before.server_list().servers != state.server_list().servers;
            prop_assert_eq!(changed, before.list_version() < state.list_version());
            let changed = before.tablet_map().tables != state.tablet_map().tables;
            prop_assert!(!changed || before.map_version() < state.map_version());
            for (server, found) in before.servers().iter().filter(|(_, s)| s.is_crashed()) {
                if let Some(now) = state.servers().by_id(server) {
                    let frozen = (&found.epochs, found.floor, found.key, found.state);
                    prop_assert_eq!(frozen, (&now.epochs, now.floor, now.key, ServerState::Crashed));
                }
            }
            for (server, found) in before.servers().iter() {
                let Some(now) = state.servers().by_id(server) else { continue };
                prop_assert!(found.floor <= now.floor);
                for (segment, old) in &found.epochs {
                    if let Some(new) = now.epochs.get(segment) {
                        prop_assert!(old.epoch < new.epoch || old == new);
                    }
                }
            }
        }
    }
}
