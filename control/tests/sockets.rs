//! Calls to coordinators played by this process: redirects, and silence.
#![cfg(feature = "shell")]
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where the stage falls down"
)]

use std::sync::Arc;
use std::time::Duration;

use ramkeep_control::shell::{Coordinators, Direct};
use ramkeep_rpc::{
    Address, Batch, Identity, Peer, PollMode, Router, Serving, Session, Wake, WorkerPool,
};
use ramkeep_wire::coordinator::{Answer, Refused, Request, Response};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Ballot, ClusterId, ListVersion, Micros, Party, PeerId, postcards};

const REQUEST: Request = Request::Servers {
    known: ListVersion(0),
};

/// How a coordinator behaves; every answer is under the ballot of this round.
#[derive(Clone)]
enum Part {
    Leads(u64),
    Names(Option<String>),
    Silent,
}

impl Session for Part {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for request in batch {
            let (round, answer) = match self.clone() {
                Self::Silent => continue,
                Self::Leads(round) => (round, Answer::Servers(None)),
                Self::Names(leader) => {
                    let coordinators = Vec::new();
                    let refused = Refused::NotLeader {
                        leader,
                        coordinators,
                        why: None,
                    };
                    (0, Answer::Refused(refused))
                }
            };
            let peer = PeerId(1);
            let ballot = Ballot { round, peer };
            let payload = postcards::encode(&Response::new(ballot, answer));
            let header = request.header.reply(Kind::CoordinatorResponse);
            envelope::append(out, header, &payload);
        }
        Ok(())
    }

    fn poll(&mut self, _now: Micros, _out: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

/// A coordinator that plays this part on every connection.
fn play(pool: &WorkerPool, part: Part) -> (Serving, Address) {
    let open = move |_: &Peer, _: Wake| -> Box<dyn Session> { Box::new(part.clone()) };
    let router = Router::new().route(&[Kind::CoordinatorRequest], Arc::new(open));
    let identity = Identity::new(None)
        .with_cluster(ClusterId([1; 16]))
        .with_party(Party::coordinator(PeerId(1)));
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let serving = pool.serve(&anywhere, &identity, router).unwrap();
    let address = serving.address().to_string().parse().unwrap();
    (serving, address)
}

fn coordinators(known: &[Address]) -> Coordinators {
    Coordinators::new(known, Identity::new(None))
}

#[tokio::test]
async fn the_leader_that_a_follower_names_is_asked() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let (_one, leader) = play(&pool, Part::Leads(1));
    let (_other, follower) = play(&pool, Part::Names(Some(leader.to_string())));
    let response = coordinators(&[follower]).call(&REQUEST).await.unwrap();
    assert_eq!(response.answer, Answer::Servers(None));
}

#[tokio::test]
async fn a_silent_one_and_one_that_is_gone_are_left() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let (_one, leader) = play(&pool, Part::Leads(1));
    let (_other, silent) = play(&pool, Part::Silent);
    let gone = "127.0.0.1:1".parse().unwrap();
    let long = Duration::from_secs(60);
    let all = coordinators(&[gone, silent, leader]);
    assert!(all.call_within(&REQUEST, long).await.is_ok());
}

#[tokio::test]
async fn an_election_is_waited_for_and_then_each_one_is_named() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let (_one, follower) = play(&pool, Part::Names(None));
    let gone: Address = "127.0.0.1:1".parse().unwrap();
    let all = coordinators(&[follower.clone(), gone.clone()]);
    let patience = Duration::from_millis(50);
    let error = all.call_within(&REQUEST, patience).await.unwrap_err().0;
    assert!(
        error.contains(&format!("{follower}: it does not lead")),
        "{error}"
    );
    assert!(error.contains(&gone.to_string()), "{error}");
}

#[tokio::test]
async fn an_answer_under_an_older_ballot_is_not_taken() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let (new, leader) = play(&pool, Part::Leads(2));
    let (_other, old) = play(&pool, Part::Leads(1));
    let all = coordinators(&[leader, old]);
    assert!(all.call(&REQUEST).await.is_ok());
    new.stop(Duration::ZERO).await;
    let patience = Duration::from_millis(50);
    let error = all.call_within(&REQUEST, patience).await.unwrap_err();
    assert!(error.0.contains("a leader that was replaced"), "{error}");
}

#[tokio::test]
async fn many_ask_at_a_time_and_some_give_up() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let (_one, silent) = play(&pool, Part::Silent);
    let (_other, leader) = play(&pool, Part::Leads(1));
    let all = Arc::new(coordinators(&[silent, leader]));
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..40 {
        let all = all.clone();
        asked.spawn(async move {
            let patience = Duration::from_millis(if number % 2 == 0 { 20 } else { 60_000 });
            let call = all.call_within(&REQUEST, Duration::from_secs(60));
            tokio::time::timeout(patience, call).await
        });
    }
    let ended = asked.join_all().await;
    let answered = ended.iter().filter(|call| matches!(call, Ok(Ok(_))));
    assert_eq!(answered.count(), 20);
}

#[tokio::test]
async fn one_coordinator_is_asked_whether_or_not_it_leads() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let (serving, follower) = play(&pool, Part::Names(None));
    let mut direct = Direct::new(follower, Identity::new(None));
    let response = direct.ask(&REQUEST).await.unwrap();
    assert!(matches!(
        response.answer,
        Answer::Refused(Refused::NotLeader { .. })
    ));
    serving.stop(Duration::ZERO).await;
    assert!(direct.ask(&REQUEST).await.is_err());
}
