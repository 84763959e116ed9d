//! Of which cluster a process is: the first leader that answers says so, and nobody else (SAFETY 30).

use ramkeep_control::{Sequencing, Unanswered};
use ramkeep_wire::ClusterId;
use ramkeep_wire::coordinator::Answer;

use crate::bench::{Bench, SECOND, create, map, map_after, not_leader, table};

const ANOTHER: ClusterId = ClusterId([2; 16]);

/// What a client hears whose first coordinator's address is another cluster's for a time: that one does
/// not lead. (Seed 2888 of the simulator.)
pub(crate) fn first_met_is_another_clusters() -> Option<Result<Answer, Unanswered>> {
    let mut bench = Bench::leased(2);
    bench.foreign.insert(0, ANOTHER);
    let owner = bench.ask(create());
    bench.answer(not_leader(None, &[]));
    let (peer, correlation, _) = bench.asked().remove(0);
    assert_eq!(peer, 1);
    bench.answer_at(peer, correlation, 1, table());
    bench.result(owner)
}

#[test]
fn who_only_redirects_does_not_say_of_which_cluster_a_process_is() {
    let result = first_met_is_another_clusters();
    assert_eq!(result, Some(Ok(table())));
}

#[test]
fn another_clusters_leader_is_not_believed_once_the_own_is_known() {
    let mut bench = Bench::new(2, Sequencing::AsGiven);
    let owner = bench.ask(map_after(0));
    bench.answer(map(1));
    assert!(bench.result(owner).is_some());
    bench.foreign.insert(1, ANOTHER);
    bench.break_link(0);
    let owner = bench.ask(map_after(1));
    let (peer, correlation, _) = bench.asked().remove(0);
    assert_eq!(peer, 1);
    bench.answer_at(peer, correlation, 9, map(9));
    assert_eq!(bench.result(owner), None);
    assert_eq!(bench.closed, [1], "its connection ends");
    assert!(!bench.asked().is_empty(), "it is asked again on another");
    assert_eq!(bench.talk.ballot().round, 1, "nor is its ballot");
}

#[test]
fn a_leader_that_knew_no_cluster_when_it_was_met_is_met_again() {
    let mut bench = Bench::new(1, Sequencing::AsGiven);
    bench.foreign.insert(0, ClusterId::default());
    let owner = bench.ask_within(map_after(0), 5 * SECOND);
    let (peer, correlation, _) = bench.asked().remove(0);
    bench.foreign.clear();
    bench.answer_at(peer, correlation, 1, map(1));
    assert_eq!((bench.result(owner), &bench.closed[..]), (None, &[0][..]));
    bench.answer(map(1));
    assert_eq!(bench.result(owner), Some(Ok(map(1))));
}
