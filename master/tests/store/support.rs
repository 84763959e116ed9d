//! Stores of every shape, sessions on them, and the log read back from its bytes.

use std::collections::BTreeMap;

use ramkeep_master::store::{DataSession, MasterLease, Store, StoreConfig, Tablets};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::data::{self, Item, Op, RejectRules, ResponseItem, Status};
use ramkeep_wire::entry::{self, Entry};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{
    ClientId, ClusterId, KeyHash, LogPosition, Party, RpcId, SegmentId, ServerId, TableId, Version,
};

pub(crate) const TABLE: TableId = TableId(1);
pub(crate) const KEY: CertificateKey = CertificateKey([5; 32]);
pub(crate) const CLUSTER: ClusterId = ClusterId([1; 16]);
pub(crate) const MASTER: ServerId = ServerId(3);
/// What an index takes that has not grown yet.
pub(crate) const SMALL_INDEX: u64 = 64 << 10;

/// A store with the whole of [`TABLE`], and `segments` segments beside a small index.
pub(crate) fn store(replicated: bool, segment_size: u32, segments: u64) -> Store {
    let store = Store::new(StoreConfig {
        cluster: CLUSTER,
        master: MASTER,
        key: replicated.then_some(KEY),
        memory: SMALL_INDEX + (8 << 10) + segments * u64::from(segment_size),
        segment_size,
        first_segment: SegmentId(1),
    })
    .unwrap();
    store.take_tablets(&[whole(TABLE)]).unwrap();
    store
}

pub(crate) fn whole(table: TableId) -> TabletGrant {
    TabletGrant {
        table,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    }
}

/// An answer as a client gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: Status,
    pub(crate) version: Version,
    pub(crate) value: Vec<u8>,
}

impl Reply {
    pub(crate) fn new(status: Status, version: u64, value: &[u8]) -> Self {
        Self {
            status,
            version: Version(version),
            value: value.to_vec(),
        }
    }
}

/// A connection to a store.
#[derive(Default)]
pub(crate) struct Connection {
    pub(crate) session: DataSession,
    pub(crate) out: Vec<u8>,
    /// Whose calls are sent, up to which they are over, and the rpc id of the next item sent.
    pub(crate) client: ClientId,
    pub(crate) ack: RpcId,
    pub(crate) rpc: RpcId,
    pub(crate) next_id: u32,
}

pub(crate) struct Ask<'a> {
    pub(crate) op: Op,
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) rules: RejectRules,
}

pub(crate) fn ask<'a>(op: Op, key: &'a [u8], value: &'a [u8]) -> Ask<'a> {
    Ask {
        op,
        key,
        value,
        rules: RejectRules::default(),
    }
}

