//! Replay alone, in one thread, with no network and no replicas of its own: what one core can do.

use ramkeep_master::store::{Replay, Step, Store, StoreConfig};
use ramkeep_wire::certificate::{CertificateKey, Claim};
use ramkeep_wire::data::{RejectRules, Status};
use ramkeep_wire::order::LostTablet;
use ramkeep_wire::segment::{ProvedSegment, VerifiedSegment};
use ramkeep_wire::{Certificate, LogPosition, SegmentId, ServerId};

use super::{CLUSTER, CpuTime, DEAD, DEAD_KEY, TABLE, VALUE, key_of, whole};

const ROUNDS: usize = 3;

/// A closed segment as a backup has it.
struct Replica {
    claim: Claim,
    certificate: Certificate,
    contents: Vec<u8>,
}

/// Prints what replaying so many objects takes.
pub(crate) fn report(objects: u64) {
    println!("replay alone");
    let inserts = log_of(objects, objects);
    let overwrites = log_of(objects / 2, objects);
    for _ in 0..ROUNDS {
        prove(&inserts);
        measure("inserts, checksums only", &inserts, false, check);
        measure("inserts, all verified", &inserts, true, |_, _| ());
        measure(
            "overwritten once, all verified",
            &overwrites,
            true,
            |_, _| (),
        );
    }
}

/// Checks every entry's checksum, without the certificate.
fn check(segment: &VerifiedSegment<'_>, _: &Store) {
    let entries = ramkeep_wire::segment::entries(segment.contents());
    assert!(entries.into_iter().all(|entry| entry.is_ok()));
}

/// What proving alone takes.
fn prove(log: &[Replica]) {
    let bytes: usize = log.iter().map(|replica| replica.contents.len()).sum();
    let copies: Vec<_> = log.iter().map(|replica| replica.contents.clone()).collect();
    let begin = CpuTime::now();
    for (replica, contents) in log.iter().zip(copies) {
        ProvedSegment::prove(replica.claim, replica.certificate, contents, &DEAD_KEY).unwrap();
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{:32} {:6.0} MB/s",
        "proving alone",
        bytes as f64 / seconds / 1e6
    );
}

fn measure(
    name: &str,
    log: &[Replica],
    prove: bool,
    before: impl Fn(&VerifiedSegment<'_>, &Store),
) {
    let bytes: usize = log.iter().map(|replica| replica.contents.len()).sum();
    let store = store(ServerId(2), None, bytes as u64 * 2);
    store.populate();
    let proved: Vec<_> = log.iter().map(|replica| replica.proved()).collect();
    let copies: Vec<_> = log.iter().map(|replica| replica.contents.clone()).collect();
    let mut replay = store
        .begin_replay(&[LostTablet {
            range: whole(),
            takeover: LogPosition::ZERO,
        }])
        .unwrap();
    let begin = CpuTime::now();
    while replay.purge(&store).unwrap() {}
    for ((replica, proved), contents) in log.iter().zip(&proved).zip(copies).rev() {
        if prove {
            let (claim, certificate) = (replica.claim, replica.certificate);
            let proved = ProvedSegment::prove(claim, certificate, contents, &DEAD_KEY);
            run(&mut replay, &store, &proved.unwrap().segment());
        } else {
            before(&proved.segment(), &store);
            run(&mut replay, &store, &proved.segment());
        }
    }
    replay.finish(&store).unwrap().unwrap();
    let seconds = begin.elapsed().as_secs_f64();
    let objects = store.stats().objects as f64;
    println!(
        "{name:32} {:6.0} MB/s {:6.2} million objects/s {:5.0} ns each",
        bytes as f64 / seconds / 1e6,
        objects / seconds / 1e6,
        seconds / objects * 1e9
    );
}

fn run(replay: &mut Replay, store: &Store, segment: &VerifiedSegment<'_>) {
    let mut at = 0;
    loop {
        match replay.step(store, segment, at).unwrap() {
            Step::At(next) => at = next,
            Step::Wait(_) => unreachable!("a log without replicas never waits"),
            Step::Done => return,
        }
    }
}

impl Replica {
    fn proved(&self) -> ProvedSegment {
        let contents = self.contents.clone();
        ProvedSegment::prove(self.claim, self.certificate, contents, &DEAD_KEY).unwrap()
    }
}

fn store(me: ServerId, key: Option<CertificateKey>, bytes: u64) -> Store {
    let config = StoreConfig {
        cluster: CLUSTER,
        master: me,
        key,
        memory: bytes + (256 << 20),
        segment_size: 8 << 20,
        first_segment: SegmentId(1),
    };
    Store::new(config).unwrap()
}

/// The closed segments of a log in which `writes` writes went to `keys` keys in turn.
fn log_of(keys: u64, writes: u64) -> Vec<Replica> {
    let source = store(DEAD, Some(DEAD_KEY), writes * 320);
    source.take_tablets(&[whole()]).unwrap();
    let guard = source.pin();
    let tablets = source.tablets();
    let mut writer = source.writer();
    for n in 0..writes {
        let key = key_of(n % keys);
        let owned = tablets.owned(TABLE, &key).unwrap();
        let written = writer.write(&guard, owned, &VALUE, RejectRules::default());
        assert_eq!(written.status, Status::Ok);
        if let Some(previous) = writer.log().previous_head() {
            writer.log_mut().predecessor_closed(previous);
        }
    }
    let log = writer.log();
    let closed = log.segments().filter_map(|id| {
        let info = log.info(id)?;
        let contents = log.bytes(&guard, id, 0..info.length)?.to_vec();
        let claim = Claim::closed(CLUSTER, DEAD, id, info.kind, info.length);
        Some(Replica {
            claim,
            certificate: info.sealed?,
            contents,
        })
    });
    closed.collect()
}
