//! A cluster played by this process, over real sockets: one coordinator, and servers that share
//! what they store. Faults are ordered from it one at a time.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    reason = "a test stops where the stage falls down"
)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_client::{Client, PollMode};
use ramkeep_rpc::{Address, Batch, Identity, Peer, Router, Serving, Session, Wake, WorkerPool};
use ramkeep_wire::coordinator::{
    Answer, Refused, Request, Response, Table, Tablet, TabletMap, TabletState,
};
use ramkeep_wire::data::{Item, Items, Op, ResponseItem, ScanCursor, ScanObject, Status};
use ramkeep_wire::envelope::{self, Envelope, Kind};
use ramkeep_wire::hello::{Refusal, SharedKey};
use ramkeep_wire::limits::{MAX_SCAN_PAGE, RESPONSE_SPLIT};
use ramkeep_wire::{
    Ballot, ClientId, ClusterId, KeyHash, LogPosition, MapVersion, Micros, Party, PeerId, RpcId,
    ServerId, TableId, Version, key_hash, postcards,
};

/// What a server does with the next item instead of carrying it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Answers so.
    Say(Status),
    /// Never answers.
    Silence,
    /// Closes the connection without having carried it out.
    Hang,
    /// Carries it out, then closes the connection.
    DoAndHang,
    /// Answers what can't be read.
    Babble,
}

/// Table, hash and key: the order of a scan.
type Place = (TableId, KeyHash, Vec<u8>);

#[derive(Default)]
struct World {
    map: TabletMap,
    objects: BTreeMap<Place, (u64, Vec<u8>)>,
    last_version: u64,
    /// Answers to calls that ran.
    done: BTreeMap<(ClientId, RpcId), Vec<u8>>,
    faults: VecDeque<Fault>,
    envelopes: Vec<usize>,
    clients: u64,
    /// The coordinator says that it doesn't lead.
    deposed: bool,
}

/// The cluster.
pub(crate) struct Cluster {
    world: Arc<Mutex<World>>,
    pool: WorkerPool,
    serving: Vec<Serving>,
    pub(crate) coordinator: String,
    key: Option<SharedKey>,
}

fn loopback() -> Address {
    "127.0.0.1:0".parse().unwrap()
}

impl Cluster {
    pub(crate) fn start(servers: u64) -> Self {
        Self::start_with(servers, None, PollMode::Adaptive)
    }

    pub(crate) fn start_with(servers: u64, key: Option<SharedKey>, mode: PollMode) -> Self {
        let pool = WorkerPool::start(1, mode).unwrap();
        let world = Arc::new(Mutex::new(World::default()));
        let mut cluster = Self {
            world,
            pool,
            serving: Vec::new(),
            coordinator: String::new(),
            key,
        };
        cluster.coordinator = cluster.serve(Party::coordinator(PeerId(1)), None);
        for id in 1..=servers {
            cluster.add_server(ServerId(id));
        }
        cluster
    }

    /// Starts one more server; it owns nothing yet.
    pub(crate) fn add_server(&mut self, id: ServerId) {
        let address = self.serve(Party::server(id), Some(id));
        let mut world = self.world.lock();
        world.map.servers.push((id, vec![address]));
        world.map.version.0 += 1;
    }

    fn serve(&mut self, party: Party, server: Option<ServerId>) -> String {
        let identity = Identity::new(self.key.clone())
            .with_cluster(ClusterId([9; 16]))
            .with_party(party);
        let world = self.world.clone();
        let open = move |_: &Peer, _: Wake| -> Box<dyn Session> {
            let world = world.clone();
            Box::new(Player { world, server })
        };
        let kind = match server {
            Some(_) => Kind::DataRequest,
            None => Kind::CoordinatorRequest,
        };
        let router = Router::new().route(&[kind], Arc::new(open));
        let serving = self.pool.serve(&loopback(), &identity, router).unwrap();
        let address = serving.address().to_string();
        self.serving.push(serving);
        address
    }

    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.coordinator.as_str()]).await.unwrap()
    }

    /// The next items meet these faults, one each.
    pub(crate) fn order(&self, faults: &[Fault]) {
        self.world.lock().faults.extend(faults);
    }

    /// Faults that were not met yet.
    pub(crate) fn unmet(&self) -> usize {
        self.world.lock().faults.len()
    }

    /// Items of each data envelope since the last look.
    pub(crate) fn envelopes(&self) -> Vec<usize> {
        std::mem::take(&mut self.world.lock().envelopes)
    }

    /// All tablets belong to this server from now on.
    pub(crate) fn move_all_to(&self, owner: ServerId) {
        let mut world = self.world.lock();
        for table in &mut world.map.tables {
            table
                .tablets
                .iter_mut()
                .for_each(|tablet| tablet.owner = owner);
        }
        world.map.version.0 += 1;
    }

    /// Ends the server or coordinator that was started as number `index` (0: the coordinator).
    pub(crate) async fn stop(&mut self, index: usize) {
        self.serving.remove(index).stop(Duration::ZERO).await;
    }

    pub(crate) fn depose_coordinator(&self, deposed: bool) {
        self.world.lock().deposed = deposed;
    }
}

