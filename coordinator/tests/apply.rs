//! The state machine alone: what any sequence of commands must leave true.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::{Applied, Command, State};
use ramkeep_wire::certificate::Certificate;
use ramkeep_wire::coordinator::{Enlist, Once, Refused, Roles, ServerState, TabletState};
use ramkeep_wire::order::{LogEnd, TabletGrant};
use ramkeep_wire::{
    BootId, CertificateKey, ClientId, ClusterId, KeyHash, LogPosition, ReplicationEpoch, SegmentId,
    ServerId, TableId, postcards,
};

fn bootstrapped() -> State {
    let mut state = State::default();
    let bootstrap = Command::Bootstrap {
        cluster: ClusterId([1; 16]),
        settings: default_settings(),
    };
    state.apply(&bootstrap).unwrap();
    state
}

fn enlist(nonce: u8, replaces: Option<u64>) -> Command {
    Command::Enlist {
        request: Enlist {
            nonce: [nonce; 16],
            roles: Roles {
                master: !nonce.is_multiple_of(5),
                backup: true,
            },
            addresses: vec![format!("127.0.0.1:{}", 7_000 + u16::from(nonce))],
            replaces: replaces.map(ServerId),
            boot: BootId([0; 16]),
            frames: 10,
            memory: 1 << 26,
        },
        key: CertificateKey([nonce; 32]),
    }
}

fn joined(state: &mut State, nonce: u8) -> ServerId {
    let Applied::Server(server) = state.apply(&enlist(nonce, None)).unwrap() else {
        unreachable!("an enlistment gives a server");
    };
    server
}

fn up(state: &mut State, nonce: u8) -> ServerId {
    let server = joined(state, nonce);
    state.apply(&Command::ServerReady { server }).unwrap();
    server
}

fn create(name: &str) -> Command {
    create_once(name, None)
}

fn create_once(name: &str, once: Option<Once>) -> Command {
    Command::CreateTable {
        name: name.into(),
        once,
    }
}

fn drop_once(name: &str, once: Option<Once>) -> Command {
    Command::DropTable {
        name: name.into(),
        once,
    }
}

fn leased(state: &mut State, nonce: u8) -> ClientId {
    let open = Command::OpenClientLease { nonce: [nonce; 16] };
    let Ok(Applied::Client(client)) = state.apply(&open) else {
        unreachable!("a lease has a client");
    };
    client
}

fn once(client: ClientId, sequence: u64) -> Option<Once> {
    let acked = 0;
    Some(Once {
        client,
        sequence,
        acked,
    })
}

fn grants(state: &State, table: TableId) -> Vec<(ServerId, TabletGrant)> {
    let record = state.table(table).unwrap();
    let grant = |tablet: &ramkeep_wire::coordinator::Tablet| TabletGrant {
        table,
        first: tablet.first,
        last: tablet.last,
    };
    let tablets = record.table.tablets.iter();
    tablets
        .map(|tablet| (tablet.owner, grant(tablet)))
        .collect()
}

fn taken(owner: ServerId, grant: TabletGrant) -> Command {
    Command::TabletsTaken {
        owner,
        taken: vec![(grant, LogPosition(77))],
    }
}

fn epoch(master: ServerId, segment: u64, epoch: u32, backups: &[ServerId]) -> Command {
    Command::RecordEpoch {
        master,
        segment: SegmentId(segment),
        epoch: ReplicationEpoch(epoch),
        backups: backups.to_vec(),
    }
}

fn end(segment: u64) -> LogEnd {
    LogEnd {
        segment: SegmentId(segment),
        length: 4_096,
        epoch: ReplicationEpoch(1),
        certificate: Certificate {
            algorithm: 1,
            hash: [7; 32],
        },
    }
}

fn range(table: TableId, first: u64, last: u64) -> TabletGrant {
    TabletGrant {
        table,
        first: KeyHash(first),
        last: KeyHash(last),
    }
}

