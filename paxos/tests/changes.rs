//! Changes of the group, lost disks and founders that went wrong once.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod lab;

use lab::{Lab, among};
use paxos::{Body, Entry, Envelope, Incarnation, PeerId};

/// A group whose members 2 and 3 have been replaced by 4 and 5.
fn all_but_1_replaced() -> Lab {
    let mut lab = Lab::led_by_1(3);
    for (out, by) in [(2, 4), (3, 5)] {
        lab.add(by, vec![1, 2, 3]);
        lab.pass(500, &[1, by], |_| true);
        lab.input(1, |node, now| node.replace(now, PeerId(out), PeerId(by)))
            .unwrap();
        lab.pass(300, &[1, by], |_| true);
        assert!(lab.node(1).is_settled());
        lab.kill(out);
    }
    assert_eq!(lab.member_ids(1), [1, 4, 5]);
    lab
}

#[test]
fn a_wiped_member_finds_its_group_though_its_configuration_names_others() {
    let mut lab = all_but_1_replaced();
    lab.wipe(1);
    lab.pass(2_000, &[4, 5], |_| true);
    lab.start(1);
    lab.pass(2_000, &[1, 4, 5], |_| true);
    assert!(lab.node(1).is_member(), "4 and 5 know it, it names 2 and 3");
}

#[test]
fn a_member_taken_for_an_earlier_disk_of_its_own_comes_back() {
    let mut lab = Lab::led_by_1(3);
    let late = Envelope {
        group: lab.node(1).group().map(|group| group.id),
        from: PeerId(3),
        incarnation: Incarnation([99; 16]),
        to: PeerId(1),
        body: Body::Join {
            address: lab::address(3),
            decided: lab.node(1).decided(),
        },
    };
    lab.deliver(late);
    lab.pass(2_000, &[1, 2, 3], |_| true);
    assert!(!lab.peers[&3].removed);
    assert!(lab.node(3).is_member());
    assert_eq!(lab.node(3).group().unwrap().generation, 2);
}

#[test]
fn a_change_made_for_another_group_is_not_adopted() {
    let mut lab = Lab::led_by_1(3);
    lab.add(4, vec![1, 2, 3]);
    lab.add(5, vec![1, 2, 3]);
    lab.pass(500, &[1, 2, 3, 4, 5], |_| true);
    // Peer 1 proposes two commands, then 4 for 2. Only peer 3 hears, and only of the change.
    lab.peers.get_mut(&1).unwrap().syncs = false;
    lab.propose(1, "x", 1);
    lab.propose(1, "y", 2);
    lab.mail.clear();
    lab.input(1, |node, now| node.replace(now, PeerId(2), PeerId(4)))
        .unwrap();
    let change = lab.node(1).decided().next().next().next();
    lab.run(|envelope| {
        envelope.to == PeerId(3)
            && matches!(&envelope.body, Body::Accept { first, .. } if *first == change)
    });
    // Peer 1 crashes and has neither. Peer 2 leads with it, and takes 5 in for it.
    lab.restart(1);
    lab.peers.get_mut(&1).unwrap().syncs = true;
    lab.elect_among(2, among(&[1, 2]));
    lab.pass(300, &[2, 5], among(&[1, 2, 5]));
    lab.input(2, |node, now| node.replace(now, PeerId(1), PeerId(5)))
        .unwrap();
    lab.pass(500, &[2, 5], among(&[1, 2, 3, 5]));
    lab.pass(1_000, &[2, 3, 5], among(&[2, 3, 5]));
    let groups = lab.peers[&2]
        .applied
        .iter()
        .filter_map(|(_, entry)| match entry {
            Entry::Reconfigure(group) => Some(group.generation),
            _ => None,
        });
    assert_eq!(groups.collect::<Vec<_>>(), [1]);
    assert_eq!(lab.member_ids(2), [2, 3, 5]);
}

#[test]
fn peers_of_a_founder_that_lost_its_disk_found_a_group() {
    let mut lab = Lab::new(3);
    // The first founding is never heard of until its founder has another disk.
    let late = std::cell::RefCell::new(Vec::new());
    lab.run(|envelope| {
        let grouped = matches!(envelope.body, Body::Grouped { .. });
        if grouped {
            late.borrow_mut().push(envelope.clone());
        }
        !grouped
    });
    let late: Vec<Envelope> = late.into_inner();
    assert_eq!(
        late.iter()
            .filter(|envelope| envelope.from == PeerId(1))
            .count(),
        2
    );
    lab.wipe(1);
    lab.start(1);
    // It has asked; the others have said that they have none.
    lab.input(1, |node, now| node.handle_timeout(now));
    lab.run(|envelope| matches!(envelope.body, Body::Ask { .. } | Body::Fresh { .. }));
    assert!(lab.node(1).is_member(), "it has founded another");
    for envelope in late.into_iter().filter(|envelope| envelope.to == PeerId(2)) {
        lab.deliver(envelope);
    }
    lab.pass(3_000, &[1, 2, 3], |_| true);
    let groups: Vec<_> = [1, 2, 3]
        .map(|id| lab.node(id).group().map(|g| g.id))
        .into();
    assert!(groups.iter().all(|id| *id == groups[0] && id.is_some()));
    assert!([1, 2, 3].iter().all(|id| lab.node(*id).is_member()));
}

#[test]
fn a_change_of_the_group_is_told_only_once_it_is_on_the_disk() {
    let mut lab = Lab::led_by_1(3);
    lab.add(4, vec![1, 2, 3]);
    lab.pass(500, &[1, 2, 3, 4], |_| true);
    lab.input(1, |node, now| node.replace(now, PeerId(3), PeerId(4)))
        .unwrap();
    lab.run(among(&[1, 3]));
    assert_eq!(lab.member_ids(1), [1, 2, 4]);
    for id in [2, 4] {
        lab.peers.get_mut(&id).unwrap().syncs = false;
    }
    lab.pass(150, &[1, 2, 4], |_| true);
    assert_eq!(lab.member_ids(2), [1, 2, 4]);
    assert!(!lab.node(1).is_settled(), "only the leader's disk has it");
    lab.sync(2);
    lab.pass(100, &[1], |_| true);
    assert!(lab.node(1).is_settled());
    lab.restart(1);
    lab.restart(2);
    assert_eq!(lab.member_ids(1), [1, 2, 4]);
    assert_eq!(lab.member_ids(2), [1, 2, 4]);
}