impl Connection {
    /// Sends the operations in one envelope; returns their ids.
    pub(crate) fn send(&mut self, store: &Store, asks: &[Ask<'_>]) -> Vec<u32> {
        self.send_under(store, MasterLease::Held, asks)
    }

    pub(crate) fn send_under(
        &mut self,
        store: &Store,
        lease: MasterLease,
        asks: &[Ask<'_>],
    ) -> Vec<u32> {
        let mut payload = Vec::new();
        let start = data::begin_request(&mut payload, self.client, self.ack);
        let mut ids = Vec::new();
        for ask in asks {
            let Ask {
                op,
                key,
                value,
                rules,
            } = *ask;
            let id = self.next_id;
            self.next_id += 1;
            Item {
                op,
                id,
                table: TABLE,
                rpc: self.rpc,
                rules,
                key,
                value,
            }
            .write(&mut payload);
            if self.client != ClientId(0) {
                self.rpc.0 += 1;
            }
            ids.push(id);
        }
        data::set_count(&mut payload, start, asks.len() as u32);
        let mut batch = self.session.begin(store, &mut self.out);
        batch.envelope(&header(), &payload).unwrap();
        batch.end(|| lease);
        ids
    }

    pub(crate) fn release(&mut self, store: &Store) {
        while self
            .session
            .release(store, || MasterLease::Held, &mut self.out)
        {}
    }

    /// All answers that have come, by item.
    pub(crate) fn replies(&mut self) -> BTreeMap<u32, Reply> {
        let mut replies = BTreeMap::new();
        let mut rest = &self.out[..];
        while let Some((envelope, len)) = envelope::parse(rest).unwrap() {
            assert_eq!(envelope.header.kind, Kind::DataResponse);
            assert_eq!(envelope.header.correlation, header().correlation);
            assert_eq!(envelope.header.to, header().from);
            let mut reader = Reader(envelope.payload);
            while let Some(item) = ResponseItem::read(&mut reader).unwrap() {
                let ResponseItem {
                    status,
                    version,
                    value,
                    ..
                } = item;
                let reply = Reply {
                    status,
                    version,
                    value: value.to_vec(),
                };
                assert!(
                    replies.insert(item.id, reply).is_none(),
                    "item answered twice"
                );
            }
            rest = &rest[len..];
        }
        assert!(rest.is_empty(), "output ends inside an envelope");
        self.out.clear();
        replies
    }

    /// One operation and its answer, which must come at once.
    pub(crate) fn call(&mut self, store: &Store, ask: Ask<'_>) -> Reply {
        self.try_call(store, ask).expect("answered at once")
    }

    /// One operation and its answer, if it comes at once.
    pub(crate) fn try_call(&mut self, store: &Store, ask: Ask<'_>) -> Option<Reply> {
        let id = self.send(store, &[ask])[0];
        self.replies().remove(&id)
    }

    pub(crate) fn write(&mut self, store: &Store, key: &[u8], value: &[u8]) -> Option<Reply> {
        self.try_call(store, ask(Op::Write, key, value))
    }

    pub(crate) fn read(&mut self, store: &Store, key: &[u8]) -> Option<Reply> {
        self.try_call(store, ask(Op::Read, key, b""))
    }

    pub(crate) fn remove(&mut self, store: &Store, key: &[u8]) -> Option<Reply> {
        self.try_call(store, ask(Op::Remove, key, b""))
    }
}

pub(crate) fn header() -> Header {
    Header::new(
        Kind::DataRequest,
        77,
        Party::server(MASTER),
        Party::client(ClientId(9)),
    )
}

/// Everything appended becomes durable, as replication would have it: the old head closes first.
pub(crate) fn make_durable(store: &Store) {
    let mut writer = store.writer();
    let log = writer.log_mut();
    if let Some(previous) = log.previous_head() {
        let length = log.info(previous).unwrap().length;
        log.set_durable(previous, length);
        log.predecessor_closed(previous);
    }
    let head = log.head();
    let length = log.info(head).unwrap().length;
    log.set_durable(head, length);
}

/// The bytes of a segment.
pub(crate) fn contents(store: &Store, id: SegmentId) -> Vec<u8> {
    let writer = store.writer();
    let length = writer.log().info(id).unwrap().length;
    let guard = store.pin();
    writer.log().bytes(&guard, id, 0..length).unwrap().to_vec()
}

pub(crate) fn segments(store: &Store) -> Vec<SegmentId> {
    store.writer().log().segments().collect()
}

/// Calls `visit` with every entry that ends at or before `until`, and where it ends.
pub(crate) fn each_entry(
    store: &Store,
    until: LogPosition,
    mut visit: impl FnMut(LogPosition, Entry<'_>),
) {
    for id in segments(store) {
        let bytes = contents(store, id);
        let mut at = 0;
        while at < bytes.len() {
            let (entry, len) = entry::read(&bytes[at..]).expect("the log's entries are whole");
            at += len;
            let end = LogPosition::new(id, at as u32);
            if end <= until {
                visit(end, entry);
            }
        }
    }
}

/// Objects by key: version and value.
pub(crate) type Objects = BTreeMap<Vec<u8>, (Version, Vec<u8>)>;

/// The objects that a replay of the log up to `until` gives: the highest version of a key counts,
/// and a tombstone kills up to its own.
pub(crate) fn replay(store: &Store, until: LogPosition) -> Objects {
    let mut newest: BTreeMap<Vec<u8>, (Version, Option<Vec<u8>>)> = BTreeMap::new();
    each_entry(store, until, |_, entry| match entry {
        Entry::Object(object) => {
            let known = newest
                .get(object.key)
                .map_or(Version(0), |(version, _)| *version);
            assert_ne!(known, object.version, "a version of a key was used twice");
            if object.version > known {
                let value = Some(object.value.to_vec());
                newest.insert(object.key.to_vec(), (object.version, value));
            }
        }
        Entry::Tombstone(dead) => {
            let known = newest
                .get(dead.key)
                .map_or(Version(0), |(version, _)| *version);
            if dead.version >= known {
                newest.insert(dead.key.to_vec(), (dead.version, None));
            }
        }
        _ => {}
    });
    let alive = |(key, (version, value)): (_, (_, Option<_>))| Some((key, (version, value?)));
    newest.into_iter().filter_map(alive).collect()
}

pub(crate) fn owned<'k>(tablets: &Tablets, key: &'k [u8]) -> ramkeep_master::store::Owned<'k> {
    tablets.owned(TABLE, key).expect("the whole table is owned")
}
