//! What a leader keeps, and when it leads no more.

use super::*;

#[test]
fn a_floor_is_recorded_when_it_changed_and_only_then() {
    let mut world = World::alone();
    let server = world.up(1);
    let mut report = heartbeat(server, world.state().list_version());
    report.floor = Some((SegmentId(3), ReplicationEpoch(1)));
    let before = world.only().persists;
    for _ in 0..5 {
        world.answer(Request::Heartbeat(report.clone()));
    }
    assert_eq!(world.only().persists, before + 1);
    assert_eq!(
        world.state().servers().by_id(server).unwrap().floor,
        report.floor
    );
}

#[test]
fn a_server_speaks_for_itself_only() {
    let mut world = World::alone();
    let (one, other) = (world.up(1), world.up(2));
    let record = |master| Request::RecordEpoch {
        master,
        segment: SegmentId(1),
        epoch: ReplicationEpoch(2),
        backups: vec![if master == one { other } else { one }],
    };
    let own = world.ask_from(ALONE, Party::server(one), record(one));
    assert_eq!(world.given(own), Some(Answer::EpochRecorded));
    let foreign = world.ask_from(ALONE, Party::server(one), record(other));
    assert!(matches!(
        world.given(foreign),
        Some(Answer::Refused(Refused::Invalid(_)))
    ));
}

#[test]
fn a_coordinator_whose_ballot_was_overtaken_says_nothing_more() {
    let mut world = World::alone();
    let server = world.up(1);
    let waits = world.create("t");
    let ours = world.core(ALONE).ballot();
    world.tell(server, &Command::Probe, OrderReply::StaleBallot(ours));
    assert!(
        world.core(ALONE).leads(),
        "an old order met this very leader"
    );
    let higher = Ballot {
        round: ours.round + 5,
        peer: PeerId(2),
    };
    world.tell(server, &Command::Probe, OrderReply::StaleBallot(higher));
    let told = world.given(waits);
    assert!(
        matches!(told, Some(Answer::Refused(Refused::NotLeader { .. }))),
        "who waits is told: {told:?}"
    );
    assert!(matches!(
        world.answer(Request::Status),
        Answer::Refused(Refused::NotLeader { .. })
    ));
    world.only().orders.clear();
    world.run(10_000);
    assert!(world.only().orders.is_empty());
}

#[test]
fn a_client_lease_lasts_while_it_is_renewed() {
    let mut world = World::alone();
    let (client, left) = (world.lease(1), world.lease(2));
    let lease = CLIENT_LEASE.as_millis() as u64;
    world.run(lease / 2);
    assert_eq!(
        world.answer(Request::RenewClientLease { client }),
        Answer::Noted
    );
    world.run(lease * 3 / 4);
    assert!(world.state().clients().holds(client));
    assert!(!world.state().clients().holds(left));
    let renew = Request::RenewClientLease { client: left };
    assert_eq!(world.answer(renew), Answer::Refused(Refused::Unknown));
    world.restart();
    world.run(lease / 2);
    assert!(
        world.state().clients().holds(client),
        "its time starts afresh"
    );
}

#[test]
fn a_snapshot_and_what_came_after_make_the_same_state() {
    let mut world = World::alone();
    world.up(1);
    let mut written = 0;
    for n in 0_u32.. {
        let name = format!("{n:0>250}");
        written += name.len();
        // Refused, but decided and journaled all the same.
        world.drop_table(&name);
        if written > SNAPSHOT_AFTER + 10_000 {
            break;
        }
    }
    world.up(2);
    let disk = &world.machines[&ALONE].disk;
    let snapshot = disk.snapshot.as_ref().unwrap();
    assert!(snapshot.slot.0 > 10_000, "{}", snapshot.slot);
    let kept = disk.records.len() as u64;
    assert!(kept < snapshot.slot.0, "old records went: {kept} left");
    let before = world.state().clone();
    world.restart();
    assert_eq!(world.state().server_list(), before.server_list());
    assert!(world.state().ballot() > before.ballot());
}

#[test]
fn a_gap_in_the_journal_is_refused() {
    let mut world = World::alone();
    world.up(1);
    world.up(2);
    let accepted = |record: &Record| matches!(record, Record::Accepted { slot, .. } if slot.0 == 3);
    let mut disk = world.only().disk.clone();
    let at = disk.records.iter().position(accepted).unwrap();
    disk.records.remove(at);
    assert!(matches!(
        Coordinator::new(world.now, world.config(ALONE), disk),
        Err(RecoverError::Restore(_))
    ));
}

#[test]
fn the_same_inputs_give_the_same_outputs() {
    let run = || {
        let mut world = World::alone();
        for nonce in 1..=4 {
            world.up(nonce);
        }
        world.create("t");
        world.obey(ALONE, is_take);
        let gone = *world.alive.first().unwrap();
        world.alive.remove(&gone);
        world.run(5_000);
        let machine = world.machines.remove(&ALONE).unwrap();
        (machine.disk, machine.orders, machine.answers)
    };
    assert_eq!(run(), run());
}
