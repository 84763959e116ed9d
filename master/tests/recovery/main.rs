//! A recovery master between the coordinator's order and backups of every kind.
#![allow(clippy::unwrap_used)]

mod admission;
mod world;

use ramkeep_master::recovery::{MAX_RECOVERIES, gather};
use ramkeep_wire::limits::MAX_CLIENTS_NAMED;
use ramkeep_wire::order::{LogEnd, OrderReply, RecoveredTablet, Recovery, TabletGrant};
use ramkeep_wire::{ClientId, EndedClients, HeldTry, KeyHash, Micros, SegmentId, ServerId};

use world::{Backup, Copy, World, crashed, forged, make_durable, whole};

#[test]
fn segments_spread_over_backups_are_recovered_once_all_is_durable() {
    let (copies, order) = crashed();
    let (older, newer) = copies.split_at(copies.len() / 2);
    let mut world = World::new([(2, Backup::with(older)), (3, Backup::with(newer))]);
    world.is_durable_late = true;
    assert_eq!(
        world.order(&order),
        OrderReply::Recovering {
            segments: 0,
            of: 0,
            bytes: 0
        }
    );
    world.settle();
    let all = copies.len() as u32;
    let reply = world.order(&order);
    assert!(
        matches!(reply, OrderReply::Recovering { segments, of, bytes }
            if segments == all && of == all && bytes > 0),
        "{reply:?}"
    );
    assert!(
        world
            .store
            .take_tablets(&[TabletGrant {
                last: KeyHash(9),
                ..whole()
            }])
            .is_err()
    );
    make_durable(&world.store);
    world.succeed(&order);
    assert!(world.bad().is_empty());
    let again = world.order(&order);
    assert!(
        matches!(again, OrderReply::Recovered(_)),
        "a late repetition: {again:?}"
    );
    assert_eq!(world.store.stats().objects, world::OBJECTS);
}

#[test]
fn a_damaged_copy_is_set_aside_reported_and_replaced_by_another() {
    let (copies, order) = crashed();
    for at in [0, copies.len() / 2, copies.len() - 1] {
        let mut damaged = copies.clone();
        // In the part of it that counts.
        damaged[at].1[500] ^= 4;
        let segment = damaged[at].0.segment;
        let mut world = World::new([
            (2, Backup::with(&damaged)),
            (3, Backup::with(&damaged)),
            (4, Backup::with(&copies)),
        ]);
        world.succeed(&order);
        let bad = world.bad();
        assert!(
            bad.iter()
                .all(|(backup, one)| *one == segment && *backup != ServerId(4)),
            "{bad:?}"
        );
        let mut only = World::new([(2, Backup::with(&damaged))]);
        let reason = only.fail(&order);
        assert!(reason.contains(&format!("{segment:?} ")), "{reason}");
        assert!(reason.contains("damaged on [server-2]"), "{reason}");
        assert_eq!(
            only.bad().into_iter().collect::<Vec<_>>(),
            [(ServerId(2), segment)]
        );
    }
}

#[test]
fn a_missing_segment_is_named_and_another_try_finds_it() {
    let (copies, mut order) = crashed();
    let mut rest = copies.clone();
    let missing = rest.remove(1);
    let mut world = World::new([(2, Backup::with(&rest)), (3, Backup::with(&rest))]);
    let reason = world.fail(&order);
    let named = format!("no backup has {:?} of server-1 whole", missing.0.segment);
    assert!(reason.starts_with(&named), "{reason}");
    world.settle();
    while world.store.sweep(64) {}
    assert_eq!(world.store.stats().objects, 0, "what was replayed is swept");
    // Its holder comes back.
    world.backups.insert(ServerId(9), Backup::with([&missing]));
    order.attempt += 1;
    world.succeed(&order);
}

#[test]
fn a_try_that_has_failed_stays_failed_and_appends_nothing_more() {
    let (copies, order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies[1..]))]);
    let reason = world.fail(&order);
    world.settle();
    let left = world.appended();
    world.backups.insert(ServerId(3), Backup::with(&copies));
    for _ in 0..3 {
        assert_eq!(world.fail(&order), reason, "whatever has come since");
        world.settle();
    }
    assert_eq!(world.begun(), 1, "replays begun");
    assert_eq!(world.appended(), left);
}

