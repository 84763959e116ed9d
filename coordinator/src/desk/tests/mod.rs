//! The desk, driven by hand: sessions by bytes, wires by their events.

mod lab;
mod moved;
mod peers;

use std::time::Duration;

use paxos::{Body, Incarnation};
use ramkeep_rpc::Batch;
use ramkeep_rpc::wires::WireEnd;
use ramkeep_wire::coordinator::{Answer, Refused, Request, Response};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::{MAX_ADDRESS, MAX_PAYLOAD, MAX_UNSENT};
use ramkeep_wire::order::{Command, Order};
use ramkeep_wire::{
    ClusterId, ListVersion, MapVersion, Micros, Party, PeerId, ServerId, postcards,
};

use super::{Desk, DeskEnd, DeskOutput, MAX_UNANSWERED, SessionId};
use crate::limits::MAX_ADDRESSES;
use lab::{Lab, core_that, parsed, request};

const LEASE: Request = Request::OpenClientLease { nonce: [1; 16] };
const MAP: Request = Request::Map {
    known: MapVersion(0),
};

fn create() -> Request {
    Request::CreateTable {
        name: "t".into(),
        once: None,
    }
}

/// Gives a session all of `bytes`, as a connection does that sends its answers whenever no more is
/// taken; the most bytes of answers that there ever were, and how much was taken.
fn largest_out(lab: &mut Lab, session: SessionId, bytes: &[u8]) -> (usize, usize) {
    let (mut taken, mut largest, now) = (0, 0, lab.now);
    loop {
        let mut batch = Batch::new(&bytes[taken..]);
        let mut unsent = 0;
        while lab.leads().takes(session, unsent) {
            let Some(envelope) = batch.next() else { break };
            let desk = lab.leads();
            desk.handle_envelope(now, session, &envelope).unwrap();
            while let Some(output) = desk.poll_output(|| now) {
                if let DeskOutput::Reply { session: to, bytes } = output {
                    assert_eq!(to, session);
                    unsent += bytes.len();
                }
            }
        }
        taken += batch.taken();
        largest = largest.max(unsent);
        if batch.taken() == 0 || taken == bytes.len() {
            return (largest, taken);
        }
    }
}

#[test]
fn answers_of_one_connection_are_bounded_and_all_are_given() {
    let mut lab = Lab::new(1);
    let anyone = lab.session(Party::NONE);
    // A server list about as long as any.
    for nonce in 0..u8::MAX {
        let addresses = vec!["a".repeat(MAX_ADDRESS); MAX_ADDRESSES];
        lab.ask(anyone, &lab::enlist(nonce, addresses));
    }
    let session = lab.session(Party::NONE);
    let servers = Request::Servers {
        known: ListVersion(0),
    };
    let bytes = request(1, Party::NONE, &servers).repeat(200);
    let (largest, taken) = largest_out(&mut lab, session, &bytes);
    assert!(largest > MAX_UNSENT, "more than one connection may have");
    assert!(largest <= MAX_UNSENT + MAX_PAYLOAD, "{largest}");
    assert_eq!(taken, bytes.len(), "the rest when the first are sent");

    // Nothing is persisted here, so nothing of these is answered.
    let bytes = request(1, Party::NONE, &LEASE).repeat(200);
    let (_, taken) = largest_out(&mut lab, session, &bytes);
    assert_eq!(taken, bytes.len() / 200 * MAX_UNANSWERED);
    assert_eq!(lab.leads().unanswered(session), MAX_UNANSWERED);
}

#[test]
fn the_next_request_is_taken_when_one_is_answered() {
    let mut lab = Lab::new(1);
    let (full, other) = (lab.session(Party::NONE), lab.session(Party::NONE));
    lab.stuck = true;
    for _ in 0..MAX_UNANSWERED {
        assert!(lab.leads().takes(full, 0));
        lab.ask(full, &LEASE);
    }
    assert!(!lab.leads().takes(full, 0), "the 49th is left");
    assert!(lab.leads().takes(other, 0), "of this session only");
    assert!(!lab.leads().takes(other, MAX_UNSENT + 1));
    lab.stuck = false;
    let now = lab.now;
    lab.leads().handle_persisted(now, u64::MAX);
    lab.settle();
    assert!(lab.leads().takes(full, 0));
    assert_eq!(lab.leads().unanswered(full), 0);
}

