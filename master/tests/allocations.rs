//! No allocation per operation on the data path, once buffers have grown.
#![allow(clippy::unwrap_used)]

use std::alloc::System;

use ramkeep_master::store::{DataSession, MasterLease, Store, StoreConfig};
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::data::{self, Item, Op, RejectRules};
use ramkeep_wire::envelope::{Header, Kind};
use ramkeep_wire::order::TabletGrant;
use ramkeep_wire::{ClientId, ClusterId, KeyHash, Party, RpcId, SegmentId, ServerId, TableId};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const TABLE: TableId = TableId(1);
const ITEMS: u32 = 64;
const ROUNDS: u32 = 200;

fn store() -> Store {
    let store = Store::new(StoreConfig {
        cluster: ClusterId([1; 16]),
        master: ServerId(1),
        key: Some(CertificateKey([1; 32])),
        memory: 64 << 20,
        segment_size: 8 << 20,
        first_segment: SegmentId(1),
    })
    .unwrap();
    let whole = TabletGrant {
        table: TABLE,
        first: KeyHash(0),
        last: KeyHash(u64::MAX),
    };
    store.take_tablets(&[whole]).unwrap();
    store
}

/// Calls of a client who has the results of all earlier rounds; `calls` counts them.
fn fill_request(request: &mut Vec<u8>, op: Op, round: u32, calls: &mut u64) {
    request.clear();
    let start = data::begin_request(request, ClientId(4), RpcId(*calls));
    for id in 0..ITEMS {
        let key = ((round * 31 + id) % 5000).to_le_bytes();
        let value = match op {
            Op::Write => &[7; 100][..],
            Op::Increment => &[1, 0, 0, 0, 0, 0, 0, 0],
            _ => &[],
        };
        *calls += 1;
        let (rpc, rules) = (RpcId(*calls), RejectRules::default());
        Item {
            op,
            id,
            table: TABLE,
            rpc,
            rules,
            key: &key,
            value,
        }
        .write(request);
    }
    data::set_count(request, start, ITEMS);
}

/// A batch whose replies are held until the log is durable.
fn round(store: &Store, session: &mut DataSession, request: &[u8], out: &mut Vec<u8>) {
    out.clear();
    let header = Header::new(Kind::DataRequest, 1, Party::NONE, Party::NONE);
    let mut batch = session.begin(store, out);
    batch.envelope(&header, request).unwrap();
    batch.end(|| MasterLease::Held);
    {
        let mut writer = store.writer();
        let (head, end) = (writer.log().head(), writer.log().appended_position());
        writer.log_mut().set_durable(head, end.offset());
    }
    session.release(store, || MasterLease::Held, out);
    assert!(!session.holds() && out.len() > 20 * ITEMS as usize);
}

#[test]
fn operations_allocate_nothing_once_buffers_have_grown() {
    let store = store();
    let (mut session, mut out, mut request) = (DataSession::new(), Vec::new(), Vec::new());
    let mut calls = 0;
    for op in [Op::Write, Op::Read, Op::Remove, Op::Read, Op::Increment] {
        for number in 0..ROUNDS {
            fill_request(&mut request, op, number, &mut calls);
            round(&store, &mut session, &request, &mut out);
        }
        let region = Region::new(ALLOCATOR);
        for number in 0..ROUNDS {
            fill_request(&mut request, op, number, &mut calls);
            round(&store, &mut session, &request, &mut out);
        }
        let allocations = region.change().allocations + region.change().reallocations;
        // The index may still grow by a level, epochs may be collected; an operation takes nothing.
        assert!(
            allocations < 8,
            "{allocations} allocations in {} of {op:?}",
            ROUNDS * ITEMS
        );
    }
}