/// Copies in which one bit of each of these segments is flipped; and those.
fn damaged(copies: &[Copy], which: &[usize]) -> (Vec<Copy>, Vec<SegmentId>) {
    let mut damaged = copies.to_vec();
    for at in which {
        damaged[*at].1[500] ^= 4;
    }
    let segments = which.iter().map(|at| damaged[*at].0.segment);
    let segments = segments.collect();
    (damaged, segments)
}

/// All copies of some segments are damaged: those are named, and nothing is left that counts. Whether
/// something was appended.
fn names_all_that_is_damaged(world: &mut World, order: &Recovery, named: &[SegmentId]) -> bool {
    let began = world.appended();
    let reply = world.recover(order);
    let OrderReply::CannotProve { segments, why } = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(segments, named, "{why}");
    let more = format!("nor {} more", named.len() - 1);
    assert!(why.contains(&more), "{why}");
    world.settle();
    while world.store.sweep(64) {}
    assert_eq!(world.store.stats().objects, 0);
    let left = world.appended();
    world.fail(order);
    world.settle();
    assert_eq!(world.appended(), left, "it appends nothing more");
    left > began
}

#[test]
fn all_segments_that_no_copy_proves_are_named_at_once() {
    let (copies, order) = crashed();
    let (mut bad, mut named) = damaged(&copies, &[0, 2]);
    let backups = [(2, Backup::with(&bad)), (3, Backup::with(&bad))];
    let appends = names_all_that_is_damaged(&mut World::new(backups), &order, &named);
    assert!(appends, "there is room, and nobody knew before");
    // One that is nowhere is known before anything is replayed.
    named.insert(1, bad.remove(1).0.segment);
    let backups = [(2, Backup::with(&bad)), (3, Backup::with(&bad))];
    let appends = names_all_that_is_damaged(&mut World::new(backups), &order, &named);
    assert!(!appends);
}

#[test]
fn where_memory_is_short_nothing_is_appended_before_all_is_proved() {
    let (copies, order) = crashed();
    World::tight([(2, Backup::with(&copies))]).succeed(&order);
    for at in [0, copies.len() / 2, copies.len() - 2] {
        let (bad, named) = damaged(&copies, &[at]);
        let mut world = World::tight([(2, Backup::with(&bad))]);
        let began = world.appended();
        let mut next = order.clone();
        for attempt in 1..9 {
            next.attempt = attempt;
            let reply = world.recover(&next);
            let named =
                matches!(&reply, OrderReply::CannotProve { segments, .. } if *segments == named);
            assert!(named, "{reply:?}");
            world.settle();
            assert_eq!(world.appended(), began, "nothing is left behind");
        }
        // A copy comes, and there is still room.
        world.backups.insert(ServerId(3), Backup::with(&copies));
        next.attempt += 1;
        world.succeed(&next);
    }
}

#[test]
fn however_often_it_fails_memory_is_left_for_what_is_served() {
    let (copies, mut order) = crashed();
    let bytes: u64 = copies.iter().map(|copy| u64::from(copy.0.length)).sum();
    let (bad, _) = damaged(&copies, &[0]);
    let mut world = World::new([(2, Backup::with(&bad))]);
    for attempt in 1..20 {
        order.attempt = attempt;
        world.fail(&order);
        world.settle();
        while world.store.sweep(64) {}
    }
    let stats = world.store.stats();
    let free = stats.memory - stats.used - stats.reserved;
    // In segments as small as these digests take as much as what is replayed.
    let least = stats.memory / 8 - bytes;
    assert!(free >= least, "{free} {least} {stats:?}");
}

/// The same try, ordered by one who has learned that more clients' leases have ended.
fn knowing_more(order: &Recovery) -> Recovery {
    let next = ClientId(order.ended.below.0 + 1);
    let ended = EndedClients::among(std::iter::empty(), next);
    Recovery {
        ended,
        ..order.clone()
    }
}

