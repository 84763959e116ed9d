//! Recovery as the leader sees to it, in virtual time, with servers that answer as they should or
//! don't.

use ramkeep_wire::coordinator::{
    AcceptedLoss, Answer, Loss, RecoveryReport, Refused, Request, TabletState,
};
use ramkeep_wire::order::{Command, OrderReply};
use ramkeep_wire::{LogPosition, SegmentId, ServerId, TableId};

use crate::world::*;

/// M, whose log B and C hold, B, whose log C and D hold, C and D; a table on all of them.
pub(super) fn cast() -> (World, [ServerId; 4], TableId) {
    let mut world = World::with_servers();
    let [m, b, c, d] = [1, 2, 3, 4].map(|nonce| world.serve(nonce, None));
    world.run(200);
    let table = world.make_table("t");
    world.store_log(m, &[b, c]);
    world.store_log(b, &[c, d]);
    assert!(world.all_served());
    (world, [m, b, c, d], table)
}

pub(super) fn is_lost(world: &World, table: TableId) -> bool {
    let tablets = world.tablets(table);
    let lost = |state| matches!(state, TabletState::Down | TabletState::Recovering);
    tablets.iter().any(|tablet| lost(tablet.state))
}

#[test]
fn a_crashed_masters_tablets_are_replayed_and_served_by_others() {
    let (mut world, [m, b, c, ..], table) = cast();
    world.kill(m);
    world.until("decided crashed", |world| is_lost(world, table));
    assert_eq!(world.holds(b, m), 2, "kept until it is recovered");
    let reports = world.reports();
    assert_eq!(reports.len(), 1);
    assert!(reports[0].master == m && reports[0].tablets == 1 && !reports[0].stuck);
    world.until_served();
    let tablets = world.tablets(table);
    let replayed = tablets.iter().find(|t| t.takeover == LogPosition(1_000));
    assert!(replayed.is_some(), "where the replay began: {tablets:?}");
    assert_eq!(world.ends[&m].segment.0, 6);
    world.until("recovered", |world| world.is_recovered(m));
    world.until("freed", |world| {
        world.holds(b, m) == 0 && world.holds(c, m) == 0
    });
    assert!(world.reports().is_empty());
    let recovered = world.status().recovered;
    assert!(recovered.len() == 1 && recovered[0].master == m);
    let moments = recovered[0].moments;
    let walked = [
        moments.fenced_us,
        moments.end_us,
        moments.planned_us,
        moments.replayed_us,
        moments.committed_us,
        Some(recovered[0].since_us),
    ];
    assert!(walked.is_sorted() && walked[0].is_some(), "{walked:?}");
}

#[test]
fn whoever_leads_goes_on_from_any_step() {
    for after in (0..900).step_by(20) {
        let (mut world, [m, ..], _) = cast();
        world.kill(m);
        world.run(after);
        world.restart();
        world.until_recovered(&[m]);
    }
}

#[test]
fn another_replays_when_a_recovery_master_crashes() {
    let (mut world, [m, ..], table) = cast();
    world.behave(&Behaviour::Goes);
    world.kill(m);
    let replaying = |world: &World| {
        let record = world.state().recoveries().by_master(m)?;
        let part = record.partitions.first()?;
        Some((part.by, part.attempt))
    };
    world.until("replayed", |world| replaying(world).is_some());
    world.run(200);
    let (first, attempt) = replaying(&world).unwrap();
    assert_eq!(attempt, 1);
    // Its own log: all others have it.
    let others: Vec<_> = world.servers.keys().copied().collect();
    let others: Vec<_> = others
        .into_iter()
        .filter(|s| ![m, first].contains(s))
        .collect();
    world.servers.values_mut().for_each(|fake| {
        let own = fake.replicas.iter().any(|(info, _)| info.master == first);
        if own {
            fake.replicas.retain(|(info, _)| info.master != first);
        }
    });
    world.store_log(first, &others);
    world.kill(first);
    world.until("given to another", |world| {
        replaying(world).is_some_and(|(by, attempt)| by != first && attempt > 1)
    });
    world.behave(&Behaviour::Recovers);
    world.until("all served", World::all_served);
    world.until("recovered", |world| {
        world.is_recovered(m) && world.is_recovered(first)
    });
    let owners: Vec<_> = world.tablets(table).iter().map(|t| t.owner).collect();
    assert!(!owners.contains(&m) && !owners.contains(&first));
}

