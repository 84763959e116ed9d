//! Replicas outlive the process, and what a new process makes of them.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its failure")]

mod common;

use common::*;
use ramkeep_backup::layout::{
    CERTIFICATE_SLOT, HEADER, Header, LayoutError, SUPERBLOCK_SLOT, Slot, Superblock,
};
use ramkeep_backup::{Area, Backup, FrameStore, FramesError, Geometry, MemoryStore};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::replicate::ReplicateStatus::*;
use ramkeep_wire::*;

fn with_replica(length: usize) -> (Memory, Segment) {
    let (mut running, mut segment) = (backup(3), Segment::new(MASTER, 1));
    segment.grow(length);
    send(&mut running, &segment, 0, OPEN);
    (running, segment)
}

#[test]
fn a_restart_keeps_replicas_and_names_the_former_server() {
    let (running, segment) = with_replica(300);
    let mut found = restart(running);
    assert_eq!(found.replaces(), Some(BACKUP));
    assert_eq!(found.cluster(), Some(CLUSTER));
    let info = proved(&mut found, &segment).expect("replicas outlive the process");
    assert!(info.inherited && info.length == 300);
    let stats = found.stats();
    assert_eq!((stats.used, stats.inherited), (1, 1));
}

#[test]
fn a_copy_under_way_does_not_outlive_the_process() {
    let (mut running, mut segment) = (backup(1), Segment::new(MASTER, 1));
    segment.grow(300);
    send(&mut running, &segment, 0, COPY);
    let mut found = restart(running);
    assert_eq!(proved(&mut found, &segment), None);
    assert_eq!(found.stats().used, 0, "its frame is free");
}

#[test]
fn an_inherited_replica_takes_no_bytes_and_yields_to_a_complete_copy() {
    let (running, mut segment) = with_replica(300);
    let mut found = restart(running);
    segment.grow(100);
    assert_eq!(send(&mut found, &segment, 300, MORE).status, Unknown);
    let part = segment.part(0, 200, COPY);
    assert_eq!(found.handle_replicate(NOW, MASTER, &part).status, Done);
    let shown = proved(&mut found, &segment).expect("the inherited one is shown meanwhile");
    assert!(shown.inherited && shown.length == 300);
    assert_eq!(found.stats().used, 2);
    assert_eq!(send(&mut found, &segment, 200, MORE).status, Done);
    let shown = proved(&mut found, &segment).expect("the new copy is shown");
    assert!(!shown.inherited && shown.length == 400);
    assert_eq!((found.stats().used, found.stats().inherited), (1, 0));
}

#[test]
fn of_two_states_of_one_replica_the_better_is_kept() {
    let (running, mut segment) = with_replica(300);
    let old = running.store().clone();
    let mut found = restart(running);
    segment.grow(100);
    send(&mut found, &segment, 0, OPEN);
    // The machine reboots; the page with the freed frame's header comes back old.
    let mut store = found.into_store();
    store.bring_back(&old, Area::Frame(0));
    let mut again = Backup::open(store, BootId([8; 16]), NOW).unwrap();
    let info = proved(&mut again, &segment).expect("one of them is shown");
    assert_eq!((info.length, again.stats().used), (400, 1));
    assert_eq!(info.boot, BOOT, "from before the reboot, and it says so");
}

#[test]
fn lost_memory_is_no_replica() {
    let (running, segment) = with_replica(300);
    let mut store = running.into_store();
    store.lose_everything();
    assert!(matches!(
        Backup::open(store.clone(), BOOT, NOW),
        Err(FramesError::Superblock(_))
    ));
    ramkeep_backup::Frames::format(&mut store, BOOT).unwrap();
    let mut found = reopen(store);
    assert_eq!(
        (proved(&mut found, &segment), found.replaces()),
        (None, None)
    );
}

#[test]
fn a_forged_number_is_not_counted_on_from() {
    let (running, segment) = with_replica(300);
    let mut store = running.into_store();
    let page = store.bytes(Area::Frame(0))[..HEADER].to_vec();
    let (slot, active) = Header::read(&page, SIZE).state.expect("a replica");
    let forged = Slot {
        sequence: u64::MAX,
        ..slot
    };
    let other = (1 - active) * CERTIFICATE_SLOT;
    store.write(Area::Frame(0), other, &forged.to_bytes());
    let mut found = reopen(store);
    assert_eq!(found.damaged(), 1);
    assert!(proved(&mut found, &segment).is_some(), "the true state");
    let mut next = Segment::new(MASTER, 2);
    next.grow(100);
    assert_eq!(send(&mut found, &next, 0, OPEN).status, Done);
    let mut found = restart(found);
    assert!(proved(&mut found, &next).is_some(), "counted on from it");

    let mut store = found.into_store();
    let (superblock, _) = Superblock::choose(store.bytes(Area::Superblock)).unwrap();
    let forged = Superblock {
        sequence: u64::MAX,
        ..superblock
    };
    for at in [0, SUPERBLOCK_SLOT] {
        store.write(Area::Superblock, at, &forged.to_bytes());
    }
    store.revive();
    let error = Backup::open(store, BOOT, NOW).expect_err("no true superblock");
    let impossible = LayoutError::Impossible("sequence number");
    assert_eq!(error, FramesError::Superblock(impossible));
}

