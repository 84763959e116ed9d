//! Lives of small groups, step by step.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod lab;

use lab::{Lab, among};
use paxos::limits::Timing;
use paxos::{Body, Entry, PeerId, ReplaceError, Slot};

#[test]
fn a_single_peer_founds_leads_and_remembers() {
    let mut lab = Lab::led_by_1(1);
    lab.propose(1, "a", 1);
    assert_eq!(lab.peers[&1].done, [1]);
    assert!(lab.holds_lease(1));
    lab.restart(1);
    lab.input(1, |node, now| node.handle_timeout(now));
    assert_eq!(lab.commands(1), ["a"]);
    assert!(lab.node(1).leads().is_some(), "there is nobody to wait for");
}

#[test]
fn a_command_is_not_decided_by_a_vote_that_the_disk_does_not_have() {
    let mut lab = Lab::led_by_1(3);
    lab.peers.get_mut(&1).unwrap().syncs = false;
    lab.propose(1, "a", 1);
    lab.run(among(&[1, 2]));
    assert_eq!(lab.peers[&1].done, [0_u64; 0]);
    lab.sync(1);
    assert_eq!(lab.peers[&1].done, [1]);
}

#[test]
fn when_a_leader_is_killed_another_takes_over_with_what_was_decided() {
    let mut lab = Lab::led_by_1(3);
    lab.propose(1, "a", 1);
    lab.run(|_| true);
    lab.propose(1, "b", 2);
    // Only peer 2 hears of b; whether it is decided nobody knows.
    lab.run(among(&[1, 2]));
    assert_eq!(lab.peers[&1].done, [1, 2]);
    lab.kill(1);
    lab.elect(3);
    lab.run(|_| true);
    assert_eq!(lab.commands(3), ["a", "b"]);
    assert!(lab.node(3).leads().unwrap() > lab.node(2).promised() || lab.holds_lease(3));
}

#[test]
fn slots_that_nobody_reports_are_filled_with_nothing() {
    let mut lab = Lab::led_by_1(3);
    // Three slots in flight; of the first only the leader knows.
    for (text, token) in [("a", 1), ("b", 2), ("c", 3)] {
        lab.propose(1, text, token);
    }
    let first = lab.node(1).decided().next();
    let is_first = |body: &Body| matches!(body, Body::Accept { first: at, .. } if *at == first);
    lab.take(|envelope| is_first(&envelope.body));
    lab.run(|envelope| envelope.to == PeerId(2));
    lab.kill(1);
    lab.elect(3);
    assert_eq!(lab.commands(3), ["b", "c"]);
    let filled = lab.peers[&3]
        .applied
        .iter()
        .find(|(slot, _)| *slot == first);
    assert_eq!(filled.map(|(_, entry)| entry), Some(&Entry::Noop));
}

#[test]
fn a_wiped_member_does_not_vote_until_it_is_taken_in() {
    let mut lab = Lab::led_by_1(3);
    lab.propose(1, "a", 1);
    lab.run(|_| true);
    lab.wipe(2);
    lab.start(2);
    lab.kill(3);
    lab.propose(1, "b", 2);
    lab.pass(300, &[1], |envelope| {
        !matches!(envelope.body, Body::Join { .. })
    });
    assert_eq!(lab.peers[&1].done, [1], "one disk of three has it");
    lab.start(3);
    lab.pass(2_000, &[1, 2, 3], |_| true);
    let leader = [1, 2, 3]
        .into_iter()
        .find(|id| lab.node(*id).leads().is_some())
        .unwrap();
    assert!(lab.node(2).is_member(), "it was taken in");
    assert_eq!(lab.node(leader).group().unwrap().generation, 1);
    lab.kill(if leader == 3 { 1 } else { 3 });
    let rest: &[u32] = if leader == 3 { &[2, 3] } else { &[1, 2] };
    lab.propose(leader, "c", 3);
    lab.pass(300, rest, |_| true);
    assert!(
        lab.commands(leader).ends_with(&["c".to_owned()]),
        "its vote counts"
    );
}

#[test]
fn a_stale_leader_has_no_lease_when_another_leads() {
    let mut lab = Lab::led_by_1(3);
    lab.pass(50, &[1], |_| true);
    assert!(lab.holds_lease(1));
    // Cut off, it hears nothing; the others wait until their grants have run out.
    for _ in 0..400 {
        lab.pass(5, &[2], among(&[2, 3]));
        let holders = [1, 2, 3]
            .into_iter()
            .filter(|id| lab.holds_lease(*id))
            .count();
        assert!(holders <= 1);
    }
    assert!(lab.node(2).leads().is_some());
    assert!(lab.node(1).leads().is_some(), "it was never told");
    assert!(!lab.holds_lease(1));
}