#[test]
fn one_who_was_given_up_is_not_listened_to() {
    let (mut world, [m, ..], table) = cast();
    world.behave(&Behaviour::Cannot("no memory".into()));
    world.kill(m);
    world.until("given to a second", |world| {
        let record = world.state().recoveries().by_master(m);
        record.is_some_and(|record| record.attempts > 1)
    });
    let reports = world.reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    let (first, order) = world
        .servers
        .iter()
        .find_map(|(id, fake)| {
            let order = fake.recoveries.first()?;
            (order.attempt == 1).then(|| (*id, order.clone()))
        })
        .unwrap();
    let positions = order.tablets.iter().map(|_| LogPosition(77)).collect();
    let late = OrderReply::Recovered(positions);
    let order = Command::Recover(order);
    world.reply(ALONE, first, &order, late);
    assert!(is_lost(&world, table));
    // All had their turn, and say why they can't.
    world.run(100);
    let reports = world.reports();
    assert!(
        reports[0].stuck && reports[0].phase.contains("no memory"),
        "{reports:?}"
    );
    let attempts = |world: &World| {
        let record = world.state().recoveries().by_master(m);
        record.map(|record| record.attempts)
    };
    let before = attempts(&world).unwrap();
    world.run(5_000);
    let after = attempts(&world).unwrap();
    assert!(after > before, "each is tried anew");
    assert!(after - before <= 20, "at its own pace: {before} to {after}");
    world.behave(&Behaviour::Recovers);
    world.until_served();
    let tablets = world.tablets(table);
    assert!(tablets.iter().all(|t| t.takeover != LogPosition(77)));
}

#[test]
fn two_masters_that_crash_are_both_recovered() {
    let (mut world, [m, b, ..], _) = cast();
    world.kill(m);
    world.kill(b);
    world.until_recovered(&[m, b]);
    assert_eq!(world.ends.len(), 2);
}

/// M and B crash together. The most recoveries that were planned at a time until both are done.
fn planned_together(frames: u32) -> usize {
    let (mut world, [m, b, ..], _) = cast();
    (world.servers.values_mut()).for_each(|fake| fake.frames = frames);
    world.run(200);
    world.kill(m);
    world.kill(b);
    let mut most = 0;
    world.until("recovered", |world| {
        most = most.max(world.state().recoveries().iter().count());
        world.all_served() && world.is_recovered(m) && world.is_recovered(b)
    });
    most
}

#[test]
fn logs_are_replayed_one_after_the_other_when_frames_are_short() {
    assert_eq!(planned_together(1_000), 2);
    assert_eq!(planned_together(4), 1);
}

#[test]
fn who_waits_for_frames_says_for_whom() {
    let (mut world, [m, b, ..], _) = cast();
    for fake in world.servers.values_mut() {
        fake.frames = 0;
        fake.behaviour = Behaviour::Goes;
    }
    world.run(200);
    world.kill(m);
    world.kill(b);
    world.run(2_000);
    let reports = world.reports();
    let waits = reports.iter().filter(|r| r.phase.contains("it waits for"));
    let waits: Vec<_> = waits.collect();
    assert!(waits.len() == 1 && !waits[0].stuck, "{reports:?}");
    let lacks = |r: &&RecoveryReport| r.stuck && r.phase.contains("there are 1: start 1 more");
    assert_eq!(reports.iter().filter(lacks).count(), 1, "{reports:?}");
}

#[test]
fn without_memory_for_it_a_log_is_not_given_out_until_somebody_has_some() {
    let (mut world, [m, ..], table) = cast();
    for fake in world.servers.values_mut() {
        fake.free = 100 << 20;
    }
    world.server(m).live = 600 << 20;
    world.run(200);
    world.kill(m);
    world.run(2_000);
    let report = world.reports().remove(0);
    assert!(
        report.stuck && report.phase.contains("of memory"),
        "{report:?}"
    );
    assert!(is_lost(&world, table) && !world.ends.contains_key(&m));
    world.serve(9, None);
    world.until_served();
}

