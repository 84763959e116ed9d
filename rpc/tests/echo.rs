//! Requests go out and answers come back, whatever the socket and whoever waits.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{PATIENCE, Server};
use ramkeep_rpc::{Caller, PollMode};
use ramkeep_wire::envelope::Kind;

#[tokio::test]
async fn a_call_brings_its_answer_in_every_poll_mode() {
    for serving in [PollMode::Adaptive, PollMode::Always, PollMode::Never] {
        let server = Server::start(serving);
        for calling in [PollMode::Adaptive, PollMode::Always, PollMode::Never] {
            let caller = Caller::new(server.link(calling).await);
            for len in [0, 1, 100, 70_000, 1_000_000] {
                let payload = vec![len as u8; len];
                let answer = caller.call(Kind::Order, &payload, PATIENCE).await.unwrap();
                assert!(answer == payload, "{len} bytes, {serving} and {calling}");
            }
        }
    }
}