#[test]
fn a_try_goes_on_whatever_is_learned_meanwhile() {
    let (copies, mut order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies)), (3, Backup::with(&copies))]);
    world.is_durable_late = true;
    let mut replayed = 0;
    for _ in 0..copies.len() {
        order = knowing_more(&order);
        let reply = world.order(&order);
        let OrderReply::Recovering { segments, .. } = reply else {
            panic!("{reply:?}");
        };
        assert!(segments >= replayed, "{segments} after {replayed}");
        replayed = segments;
        world.settle_a_little();
    }
    world.settle();
    make_durable(&world.store);
    assert_eq!(world.begun(), 1, "replays begun");
    // Nor is what is finished taken away before it is taken over.
    let reply = world.order(&order);
    let OrderReply::Recovered(positions) = &reply else {
        panic!("{reply:?}");
    };
    order = knowing_more(&order);
    assert_eq!(world.order(&order), reply);
    world.settle();
    let recovered = RecoveredTablet {
        range: whole(),
        takeover: positions[0],
    };
    let taken = world.store.take_recovered(&[recovered]);
    assert_eq!(taken.as_ref(), Ok(positions));
    order = knowing_more(&order);
    assert_eq!(world.order(&order), reply, "a late repetition");
    assert_eq!(world.begun(), 1, "replays begun");
    assert_eq!(world.store.stats().objects, world::OBJECTS);
}

#[test]
fn tablets_are_recovered_only_once_it_is_known_which_clients_have_ended() {
    let (copies, mut order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies))]);
    let next = ClientId(MAX_CLIENTS_NAMED as u64 + 100);
    let page = |from: u64| {
        let living = (from.max(1)..next.0).map(ClientId);
        EndedClients::page(ClientId(from), living, next)
    };
    let (first, last) = (page(0), page(MAX_CLIENTS_NAMED as u64 + 1));
    assert!(first.below < next && last.below == next);
    // The last one alone leaves a gap.
    for told in [last.clone(), first] {
        order.ended = told;
        for _ in 0..3 {
            let reply = world.order(&order);
            assert!(matches!(reply, OrderReply::Recovering { .. }), "{reply:?}");
            world.settle();
        }
    }
    order.ended = last;
    world.succeed(&order);
    assert_eq!(world.begun(), 1, "replays begun");
}

#[test]
fn an_open_replica_of_a_closed_segment_does_not_count() {
    let (copies, mut order) = crashed();
    let mut open = copies.clone();
    open[1].0.closed = false;
    open[1].0.length -= 100;
    let length = open[1].0.length as usize;
    open[1].1.truncate(length);
    let mut world = World::new([(2, Backup::with(&open))]);
    let reason = world.fail(&order);
    assert!(
        reason.contains("another state on server-2") && reason.contains("open"),
        "{reason}"
    );
    assert!(world.bad().is_empty(), "it is not damaged");
    world
        .backups
        .insert(ServerId(3), Backup::with(&copies[1..2]));
    order.attempt += 1;
    world.succeed(&order);
}

#[test]
fn the_end_is_taken_from_a_replica_that_is_long_enough() {
    let (copies, order) = crashed();
    let (head, closed) = copies.split_last().unwrap();
    let mut short = head.clone();
    short.0.length = order.end.length - 1;
    short.1.truncate(short.0.length as usize);
    let mut world = World::new([(2, Backup::with(closed.iter().chain([&short])))]);
    let reason = world.fail(&order);
    assert!(
        reason.contains(&format!("{:?}", head.0.segment)),
        "{reason}"
    );
    // Just as long, or longer, or closed by now.
    let mut exact = head.clone();
    exact.0.length = order.end.length;
    exact.1.truncate(exact.0.length as usize);
    let mut closed_end = head.clone();
    closed_end.0.closed = true;
    for good in [&exact, head, &closed_end] {
        let backups = [
            (2, Backup::with(closed.iter().chain([&short]))),
            (3, Backup::with([good])),
        ];
        World::new(backups).succeed(&order);
    }
}