#[test]
fn masters_that_are_about_to_join_get_their_share() {
    let (mut world, [m, b, ..], _) = cast();
    // Two more, one of them ready a while later.
    let joining = world.serve_joining(9);
    world.run(1);
    world.kill(m);
    world.kill(b);
    world.until("decided crashed", |world| {
        world.state().tables().lost().count() > 1
    });
    world.run(300);
    assert!(world.ends.is_empty(), "they wait for one that joins");
    world.run(2_000);
    assert!(!world.ends.is_empty(), "but not for ever");
    world.server(joining).joins = false;
    world.until_served();
}

/// B alone has the closed segment, C the head; B dies, and M once that is recovered.
fn lose_with_b(world: &mut World, m: ServerId, b: ServerId, c: ServerId) {
    for (server, segment) in [(b, 5), (c, 6)] {
        let fake = world.server(server);
        fake.replicas
            .retain(|(info, _)| info.master != m || info.segment.0 == segment);
    }
    world.kill(b);
    world.until("B is recovered", |world| world.is_recovered(b));
    world.kill(m);
}

#[test]
fn a_missing_segment_keeps_tablets_down_until_its_backup_comes_back() {
    let (mut world, [m, b, c, ..], table) = cast();
    lose_with_b(&mut world, m, b, c);
    let mut stuck = None;
    for _ in 0..3_000 {
        world.run(1);
        stuck = world.reports().into_iter().find(|report| report.stuck);
        if stuck.is_some() {
            break;
        }
    }
    let stuck = stuck.expect("it says that it can't go on");
    assert!(
        stuck.phase.contains("segment-5") && stuck.phase.contains("server-2"),
        "{stuck:?}"
    );
    world.run(2_000);
    assert!(is_lost(&world, table) && !world.ends.contains_key(&m));
    // B's frames are in memory still, and its process is started again.
    let kept = std::mem::take(&mut world.server(b).replicas);
    let again = world.serve(9, Some(b));
    let fake = world.server(again);
    fake.replicas = kept;
    fake.replicas
        .iter_mut()
        .for_each(|(info, _)| info.inherited = true);
    world.until_served();
    assert!(world.ends.contains_key(&m));
}

pub(super) fn accept(world: &mut World, master: ServerId, loss: Loss) -> Answer {
    world.answer(Request::AcceptLoss(AcceptedLoss { master, loss }))
}

/// What `master` lacks, once that is known.
pub(super) fn missing(world: &mut World, master: ServerId) -> Loss {
    for _ in 0..3_000 {
        world.run(1);
        let reports = world.reports();
        let of_master = reports.into_iter().find(|report| report.master == master);
        if let Some(missing) = of_master.and_then(|report| report.missing) {
            return missing;
        }
    }
    panic!("nothing is known to be missing: {:?}", world.reports());
}

#[test]
fn an_operator_who_names_just_what_is_missing_brings_back_what_is_left() {
    let (mut world, [m, b, c, ..], table) = cast();
    lose_with_b(&mut world, m, b, c);
    let known = missing(&mut world, m);
    let right = Loss {
        dead: vec![b],
        segments: vec![SegmentId(5)],
        tail: false,
    };
    assert_eq!(known, right);
    let wrong = [
        Loss::default(),
        Loss {
            dead: vec![],
            ..right.clone()
        },
        Loss {
            dead: vec![b, c],
            ..right.clone()
        },
        Loss {
            segments: vec![SegmentId(4), SegmentId(5)],
            ..right.clone()
        },
        Loss {
            tail: true,
            ..right.clone()
        },
    ];
    for wrong in wrong {
        let answer = accept(&mut world, m, wrong);
        assert!(
            matches!(&answer, Answer::Refused(Refused::Invalid(why)) if why.contains("segment-5")),
            "{answer:?}"
        );
    }
    let answer = accept(&mut world, c, right.clone());
    assert!(matches!(answer, Answer::Refused(_)), "C lives: {answer:?}");
    world.run(1_000);
    assert!(is_lost(&world, table) && world.status().losses.is_empty());

    assert_eq!(accept(&mut world, m, right.clone()), Answer::Noted);
    assert_eq!(accept(&mut world, m, right.clone()), Answer::Noted, "again");
    // Whoever leads goes on from there, and says what was given up.
    world.restart();
    world.until_served();
    let mut orders = world.servers.values().flat_map(|fake| &fake.recoveries);
    let of_m = orders.find(|order| order.master == m).unwrap();
    assert_eq!(of_m.given_up, Some(vec![SegmentId(5)]));
    let losses = world.status().losses;
    assert_eq!(losses.len(), 1);
    assert!(losses[0].master == m && losses[0].loss == right);
}

