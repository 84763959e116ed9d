//! Copies of a coordinator's directory, and directories that were moved.

use paxos::{Body, Incarnation, Stored};
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party, PeerId};

use super::super::{Desk, DeskEnd, DeskOutput};
use super::lab::{Lab, core, core_from};
use crate::core::Output;

const NOW: Micros = Micros(2_000_000);

/// What the disk has of a coordinator that was alone at `coordinator-1`.
fn stored() -> Stored {
    let (mut stored, mut was) = (Stored::default(), core(1, 1));
    while !was.leads() {
        match was.poll_output() {
            Some(Output::Persist { seq, records }) => {
                stored.records.extend(records);
                was.handle_persisted(NOW, seq);
            }
            Some(_) => {}
            None => was.handle_tick(NOW),
        }
    }
    stored
}

fn me() -> Party {
    Party::coordinator(PeerId(1))
}

fn outputs(desk: &mut Desk, now: Micros) -> Vec<DeskOutput> {
    std::iter::from_fn(|| desk.poll_output(|| now)).collect()
}

/// One with that directory at another address; the wire over which it asks where it was.
fn elsewhere() -> (Desk, WireId) {
    let mut desk = Desk::new(core_from(1, 1, false, "elsewhere", stored()));
    let mut asks = outputs(&mut desk, NOW);
    asks.retain(|output| !matches!(output, DeskOutput::KnowCluster(_)));
    let [
        DeskOutput::Wire(WireOutput::Connect {
            wire,
            addresses,
            to,
        }),
    ] = &asks[..]
    else {
        panic!("{asks:?}");
    };
    assert_eq!(
        (&addresses[..], *to),
        (&["coordinator-1".to_owned()][..], me())
    );
    (desk, *wire)
}

fn takes_part(desk: &mut Desk, now: Micros) -> bool {
    desk.handle_tick(now);
    let outputs = outputs(desk, now);
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, DeskOutput::End(_)))
    );
    outputs
        .iter()
        .any(|output| matches!(output, DeskOutput::Persist(_)))
}

pub(super) fn a_copy_beside_its_original_takes_part_in_nothing() {
    let (mut desk, wire) = elsewhere();
    desk.handle_wire_up(wire, me(), me());
    let end = DeskOutput::End(DeskEnd::Copy("coordinator-1".to_owned()));
    assert_eq!(outputs(&mut desk, NOW), [end]);
    assert_eq!(desk.next_timeout(), None);
}

#[test]
fn a_copy_of_a_coordinators_directory_ends_while_its_original_answers() {
    a_copy_beside_its_original_takes_part_in_nothing();
    let (mut desk, wire) = elsewhere();
    desk.handle_wire_down(NOW, wire, &WireEnd::Refused(Refusal::Busy));
    let ends = outputs(&mut desk, NOW);
    assert!(matches!(ends[..], [DeskOutput::End(DeskEnd::Copy(_))]));
}

#[test]
fn a_coordinator_whose_directory_was_moved_goes_on() {
    let other = Party::coordinator(PeerId(2));
    for end in [
        WireEnd::Nobody,
        WireEnd::Unclear("no route".to_owned()),
        WireEnd::Refused(Refusal::Party(other)),
    ] {
        let (mut desk, wire) = elsewhere();
        desk.handle_wire_down(NOW, wire, &end);
        assert!(takes_part(&mut desk, NOW), "{end:?}");
    }
    let (mut desk, _) = elsewhere();
    let until = desk.next_timeout().unwrap();
    assert!(takes_part(&mut desk, until), "silence");
}

#[test]
fn one_that_is_where_it_was_asks_nobody() {
    let mut desk = Desk::new(core_from(1, 1, false, "coordinator-1", stored()));
    assert!(takes_part(&mut desk, NOW));
}

#[test]
fn who_lacks_a_moved_coordinator_says_from_where_it_calls_and_what_leads_out() {
    let mut lab = Lab::new(3);
    let leader = lab.leader();
    let others: Vec<u32> = (1..=3).filter(|id| *id != leader as u32 + 1).collect();
    let moved = others[0];
    for other in &others {
        lab.away.insert(*other);
        lab.part(leader, *other as usize - 1);
    }
    let session = lab.session(Party::coordinator(PeerId(moved)));
    let message = paxos::Envelope {
        group: lab.desks[leader]
            .core()
            .node()
            .group()
            .map(|group| group.id),
        from: paxos::PeerId(moved),
        incarnation: Incarnation([moved as u8; 16]),
        to: paxos::PeerId(leader as u32 + 1),
        body: Body::Moved {
            address: "elsewhere".to_owned(),
        },
    };
    lab.say(session, &message).unwrap();
    lab.until(|lab| !lab.desks[leader].core().leads());
    lab.until(|lab| lab.desks[leader].why_nobody_leads().is_some());
    let said = lab.desks[leader].why_nobody_leads().unwrap();
    let (from, flag) = (
        format!(
            "coordinator {moved} calls from elsewhere, and does not answer at coordinator-{moved}"
        ),
        format!("coordinator {}) again with {moved}=elsewhere", leader + 1),
    );
    for part in ["2 of the 3", &from, &flag] {
        assert!(said.contains(part), "{said}");
    }
}