#[test]
fn a_backup_that_lies_about_a_copy_is_found_out() {
    let (copies, order) = crashed();
    let honest = || (9, Backup::with(&copies));
    // Another segment's bytes, cut to the right length, under the right description.
    let mut other = copies.clone();
    let length = other[1].1.len();
    other[1].1 = copies[2]
        .1
        .iter()
        .copied()
        .chain(std::iter::repeat(0))
        .take(length)
        .collect();
    // A shorter copy under a certificate of the backup's own.
    let shorter = forged(&copies[1], copies[1].1[..length - 200].to_vec());
    let mut self_made = copies.clone();
    self_made[1] = shorter;
    for lies in [other, self_made] {
        let segment = copies[1].0.segment;
        let mut world = World::new([(2, Backup::with(&lies)), honest()]);
        world.succeed(&order);
        assert!(
            world.bad().is_subset(&[(ServerId(2), segment)].into()),
            "{:?}",
            world.bad()
        );
        let mut alone = World::new([(2, Backup::with(&lies))]);
        assert!(alone.fail(&order).contains(&format!("{segment:?}")));
        assert_eq!(alone.bad(), [(ServerId(2), segment)].into());
    }
}

#[test]
fn leases_are_waited_out_and_silent_backups_given_up() {
    let (copies, order) = crashed();
    let waiting = Backup {
        not_before: Micros(1_300_000),
        ..Backup::with(&copies)
    };
    let mut world = World::new([(2, waiting)]);
    world.succeed(&order);
    assert!(world.now >= Micros(1_300_000));
    let silent = Backup {
        is_silent: true,
        ..Backup::with(&copies)
    };
    let mut world = World::new([(2, silent.clone()), (3, Backup::with(&copies))]);
    world.succeed(&order);
    assert!(world.now < Micros(2_000_000), "nobody waits for it");
    let mut world = World::new([(2, silent)]);
    let began = world.now;
    let reason = world.fail(&order);
    assert!(reason.contains("no backup has"), "{reason}");
    assert!(world.now >= Micros(began.0 + 3_000_000));
}

#[test]
fn backups_that_come_and_show_nothing_do_not_keep_it_from_saying_what_is_missing() {
    let (copies, order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies[1..]))]);
    let began = world.now;
    for number in 10..20 {
        // Each is gone before it can be told from one that is slow.
        let silent = Backup {
            is_silent: true,
            ..Backup::default()
        };
        world.backups.remove(&ServerId(number - 1));
        world.backups.insert(ServerId(number), silent);
        let list = world.list();
        world.recoveries.take_list(&list);
        for _ in 0..100 {
            if let OrderReply::CannotProve { segments, .. } = world.order(&order) {
                assert_eq!(segments, [copies[0].0.segment]);
                assert!(world.now >= Micros(began.0 + 3_000_000));
                return;
            }
            world.settle();
            world.now = Micros(world.now.0 + 10_000);
        }
    }
    panic!("it waits for ever");
}

#[test]
fn a_backup_that_crashes_between_is_replaced_by_another_holder() {
    let (copies, order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies)), (3, Backup::with(&copies))]);
    world.order(&order);
    for _ in 0..6 {
        let asked = world.recoveries.poll_ask(world.now);
        drop(asked);
    }
    world.backups.remove(&ServerId(2));
    let list = world.list();
    world.recoveries.take_list(&list);
    // What was asked of the living one is not answered either.
    world.now = Micros(world.now.0 + 1);
    world.backups.insert(ServerId(4), Backup::with(&copies));
    let list = world.list();
    world.recoveries.take_list(&list);
    world.succeed(&order);
}

#[test]
fn a_higher_attempt_ends_a_lower_one_and_a_lower_one_is_refused() {
    let (copies, mut order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies[1..]))]);
    world.order(&order);
    let lower = order.clone();
    order.attempt = 2;
    assert!(matches!(world.order(&order), OrderReply::Recovering { .. }));
    let refused = world.order(&lower);
    assert!(
        matches!(refused, OrderReply::CannotRecover(_)),
        "{refused:?}"
    );
    world.backups.insert(ServerId(3), Backup::with(&copies));
    order.attempt = 3;
    world.succeed(&order);
    assert!(world.recoveries.is_idle() || matches!(world.order(&order), OrderReply::Recovered(_)));
}