/// M's log is planned, and being replayed without end.
fn being_replayed() -> (World, ServerId, TableId) {
    let (mut world, [m, ..], table) = cast();
    world.behave(&Behaviour::Goes);
    world.kill(m);
    world.until("replayed", |world| {
        let fakes = world.servers.values();
        fakes.map(|fake| fake.recoveries.len()).sum::<usize>() > 0
    });
    (world, m, table)
}

/// No backup has this segment of M any more, or has any.
fn lose(world: &mut World, m: ServerId, segment: Option<u64>) {
    for fake in world.servers.values_mut() {
        fake.replicas.retain(|(info, _)| {
            info.master != m || segment.is_some_and(|lost| info.segment.0 != lost)
        });
        fake.behaviour = Behaviour::Cannot("no backup has it".into());
    }
}

#[test]
fn a_segment_that_is_lost_while_it_is_replayed_can_be_given_up() {
    let (mut world, m, table) = being_replayed();
    lose(&mut world, m, Some(5));
    let right = Loss {
        segments: vec![SegmentId(5)],
        ..Loss::default()
    };
    assert_eq!(missing(&mut world, m), right);
    let tried = world.state().recoveries().by_master(m).unwrap().attempts;
    assert_eq!(accept(&mut world, m, right), Answer::Noted);
    world.behave(&Behaviour::Recovers);
    world.until_served();
    let mut orders = world.servers.values().flat_map(|fake| &fake.recoveries);
    let last = orders.find(|order| order.given_up.is_some()).unwrap();
    assert!(
        last.attempt > tried,
        "no try has the number of an earlier one"
    );
    assert_eq!(last.given_up, Some(vec![SegmentId(5)]));
    assert!(!is_lost(&world, table));
}

#[test]
fn an_end_that_is_lost_after_it_was_decided_can_be_given_up_with_the_rest() {
    let (mut world, m, _) = being_replayed();
    lose(&mut world, m, None);
    let right = Loss {
        tail: true,
        ..Loss::default()
    };
    assert_eq!(missing(&mut world, m), right);
    world.restart();
    assert_eq!(missing(&mut world, m), right, "whoever leads");
    assert_eq!(accept(&mut world, m, right), Answer::Noted);
    world.ends.remove(&m);
    world.behave(&Behaviour::Recovers);
    world.until_served();
    world.until("recovered", |world| world.is_recovered(m));
}

#[test]
fn when_the_only_backup_with_the_end_dies_the_next_longest_replica_is_the_end() {
    for new_leader in [false, true] {
        let (mut world, [m, _, c, ..], _) = cast();
        world.store_more(m, c);
        world.behave(&Behaviour::Goes);
        world.kill(m);
        let ordered = |world: &World| -> Vec<(u32, u32)> {
            let orders = world.servers.values().flat_map(|fake| &fake.recoveries);
            let own = orders.filter(|order| order.master == m);
            own.map(|order| (order.end.length, order.attempt)).collect()
        };
        world.until("replayed", |world| !ordered(world).is_empty());
        let before = ordered(&world);
        for fake in world.servers.values_mut() {
            fake.replicas
                .retain(|(info, _)| info.master != m || info.length != before[0].0);
            fake.behaviour = Behaviour::Cannot("no backup has the end".into());
        }
        if new_leader {
            world.restart();
        }
        world.loses_ends = true;
        world.until("planned anew", |world| {
            ordered(world).iter().any(|order| order.0 < before[0].0)
        });
        world.behave(&Behaviour::Recovers);
        world.until_recovered(&[m]);
        let tried = before.iter().map(|order| order.1).max();
        let shorter = ordered(&world);
        let mut shorter = shorter.iter().filter(|order| order.0 < before[0].0);
        assert!(
            shorter.all(|order| Some(order.1) > tried),
            "tries of the old plan are over"
        );
    }
}

#[test]
fn who_cannot_replay_for_another_reason_lacks_nothing() {
    let (mut world, m, _) = being_replayed();
    world.behave(&Behaviour::Cannot("no memory".into()));
    world.run(3_000);
    let report = world.reports().remove(0);
    assert!(report.stuck && report.missing.is_none(), "{report:?}");
    let answer = accept(
        &mut world,
        m,
        Loss {
            tail: true,
            ..Loss::default()
        },
    );
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
}

