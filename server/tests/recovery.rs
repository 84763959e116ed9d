//! A recovery over real sockets, with the shell's connections and threads.
#![cfg(feature = "shell")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ramkeep_master::store::{Store, StoreConfig};
use ramkeep_rpc::{
    Batch, Identity, Peer, PollMode, Router, Service, Serving, Session, Wake, WorkerPool,
};
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{ServerList, ServerState};
use ramkeep_wire::data::{RejectRules, Status};
use ramkeep_wire::envelope::{self, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::order::{Command, LogEnd, LostTablet, OrderReply, Recovery, TabletGrant};
use ramkeep_wire::{
    BootId, KeyHash, LogPosition, Micros, Party, ReplicationEpoch, SegmentId, ServerId, TableId,
    postcards,
};

use common::{CLUSTER, Running, entry};

const DEAD: ServerId = ServerId(1);
const ME: ServerId = ServerId(2);
const BACKUP: ServerId = ServerId(3);
const KEY: CertificateKey = CertificateKey([4; 32]);
const TABLE: TableId = TableId(1);
const SEGMENT: u32 = 1 << 20;
const OBJECTS: u64 = 20_000;
const MEMORY: u64 = 64 << 20;

type Copies = BTreeMap<SegmentId, (ReplicaInfo, Vec<u8>)>;

/// A backup that holds everything.
#[derive(Clone)]
struct FakeBackup(Arc<Copies>);

impl Service for FakeBackup {
    fn open(&self, _: &Peer, _: Wake) -> Box<dyn Session> {
        Box::new(self.clone())
    }
}

impl Session for FakeBackup {
    fn handle_batch(
        &mut self,
        _: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        for envelope in batch.by_ref() {
            let request = postcards::decode(envelope.payload).unwrap();
            let (response, bytes) = match request {
                BackupRequest::Inventory { .. } => {
                    let all = self.0.values().map(|copy| copy.0).collect();
                    (BackupResponse::Inventory(all), &[][..])
                }
                BackupRequest::Fetch {
                    segment,
                    offset,
                    length,
                    ..
                } => {
                    let (replica, bytes) = &self.0[&segment];
                    let end = bytes.len().min(offset as usize + length as usize);
                    let bytes = &bytes[offset as usize..end];
                    let (replica, length) = (*replica, bytes.len() as u32);
                    (BackupResponse::Bytes { replica, length }, bytes)
                }
                BackupRequest::Free { .. } => panic!("recovery frees nothing"),
            };
            let start = envelope::begin(out, envelope.header.reply(Kind::BackupResponse));
            out.extend_from_slice(&postcards::encode(&response));
            out.extend_from_slice(bytes);
            envelope::seal(out, start);
        }
        Ok(())
    }

    fn poll(&mut self, _: Micros, _: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

fn whole() -> TabletGrant {
    TabletGrant {
        table: TABLE,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    }
}

fn crashed() -> (Copies, LogEnd) {
    let source = Store::new(StoreConfig {
        cluster: CLUSTER,
        master: DEAD,
        key: Some(KEY),
        memory: 64 << 20,
        segment_size: SEGMENT,
        first_segment: SegmentId(1),
    })
    .unwrap();
    source.take_tablets(&[whole()]).unwrap();
    let (guard, tablets) = (source.pin(), source.tablets());
    let mut writer = source.writer();
    for number in 0..OBJECTS {
        let key = number.to_le_bytes();
        let owned = tablets.owned(TABLE, &key).unwrap();
        let written = writer.write(&guard, owned, &[7; 200], RejectRules::default());
        assert_eq!(written.status, Status::Ok);
        if let Some(previous) = writer.log().previous_head() {
            writer.log_mut().predecessor_closed(previous);
        }
    }
    let log = writer.log_mut();
    let (epoch, head) = (ReplicationEpoch(1), log.head());
    let (length, certificate) = log.certify(head, epoch);
    let ids: Vec<_> = log.segments().collect();
    let copies = ids.into_iter().map(|id| {
        let info = log.info(id).unwrap();
        let replica = ReplicaInfo {
            master: DEAD,
            segment: id,
            kind: info.kind,
            epoch,
            length: info.length,
            closed: info.sealed.is_some(),
            certificate: info.sealed.unwrap_or(certificate),
            boot: BootId([1; 16]),
            inherited: false,
        };
        let bytes = log.bytes(&guard, id, 0..info.length).unwrap().to_vec();
        (id, (replica, bytes))
    });
    let end = LogEnd {
        segment: head,
        length,
        epoch,
        certificate,
    };
    (copies.collect(), end)
}

fn serve(pool: &WorkerPool, copies: Copies) -> Serving {
    let identity = Identity::new(None)
        .with_cluster(CLUSTER)
        .with_party(Party::server(BACKUP));
    let router = Router::new().route(
        &[Kind::BackupRequest],
        Arc::new(FakeBackup(Arc::new(copies))),
    );
    pool.serve(&"127.0.0.1:0".parse().unwrap(), &identity, router)
        .unwrap()
}

fn list(backup: &Serving) -> ServerList {
    common::list(vec![
        entry(DEAD, ServerState::Crashed, Vec::new()),
        entry(BACKUP, ServerState::Up, vec![backup.address().to_string()]),
    ])
}

#[test]
fn a_crashed_masters_tablet_is_fetched_replayed_and_served() {
    let (copies, end) = crashed();
    assert!(copies.len() > 3);
    let pool = WorkerPool::start(1, PollMode::Never).unwrap();
    let backup = serve(&pool, copies);
    let recover = Recovery {
        ended: ramkeep_wire::EndedClients::default(),
        master: DEAD,
        key: KEY,
        end,
        attempt: 1,
        tablets: vec![LostTablet {
            range: whole(),
            takeover: LogPosition::ZERO,
        }],
        given_up: None,
        last: None,
    };
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let running = runtime.block_on(async {
        let (settings, list) = (common::settings(SEGMENT), list(&backup));
        let running = Running::start(ME, settings, list, MEMORY, PollMode::Never).await;
        let recovered = async {
            loop {
                match running.order(Command::Recover(recover.clone())) {
                    OrderReply::Recovered(positions) => return positions,
                    OrderReply::Recovering { .. } => {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    other => panic!("it was not recovered: {other:?}"),
                }
            }
        };
        let positions = tokio::time::timeout(Duration::from_secs(60), recovered)
            .await
            .unwrap();
        let taken = running.order(Command::TakeTablets(vec![whole()]));
        let positions = positions.into_iter().map(Some).collect();
        assert_eq!(taken, OrderReply::Taken(positions));
        running
    });
    let store = running.shell.plane().unwrap().master().store();
    let (guard, tablets) = (store.pin(), store.tablets());
    for number in 0..OBJECTS {
        let key = number.to_le_bytes();
        let read = store.read(&guard, tablets.owned(TABLE, &key).unwrap());
        assert_eq!(read.object.unwrap().value, [7; 200]);
    }
}