#[test]
fn a_machine_that_stood_still_keeps_its_leader() {
    let mut lab = Lab::led_by_1(3);
    lab.pass(50, &[1, 2, 3], |_| true);
    let ballot = lab.node(1).leads();
    for _ in 0..5 {
        // All of them slept; those who follow wake up first.
        lab.now += 10_000_000;
        for id in [2, 3, 1] {
            lab.input(id, |node, now| node.handle_timeout(now));
        }
        assert!(!lab.holds_lease(1));
        lab.run(|_| true);
        lab.pass(300, &[2, 3, 1], |_| true);
        assert!(lab.holds_lease(1) && lab.node(1).leads() == ballot);
    }
    assert_eq!(lab.node(2).stats().elections, 0);
    // One who slept and whose leader is gone waits no longer than that.
    lab.kill(1);
    lab.now += 10_000_000;
    lab.pass(1_000, &[2, 3], |_| true);
    assert!(lab.holds_lease(2) || lab.holds_lease(3));
}

#[test]
fn a_grant_does_not_give_way_to_a_late_message_of_a_lower_ballot() {
    let mut lab = Lab::led_by_1(3);
    lab.pass(50, &[1], |_| true);
    // A heartbeat of 1 to 3 that will be late.
    let body = Body::Heartbeat {
        ballot: lab.node(1).leads().unwrap(),
        commit: lab.node(1).decided(),
        stamp: paxos::Time(lab.now),
    };
    let late = paxos::Envelope {
        group: lab.node(1).group().map(|group| group.id),
        from: PeerId(1),
        incarnation: lab.node(1).setup().incarnation,
        to: PeerId(3),
        body,
    };
    // Peer 2 comes to lead with the promise of 1; peer 3 hears only its heartbeats.
    lab.pass(1_000, &[], |_| true);
    lab.elect_among(2, among(&[1, 2]));
    let beats = |body: &Body| matches!(body, Body::Heartbeat { .. } | Body::HeartbeatAck { .. });
    lab.pass(400, &[2], |envelope| {
        among(&[2, 3])(envelope) && beats(&envelope.body)
    });
    assert!(lab.holds_lease(2), "granted by 3 alone");
    lab.deliver(late);
    lab.run(|_| false);
    // What peer 1 granted has run out; its own next ballot is refused while the lease runs.
    lab.input(1, |node, now| node.handle_peer_gone(now, PeerId(2)));
    let mut asked = 0;
    while lab.holds_lease(2) {
        lab.pass(5, &[1], among(&[1, 3]));
        let both = lab.holds_lease(1) && lab.holds_lease(2);
        assert!(!both, "two leases at once");
        asked += lab.node(1).stats().elections;
    }
    assert!(asked > 0);
}

#[test]
fn a_restart_waits_out_the_grant_it_may_have_given() {
    let mut lab = Lab::led_by_1(3);
    lab.pass(50, &[1], |_| true);
    let granted = lab.now;
    lab.restart(2);
    lab.restart(3);
    while lab.node(2).leads().is_none() {
        lab.pass(5, &[2], among(&[2, 3]));
    }
    let waited = lab.now - granted;
    let lease = Timing::default().lease.as_micros() as u64;
    assert!(waited > lease, "{waited} microseconds");
}

#[test]
fn a_member_is_replaced_by_one_that_has_caught_up() {
    let mut lab = Lab::led_by_1(3);
    for token in 0..20 {
        lab.propose(1, "x", token);
        lab.run(|_| true);
    }
    lab.kill(3);
    let outcome = lab.input(1, |node, now| node.replace(now, PeerId(3), PeerId(4)));
    assert_eq!(outcome, Err(ReplaceError::NoLearner(PeerId(4))));
    lab.add(4, vec![1, 2, 3]);
    lab.pass(500, &[1, 2, 4], |_| true);
    assert_eq!(lab.commands(4).len(), 20, "it learns before it is a member");
    let outcome = lab.input(1, |node, now| node.replace(now, PeerId(3), PeerId(4)));
    assert_eq!(outcome, Ok(()));
    lab.pass(300, &[1, 2, 4], |_| true);
    assert_eq!(lab.member_ids(4), [1, 2, 4]);
    assert!(lab.node(1).is_settled());
    // It counts: without it there is no quorum.
    lab.kill(2);
    lab.propose(1, "y", 100);
    lab.pass(200, &[1, 4], |_| true);
    assert_eq!(lab.commands(4).last().map(String::as_str), Some("y"));
    lab.start(3);
    lab.pass(1_000, &[1, 3, 4], |_| true);
    assert!(lab.peers[&3].removed || !lab.node(3).is_member());
}

#[test]
fn a_member_that_missed_the_change_of_the_group_learns_of_it_from_the_new_one() {
    let mut lab = Lab::led_by_1(3);
    lab.add(4, vec![1, 2, 3]);
    lab.pass(500, &[1, 2, 3, 4], |_| true);
    lab.input(1, |node, now| node.replace(now, PeerId(3), PeerId(4)))
        .unwrap();
    // Peer 2 votes for nothing and hears nothing.
    lab.pass(300, &[1, 3, 4], among(&[1, 3, 4]));
    assert_eq!(lab.member_ids(4), [1, 2, 4]);
    assert_eq!(lab.member_ids(2), [1, 2, 3]);
    lab.kill(1);
    lab.kill(3);
    lab.pass(3_000, &[2, 4], |_| true);
    assert_eq!(lab.member_ids(2), [1, 2, 4]);
    let leads = [2, 4].into_iter().any(|id| lab.node(id).leads().is_some());
    assert!(leads, "two of three are there");
}