#[test]
fn a_log_whose_backups_are_all_lost_comes_back_empty_once_they_are_asserted_dead() {
    let (mut world, [m, b, c, d], table) = cast();
    world.store_log(c, &[d]);
    for dead in [m, b, c] {
        world.kill(dead);
    }
    // B's log is with D; M's is nowhere.
    let known = missing(&mut world, m);
    let all = Loss {
        dead: vec![b, c],
        segments: vec![],
        tail: true,
    };
    assert_eq!(known, all);
    let only_one = Loss {
        dead: vec![b],
        ..all.clone()
    };
    let answer = accept(&mut world, m, only_one);
    assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
    assert_eq!(accept(&mut world, m, all), Answer::Noted);
    world.until("M is given up", |world| world.is_recovered(m));
    assert!(world.tablets(table).iter().all(|tablet| tablet.owner != m));
}

#[test]
fn a_damaged_head_is_set_aside_and_shown_and_the_next_copy_is_read() {
    let (mut world, [m, b, c, ..], _) = cast();
    for (at, server) in [b, c].into_iter().enumerate() {
        let fake = world.server(server);
        let heads = fake.replicas.iter_mut();
        let mut heads = heads.filter(|(info, _)| info.master == m && !info.closed);
        let (info, bytes) = heads.next().unwrap();
        bytes[60] ^= 1;
        if at == 1 {
            // One that is shorter by its certificate's word alone is not believed either.
            info.length -= 1;
            bytes.pop();
        }
    }
    world.kill(m);
    world.run(1_500);
    let report = world.reports().remove(0);
    assert!(report.stuck, "{report:?}");
    assert!(
        report.phase.contains("damaged replicas: segment-6"),
        "{report:?}"
    );
    let damaged = world.status().damaged;
    let liars: Vec<_> = damaged.iter().map(|found| found.backup).collect();
    assert_eq!(liars.len(), 2, "{damaged:?}");
    assert!(liars.contains(&b) && liars.contains(&c), "{damaged:?}");
    let fake = world.server(b);
    let mut heads = fake.replicas.iter_mut();
    let (info, bytes) = heads.find(|(i, _)| i.master == m && !i.closed).unwrap();
    bytes[60] ^= 1;
    // The same replica is not read twice; a whole one at another backup is.
    let moved = (*info, bytes.clone());
    let other = world.serve(8, None);
    world.server(other).replicas.push(moved);
    world.until_served();
}

#[test]
fn a_backup_that_dies_while_it_is_asked_is_left_out() {
    let (mut world, [m, b, _, d], _) = cast();
    world.kill(m);
    world.kill(d);
    world.store_log(d, &[b]);
    world.until_recovered(&[m, d]);
}

#[test]
fn a_backup_that_joins_during_a_search_is_asked_once_it_refuses_the_master() {
    let (mut world, [m, ..], table) = cast();
    world.kill(m);
    world.until("decided crashed", |world| is_lost(world, table));
    world.run(20);
    // The world does not suffer a question before that.
    world.serve_unaware(9);
    world.until_served();
}

#[test]
fn a_table_in_recovery_can_be_dropped() {
    let (mut world, [m, ..], table) = cast();
    let kept = world.make_table("kept");
    world.behave(&Behaviour::Goes);
    world.kill(m);
    world.until("replayed", |world| {
        world.state().recoveries().by_master(m).is_some()
    });
    world.ask(drop_table("t", None));
    world.until("gone", |world| world.state().table(table).is_none());
    world.behave(&Behaviour::Recovers);
    world.until_recovered(&[m]);
    assert!(!is_lost(&world, kept));
}

#[test]
fn nobody_to_replay_is_said_so() {
    let mut world = World::with_servers();
    let m = world.serve(1, None);
    world.run(200);
    let table = world.make_table("t");
    world.kill(m);
    world.run(1_500);
    assert!(is_lost(&world, table));
    let report = world.reports().remove(0);
    assert!(
        report.stuck && report.phase.contains("no backup"),
        "{report:?}"
    );
    let b = world.serve(2, None);
    world.store_log(m, &[b]);
    world.until_served();
}