/// One connection's other side.
struct Player {
    world: Arc<Mutex<World>>,
    server: Option<ServerId>,
}

impl Session for Player {
    fn handle_batch(
        &mut self,
        _now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut world = self.world.lock();
        for envelope in batch {
            match self.server {
                None => world.coordinate(&envelope, out),
                Some(server) => world.serve(server, &envelope, out)?,
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
    fn coordinate(&mut self, request: &Envelope<'_>, out: &mut Vec<u8>) {
        let answer = match postcards::decode(request.payload).unwrap() {
            _ if self.deposed => Answer::Refused(Refused::NotLeader {
                leader: None,
                coordinators: Vec::new(),
                why: None,
            }),
            Request::Map { known } if known == self.map.version => Answer::Map(None),
            Request::Map { .. } => Answer::Map(Some(self.map.clone())),
            Request::CreateTable { name, .. } => Answer::Table(self.create(name)),
            Request::DropTable { name, .. } => self.drop_table(&name),
            Request::OpenClientLease { .. } => {
                self.clients += 1;
                let client = ClientId(self.clients);
                let lease_us = 60_000_000;
                Answer::ClientLease { client, lease_us }
            }
            other => Answer::Refused(Refused::Invalid(format!("{other:?}"))),
        };
        let ballot = Ballot {
            round: 1,
            peer: PeerId(1),
        };
        let payload = postcards::encode(&Response::new(ballot, answer));
        let header = request.header.reply(Kind::CoordinatorResponse);
        envelope::append(out, header, &payload);
    }

    fn create(&mut self, name: String) -> Table {
        if let Some(table) = self.map.tables.iter().find(|table| table.name == name) {
            return table.clone();
        }
        let id = TableId(self.map.tables.len() as u32 + 1);
        let count = self.map.servers.len() as u64;
        let width = u64::MAX / count;
        let tablets = (0..count).map(|at| Tablet {
            table: id,
            first: KeyHash(if at == 0 { 0 } else { at * width + 1 }),
            last: KeyHash(if at + 1 == count {
                u64::MAX
            } else {
                (at + 1) * width
            }),
            owner: self.map.servers[at as usize].0,
            takeover: LogPosition::ZERO,
            state: TabletState::Normal,
        });
        let table = Table {
            table: id,
            name,
            tablets: tablets.collect(),
        };
        self.map.tables.push(table.clone());
        self.map.version = MapVersion(self.map.version.0 + 1);
        table
    }

    fn drop_table(&mut self, name: &str) -> Answer {
        let before = self.map.tables.len();
        self.map.tables.retain(|table| table.name != name);
        if self.map.tables.len() == before {
            return Answer::Refused(Refused::NoSuchTable);
        }
        self.map.version = MapVersion(self.map.version.0 + 1);
        Answer::Dropped
    }

    fn serve(
        &mut self,
        server: ServerId,
        request: &Envelope<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let mut items = Items::read(request.payload).unwrap();
        self.envelopes.push(items.remaining());
        let header = request.header.reply(Kind::DataResponse);
        let mut start = envelope::begin(out, header);
        while let Some(item) = items.next_item().unwrap() {
            match self.faults.pop_front() {
                None => self.run(server, items.client, &item, out),
                Some(Fault::Say(status)) => answer(&item, status, 0, b"", out),
                Some(Fault::Silence) => {}
                Some(Fault::Hang) => return Err(Refusal::Stopping),
                Some(Fault::DoAndHang) => {
                    self.run(server, items.client, &item, out);
                    out.truncate(start);
                    return Err(Refusal::Stopping);
                }
                Some(Fault::Babble) => out.extend_from_slice(b"babble"),
            }
            if out.len() - start > RESPONSE_SPLIT {
                envelope::seal(out, start);
                start = envelope::begin(out, header);
            }
        }
        envelope::seal(out, start);
        Ok(())
    }

    fn owner(&self, table: TableId, hash: KeyHash) -> Option<ServerId> {
        let table = self.map.tables.iter().find(|known| known.table == table)?;
        let tablet = table.tablets.iter().find(|tablet| tablet.last >= hash)?;
        Some(tablet.owner)
    }

    /// Answers a call that ran before as it was answered then.
    fn run(&mut self, server: ServerId, client: ClientId, item: &Item<'_>, out: &mut Vec<u8>) {
        let call = (client, item.rpc);
        let remembered = item.op.mutates() && client != ClientId(0);
        if remembered && let Some(answer) = self.done.get(&call) {
            return out.extend_from_slice(answer);
        }
        let from = out.len();
        self.apply(server, item, out);
        if remembered && out[from + 4] == Status::Ok as u8 {
            self.done.insert(call, out[from..].to_vec());
        }
    }

    fn apply(&mut self, server: ServerId, item: &Item<'_>, out: &mut Vec<u8>) {
        let hash = match item.op {
            Op::Scan => ScanCursor::read(item.value).unwrap().hash,
            _ => key_hash(item.table, item.key),
        };
        if self.owner(item.table, hash) != Some(server) {
            return answer(item, Status::WrongServer, 0, b"", out);
        }
        let at = (item.table, hash, item.key.to_vec());
        let current = self.objects.get(&at).cloned();
        let version = current.as_ref().map(|(version, _)| *version);
        if item.rules.reject(version.map(Version)) {
            return answer(item, Status::Rejected, version.unwrap_or(0), b"", out);
        }
        let next = self.last_version + 1;
        match item.op {
            Op::Read => match current {
                Some((version, value)) => answer(item, Status::Ok, version, &value, out),
                None => answer(item, Status::Absent, 0, b"", out),
            },
            Op::Write => {
                self.last_version = next;
                self.objects.insert(at, (next, item.value.to_vec()));
                answer(item, Status::Ok, next, b"", out);
            }
            Op::Remove => {
                self.objects.remove(&at);
                answer(item, Status::Ok, version.unwrap_or(0), b"", out);
            }
            Op::Increment => {
                let old = current.map_or(vec![0; 8], |(_, value)| value);
                let Ok(old) = <[u8; 8]>::try_from(old) else {
                    return answer(item, Status::NotACounter, 0, b"", out);
                };
                let delta = i64::from_le_bytes(item.value.try_into().unwrap());
                let Some(sum) = i64::from_le_bytes(old).checked_add(delta) else {
                    return answer(item, Status::Overflow, 0, b"", out);
                };
                let sum = sum.to_le_bytes();
                self.last_version = next;
                self.objects.insert(at, (next, sum.to_vec()));
                answer(item, Status::Ok, next, &sum, out);
            }
            Op::Scan => {
                let page = self.page(item);
                answer(item, Status::Ok, 0, &page, out);
            }
        }
    }

    fn page(&self, item: &Item<'_>) -> Vec<u8> {
        let cursor = ScanCursor::read(item.value).unwrap();
        let from = (item.table, cursor.hash, cursor.after.to_vec());
        let mut page = vec![0];
        for ((table, hash, key), (version, value)) in self.objects.range(from.clone()..) {
            if *table != item.table || *hash > cursor.until {
                break;
            }
            if !cursor.after.is_empty() && (*hash, key) == (from.1, &from.2) {
                continue;
            }
            if page.len() > MAX_SCAN_PAGE / 16 {
                page[0] = 1;
                break;
            }
            let version = Version(*version);
            ScanObject {
                version,
                key,
                value,
            }
            .write(&mut page);
        }
        page
    }
}

fn answer(item: &Item<'_>, status: Status, version: u64, value: &[u8], out: &mut Vec<u8>) {
    ResponseItem {
        id: item.id,
        status,
        version: Version(version),
        value,
    }
    .write(out);
}
