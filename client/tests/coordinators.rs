//! A group of coordinators played by this process: redirects, silence, old leaders, retries.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where the stage falls down"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_client::{Client, PollMode};
use ramkeep_rpc::{Batch, Identity, Peer, Router, Serving, Session, Wake, WorkerPool};
use ramkeep_wire::coordinator::{Answer, Once, Refused, Request, Response, Table, TabletMap};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{
    Ballot, ClientId, ClusterId, MapVersion, Micros, Party, PeerId, TableId, postcards,
};

/// What the coordinators agree on, and how each of them behaves.
#[derive(Default)]
struct World {
    addresses: Vec<String>,
    leader: usize,
    /// Thinks that it leads still, under the first ballot.
    old_leader: Option<usize>,
    silent: BTreeSet<usize>,
    /// So many mutations are carried out and not answered.
    swallow: u32,
    round: u64,
    results: BTreeMap<(ClientId, u64), Answer>,
    made: u32,
    map: TabletMap,
    /// Who was asked what.
    asked: Vec<(usize, Request)>,
}

struct Group {
    world: Arc<Mutex<World>>,
    _pool: WorkerPool,
    _serving: Vec<Serving>,
}

struct Player {
    world: Arc<Mutex<World>>,
    number: usize,
}

impl Group {
    fn start(count: usize) -> Self {
        let pool = WorkerPool::start(1, PollMode::Never).unwrap();
        let world = Arc::new(Mutex::new(World {
            round: 1,
            ..World::default()
        }));
        let mut all = Vec::new();
        for number in 0..count {
            let party = Party::coordinator(PeerId(number as u32 + 1));
            let identity = Identity::new(None)
                .with_cluster(ClusterId([9; 16]))
                .with_party(party);
            let shared = world.clone();
            let open = move |_: &Peer, _: Wake| -> Box<dyn Session> {
                let world = shared.clone();
                Box::new(Player { world, number })
            };
            let router = Router::new().route(&[Kind::CoordinatorRequest], Arc::new(open));
            let anywhere = "127.0.0.1:0".parse().unwrap();
            let serving = pool.serve(&anywhere, &identity, router).unwrap();
            world.lock().addresses.push(serving.address().to_string());
            all.push(serving);
        }
        Self {
            world,
            _pool: pool,
            _serving: all,
        }
    }

    /// A client that was told of these only.
    async fn client(&self, known: &[usize]) -> Client {
        let addresses = self.world.lock().addresses.clone();
        let known = known.iter().map(|&number| addresses[number].clone());
        let known: Vec<_> = known.collect();
        Client::connect(known).await.unwrap()
    }

    /// Another leads from now on.
    fn elect(&self, leader: usize) {
        let mut world = self.world.lock();
        world.leader = leader;
        world.round += 1;
    }

    /// As what tables were to be made, in the order of asking, by whom it was asked for.
    fn mutations(&self) -> Vec<(usize, Once)> {
        let world = self.world.lock();
        let once = |(number, request): &(usize, Request)| match request {
            Request::CreateTable { once, .. } => Some((*number, once.unwrap())),
            _ => None,
        };
        world.asked.iter().filter_map(once).collect()
    }
}