#[test]
fn a_leader_goes_on_after_a_change_of_the_group_with_promises_of_the_new_one() {
    let (before, after) = lab::decided_in_the_new_group_before_another_leads();
    assert_eq!(before, ["x"]);
    assert_eq!(after, ["x"]);
}

#[test]
fn a_snapshot_comes_in_pages_and_what_follows_it_too() {
    let mut lab = Lab::new(3);
    lab.sizes.page_bytes = 100;
    lab.sizes.kept_bytes = 0;
    for id in 1..=3 {
        lab.restart(id);
    }
    lab.pass(200, &[1, 2, 3], |_| true);
    lab.elect(1);
    for token in 0..30 {
        lab.propose(1, "x", token);
        lab.run(among(&[1, 2]));
    }
    let slot = lab.node(1).decided();
    let state = vec![7; 1_050];
    for id in [1, 2] {
        lab.pass(50, &[1], among(&[1, 2]));
        lab.input(id, |node, _| node.save_snapshot(slot, state.clone().into()));
    }
    for token in 30..40 {
        lab.propose(1, "y", token);
        lab.run(among(&[1, 2]));
    }
    lab.now += 50_000;
    lab.input(1, |node, now| node.handle_timeout(now));
    let pages = std::cell::Cell::new(0);
    lab.pass(300, &[1, 2, 3], |envelope| {
        pages.set(pages.get() + u64::from(matches!(envelope.body, Body::SnapshotPage { .. })));
        true
    });
    assert!(pages.get() >= 11, "{} pages", pages.get());
    let restored = lab.peers[&3].restored.as_ref().unwrap();
    assert_eq!((restored.slot, restored.state.len()), (slot, 1_050));
    assert_eq!(lab.commands(3), ["y"; 10]);
    lab.restart(3);
    assert!(lab.node(3).decided() >= slot);
}

#[test]
fn what_was_accepted_below_a_snapshot_is_not_taken_for_decided_after_a_restart() {
    let mut lab = Lab::new(3);
    lab.sizes.page_bytes = 1_000;
    lab.run(|_| true);
    for id in 1..=3 {
        lab.restart(id);
    }
    lab.pass(200, &[1, 2, 3], |_| true);
    lab.elect(1);
    lab.pass(50, &[1, 2, 3], |_| true);
    let ballot = lab.node(1).leads().unwrap();
    let last = lab.node(3).decided();
    // Peer 3 takes a snapshot up to two slots on; its disk is slow.
    lab.peers.get_mut(&3).unwrap().syncs = false;
    let envelope = |from: u32, body| paxos::Envelope {
        group: lab.node(3).group().map(|group| group.id),
        from: PeerId(from),
        incarnation: lab.node(1).setup().incarnation,
        to: PeerId(3),
        body,
    };
    let page = envelope(
        2,
        Body::SnapshotPage {
            slot: last.next().next(),
            group: lab.node(3).group().unwrap().clone(),
            total: 1,
            crc: crc32c::crc32c(b"s"),
            offset: 0,
            bytes: "s".into(),
            decided: last.next().next(),
        },
    );
    // A late proposal of a leader that has been overruled in that slot meanwhile.
    let late = envelope(
        1,
        Body::Accept {
            ballot,
            first: last.next().next(),
            entries: vec![Entry::Commands(vec!["overruled".into()])],
            commit: last,
            stamp: paxos::Time(lab.now),
        },
    );
    lab.deliver(page);
    lab.deliver(late);
    let peer = lab.peers.get_mut(&3).unwrap();
    for (_, snapshot, records) in std::mem::take(&mut peer.unsynced) {
        if snapshot.is_some() {
            (peer.disk.snapshot, peer.disk.records) = (snapshot, Vec::new());
        }
        peer.disk.records.extend(records);
    }
    lab.restart(3);
    lab.mail.clear();
    lab.peers.get_mut(&3).unwrap().syncs = true;
    assert_eq!(lab.node(3).decided(), last.next().next());
    let ask = paxos::Envelope {
        group: lab.node(3).group().map(|group| group.id),
        from: PeerId(2),
        incarnation: lab.node(2).setup().incarnation,
        to: PeerId(3),
        body: Body::Learn {
            from: Slot(last.0 + 2),
            snapshot: None,
        },
    };
    lab.deliver(ask);
    let told = lab.take(|envelope| envelope.from == PeerId(3));
    let overruled = told.iter().any(
        |envelope| matches!(&envelope.body, Body::Page { entries, .. } if !entries.is_empty()),
    );
    assert!(!overruled, "{told:?}");
}
