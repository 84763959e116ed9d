//! Many tasks on one link, and many links on one worker.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{PATIENCE, Server};
use ramkeep_rpc::{
    Batch, CallError, Caller, Link, Peer, PollMode, Router, SendError, Session, Wake,
};
use ramkeep_wire::Micros;
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;

const MODES: [PollMode; 3] = [PollMode::Adaptive, PollMode::Always, PollMode::Never];

async fn calls(caller: Caller, task: u32, calls: u32) {
    for number in 0..calls {
        let payload = [task.to_le_bytes(), number.to_le_bytes()].concat();
        let answer = caller.call(Kind::Order, &payload, PATIENCE).await;
        assert_eq!(answer, Ok(payload));
    }
}

async fn many_tasks_share_a_link(mode: PollMode) {
    let server = Server::start(mode);
    let caller = Caller::new(server.link(mode).await);
    let tasks: Vec<_> = (0..64)
        .map(|task| tokio::spawn(calls(caller.clone(), task, 100)))
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(caller.unmatched(), 0);
}

#[tokio::test]
async fn tasks_of_one_thread_share_a_link() {
    for mode in MODES {
        many_tasks_share_a_link(mode).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn tasks_of_several_threads_share_a_link() {
    for mode in MODES {
        many_tasks_share_a_link(mode).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_links_than_a_worker_polls_are_all_served() {
    for mode in MODES {
        let server = Server::start(mode);
        let mut tasks = Vec::new();
        for task in 0..24 {
            let caller = Caller::new(server.link(mode).await);
            tasks.push(tokio::spawn(calls(caller, task, 50)));
        }
        for task in tasks {
            task.await.unwrap();
        }
    }
}

/// Never answers what begins with a zero; answers all else with what it was asked.
struct Choosy;

impl Session for Choosy {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for request in batch.filter(|request| request.payload.first() != Some(&0)) {
            let header = request.header.reply(Kind::OrderReply);
            envelope::append(out, header, request.payload);
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

fn choosy(mode: PollMode) -> Server {
    let open = |_: &Peer, _: Wake| -> Box<dyn Session> { Box::new(Choosy) };
    Server::routed(mode, Router::new().route(&[Kind::Order], Arc::new(open)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_given_up_leave_the_others_waiting_well() {
    for mode in MODES {
        let server = choosy(mode);
        let caller = Caller::new(server.link(mode).await);
        let mut hopeless = Vec::new();
        for _ in 0..8 {
            let caller = caller.clone();
            hopeless.push(tokio::spawn(async move {
                caller.call(Kind::Order, &[0], PATIENCE).await
            }));
        }
        let mut served = Vec::new();
        for task in 1..9_u8 {
            let caller = caller.clone();
            served.push(tokio::spawn(async move {
                for number in 0..200_u8 {
                    // Some waits are given up before they could end, with the lead or without.
                    let short = Duration::from_micros(u64::from(number % 7) * 20);
                    let given_up = caller.call(Kind::Order, &[0, task], short).await;
                    assert_eq!(given_up, Err(CallError::Deadline));
                    let answer = caller.call(Kind::Order, &[task, number], PATIENCE).await;
                    assert_eq!(answer, Ok(vec![task, number]));
                }
            }));
        }
        for (index, task) in served.into_iter().enumerate() {
            // Tasks that lead are cut off as well.
            hopeless[index].abort();
            task.await.unwrap();
        }
    }
}

#[tokio::test]
async fn an_answer_after_the_deadline_is_dropped_and_counted() {
    let server = Server::start(PollMode::Adaptive);
    let caller = Caller::new(server.link(PollMode::Adaptive).await);
    let late = caller.call(Kind::Order, b"late", Duration::ZERO).await;
    let answer = caller.call(Kind::Order, b"in time", PATIENCE).await;
    assert_eq!(answer.as_deref(), Ok(b"in time".as_slice()));
    let lost = u64::from(late == Err(CallError::Deadline));
    assert_eq!(caller.unmatched(), lost);
}

#[tokio::test]
async fn a_closed_link_tells_all_who_wait() {
    for mode in MODES {
        let server = choosy(mode);
        let caller = Caller::new(server.link(mode).await);
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let caller = caller.clone();
                tokio::spawn(async move { caller.call(Kind::Order, &[0], PATIENCE).await })
            })
            .collect();
        // One that is answered comes after those that wait.
        caller.call(Kind::Order, &[1], PATIENCE).await.unwrap();
        server.pool.shutdown();
        for task in waiting {
            assert!(matches!(task.await.unwrap(), Err(CallError::Closed(_))));
        }
        assert!(caller.link().is_closed());
        let refused = caller.call(Kind::Order, &[1], PATIENCE).await;
        assert!(matches!(refused, Err(CallError::Closed(_))));
    }
}

#[tokio::test]
async fn a_link_outgrown_by_its_sender_is_full_until_the_peer_reads() {
    let server = Server::start(PollMode::Adaptive);
    let link = server.link(PollMode::Adaptive).await;
    let payload = vec![1; 1 << 20];
    let mut sent = 0;
    let refused = loop {
        let header = link.header(Kind::Order, sent);
        // Nobody receives the answers, so that at some point the server reads no more.
        match link.send(|out| envelope::append(out, header, &payload)) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 200, "the link takes requests without end");
    };
    assert_eq!(refused, SendError::Full);
    assert!(link.unsent() <= MAX_UNSENT + payload.len() + envelope::HEADER_LEN);

    let mut received = 0;
    while received < sent {
        link.ready().await;
        let mut in_order = |envelope: envelope::Envelope<'_>| {
            assert_eq!(envelope.header.correlation, received);
            received += 1;
        };
        link.try_receive(&mut in_order);
        assert_eq!(link.closed_reason(), None);
    }
    assert_eq!(link.unsent(), 0);
}

#[test]
fn a_link_is_used_from_another_runtime_than_its_own() {
    let server = Server::start(PollMode::Never);
    let home = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let link: Link = home.block_on(server.link(PollMode::Never));
    let away = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    away.block_on(calls(Caller::new(link), 1, 100));
}