#[test]
fn an_answer_that_fits_no_envelope_is_refused() {
    let mut lab = Lab::new(1);
    let session = lab.session(Party::NONE);
    let desk = lab.leads();
    let bytes = request(7, Party::NONE, &LEASE);
    let token = desk.callers.ask(session, &parsed(&bytes).header).unwrap();
    let ballot = desk.core().ballot();
    let answer = Answer::Refused(Refused::Invalid("x".repeat(MAX_PAYLOAD)));
    let payload = super::callers::encode(&Response::new(ballot, answer));
    let reply = desk.callers.reply(token, &payload, None);
    let (to, bytes) = reply.unwrap();
    assert_eq!(to, session);
    let envelope = parsed(&bytes);
    assert_eq!(envelope.header.kind, Kind::CoordinatorResponse);
    assert_eq!(envelope.header.correlation, 7);
    let response: Response = postcards::decode(envelope.payload).unwrap();
    let limit = Answer::Refused(Refused::Limit("an answer's size".into()));
    assert_eq!((response.ballot, response.answer), (ballot, limit));
    assert_eq!(lab.leads().unanswered(session), 0);
}

/// Whether each of two answers on one connection says who the coordinators are, and one on another.
fn told_of_the_group() -> [bool; 3] {
    let mut lab = Lab::new(3);
    let (one, other) = (lab.session(Party::NONE), lab.session(Party::NONE));
    [one, one, other].map(|session| {
        let asked = lab.ask(session, &MAP);
        let Some(facts) = lab.told(asked) else {
            return false;
        };
        assert_eq!(facts.coordinators.len(), 3);
        true
    })
}

#[test]
fn each_connection_is_told_once_who_the_coordinators_are() {
    assert_eq!(told_of_the_group(), [true, false, true]);
}

fn who_is_of_another_cluster_is_not_heard() {
    let mut lab = Lab::new(1);
    let session = SessionId(u64::MAX);
    let now = lab.now;
    let desk = lab.leads();
    let ours = desk.core().state().constants().unwrap().cluster;
    // As it said before this coordinator had a cluster.
    desk.open_session(session, Party::NONE, ClusterId([9; 16]));
    let bytes = request(1, Party::NONE, &MAP);
    let heard = desk.handle_envelope(now, session, &parsed(&bytes));
    assert_eq!(heard, Err(Refusal::Cluster(ours)));
}

#[test]
fn a_session_of_another_cluster_ends_once_the_own_is_known() {
    who_is_of_another_cluster_is_not_heard();
}

/// What a coordinator that has no leader says why, and how the desks of two others are to be.
fn why(desk: &mut Desk) -> String {
    let session = SessionId(u64::MAX);
    desk.open_session(session, Party::NONE, ClusterId::default());
    let now = Micros(2_000_000);
    let bytes = request(1, Party::NONE, &MAP);
    desk.handle_envelope(now, session, &parsed(&bytes)).unwrap();
    while let Some(output) = desk.poll_output(|| now) {
        let DeskOutput::Reply { bytes, .. } = output else {
            continue;
        };
        let response: Response = postcards::decode(parsed(&bytes).payload).unwrap();
        let Answer::Refused(Refused::NotLeader { why, .. }) = response.answer else {
            panic!("{response:?}");
        };
        return why.expect("it says why");
    }
    panic!("no answer");
}

