//! Probes over sockets: who answers, who has ended, who is another, and what is told of them.
#![cfg(feature = "shell")]
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where the stage falls down"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_rpc::{
    Address, Batch, Identity, Peer, PollMode, Router, Serving, Session, Wake, WorkerPool,
};
use ramkeep_wire::coordinator::{ServerEntry, ServerState, Symptom};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Micros, Party, ServerId};

use common::{Running, list, settings};

const ME: ServerId = ServerId(1);
const SEGMENT: u32 = 1 << 20;
const MEMORY: u64 = 64 << 20;

/// One who is probed.
#[derive(Clone)]
enum Part {
    /// A server that answers probes, and notes that it was probed.
    Server(ServerId, Arc<Mutex<BTreeSet<ServerId>>>),
    /// A server that hangs.
    Hangs,
}

impl Session for Part {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for asked in batch {
            match self {
                Self::Hangs => {}
                Self::Server(me, probed) => {
                    probed.lock().insert(*me);
                    envelope::append(out, asked.header.reply(Kind::ProbeReply), &[]);
                }
            }
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

fn play(pool: &WorkerPool, party: Party, part: Part) -> Serving {
    let open = move |_: &Peer, _: Wake| -> Box<dyn Session> { Box::new(part.clone()) };
    let router = Router::new().route(&[Kind::Probe], Arc::new(open));
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let identity = Identity::new(None)
        .with_cluster(common::CLUSTER)
        .with_party(party);
    pool.serve(&anywhere, &identity, router).unwrap()
}

fn entry(server: ServerId, address: &Address) -> ServerEntry {
    common::entry(server, ServerState::Up, vec![address.to_string()])
}

#[tokio::test]
async fn the_leader_is_told_of_who_hangs_has_ended_or_is_another_and_of_nobody_else() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let probed = Arc::new(Mutex::new(BTreeSet::new()));
    let server = |id| Part::Server(ServerId(id), probed.clone());
    let [well, ended, hangs, other] = [2, 3, 4, 5].map(ServerId);
    let at_well = play(&pool, Party::server(well), server(2));
    let at_hangs = play(&pool, Party::server(hangs), Part::Hangs);
    // A process that is a new server by now has the address.
    let at_other = play(&pool, Party::server(ServerId(9)), server(9));
    let nowhere: Address = "127.0.0.1:1".parse().unwrap();
    let list = list(vec![
        entry(well, at_well.address()),
        entry(ended, &nowhere),
        entry(hangs, at_hangs.address()),
        entry(other, at_other.address()),
    ]);
    let never = PollMode::Never;
    let mut running = Running::start(ME, settings(SEGMENT), list, MEMORY, never).await;
    let mut symptoms = BTreeSet::new();
    let wanted = BTreeSet::from([
        (ended, "Refused".to_owned()),
        (hangs, "Silent".to_owned()),
        (other, "Refused".to_owned()),
    ]);
    let all = async {
        while symptoms != wanted || !probed.lock().contains(&well) {
            let (server, symptom) = running.told.recv().await.unwrap();
            // On a machine that is busy with other tests anybody may be slow once.
            if symptom != Symptom::Silent || server == hangs {
                symptoms.insert((server, format!("{symptom:?}")));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all)
        .await
        .unwrap();
    assert!(
        !probed.lock().contains(&ServerId(9)),
        "it was meant for another"
    );
}
