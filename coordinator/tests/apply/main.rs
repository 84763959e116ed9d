//! The state machine alone: what any sequence of commands must leave true.
#![allow(clippy::unwrap_used, reason = "helpers of tests panic like tests")]

mod clients;
mod properties;
mod recoveries;
mod tries;

use std::collections::BTreeSet;

use ramkeep_coordinator::core::default_settings;
use ramkeep_coordinator::{Applied, Command, State};
use ramkeep_wire::certificate::Certificate;
use ramkeep_wire::coordinator::{
    AcceptedLoss, Enlist, Loss, Once, Refused, Roles, ServerState, TabletState,
};
use ramkeep_wire::order::{LogEnd, TabletGrant};
use ramkeep_wire::{
    CertificateKey, ClientId, ClusterId, KeyHash, LogPosition, ReplicationEpoch, SegmentId,
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
    let address = format!("127.0.0.1:{}", 7_000 + u16::from(nonce));
    Command::Enlist {
        request: Enlist {
            roles: Roles {
                master: !nonce.is_multiple_of(5),
                backup: true,
            },
            replaces: replaces.map(ServerId),
            frames: 10,
            memory: 1 << 26,
            ..Enlist::server([nonce; 16], address)
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

#[test]
fn tables_are_gone_together_when_their_owners_let_go_of_them_together() {
    let mut state = bootstrapped();
    let (one, two) = (up(&mut state, 1), up(&mut state, 2));
    let tables: Vec<TableId> = ["a", "b", "c"]
        .map(|name| match state.apply(&create(name)) {
            Ok(Applied::Table(table)) => table,
            other => panic!("{other:?}"),
        })
        .to_vec();
    for name in ["a", "b"] {
        state.apply(&drop_once(name, None)).unwrap();
    }
    let dropped = |owner| Command::TablesDropped {
        owner,
        tables: tables.clone(),
    };
    let before = state.map_version();
    assert_eq!(state.apply(&dropped(one)), Ok(Applied::Done));
    assert_eq!(
        state.map_version(),
        before,
        "the other may still serve them"
    );
    assert_eq!(state.apply(&dropped(two)), Ok(Applied::Done));
    assert_eq!(state.map_version().0, before.0 + 1, "one change");
    let left: Vec<TableId> = state.tables().iter().map(|r| r.table.table).collect();
    assert_eq!(left, tables[2..], "nobody has asked for c to be dropped");
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
        Command::AcceptLoss(AcceptedLoss {
            master: ServerId(2),
            loss: Loss {
                dead: vec![ServerId(3), ServerId(4)],
                segments: vec![SegmentId(7)],
                tail: true,
            },
        }),
        Command::GiveUpPlan {
            master: ServerId(2),
            end: end(9),
        },
        Command::GiveBackPartition {
            master: ServerId(2),
            attempt: 3,
        },
        Command::TablesDropped {
            owner: ServerId(2),
            tables: vec![TableId(1), TableId(300)],
        },
    ];
    let hex: String = commands
        .iter()
        .map(|command| {
            let bytes = postcards::encode(command);
            bytes.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n"
        })
        .collect();
    assert_eq!(hex, include_str!("../golden/commands.hex"));
}