#[test]
fn one_with_an_empty_directory_says_what_it_waits_for_and_what_leads_out() {
    let mut desk = Desk::new(core_that(2, 3, false));
    let said = why(&mut desk);
    for part in [
        "its directory is empty",
        "coordinator-1, coordinator-3",
        "--new-cluster",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn the_last_of_a_group_says_who_is_missing_and_what_leads_out() {
    let mut lab = Lab::new(3);
    let leader = lab.leader();
    for other in (0..3).filter(|other| *other != leader) {
        lab.away.insert(u32::try_from(other).unwrap() + 1);
        lab.part(leader, other);
    }
    lab.until(|lab| !lab.desks[leader].core().leads());
    lab.until(|lab| lab.desks[leader].why_nobody_leads().is_some());
    let said = lab.desks[leader].why_nobody_leads().unwrap();
    for part in [
        "2 of the 3",
        "does not answer",
        "ramkeep coordinator rescue",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

fn stale_replies_are_not_given() {
    let mut lab = Lab::new(3);
    let session = lab.session(Party::NONE);
    let asked = lab.ask(session, &MAP);
    assert!(matches!(
        lab.answer(asked),
        Some((to, Answer::Map(Some(_)))) if to == session
    ));
    // The process is put aside just after the core has made the answer.
    lab.late = Duration::from_secs(1);
    let asked = lab.ask(session, &MAP);
    let answer = lab.answer(asked);
    assert!(
        matches!(
            answer,
            Some((_, Answer::Refused(Refused::NotLeader { .. })))
        ),
        "{answer:?}"
    );
}

#[test]
fn an_answer_is_not_given_once_the_lease_it_counts_by_has_ended() {
    stale_replies_are_not_given();
}

fn answers_go_to_whoever_asked() {
    let mut lab = Lab::new(1);
    let (asks, leaves, comes) = (
        lab.session(Party::NONE),
        lab.session(Party::NONE),
        lab.session(Party::NONE),
    );
    lab.stuck = true;
    let (kept, lost) = (lab.ask(asks, &LEASE), lab.ask(leaves, &LEASE));
    let now = lab.now;
    lab.leads().close_session(now, leaves);
    let late = lab.session(Party::NONE);
    lab.stuck = false;
    lab.leads().handle_persisted(now, u64::MAX);
    lab.settle();
    let (to, answer) = lab.answer(kept).unwrap();
    assert_eq!(to, asks);
    assert!(matches!(answer, Answer::ClientLease { .. }));
    assert_eq!(lab.answer(lost), None, "nobody is there any more");
    for session in [asks, leaves, comes, late] {
        assert_eq!(lab.leads().unanswered(session), 0);
    }
}

#[test]
fn an_answer_goes_to_the_session_that_asked_or_nowhere() {
    answers_go_to_whoever_asked();
}

fn peers_speak_for_themselves() {
    let mut lab = Lab::new(3);
    let leader = u32::try_from(lab.leader()).unwrap() + 1;
    let others: Vec<u32> = (1..=3).filter(|id| *id != leader).collect();
    let message = |from: u32| paxos::Envelope {
        group: None,
        from: paxos::PeerId(from),
        incarnation: Incarnation([from.to_le_bytes()[0]; 16]),
        to: paxos::PeerId(leader),
        body: Body::Fresh {
            asker: Incarnation([2; 16]),
        },
    };
    let session = lab.session(Party::coordinator(PeerId(others[0])));
    assert_eq!(lab.say(session, &message(others[0])), Ok(()));
    let refused = lab.say(session, &message(others[1]));
    assert!(matches!(refused, Err(Refusal::Malformed(_))), "{refused:?}");
    for party in [Party::NONE, Party::server(ServerId(1))] {
        let session = lab.session(party);
        assert!(lab.say(session, &message(others[0])).is_err());
    }
}

#[test]
fn a_coordinator_speaks_for_itself_only() {
    peers_speak_for_themselves();
}

#[test]
fn what_is_not_served_or_makes_no_sense_is_refused() {
    use ramkeep_wire::envelope::{self, Header};
    let mut lab = Lab::new(1);
    let session = lab.session(Party::NONE);
    for kind in [Kind::CoordinatorRequest, Kind::Group, Kind::Order] {
        let mut bytes = Vec::new();
        let header = Header::new(kind, 1, Party::NONE, Party::NONE);
        envelope::append(&mut bytes, header, &[0xff; 3]);
        let now = lab.now;
        let refused = lab.leads().handle_envelope(now, session, &parsed(&bytes));
        assert!(matches!(refused, Err(Refusal::Malformed(_))), "{kind:?}");
    }
    assert_eq!(lab.leads().unanswered(session), 0);
}

/// The order to take a table's tablets, once a server was sent one.
fn take_order(lab: &Lab, server: ServerId) -> Option<Vec<u8>> {
    let sent = lab.servers.get(&server)?.unanswered.iter();
    let takes = |bytes: &&Vec<u8>| {
        let envelope = parsed(bytes);
        envelope.header.kind == Kind::Order
            && matches!(
                postcards::decode::<Order>(envelope.payload)
                    .unwrap()
                    .command,
                Command::TakeTablets(_)
            )
    };
    sent.rev().find(takes).cloned()
}

#[test]
fn a_reply_on_a_wire_of_an_older_life_is_not_looked_at() {
    let mut lab = Lab::new(1);
    let server = lab.join(1);
    let session = lab.session(Party::NONE);
    let created = lab.ask(session, &create());
    lab.until(|lab| take_order(lab, server).is_some());
    let old = lab.servers[&server].wire.unwrap();
    let given = take_order(&lab, server).unwrap();
    lab.end_wire(server, &WireEnd::Closed("reset".into()));
    lab.until(|lab| take_order(lab, server).is_some());
    let new = lab.servers[&server].wire.unwrap();
    let again = take_order(&lab, server).unwrap();
    assert_ne!(old, new);

    lab.reply_to(old, &given);
    lab.reply_to(old, &again);
    lab.reply_to(new, &given);
    lab.settle();
    assert_eq!(lab.answer(created), None);
    lab.reply_to(new, &again);
    lab.settle();
    assert!(matches!(lab.answer(created), Some((_, Answer::Table(_)))));
}

#[test]
fn a_closed_connection_of_a_server_has_it_probed_from_whichever_side_it_was_opened() {
    let mut lab = Lab::new(1);
    let server = lab.join(1);
    lab.until(|lab| lab.servers.contains_key(&server));
    lab.obey(server);
    let probed = |lab: &Lab| lab.leads_ref().core().suspected(server).probes;
    assert_eq!(probed(&lab), 0);
    // The session on which it reported is the first one: `join` opened it.
    let now = lab.now;
    lab.leads().close_session(now, SessionId(1));
    lab.settle();
    assert_eq!(probed(&lab), 1);
    lab.obey(server);
    lab.end_wire(server, &WireEnd::Closed("reset".into()));
    assert_eq!(probed(&lab), 2);
    lab.obey(server);
    // It said hello as a server, and has not reported here.
    let session = lab.session(Party::server(server));
    lab.leads().close_session(now, session);
    lab.settle();
    assert_eq!(probed(&lab), 3);
}

/// Lets time pass with one server dead, until another is asked for what it holds of its log.
fn until_asked(lab: &mut Lab, dead: ServerId, asked: ServerId) {
    let question = |lab: &Lab| {
        let sent = lab.servers[&asked].unanswered.iter();
        sent.rev()
            .any(|bytes| parsed(bytes).header.kind == Kind::BackupRequest)
    };
    for _ in 0..1_000 {
        lab.step();
        lab.obey(asked);
        if question(lab) {
            return;
        }
        assert!(lab.servers[&dead].dead);
    }
    panic!("{asked:?} is not asked");
}

fn questions_are_asked_again() {
    let mut lab = Lab::new(1);
    let dead = lab.join(1);
    let session = lab.session(Party::NONE);
    let created = lab.ask(session, &create());
    lab.until(|lab| take_order(lab, dead).is_some());
    lab.obey(dead);
    assert!(lab.answer(created).is_some());
    let backup = lab.join(2);
    lab.servers.get_mut(&dead).unwrap().dead = true;
    lab.until(|lab| lab.servers.contains_key(&backup));
    lab.end_wire(dead, &WireEnd::Closed("reset".into()));
    until_asked(&mut lab, dead, backup);
    let state = lab.leads_ref().core().state();
    assert!(state.living(dead).is_err());

    // Its wire breaks: the new one has no question yet.
    lab.end_wire(backup, &WireEnd::Closed("reset".into()));
    until_asked(&mut lab, dead, backup);
    // It does not answer in time.
    lab.servers.get_mut(&backup).unwrap().unanswered.clear();
    until_asked(&mut lab, dead, backup);
    // So much is on its way to it that there is no place for the question.
    lab.end_wire(backup, &WireEnd::Closed("reset".into()));
    crowd(&mut lab, backup);
    for _ in 0..40 {
        lab.step();
    }
    let sent = &lab.servers[&backup].unanswered;
    assert!(
        sent.iter()
            .all(|bytes| parsed(bytes).header.kind == Kind::Order)
    );
    until_asked(&mut lab, dead, backup);
}

/// Has as many orders on their way to a server as may be.
fn crowd(lab: &mut Lab, server: ServerId) {
    let (now, desk) = (lab.now, lab.leads());
    let addresses = desk
        .core()
        .state()
        .living(server)
        .unwrap()
        .addresses
        .clone();
    let probe = Order {
        ballot: desk.core().ballot(),
        command: Command::Probe,
    };
    for _ in 0..100 {
        desk.order(now, server, &addresses, probe.clone());
    }
    lab.settle();
}

#[test]
fn a_map_is_made_once_for_all_who_ask() {
    let mut lab = Lab::new(1);
    let server = lab.join(1);
    let session = lab.session(Party::NONE);
    let map = |lab: &mut Lab| {
        let asked = lab.ask(session, &MAP);
        match lab.answer(asked) {
            Some((_, Answer::Map(Some(map)))) => map,
            other => panic!("{other:?}"),
        }
    };
    let first = map(&mut lab);
    for _ in 0..100 {
        assert_eq!(map(&mut lab), first);
    }
    assert_eq!(lab.leads().maps.made, 1);
    lab.ask(session, &create());
    lab.until(|lab| take_order(lab, server).is_some());
    lab.obey(server);
    let second = map(&mut lab);
    assert!(second.version > first.version && second.tables.len() == 1);
    assert_eq!(second, lab.leads().core().state().tablet_map());
    assert_eq!(lab.leads().maps.made, 2);
}

fn a_crowded_order_waits_for_room() {
    let mut lab = Lab::new(1);
    let server = lab.join(1);
    lab.until(|lab| lab.servers.contains_key(&server));
    lab.obey(server);
    crowd(&mut lab, server);
    let session = lab.session(Party::NONE);
    let created = lab.ask(session, &create());
    assert!(
        take_order(&lab, server).is_none(),
        "there is no room for it"
    );
    let now = lab.now;
    lab.leads().handle_tick(now);
    lab.settle();
    let due = lab.leads().next_timeout();
    assert!(
        due.is_none_or(|due| due > lab.now),
        "it waits without hurry"
    );
    // No time passes: only room comes.
    lab.obey(server);
    assert!(take_order(&lab, server).is_some());
    lab.obey(server);
    assert!(matches!(lab.answer(created), Some((_, Answer::Table(_)))));

    // Room comes, too, when what is on its way is late, or its wire ends.
    for late in [true, false] {
        crowd(&mut lab, server);
        let name = format!("late: {late}");
        lab.ask(session, &Request::CreateTable { name, once: None });
        assert!(take_order(&lab, server).is_none());
        if late {
            let wire = lab.servers[&server].wire;
            lab.until(|lab| take_order(lab, server).is_some());
            assert_eq!(lab.servers[&server].wire, wire);
        } else {
            lab.end_wire(server, &WireEnd::Closed("reset".into()));
            assert!(take_order(&lab, server).is_some());
        }
        lab.obey(server);
    }
}

#[test]
fn an_order_without_room_leaves_as_soon_as_there_is_room() {
    a_crowded_order_waits_for_room();
}

#[test]
fn a_question_that_is_lost_is_asked_again() {
    questions_are_asked_again();
}

#[test]
fn there_is_no_wire_to_a_server_that_is_decided_crashed() {
    let mut lab = Lab::new(1);
    let (dead, other) = (lab.join(1), lab.join(2));
    lab.until(|lab| lab.servers.len() == 2);
    let mut desk_keys = lab
        .leads()
        .errands
        .wires()
        .keys()
        .copied()
        .collect::<Vec<_>>();
    assert_eq!(desk_keys, [dead, other]);
    lab.servers.get_mut(&dead).unwrap().dead = true;
    lab.end_wire(dead, &WireEnd::Closed("reset".into()));
    for _ in 0..100 {
        lab.step();
        lab.obey(other);
    }
    desk_keys = lab.leads().errands.wires().keys().copied().collect();
    assert_eq!(desk_keys, [other]);
}

#[test]
fn a_group_goes_on_soon_when_nobody_is_where_its_leader_was() {
    let mut lab = Lab::new(3);
    let known = |output: &&DeskOutput| matches!(output, DeskOutput::KnowCluster(_));
    lab.until(|lab| lab.others.iter().filter(known).count() == 3);
    let old = lab.leader();
    lab.desks[old].end();
    lab.away.insert(u32::try_from(old).unwrap() + 1);
    let others: Vec<usize> = (0..3).filter(|at| *at != old).collect();
    for other in &others {
        lab.part(old, *other);
    }
    let gone = lab.now;
    lab.until(|lab| others.iter().any(|at| lab.desks[*at].core().leads()));
    // Its lease, and not the time to elect another.
    let took = lab.now.since(gone);
    assert!(took < Duration::from_millis(250), "{took:?}");
    assert_eq!(lab.desks[old].next_timeout(), None);
    assert_eq!(lab.others.iter().filter(known).count(), 3, "said once");
}

#[test]
fn nothing_leaves_after_the_end() {
    let mut lab = Lab::new(3);
    let joins = lab.join_group();
    let leader = lab.leader();
    let lost = (0..3).find(|at| *at != leader).unwrap();
    let session = lab.session(Party::NONE);
    let replace = Request::ReplaceCoordinator {
        lost: PeerId(u32::try_from(lost).unwrap() + 1),
        by: joins,
    };
    lab.until(|lab| lab.desks[3].core().state().constants().is_some());
    let replaced = lab.ask(session, &replace);
    lab.until(|lab| lab.answer(replaced).is_some());
    assert_eq!(lab.answer(replaced), Some((session, Answer::Noted)));
    let end = DeskOutput::End(DeskEnd::Removed);
    lab.until(|lab| lab.others.contains(&end));
    assert_eq!(lab.others.iter().filter(|one| **one == end).count(), 1);
    let now = lab.now + Duration::from_secs(1);
    let gone = &mut lab.desks[lost];
    let session = SessionId(u64::MAX);
    gone.open_session(session, Party::NONE, ClusterId::default());
    let bytes = request(1, Party::NONE, &MAP);
    gone.handle_envelope(now, session, &parsed(&bytes)).unwrap();
    gone.handle_tick(now);
    assert_eq!(
        (gone.poll_output(|| now), gone.next_timeout()),
        (None, None)
    );
}

#[cfg(feature = "mutants")]
#[test]
fn planted_faults_of_the_desk_are_caught() {
    use ramkeep_wire::mutants::{self, Mutant};
    let faults: [(Mutant, fn()); 8] = [
        (
            Mutant::StartCopies,
            moved::a_copy_beside_its_original_takes_part_in_nothing,
        ),
        (
            Mutant::KeepOldSessions,
            who_is_of_another_cluster_is_not_heard,
        ),
        (
            Mutant::HideTheGroup,
            each_connection_is_told_once_who_the_coordinators_are,
        ),
        (Mutant::StaleReply, stale_replies_are_not_given),
        (Mutant::AnswerTheNewest, answers_go_to_whoever_asked),
        (Mutant::HearAnyPeer, peers_speak_for_themselves),
        (Mutant::LoseQuestions, questions_are_asked_again),
        (Mutant::CrowdedOrdersAreLost, a_crowded_order_waits_for_room),
    ];
    for (mutant, story) in faults {
        assert!(mutants::fails(mutant, story), "{mutant:?}");
        story();
    }
}