/// A world in which all is replayed and durable, and nothing is taken; and the try.
fn replayed() -> (World, Recovery, HeldTry) {
    let (copies, order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies))]);
    let reply = world.recover(&order);
    assert!(matches!(reply, OrderReply::Recovered(_)), "{reply:?}");
    let held = world.recoveries.held();
    assert_eq!(held.len(), 1);
    (world, order, held[0])
}

#[test]
fn what_was_replayed_and_is_wanted_by_nobody_is_swept_once_that_is_known() {
    let (mut world, order, held) = replayed();
    assert!(held.takeover.is_some() && held.id == order.id());
    // That its log is recovered does not say that its tablets were taken here.
    let mut list = world.list();
    list.version.0 += 1;
    list.servers[0].recovered = true;
    world.recoveries.take_list(&list);
    assert_eq!(world.recoveries.held(), [held]);
    world.recoveries.end_over(&world.store, &[held]);
    assert_eq!(world.recoveries.held(), []);
    while world.store.sweep(64) {}
    let stats = world.store.stats();
    assert_eq!((stats.objects, stats.live), (0, 0));
    let recovered = RecoveredTablet {
        range: whole(),
        takeover: held.takeover.unwrap(),
    };
    let taken = world.store.take_recovered(&[recovered]);
    taken.expect_err("it is not here any more");
}

#[test]
fn a_try_ends_by_nothing_that_was_said_before_it_was_finished() {
    let (copies, order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies))]);
    world.order(&order);
    let before = world.recoveries.held();
    assert_eq!(before.len(), 1);
    let OrderReply::Recovered(positions) = world.recover(&order) else {
        panic!("it was not recovered");
    };
    // The report was sent before; it was given out meanwhile.
    world.recoveries.end_over(&world.store, &before);
    assert_eq!(world.store.take_tablets(&[whole()]), Ok(positions));
    assert_eq!(world.store.stats().objects, world::OBJECTS);
    // Of what is taken nothing goes, whatever is said.
    let after = world.recoveries.held();
    world.recoveries.end_over(&world.store, &after);
    while world.store.sweep(64) {}
    assert_eq!(world.store.stats().objects, world::OBJECTS);
}

#[test]
fn a_try_under_way_that_is_over_appends_nothing_more() {
    let (copies, order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies))]);
    world.order(&order);
    world.settle_a_little();
    let held = world.recoveries.held();
    world.recoveries.end_over(&world.store, &held);
    assert!(world.recoveries.is_idle());
    let left = world.appended();
    world.settle();
    while world.store.sweep(64) {}
    assert_eq!(world.appended(), left);
    assert_eq!(world.store.stats().objects, 0);
}

#[test]
fn what_is_under_way_is_bounded() {
    let (copies, order) = crashed();
    let mut world = World::new((2..12).map(|id| (id, Backup::with(&copies))));
    for number in 0..=MAX_RECOVERIES as u64 {
        let mut other = order.clone();
        other.master = ServerId(100 + number);
        let taken = matches!(world.order(&other), OrderReply::Recovering { .. });
        assert_eq!(taken, number < MAX_RECOVERIES as u64, "recovery {number}");
    }
    let mut world = World::new((2..30).map(|id| (id, Backup::with(&copies))));
    world.succeed(&order);
    assert!(world.most_in_flight <= gather::MAX_ASKS);
    assert!(
        world.most_in_flight > 1,
        "backups are asked at the same time"
    );
}

#[test]
fn recoveries_that_were_given_up_make_room() {
    let (copies, order) = crashed();
    let mut world = World::new([(2, Backup::with(&copies[1..]))]);
    assert!(matches!(world.order(&order), OrderReply::Recovering { .. }));
    world.settle();
    let mut list = world.list();
    list.version.0 += 1;
    list.servers[0].recovered = true;
    world.recoveries.take_list(&list);
    world.settle();
    assert!(world.recoveries.is_idle(), "nothing is left to recover");
}

