//! A group of coordinators: what one begins the next one ends, whatever becomes of any one of them.

use paxos::Incarnation;
use ramkeep_coordinator::limits::{MAX_UNWRITTEN_BYTES, SNAPSHOT_AFTER};
use ramkeep_wire::coordinator::{Answer, Once, Refused, Request, TabletState};
use ramkeep_wire::{MapVersion, PeerId, ReplicationEpoch, SegmentId};

use crate::world::*;

fn replace(lost: u32, by: u32) -> Request {
    Request::ReplaceCoordinator {
        lost: PeerId(lost),
        by: PeerId(by),
    }
}

#[test]
fn one_leads_and_the_others_say_where_it_is() {
    let mut world = World::group();
    let leader = world.leader();
    assert!(matches!(
        world.answer(Request::Status),
        Answer::Status(status) if status.leader == PeerId(leader)
    ));
    for other in world.others() {
        let token = world.ask_of(other, Request::Status);
        let redirect = Refused::NotLeader {
            leader: Some(address(leader)),
            coordinators: (1..=3).map(address).collect(),
            why: None,
        };
        assert_eq!(
            world.given_by(other, token),
            Some(Answer::Refused(redirect))
        );
    }
    let constants = |peer| world.core(peer).state().constants().cloned();
    assert!(constants(1).is_some() && constants(1) == constants(2) && constants(2) == constants(3));
}

#[test]
fn another_leader_goes_on_with_what_one_had_begun() {
    let mut world = World::group();
    let servers = [world.up(1), world.up(2)];
    let first = world.leader();
    let record = Request::RecordEpoch {
        master: servers[0],
        segment: SegmentId(1),
        epoch: ReplicationEpoch(2),
        backups: vec![servers[1]],
    };
    assert_eq!(world.answer(record.clone()), Answer::EpochRecorded);
    world.ask_of(first, create("t", None));
    world.run(10);
    let given = world.orders_of(first, is_take);
    assert_eq!(given.len(), 2);
    world.obey_one(first, &given[0]);
    world.run(10);

    let second = world.fail_over();
    let again = world.orders_of(second, is_take);
    assert!(!again.is_empty());
    for (server, order) in &again {
        assert_eq!((*server, &order.command), (servers[1], &given[1].1.command));
        assert_eq!(order.ballot, world.core(second).ballot());
        assert!(order.ballot > given[1].1.ballot);
    }
    world.obey_one(second, &again[0]);
    let table = table_of(Some(world.answer(create("t", None))));
    assert!(table.tablets.iter().all(|t| t.state == TabletState::Normal));
    assert_eq!(world.enlist(1), servers[0], "its nonce is known");
    assert_eq!(world.answer(record), Answer::EpochRecorded, "said again");
    let epochs = &world.core(second).state().servers().by_id(servers[0]);
    assert_eq!(epochs.unwrap().epochs.len(), 1);
}

#[test]
fn a_server_whose_enlistment_was_not_answered_enlists_once() {
    let mut world = World::group();
    let first = world.leader();
    let token = world.ask_of(first, enlist(1));
    // The others accept it, but that is not heard of any more.
    world.run(1);
    assert_eq!(world.given_by(first, token), None);
    world.fail_over();
    let server = world.enlist(1);
    let state = world.core(world.leader()).state();
    assert_eq!(
        state.servers().iter().map(|(id, _)| id).collect::<Vec<_>>(),
        [server]
    );
}

#[test]
fn a_request_that_is_repeated_to_the_next_leader_runs_once() {
    let mut world = World::group();
    world.up(1);
    let client = world.lease(1);
    let once = |sequence| {
        Some(Once {
            client,
            sequence,
            acked: 0,
        })
    };
    let first = world.leader();
    world.ask_of(first, create("t", once(1)));
    world.run(10);
    world.obey(first, is_take);
    world.run(10);

    let second = world.fail_over();
    let made = table_of(Some(world.answer(create("t", once(1)))));
    let dropped = world.ask_of(second, drop_table("t", once(2)));
    world.run(10);
    world.obey(second, is_drop);
    world.run(10);
    assert_eq!(world.given_by(second, dropped), Some(Answer::Dropped));
    let token = world.ask_of(second, create("t", once(3)));
    world.run(10);
    world.obey(second, is_take);
    world.run(10);
    let remade = table_of(world.given_by(second, token));
    assert!(remade.table > made.table);

    world.start(first);
    world.run(SETTLED);
    world.fail_over();
    assert_eq!(world.answer(drop_table("t", once(2))), Answer::Dropped);
    world.run(50);
    let leader = world.leader();
    let record = world.core(leader).state().table(remade.table).unwrap();
    assert!(record.is_normal(), "the new table has no part in it");
    assert_eq!(world.orders_of(leader, is_drop), []);
}

