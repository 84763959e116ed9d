//! Probes over sockets: who answers, who has ended, who is another, and what is told of them.
#![cfg(feature = "shell")]
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where the stage falls down"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_master::probing::Prober;
use ramkeep_master::shell::{Coordinators, Probing};
use ramkeep_rpc::{
    Address, Batch, Identity, Peer, PollMode, Router, Serving, Session, Wake, WorkerPool,
};
use ramkeep_wire::coordinator::{
    Answer, Request, Response, Roles, ServerEntry, ServerList, ServerState, Symptom,
};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Ballot, ListVersion, Micros, Party, PeerId, ServerId, postcards};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

const ME: ServerId = ServerId(1);

/// What the leader was told.
type Told = UnboundedSender<(ServerId, Symptom)>;

/// One who answers.
#[derive(Clone)]
enum Part {
    Leader(Told),
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
                Self::Leader(told) => {
                    let request = postcards::decode(asked.payload).unwrap();
                    let Request::Suspect {
                        server,
                        by,
                        symptom,
                    } = request
                    else {
                        panic!("{request:?}");
                    };
                    assert_eq!(by, ME);
                    // The test has heard enough when nobody listens.
                    let _ = told.send((server, symptom));
                    let response = Response {
                        ballot: Ballot::default(),
                        answer: Answer::Noted,
                    };
                    let header = asked.header.reply(Kind::CoordinatorResponse);
                    envelope::append(out, header, &postcards::encode(&response));
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
    let kinds = &[Kind::Probe, Kind::CoordinatorRequest];
    let router = Router::new().route(kinds, Arc::new(open));
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let identity = Identity::new(None).with_party(party);
    pool.serve(&anywhere, &identity, router).unwrap()
}

fn entry(server: ServerId, address: &Address) -> ServerEntry {
    ServerEntry {
        server,
        roles: Roles::BOTH,
        addresses: vec![address.to_string()],
        state: ServerState::Up,
        replaces: None,
        recovered: false,
    }
}

#[tokio::test]
async fn the_leader_is_told_of_who_hangs_has_ended_or_is_another_and_of_nobody_else() {
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let (tell, mut told) = unbounded_channel();
    let probed = Arc::new(Mutex::new(BTreeSet::new()));
    let leader = play(&pool, Party::coordinator(PeerId(1)), Part::Leader(tell));
    let server = |id| Part::Server(ServerId(id), probed.clone());
    let [well, ended, hangs, other] = [2, 3, 4, 5].map(ServerId);
    let at_well = play(&pool, Party::server(well), server(2));
    let at_hangs = play(&pool, Party::server(hangs), Part::Hangs);
    // A process that is a new server by now has the address.
    let at_other = play(&pool, Party::server(ServerId(9)), server(9));
    let nowhere: Address = "127.0.0.1:1".parse().unwrap();
    let list = ServerList {
        version: ListVersion(1),
        servers: vec![
            entry(well, at_well.address()),
            entry(ended, &nowhere),
            entry(hangs, at_hangs.address()),
            entry(other, at_other.address()),
        ],
    };
    let identity = Identity::new(None).with_party(Party::server(ME));
    let address = leader.address().to_string().parse().unwrap();
    let coordinators = Arc::new(Coordinators::new(&[address], identity.clone()));
    let probing = Probing::new(Prober::new(ME, 3), identity, coordinators);
    let running =
        tokio::spawn(probing.run(move |known| (known != list.version).then(|| list.clone())));
    let mut symptoms = BTreeSet::new();
    let wanted = BTreeSet::from([
        (ended, "Refused".to_owned()),
        (hangs, "Silent".to_owned()),
        (other, "Refused".to_owned()),
    ]);
    let all = async {
        while symptoms != wanted || !probed.lock().contains(&well) {
            let (server, symptom) = told.recv().await.unwrap();
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
    running.abort();
}
