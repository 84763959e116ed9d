//! Tries in the state: each has a name of its own, whatever is repeated.

use super::recoveries::{accept, crashed};
use super::*;

#[test]
fn a_loss_that_is_accepted_once_more_gives_up_no_plan_that_was_made_with_it() {
    let (mut state, dead, [b, _], table) = crashed();
    let whole = range(table, 0, u64::MAX);
    let acceptance = accept(dead, &[], &[4], false);
    state.apply(&acceptance).unwrap();
    state.apply(&plan(dead, 7, &[(&[whole], b)])).unwrap();
    let before = postcards::encode(&state);
    state.apply(&acceptance).unwrap();
    assert_eq!(postcards::encode(&state), before, "the try goes on");
    // What is lost since is another loss.
    state.apply(&accept(dead, &[], &[4, 5], false)).unwrap();
    assert!(state.recoveries().by_master(dead).is_none());
}