#[test]
fn a_leader_without_its_lease_answers_nothing_from_its_state() {
    let mut world = World::group();
    let old = world.leader();
    world.cut.insert(old);
    world.run(201);
    assert!(world.core(old).leads(), "it does not know better");
    for request in [
        Request::Status,
        Request::Map {
            known: MapVersion(0),
        },
    ] {
        let token = world.ask_of(old, request);
        let (_, until) = world.machines[&old].answers[&token];
        assert!(until.is_some_and(|until| until <= world.now), "{until:?}");
    }
    world.run(SETTLED);
    assert_ne!(world.leader(), old);
    assert!(!world.core(old).leads());
    let token = world.ask_of(old, Request::Status);
    assert!(is_not_leader(world.given_by(old, token).as_ref()));
}

#[test]
fn all_that_waits_at_a_leader_is_answered_when_it_leads_no_more() {
    let mut world = World::group();
    world.up(1);
    let old = world.leader();
    let waits = world.ask_of(old, create("t", None));
    world.run(10);
    let replacing = world.ask_of(old, replace(world.others()[0], 9));
    assert!(
        world.given_by(old, replacing).is_some(),
        "there is no such one"
    );
    world.cut.insert(old);
    let proposed = world.ask_of(old, drop_table("u", None));
    let read = world.ask_of(old, Request::Status);
    world.run(SETTLED);
    for token in [waits, proposed] {
        assert!(
            is_not_leader(world.given_by(old, token).as_ref()),
            "{token}"
        );
    }
    assert!(world.machines[&old].answers.contains_key(&read));
    world.machine(old).orders.clear();
    world.run(SETTLED);
    assert_eq!(
        world.machines[&old].orders,
        [],
        "nor does it order anything"
    );
    world.cut.clear();
    world.run(SETTLED);
    let state = |peer| world.core(peer).state().clone();
    assert_eq!(state(old), state(world.leader()));
}

#[test]
fn status_says_who_is_in_the_group_and_how_far_each_is() {
    let mut world = World::group();
    world.up(1);
    let away = world.others()[0];
    world.stop(away);
    world.run(1_000);
    world.enlist(2);
    world.run(100);
    let status = world.status();
    assert_eq!(status.leader, PeerId(world.leader()));
    let peers: Vec<_> = status.coordinators.iter().map(|c| c.peer.0).collect();
    assert_eq!(peers, [1, 2, 3]);
    for report in &status.coordinators {
        assert!(report.member);
        assert_eq!(report.address, address(report.peer.0));
        let is_away = report.peer.0 == away;
        assert_eq!(report.silent_us.is_some_and(|us| us > 900_000), is_away);
        assert_eq!(report.decided < Some(status.decided), is_away);
    }
}

/// Another is started and has learned.
fn with_a_fourth(world: &mut World) {
    world.add(4, peers(4));
    world.run(SETTLED);
    let status = world.status();
    let fourth = status.coordinators.last().unwrap();
    assert_eq!((fourth.peer, fourth.member), (PeerId(4), false));
    assert_eq!(fourth.decided, Some(status.decided));
}

#[test]
fn one_that_has_learned_takes_the_place_of_one_that_is_lost() {
    let mut world = World::group();
    let server = world.up(1);
    let lost = world.others()[0];
    world.stop(lost);
    let early = world.answer(replace(lost, 4));
    assert!(
        matches!(early, Answer::Refused(Refused::Limit(_))),
        "{early:?}"
    );
    with_a_fourth(&mut world);
    assert_eq!(world.answer(replace(lost, 4)), Answer::Noted);
    assert_eq!(
        world.answer(replace(lost, 4)),
        Answer::Noted,
        "done is done"
    );
    let members = world.status().coordinators;
    assert!(members.iter().all(|c| c.member && c.peer.0 != lost));

    // It counts: with it the group goes on without another one, however soon that is lost too.
    world.fail_over();
    assert_eq!(world.enlist(1), server);
    let others = world.others();
    assert!(others == [4] || world.leader() == 4);

    world.start(lost);
    world.run(SETTLED);
    assert!(world.machines[&lost].removed, "it is told that it is out");
}

#[test]
fn a_coordinator_that_leads_or_is_not_there_is_not_replaced() {
    let mut world = World::group();
    with_a_fourth(&mut world);
    let leader = world.leader();
    for lost in [leader, 7] {
        let answer = world.answer(replace(lost, 4));
        assert!(
            matches!(answer, Answer::Refused(Refused::Invalid(_))),
            "{answer:?}"
        );
    }
}