fn plan(master: ServerId, segment: u64, parts: &[(&[TabletGrant], ServerId)]) -> Command {
    let parts = parts.iter();
    Command::PlanRecovery {
        master,
        end: end(segment),
        parts: parts.map(|(grants, by)| (grants.to_vec(), *by)).collect(),
    }
}

fn recovered(
    master: ServerId,
    attempt: u32,
    by: ServerId,
    taken: &[(TabletGrant, u64)],
) -> Command {
    let taken = taken.iter();
    Command::PartitionRecovered {
        master,
        attempt,
        by,
        taken: taken
            .map(|(range, at)| (*range, LogPosition(*at)))
            .collect(),
    }
}

/// A master that crashed with the only tablet of a table, and two others.
fn crashed() -> (State, ServerId, [ServerId; 2], TableId) {
    let mut state = bootstrapped();
    let dead = up(&mut state, 1);
    let Ok(Applied::Table(table)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    let served = taken(dead, range(table, 0, u64::MAX));
    state.apply(&served).unwrap();
    let others = [up(&mut state, 2), up(&mut state, 3)];
    state
        .apply(&Command::DeclareCrashed { server: dead })
        .unwrap();
    (state, dead, others, table)
}

fn states(state: &State, table: TableId) -> Vec<(ServerId, TabletState, LogPosition)> {
    let tablets = state.table(table).unwrap().table.tablets.iter();
    tablets.map(|t| (t.owner, t.state, t.takeover)).collect()
}

fn is_recovered(state: &State, server: ServerId) -> bool {
    let mut entries = state.server_list().servers.into_iter();
    entries.any(|entry| entry.server == server && entry.recovered)
}

#[test]
fn the_partitions_of_a_plan_are_taken_over_one_by_one() {
    let (mut state, dead, [b, c], table) = crashed();
    let (low, high) = (range(table, 0, 99), range(table, 100, u64::MAX));
    state
        .apply(&plan(dead, 7, &[(&[low], b), (&[high], c)]))
        .unwrap();
    let old = LogPosition(77);
    let waits = (dead, TabletState::Recovering, old);
    assert_eq!(states(&state, table), [waits, waits]);
    let parts = &state.recoveries().by_master(dead).unwrap().partitions;
    assert_eq!([parts[0].attempt, parts[1].attempt], [1, 2]);
    assert_eq!(parts[1].tablets[0].takeover, old);

    state.apply(&recovered(dead, 2, c, &[(high, 500)])).unwrap();
    let taken_over = (c, TabletState::Assigning, LogPosition(500));
    assert_eq!(states(&state, table), [waits, taken_over]);
    // It serves the tablet, and says where its log is by now: the replayed entries lie before that.
    state
        .apply(&Command::TabletsTaken {
            owner: c,
            taken: vec![(high, LogPosition(900))],
        })
        .unwrap();
    let served = (c, TabletState::Normal, LogPosition(500));
    assert_eq!(states(&state, table), [waits, served]);

    state.apply(&Command::Fenced { server: dead }).unwrap();
    assert!(!is_recovered(&state, dead), "a tablet waits for its log");
    let list = state.list_version();
    state.apply(&recovered(dead, 1, b, &[(low, 600)])).unwrap();
    assert!(is_recovered(&state, dead) && state.list_version() > list);
    assert!(state.recoveries().by_master(dead).is_none());
}

#[test]
fn where_a_log_ends_is_decided_once() {
    let (mut state, dead, [b, c], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    let other = state.apply(&plan(dead, 8, &[(&[whole], c)]));
    assert!(matches!(other, Err(Refused::Invalid(_))), "{other:?}");
    let again = state.apply(&plan(dead, 7, &[(&[whole], c)]));
    assert!(matches!(again, Err(Refused::Invalid(_))), "{again:?}");
    assert_eq!(state.recoveries().by_master(dead).unwrap().end, end(7));
}

#[test]
fn a_plan_tiles_whole_tablets_that_are_down() {
    let (mut state, dead, [b, c], table) = crashed();
    let before = postcards::encode(&state);
    let bad: [&[TabletGrant]; 5] = [
        &[range(table, 0, 99)],
        &[range(table, 1, u64::MAX)],
        &[range(table, 0, 99), range(table, 101, u64::MAX)],
        &[range(table, 0, 99), range(table, 99, u64::MAX)],
        &[],
    ];
    for grants in bad {
        let outcome = state.apply(&plan(dead, 7, &[(grants, b)]));
        assert!(matches!(outcome, Err(Refused::Invalid(_))), "{grants:?}");
    }
    let whole = range(table, 0, u64::MAX);
    let living = state.apply(&plan(b, 7, &[(&[whole], c)]));
    assert!(matches!(living, Err(Refused::Invalid(_))), "{living:?}");
    let by_the_dead = state.apply(&plan(dead, 7, &[(&[whole], dead)]));
    assert_eq!(by_the_dead, Err(Refused::Crashed));
    assert_eq!(postcards::encode(&state), before);
}

#[test]
fn who_was_given_up_gets_nothing() {
    let (mut state, dead, [b, c], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    let assign = |attempt, by| Command::AssignRecovery {
        master: dead,
        attempt,
        by,
    };
    state.apply(&assign(1, c)).unwrap();
    let stale = state.apply(&assign(1, b));
    assert!(matches!(stale, Err(Refused::Invalid(_))), "{stale:?}");
    let late = state.apply(&recovered(dead, 1, b, &[(whole, 500)]));
    assert!(matches!(late, Err(Refused::Invalid(_))), "{late:?}");
    let not_its_own = state.apply(&recovered(dead, 2, b, &[(whole, 500)]));
    assert!(matches!(not_its_own, Err(Refused::Invalid(_))));
    state.apply(&Command::DeclareCrashed { server: c }).unwrap();
    let dead_too = state.apply(&recovered(dead, 2, c, &[(whole, 500)]));
    assert_eq!(dead_too, Err(Refused::Crashed));
    assert_eq!(state.apply(&assign(2, c)), Err(Refused::Crashed));
    state.apply(&assign(2, b)).unwrap();
    state
        .apply(&recovered(dead, 3, b, &[(whole, 500)]))
        .unwrap();
    let owner = (b, TabletState::Assigning, LogPosition(500));
    assert_eq!(states(&state, table), [owner]);
}

#[test]
fn a_recovery_master_that_crashes_is_recovered_from_where_its_replay_began() {
    let (mut state, dead, [b, c], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    state
        .apply(&recovered(dead, 1, b, &[(whole, 500)]))
        .unwrap();
    state.apply(&Command::DeclareCrashed { server: b }).unwrap();
    assert_eq!(
        states(&state, table),
        [(b, TabletState::Down, LogPosition(500))]
    );
    state.apply(&plan(b, 9, &[(&[whole], c)])).unwrap();
    let part = &state.recoveries().by_master(b).unwrap().partitions[0];
    assert_eq!(part.tablets[0].takeover, LogPosition(500));
}

#[test]
fn a_recovery_goes_on_without_a_table_that_is_dropped() {
    let (mut state, dead, [b, _], table) = crashed();
    state.apply(&Command::Fenced { server: dead }).unwrap();
    let whole = range(table, 0, u64::MAX);
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    state.apply(&drop_once("t", None)).unwrap();
    assert!(state.table(table).is_none(), "its owner is fenced");
    assert!(state.recoveries().by_master(dead).is_none());
    assert!(is_recovered(&state, dead));
    let late = state.apply(&recovered(dead, 1, b, &[(whole, 500)]));
    assert!(matches!(late, Err(Refused::Invalid(_))), "{late:?}");
}

#[test]
fn a_crashed_server_without_tablets_is_recovered_once_it_is_fenced() {
    let mut state = bootstrapped();
    let dead = up(&mut state, 1);
    state
        .apply(&Command::DeclareCrashed { server: dead })
        .unwrap();
    assert!(!is_recovered(&state, dead));
    state.apply(&Command::Fenced { server: dead }).unwrap();
    assert!(is_recovered(&state, dead));
}

#[test]
fn a_retried_enlistment_gets_the_same_id_and_key() {
    let mut state = bootstrapped();
    let first = joined(&mut state, 1);
    let retry = match enlist(1, None) {
        Command::Enlist { request, .. } => Command::Enlist {
            request,
            key: CertificateKey([9; 32]),
        },
        other => other,
    };
    assert_eq!(state.apply(&retry), Ok(Applied::Server(first)));
    assert_eq!(
        state.servers().by_id(first).unwrap().key,
        CertificateKey([1; 32])
    );
    assert_ne!(joined(&mut state, 2), first);
}

#[test]
fn who_comes_back_with_a_directory_ends_its_predecessor_in_the_same_command() {
    let mut state = bootstrapped();
    let old = up(&mut state, 1);
    let applied = state.apply(&enlist(2, Some(old.0))).unwrap();
    assert_ne!(applied, Applied::Server(old));
    assert_eq!(state.living(old).err(), Some(Refused::Crashed));
    let unknown = state.apply(&enlist(3, Some(99)));
    assert!(matches!(unknown, Err(Refused::Invalid(_))));
}

#[test]
fn a_table_is_cut_over_all_ready_masters_and_no_others() {
    let mut state = bootstrapped();
    assert_eq!(state.apply(&create("t")), Err(Refused::NoMaster));
    let ready: BTreeSet<_> = (1..=3).map(|nonce| up(&mut state, nonce)).collect();
    joined(&mut state, 4);
    up(&mut state, 5); // a backup only
    let Ok(Applied::Table(table)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    let owners: BTreeSet<_> = grants(&state, table).into_iter().map(|(o, _)| o).collect();
    assert_eq!(owners, ready);
    assert_eq!(
        state.apply(&create("t")),
        Ok(Applied::Table(table)),
        "it is there"
    );
}

#[test]
fn those_with_fewest_tablets_come_first() {
    let mut state = bootstrapped();
    let first = up(&mut state, 1);
    state.apply(&create("a")).unwrap();
    let second = up(&mut state, 2);
    let Ok(Applied::Table(table)) = state.apply(&create("b")) else {
        panic!("no table");
    };
    let owners: Vec<_> = grants(&state, table).into_iter().map(|(o, _)| o).collect();
    assert_eq!(owners, [second, first]);
}

#[test]
fn nothing_is_done_for_the_dead() {
    let mut state = bootstrapped();
    let (dead, other) = (up(&mut state, 1), up(&mut state, 2));
    let joining = joined(&mut state, 3);
    let Ok(Applied::Table(table)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    state.apply(&epoch(dead, 1, 2, &[other])).unwrap();
    for server in [dead, joining] {
        state.apply(&Command::DeclareCrashed { server }).unwrap();
    }
    let grant = grants(&state, table)
        .into_iter()
        .find(|(o, _)| *o == dead)
        .unwrap()
        .1;
    let before = postcards::encode(&state);
    let commands = [
        epoch(dead, 1, 3, &[other]),
        epoch(dead, 1, 2, &[other]),
        Command::RaiseFloor {
            master: dead,
            segment: SegmentId(2),
            epoch: ReplicationEpoch(1),
        },
        Command::ServerReady { server: joining },
        taken(dead, grant),
        Command::TableDropped { table, owner: dead },
        enlist(1, None),
    ];
    for command in commands {
        assert_eq!(state.apply(&command), Err(Refused::Crashed), "{command:?}");
    }
    assert_eq!(postcards::encode(&state), before);
    // Nor may a living master count on a dead backup.
    assert!(matches!(
        state.apply(&epoch(other, 1, 2, &[dead])),
        Err(Refused::Invalid(_))
    ));
}

#[test]
fn a_crashed_owners_tablets_are_down_and_stay_its_own() {
    let mut state = bootstrapped();
    let (dead, _) = (up(&mut state, 1), up(&mut state, 2));
    let Ok(Applied::Table(table)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    let version = state.map_version();
    state
        .apply(&Command::DeclareCrashed { server: dead })
        .unwrap();
    assert!(state.map_version() > version);
    for tablet in &state.table(table).unwrap().table.tablets {
        assert_eq!(tablet.state == TabletState::Down, tablet.owner == dead);
    }
}

#[test]
fn an_epoch_only_grows_and_the_same_one_may_be_said_again() {
    let mut state = bootstrapped();
    let (master, b, c) = (up(&mut state, 1), up(&mut state, 2), up(&mut state, 3));
    assert_eq!(state.apply(&epoch(master, 7, 2, &[b])), Ok(Applied::Done));
    assert_eq!(state.apply(&epoch(master, 7, 2, &[b])), Ok(Applied::Done));
    assert_eq!(state.apply(&epoch(master, 7, 2, &[c])), Err(Refused::Epoch));
    assert_eq!(state.apply(&epoch(master, 7, 1, &[c])), Err(Refused::Epoch));
    assert_eq!(state.apply(&epoch(master, 7, 3, &[c])), Ok(Applied::Done));
    assert_eq!(
        state.apply(&epoch(master, 8, 1, &[b])),
        Ok(Applied::Done),
        "of its own"
    );
    for backups in [&[][..], &[master], &[b, b], &[ServerId(99)]] {
        let outcome = state.apply(&epoch(master, 9, 1, backups));
        assert!(matches!(outcome, Err(Refused::Invalid(_))), "{backups:?}");
    }
}

#[test]
fn a_floor_only_rises_and_frees_the_epochs_below_it() {
    let mut state = bootstrapped();
    let (master, b) = (up(&mut state, 1), up(&mut state, 2));
    for segment in 1..=4 {
        state.apply(&epoch(master, segment, 2, &[b])).unwrap();
    }
    let raise = |segment| Command::RaiseFloor {
        master,
        segment: SegmentId(segment),
        epoch: ReplicationEpoch(2),
    };
    state.apply(&raise(3)).unwrap();
    state.apply(&raise(2)).unwrap();
    let found = state.servers().by_id(master).unwrap();
    assert_eq!(found.floor, Some((SegmentId(3), ReplicationEpoch(2))));
    assert_eq!(
        found.epochs.keys().copied().collect::<Vec<_>>(),
        [SegmentId(3), SegmentId(4)]
    );
    assert_eq!(state.apply(&epoch(master, 2, 9, &[b])), Err(Refused::Epoch));
}

#[test]
fn a_table_is_gone_when_every_owner_let_go_or_is_fenced() {
    let mut state = bootstrapped();
    let (one, two) = (up(&mut state, 1), up(&mut state, 2));
    let Ok(Applied::Table(table)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    let drop = drop_once("t", None);
    state.apply(&drop).unwrap();
    assert_eq!(state.apply(&drop), Ok(Applied::Table(table)), "under way");
    assert!(
        state.apply(&create("t")).is_err(),
        "the name is not free yet"
    );
    state
        .apply(&Command::TableDropped { table, owner: one })
        .unwrap();
    state
        .apply(&Command::DeclareCrashed { server: two })
        .unwrap();
    assert!(state.table(table).is_some(), "a zombie may still serve it");
    state.apply(&Command::Fenced { server: two }).unwrap();
    assert!(state.table(table).is_none());
    assert_eq!(state.apply(&drop), Err(Refused::NoSuchTable));
    let again = state.apply(&create("t"));
    assert!(matches!(again, Ok(Applied::Table(new)) if new > table));
}

/// All owners let go of a table.
fn let_go(state: &mut State, table: TableId) {
    for (owner, _) in grants(state, table) {
        state
            .apply(&Command::TableDropped { table, owner })
            .unwrap();
    }
}

#[test]
fn what_a_client_repeats_runs_once() {
    let mut state = bootstrapped();
    up(&mut state, 1);
    let client = leased(&mut state, 1);
    let Ok(Applied::Table(first)) = state.apply(&create_once("t", once(client, 1))) else {
        panic!("no table");
    };
    let dropped = state.apply(&drop_once("t", once(client, 2)));
    assert_eq!(dropped, Ok(Applied::Table(first)));
    let_go(&mut state, first);
    let Ok(Applied::Table(second)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    let before = postcards::encode(&state);
    for (again, ran) in [
        (create_once("t", once(client, 1)), first),
        (drop_once("t", once(client, 2)), first),
    ] {
        assert_eq!(state.apply(&again), Ok(Applied::Table(ran)));
    }
    assert_eq!(postcards::encode(&state), before);
    assert!(state.table(second).is_some());
    // Nor does a late one whose result the client has, or that of a client that is gone.
    let received = Some(Once {
        client,
        sequence: 9,
        acked: 3,
    });
    let missing = state.apply(&drop_once("u", received));
    assert_eq!(missing, Err(Refused::NoSuchTable));
    let late = state.apply(&drop_once("t", once(client, 2)));
    assert!(matches!(late, Err(Refused::Invalid(_))), "{late:?}");
    state.apply(&Command::ExpireClientLease { client }).unwrap();
    let late = state.apply(&drop_once("t", once(client, 9)));
    assert_eq!(late, Err(Refused::Unknown));
    assert!(state.table(second).is_some());
}

#[test]
fn a_table_that_could_not_be_made_while_its_name_was_taken_can_be_made_later() {
    let mut state = bootstrapped();
    up(&mut state, 1);
    let client = leased(&mut state, 1);
    let Ok(Applied::Table(first)) = state.apply(&create("t")) else {
        panic!("no table");
    };
    state.apply(&drop_once("t", None)).unwrap();
    let wish = create_once("t", once(client, 1));
    assert!(state.apply(&wish).is_err(), "the name is not free yet");
    let_go(&mut state, first);
    let Ok(Applied::Table(second)) = state.apply(&wish) else {
        panic!("the same wish is not granted when it can be");
    };
    assert!(second > first);
    assert_eq!(state.apply(&wish), Ok(Applied::Table(second)), "once");
}

#[test]
fn the_oldest_crashed_servers_are_forgotten_but_still_known_to_be_dead() {
    let mut state = bootstrapped();
    let enlisted = |number: u64| {
        let mut command = enlist(1, (number > 1).then(|| number - 1));
        if let Command::Enlist { request, .. } = &mut command {
            request.nonce[..8].copy_from_slice(&number.to_le_bytes());
        }
        command
    };
    for number in 1..=1_000 {
        let Ok(Applied::Server(server)) = state.apply(&enlisted(number)) else {
            panic!("refused");
        };
        assert_eq!(server, ServerId(number));
        if number > 1 {
            let server = ServerId(number - 1);
            state.apply(&Command::Fenced { server }).unwrap();
        }
    }
    assert!(state.servers().iter().count() < 300);
    assert_eq!(state.living(ServerId(1)).err(), Some(Refused::Crashed));
    assert!(state.servers().by_id(ServerId(1)).is_none());
    assert_eq!(state.living(ServerId(1_001)).err(), Some(Refused::Unknown));
}

#[test]
fn the_server_list_is_bounded_in_bytes() {
    let mut state = bootstrapped();
    let mut refused = None;
    for number in 0..5_000_u64 {
        let mut command = enlist(1, None);
        if let Command::Enlist { request, .. } = &mut command {
            request.nonce[..8].copy_from_slice(&number.to_le_bytes());
            request.addresses = vec!["x".repeat(256); 4];
        }
        if let Err(why) = state.apply(&command) {
            refused = Some(why);
            break;
        }
    }
    assert!(matches!(refused, Some(Refused::Limit(_))));
    let list = postcards::encode(&state.server_list()).len();
    assert!(
        list <= ramkeep_coordinator::limits::MAX_LIST_BYTES,
        "{list}"
    );
}

#[test]
fn the_tablet_map_is_bounded_in_bytes() {
    let mut state = bootstrapped();
    (1..=100).for_each(|nonce| {
        up(&mut state, nonce);
    });
    let outcome = (0..20_000).find_map(|n| state.apply(&create(&format!("table {n}"))).err());
    assert!(matches!(outcome, Some(Refused::Limit(_))));
    let map = postcards::encode(&state.tablet_map()).len();
    assert!(map <= ramkeep_wire::limits::MAX_PAYLOAD, "{map}");
}

#[test]
fn golden_commands_never_change() {
    let golden = Some(Once {
        client: ClientId(7),
        sequence: 3_840,
        acked: 2,
    });
    let commands = vec![
        Command::Bootstrap {
            cluster: ClusterId([1; 16]),
            settings: default_settings(),
        },
        Command::Lead {
            ballot: ramkeep_wire::Ballot {
                round: 1,
                peer: ramkeep_wire::PeerId(1),
            },
        },
        enlist(1, Some(3)),
        Command::DeclareCrashed {
            server: ServerId(1),
        },
        Command::Fenced {
            server: ServerId(1),
        },
        Command::ServerReady {
            server: ServerId(2),
        },
        create("t"),
        create_once("t", golden),
        Command::TabletsTaken {
            owner: ServerId(2),
            taken: vec![(
                TabletGrant {
                    table: TableId(1),
                    first: KeyHash(0),
                    last: KeyHash(u64::MAX),
                },
                LogPosition(5),
            )],
        },
        drop_once("t", None),
        drop_once("t", golden),
        Command::TableDropped {
            table: TableId(1),
            owner: ServerId(2),
        },
        epoch(ServerId(2), 7, 3, &[ServerId(4)]),
        Command::RaiseFloor {
            master: ServerId(2),
            segment: SegmentId(7),
            epoch: ReplicationEpoch(3),
        },
        Command::OpenClientLease { nonce: [2; 16] },
        Command::ExpireClientLease {
            client: ClientId(1),
        },
        plan(
            ServerId(2),
            9,
            &[(&[range(TableId(1), 0, u64::MAX)], ServerId(3))],
        ),
        Command::AssignRecovery {
            master: ServerId(2),
            attempt: 1,
            by: ServerId(3),
        },
        recovered(
            ServerId(2),
            2,
            ServerId(3),
            &[(range(TableId(1), 0, u64::MAX), 5)],
        ),
    ];
    let hex: String = commands
        .iter()
        .map(|command| {
            let bytes = postcards::encode(command);
            bytes.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n"
        })
        .collect();
    assert_eq!(hex, include_str!("golden/commands.hex"));
}

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
        2 => (any_server(), 1..6_u32, any_server()).prop_map(|(master, attempt, by)| {
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
        Command::AssignRecovery { attempt, .. } => {
            let mut planned = state.recoveries().iter();
            let part = planned.find_map(|(master, record)| {
                let at = *attempt as usize % (record.partitions.len() + 1);
                Some((master, record.partitions.get(at)?.clone()))
            });
            match part {
                Some((master, part)) if attempt % 2 == 0 => {
                    let taken: Vec<_> = part.tablets.iter().map(|lost| (lost.range, 99)).collect();
                    recovered(master, part.attempt, part.by, &taken)
                }
                _ => command.clone(),
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
        let count = given.len();
        let given: BTreeSet<_> = given.into_iter().collect();
        if given.len() != count || !waiting.is_subset(&given) || !lost.iter().any(|t| own(&t)) {
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