#[test]
fn frames_of_another_cluster_are_refused() {
    let (running, _) = with_replica(10);
    let mut found = restart(running);
    let other = ClusterId([9; 16]);
    assert_eq!(
        found.assign(other, ServerId(92), LEASE_US),
        Err(FramesError::OtherCluster {
            found: CLUSTER,
            wanted: other
        })
    );
    assert_eq!(
        restart(found).replaces(),
        Some(BACKUP),
        "nothing was written"
    );
}

#[test]
fn frames_may_grow_in_number_but_not_otherwise_change() {
    let (running, segment) = with_replica(10);
    let grow = |frames, size| {
        let mut larger = MemoryStore::new(Geometry::new(frames, size).unwrap());
        larger.bring_back(running.store(), Area::Superblock);
        for frame in 0..frames.min(3) {
            larger.bring_back(running.store(), Area::Frame(frame));
        }
        Backup::open(larger, BOOT, NOW)
    };
    let mut larger = grow(5, SIZE).unwrap();
    assert_eq!((larger.stats().frames, larger.stats().used), (5, 1));
    assert!(proved(&mut larger, &segment).is_some());
    assert_eq!(restart(larger).stats().frames, 5);
    assert!(matches!(grow(2, SIZE), Err(FramesError::Geometry { .. })));
    assert!(matches!(
        grow(3, 2 * SIZE),
        Err(FramesError::Geometry { .. })
    ));
}

#[test]
fn only_its_living_master_frees_a_replica() {
    let (running, segment) = with_replica(10);
    let mut found = restart(running);
    send(&mut found, &segment, 0, COPY);
    let free = || BackupRequest::Free {
        master: MASTER,
        segments: vec![SEGMENT, SegmentId(99)],
    };
    assert!(matches!(
        ask(&mut found, ServerId(6), free()),
        BackupResponse::Refused(_)
    ));
    assert_eq!(found.stats().used, 2);
    let mut fenced = found.clone();
    fenced.fence(MASTER);
    assert!(matches!(
        ask(&mut fenced, MASTER, free()),
        BackupResponse::Refused(_)
    ));
    assert_eq!(fenced.stats().used, 2);
    assert_eq!(ask(&mut found, MASTER, free()), BackupResponse::Done);
    assert_eq!(
        found.stats().used,
        0,
        "the inherited one and the copy under way"
    );
    fenced.free_master(MASTER);
    assert_eq!((fenced.stats().used, fenced.stats().inherited), (0, 0));
}

#[test]
fn recovery_is_answered_once_fenced_and_waited_out() {
    let (running, segment) = with_replica(100);
    let mut found = restart(running);
    found.assign(CLUSTER, ServerId(91), LEASE_US).unwrap();
    let recovery = Party::server(ServerId(50));
    let list = || BackupRequest::Inventory {
        master: MASTER,
        after: None,
    };
    let fetch = || BackupRequest::Fetch {
        master: MASTER,
        segment: SEGMENT,
        offset: 90,
        length: 50,
    };
    for request in [list(), fetch()] {
        let answer = found.handle_request(NOW, recovery, request).response;
        assert!(matches!(answer, BackupResponse::Refused(_)), "{answer:?}");
    }
    found.fence(MASTER);
    for request in [list(), fetch()] {
        let answer = found.handle_request(NOW, recovery, request).response;
        assert_eq!(answer, BackupResponse::NotYet { wait_us: 202_000 });
    }
    let later = Micros(NOW.0 + 202_000);
    let answer = found.handle_request(later, recovery, fetch());
    assert_eq!(answer.bytes, &segment.bytes[90..]);
    assert!(matches!(
        answer.response,
        BackupResponse::Bytes { length: 10, .. }
    ));
    let unknown = BackupRequest::Fetch {
        master: MASTER,
        segment: SegmentId(8),
        offset: 0,
        length: 1,
    };
    assert_eq!(
        found.handle_request(later, recovery, unknown).response,
        BackupResponse::Unknown
    );
}

#[test]
fn an_inventory_comes_in_pages_that_miss_and_repeat_nothing() {
    use ramkeep_wire::limits::MAX_INVENTORY;
    let total = MAX_INVENTORY as u64 + 10;
    let mut running = {
        let mut store = MemoryStore::new(Geometry::new(2 * total as u32, 4096).unwrap());
        ramkeep_backup::Frames::format(&mut store, BOOT).unwrap();
        Backup::open(store, BOOT, Micros(0)).unwrap()
    };
    let open = |backup: &mut Memory, master, ids: &mut dyn Iterator<Item = u64>| {
        for id in ids {
            let mut segment = Segment::new(master, id);
            segment.grow(1);
            assert_eq!(send(backup, &segment, 0, OPEN).status, Done);
        }
    };
    open(
        &mut running,
        MASTER,
        &mut (1..=total).filter(|id| id % 2 == 0),
    );
    open(&mut running, ServerId(4), &mut (1..3));
    open(&mut running, ServerId(6), &mut (1..3));
    // Half of them inherited, half of them new.
    let mut running = restart(running);
    open(
        &mut running,
        MASTER,
        &mut (1..=total).filter(|id| id % 2 == 1),
    );
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let BackupResponse::Inventory(page) = ask(
            &mut running,
            MASTER,
            BackupRequest::Inventory {
                master: MASTER,
                after,
            },
        ) else {
            panic!("no inventory")
        };
        seen.extend(page.iter().map(|info| info.segment.0));
        after = page.last().map(|info| info.segment);
        if page.len() < MAX_INVENTORY {
            break;
        }
    }
    assert_eq!(seen, (1..=total).collect::<Vec<_>>());
}