#[test]
fn one_whose_disk_was_wiped_comes_back_as_another() {
    let mut world = World::group();
    let server = world.up(1);
    let wiped = world.others()[0];
    let before = world.core(wiped).node().setup().incarnation;
    world.wipe(wiped);
    world.start(wiped);
    world.run(SETTLED);
    let after = Incarnation(world.machines[&wiped].incarnation);
    assert_ne!(after, before);
    let node = world.core(world.leader()).node();
    assert!(node.group().unwrap().contains(paxos::PeerId(wiped), after));
    // It counts, and has what it must have.
    let second = world.fail_over();
    assert_eq!(world.enlist(1), server);
    assert!(second == wiped || world.others() == [wiped]);
}

/// Enough commands that the state is saved, and what is before it is not kept.
const MUCH: usize = SNAPSHOT_AFTER + paxos::limits::KEPT_BYTES + 100_000;

/// Has the leader decide so many bytes of commands.
fn decide(world: &mut World, bytes: usize) {
    let leader = world.leader();
    let mut written = 0;
    for n in 0_u32.. {
        let name = format!("{n:0>250}");
        written += name.len();
        // Refused, but decided all the same.
        world.ask_of(leader, drop_table(&name, None));
        if n.is_multiple_of(200) {
            world.run(3);
        }
        if written > bytes {
            break;
        }
    }
    world.run(100);
}

#[test]
fn one_that_was_away_for_long_catches_up_by_a_snapshot() {
    let mut world = World::group();
    world.up(1);
    let away = world.others()[0];
    world.stop(away);
    decide(&mut world, MUCH);
    world.up(2);
    let leader = world.leader();
    let saved = world.machines[&leader].disk.snapshot.as_ref().unwrap();
    let trimmed = saved.slot;
    assert!(world.machines[&away].disk.snapshot.is_none());
    world.start(away);
    world.run(SETTLED);
    let caught_up = world.machines[&away].disk.snapshot.as_ref().unwrap();
    assert_eq!(caught_up.slot, trimmed);
    assert_eq!(world.core(away).state(), world.core(world.leader()).state());

    // It goes on from its disk as any other does, and can lead.
    world.stop(away);
    world.start(away);
    world.run(SETTLED);
    let state = world.core(world.leader()).state().clone();
    world.fail_over();
    assert_eq!(world.core(away).state().server_list(), state.server_list());
}

#[test]
fn a_whole_group_that_was_killed_goes_on() {
    let mut world = World::group();
    let server = world.up(1);
    world.ask_of(world.leader(), create("t", None));
    world.run(10);
    for peer in 1..=3 {
        world.stop(peer);
    }
    for peer in 1..=3 {
        world.start(peer);
    }
    world.run(SETTLED);
    let leader = world.leader();
    let orders = world.obey(leader, is_take);
    assert!(orders.iter().all(|(to, _)| *to == server) && !orders.is_empty());
    let table = table_of(Some(world.answer(create("t", None))));
    assert_eq!(table.tablets[0].owner, server);
}

/// What a peer may have unwritten beyond the bound: what was on its way when it was reached.
const SLACK: usize = 2 << 20;

#[test]
fn one_whose_disk_hangs_keeps_a_bounded_part_and_catches_up() {
    let mut world = World::group();
    let slow = world.others()[0];
    world.machine(slow).hold_disk = true;
    decide(&mut world, MAX_UNWRITTEN_BYTES + 2 * SLACK);
    let unwritten = world.unwritten(slow);
    assert!(unwritten > MAX_UNWRITTEN_BYTES / 2, "{unwritten}");
    assert!(unwritten < MAX_UNWRITTEN_BYTES + SLACK, "{unwritten}");
    world.machine(slow).hold_disk = false;
    world.sync(slow);
    world.run(SETTLED);
    assert_eq!(world.core(slow).state(), world.core(world.leader()).state());
}

#[test]
fn a_leader_whose_disk_hangs_refuses_before_it_has_too_much() {
    let mut world = World::group();
    let leader = world.leader();
    world.machine(leader).hold_disk = true;
    decide(&mut world, MAX_UNWRITTEN_BYTES + 2 * SLACK);
    let unwritten = world.unwritten(leader);
    assert!(unwritten < MAX_UNWRITTEN_BYTES + SLACK, "{unwritten}");
    world.run(SETTLED);
    assert_ne!(world.leader(), leader, "one whose disk works leads");
    world.machine(leader).hold_disk = false;
    world.sync(leader);
    world.run(SETTLED);
    assert_eq!(
        world.core(leader).state(),
        world.core(world.leader()).state()
    );
}
