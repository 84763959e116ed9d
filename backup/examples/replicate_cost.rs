//! What a replication message costs a backup: read, applied to a frame in tmpfs (or in the
//! directory named on the command line), certified and acknowledged. Certificates are made before.
//!
//! `cargo run --release -p ramkeep-backup --example replicate_cost [DIRECTORY]`

use std::error::Error;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ramkeep_backup::{Backup, FrameStore, Frames, Geometry, MappedStore, MemoryStore};
use ramkeep_memory::SharedFile;
use ramkeep_wire::limits::SEGMENT_SIZE;
use ramkeep_wire::replicate::{Replicate, ReplicateStatus, flags};
use ramkeep_wire::*;

const BOOT: BootId = BootId([1; 16]);
const FRAMES: u32 = 16;

/// Payloads that fill a segment by appends of one size.
fn payloads(segment: u64, append: usize) -> Vec<Vec<u8>> {
    let bytes = vec![0xa5; append];
    let count = SEGMENT_SIZE / append;
    (0..count)
        .map(|index| {
            let open = if index == 0 { flags::OPEN } else { 0 };
            let offset = (index * append) as u32;
            let message = Replicate {
                segment: SegmentId(segment),
                epoch: ReplicationEpoch(1),
                offset,
                length: offset + append as u32,
                kind: SegmentKind::Head,
                flags: open | flags::COMPLETE | flags::LEASE,
                certificate: Certificate {
                    algorithm: 1,
                    hash: [index as u8; 32],
                },
                bytes: &bytes,
            };
            let mut payload = Vec::new();
            message.write(&mut payload);
            payload
        })
        .collect()
}

struct Cost {
    first: Duration,
    rest: Duration,
    count: u32,
}

fn run<S: FrameStore>(
    backup: &mut Backup<S>,
    segment: u64,
    append: usize,
) -> Result<Cost, Box<dyn Error>> {
    let payloads = payloads(segment, append);
    let apply = |backup: &mut Backup<S>, payload: &[u8]| -> Result<(), Box<dyn Error>> {
        let message = Replicate::read(payload)?;
        let ack = backup.handle_replicate(Micros(segment), ServerId(segment), &message);
        match black_box(ack.to_bytes()) {
            _ if ack.status == ReplicateStatus::Done => Ok(()),
            _ => Err(format!("{:?}", ack.status).into()),
        }
    };
    let (open, appends) = payloads.split_first().ok_or("no payload")?;
    let start = Instant::now();
    apply(backup, open)?;
    let first = start.elapsed();
    let start = Instant::now();
    for payload in appends {
        apply(backup, payload)?;
    }
    let (rest, count) = (start.elapsed(), appends.len() as u32);
    Ok(Cost { first, rest, count })
}

fn measure<S: FrameStore>(
    name: &str,
    mut store: S,
    prepare: fn(&mut Backup<S>),
) -> Result<(), Box<dyn Error>> {
    Frames::format(&mut store, BOOT)?;
    let mut backup = Backup::open(store, BOOT, Micros(0))?;
    backup.assign(ClusterId([1; 16]), ServerId(9), 200_000)?;
    println!("{name}: append bytes | open us | append ns | GB/s");
    let sizes = [150, 1_024, 10_240, 1 << 20];
    let mut segment = 0;
    let mut line = |backup: &mut Backup<S>, frame: &str, append: usize| {
        segment += 1;
        let cost = run(backup, segment, append)?;
        let each = cost.rest.as_nanos() as f64 / f64::from(cost.count);
        println!(
            "{frame:5} frame {append:8} | {:7.0} | {each:9.0} | {:.2}",
            cost.first.as_nanos() as f64 / 1000.0,
            append as f64 / each
        );
        Ok::<_, Box<dyn Error>>(segment)
    };
    for append in sizes {
        let fresh = line(&mut backup, "fresh", append)?;
        backup.free_master(ServerId(fresh));
        line(&mut backup, "used", append)?;
    }
    for append in sizes {
        prepare(&mut backup);
        line(&mut backup, "spare", append)?;
    }
    Ok(())
}

fn prepare(backup: &mut Backup<MappedStore>) {
    while let Some(mut spare) = backup.lend_spare(2) {
        spare.prepare(|| ());
        backup.give_back(spare);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).unwrap_or("/dev/shm".to_owned());
    let path = PathBuf::from(directory).join(format!("ramkeep-cost-{}", std::process::id()));
    let geometry = Geometry::new(FRAMES, SEGMENT_SIZE as u32)?;
    measure("memory", MemoryStore::new(geometry), |_| ())?;
    let file = SharedFile::open(&path, geometry.file_len())?;
    let measured = MappedStore::new(&file, geometry)
        .map_err(Box::from)
        .and_then(|store| measure("mapped", store, prepare));
    std::fs::remove_file(&path)?;
    measured
}