/// Recovers, and tells how many objects there are then.
fn objects_after(world: &mut World, order: &Recovery) -> u64 {
    let reply = world.recover(order);
    assert!(matches!(reply, OrderReply::Recovered(_)), "{reply:?}");
    let safe = world.store.writer().log().safe_version();
    assert_eq!(safe.0 > 1 << 40, order.given_up.is_some(), "{safe:?}");
    world.store.stats().objects
}

#[test]
fn a_segment_that_was_given_up_is_left_out_unless_it_is_there_after_all() {
    let (copies, mut order) = crashed();
    let mut rest = copies.clone();
    let missing = rest.remove(1);
    let mut world = World::new([(2, Backup::with(&rest))]);
    order.given_up = Some(vec![missing.0.segment]);
    let left = objects_after(&mut world, &order);
    assert!(0 < left && left < world::OBJECTS, "{left}");

    let mut world = World::new([(2, Backup::with(&copies))]);
    assert_eq!(objects_after(&mut world, &order), world::OBJECTS);

    // Another one is not left out for it.
    let mut world = World::new([(2, Backup::with(&rest[1..]))]);
    let reason = world.fail(&order);
    assert!(
        reason.contains(&format!("{:?} ", rest[0].0.segment)),
        "{reason}"
    );
}

#[test]
fn a_closed_segment_is_the_end_once_what_came_after_it_was_given_up() {
    let (copies, mut order) = crashed();
    let (_, left) = copies.split_last().unwrap();
    let (last, _) = left.last().unwrap();
    assert!(last.closed);
    order.end = LogEnd {
        segment: last.segment,
        length: last.length,
        certificate: last.certificate,
        ..LogEnd::NOTHING
    };
    order.given_up = Some(vec![]);
    let mut world = World::new([(2, Backup::with(left))]);
    let found = objects_after(&mut world, &order);
    assert!(0 < found && found < world::OBJECTS, "{found}");

    let mut damaged = left.to_vec();
    damaged.last_mut().unwrap().1[500] ^= 4;
    let mut world = World::new([(2, Backup::with(&damaged))]);
    assert!(world.fail(&order).contains("damaged on [server-2]"));
}

#[test]
fn of_a_log_that_left_nothing_empty_tablets_come_back() {
    let (_, mut order) = crashed();
    order.end = LogEnd::NOTHING;
    order.given_up = Some(vec![]);
    let mut world = World::new([(2, Backup::with([]))]);
    assert_eq!(objects_after(&mut world, &order), 0);
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_recovery_masters_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};

    let stories: [(Mutant, fn()); 10] = [
        (
            Mutant::AdmitUnmeasured,
            admission::what_does_not_fit_is_refused_before_anything_is_appended,
        ),
        (
            Mutant::PromiseNothing,
            admission::what_is_promised_to_a_replay_no_client_takes,
        ),
        (
            Mutant::ReplayBeforeProof,
            where_memory_is_short_nothing_is_appended_before_all_is_proved,
        ),
        (
            Mutant::ReplayBeforeProof,
            however_often_it_fails_memory_is_left_for_what_is_served,
        ),
        (
            Mutant::FirstDamageOnly,
            all_segments_that_no_copy_proves_are_named_at_once,
        ),
        (
            Mutant::OldVerdictsEndTries,
            a_try_ends_by_nothing_that_was_said_before_it_was_finished,
        ),
        (
            Mutant::RecoveredBeforeTold,
            tablets_are_recovered_only_once_it_is_known_which_clients_have_ended,
        ),
        (
            Mutant::RecoveredBeforeDurable,
            segments_spread_over_backups_are_recovered_once_all_is_durable,
        ),
        (
            Mutant::RestartOnNews,
            a_try_goes_on_whatever_is_learned_meanwhile,
        ),
        (
            Mutant::FailedTryBeginsAnew,
            a_try_that_has_failed_stays_failed_and_appends_nothing_more,
        ),
    ];
    for (mutant, story) in stories {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
    }
}