impl Session for Player {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut world = self.world.lock();
        for request in batch {
            let asked = postcards::decode(request.payload).unwrap();
            if let Some(response) = world.respond(self.number, asked) {
                let header = request.header.reply(Kind::CoordinatorResponse);
                envelope::append(out, header, &postcards::encode(&response));
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

impl World {
    fn respond(&mut self, number: usize, request: Request) -> Option<Response> {
        self.asked.push((number, request.clone()));
        if self.silent.contains(&number) {
            return None;
        }
        let old = self.old_leader == Some(number);
        let ballot = Ballot {
            round: if old { 1 } else { self.round },
            peer: PeerId(number as u32 + 1),
        };
        let answer = if old || number == self.leader {
            self.lead(request)?
        } else {
            Answer::Refused(Refused::NotLeader {
                leader: Some(self.addresses[self.leader].clone()),
                coordinators: self.addresses.clone(),
                why: None,
            })
        };
        Some(Response::new(ballot, answer))
    }

    fn lead(&mut self, request: Request) -> Option<Answer> {
        Some(match request {
            Request::Map { .. } => Answer::Map(Some(self.map.clone())),
            Request::OpenClientLease { .. } => Answer::ClientLease {
                client: ClientId(7),
                lease_us: 60_000_000,
            },
            Request::CreateTable { name, once } => {
                let once = once.unwrap();
                let made = self.create(name, once);
                if self.swallow > 0 {
                    self.swallow -= 1;
                    return None;
                }
                made
            }
            _ => Answer::Noted,
        })
    }

    /// Makes another table each time, unless it was asked for before.
    fn create(&mut self, name: String, once: Once) -> Answer {
        let key = (once.client, once.sequence);
        if let Some(done) = self.results.get(&key) {
            return done.clone();
        }
        self.made += 1;
        self.map.version = MapVersion(self.made.into());
        let table = TableId(self.made);
        let tablets = Vec::new();
        let answer = Answer::Table(Table {
            table,
            name,
            tablets,
        });
        self.results.insert(key, answer.clone());
        answer
    }
}

#[tokio::test]
async fn a_client_that_knows_a_follower_only_finds_the_leader() {
    let group = Group::start(3);
    group.elect(2);
    let client = group.client(&[0]).await;
    client.create_table("t").await.unwrap();
    let asked: BTreeSet<_> = (group.world.lock().asked.iter()).map(|ask| ask.0).collect();
    assert_eq!(asked, [0, 2].into(), "the one that was named, at once");
}

#[tokio::test]
async fn coordinators_learned_of_are_asked_when_those_named_are_gone() {
    let group = Group::start(3);
    group.elect(1);
    let client = group.client(&[0]).await;
    group.world.lock().silent.extend([0, 1]);
    group.elect(2);
    client.create_table("t").await.unwrap();
}

#[tokio::test]
async fn a_silent_leader_is_left_and_what_it_did_is_not_done_twice() {
    let group = Group::start(3);
    let client = group.client(&[0, 1, 2]).await;
    let first = client.create_table("first").await.unwrap();
    group.world.lock().swallow = 1;
    let creating = client.create_table("t");
    let (table, ()) = tokio::join!(creating, async {
        while group.mutations().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // It has made the table, and says nothing any more.
        group.world.lock().silent.insert(0);
        group.elect(1);
    });
    assert_eq!(group.world.lock().made, 2, "made once");
    assert_ne!(table.unwrap().id(), first.id());
    let mutations = group.mutations();
    let (last, once) = *mutations.last().unwrap();
    assert_eq!((last, once), (1, mutations[1].1), "the same sequence");
    assert_eq!((once.sequence, once.acked), (2, 2));
}

#[tokio::test]
async fn a_leader_that_was_replaced_is_not_believed() {
    let group = Group::start(2);
    let client = group.client(&[0, 1]).await;
    group.elect(1);
    client.create_table("t").await.unwrap();
    {
        // The new leader goes away for a moment, and the old one thinks that it leads.
        let mut world = group.world.lock();
        world.old_leader = Some(0);
        world.silent.insert(1);
        world.made = 5;
    }
    let listing = client.tables();
    let (tables, ()) = tokio::join!(listing, async {
        let asked_the_old = |asks: &[(usize, Request)]| {
            let new = asks.iter().rposition(|ask| ask.0 == 1);
            new.is_some_and(|at| asks[at..].iter().any(|ask| ask.0 == 0))
        };
        while !asked_the_old(&group.world.lock().asked) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        group.world.lock().silent.clear();
    });
    assert!(tables.is_ok());
    let last = group.world.lock().asked.last().unwrap().0;
    assert_eq!(last, 1, "the answer that was taken");
}

#[tokio::test]
async fn a_client_that_ends_gives_its_lease_back() {
    let group = Group::start(1);
    let client = group.client(&[0]).await;
    client.create_table("t").await.unwrap();
    drop(client);
    let client = ClientId(7);
    let farewell = Request::CloseClientLease { client };
    let said = async {
        while !group.world.lock().asked.iter().any(|ask| ask.1 == farewell) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), said)
        .await
        .unwrap();
}
