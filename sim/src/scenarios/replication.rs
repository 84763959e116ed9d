//! SAFETY 2, 3, 9 and 10: what waits, what is recorded, what is refused.

use ramkeep_wire::ReplicationEpoch;
use ramkeep_wire::data::RejectRules;

use super::Outcome as Played;
use super::stage::{Stage, ensure};
use crate::history::{Action, Outcome};
use crate::network::Direction;
use crate::trace::Lines;
use crate::world::Death;

/// *remove(k) is appended, not durable; a read says absent; M dies, the surviving replica lacks the
/// tombstone; k is back.*
pub(super) fn a_miss_waits(lines: Lines) -> Played {
    let mut stage = Stage::new(2, lines)?;
    stage.write("k", "v")?;
    let backup = stage.backups[0];
    stage.cut(stage.master, backup, Direction::OneWay, 20);
    let rules = RejectRules::default();
    stage.begin(0, "k", Action::Remove { rules });
    stage.pass(5);
    stage.begin(1, "k", Action::Read);
    stage.pass(5);
    ensure(
        !stage.answered("k"),
        "the read was answered before the removal is durable",
    )?;
    stage.survives_and(&[], 1)?;
    stage.until("both are answered", Stage::idle)?;
    ensure(
        stage.last("k").outcome == Outcome::Absent,
        "the read sees the removal in the end",
    )?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// *epoch 2 tried with C, C is cut, epoch 2 again with D and recorded; M dies; C's stale copy is
/// taken for the end.*
pub(super) fn stale_copy_of_a_tried_epoch(lines: Lines) -> Played {
    let mut stage = Stage::new(4, lines)?;
    stage.write("k", "before")?;
    let head = stage.head();
    let first = stage.backups_of(head);
    let others: Vec<usize> = (stage.backups.iter().copied())
        .filter(|m| !first.contains(m))
        .collect();
    // C and D get what they are sent, but their acknowledgements don't come back: the first that
    // is tried is given up, with a copy of its epoch.
    for machine in &others {
        stage.cut(*machine, stage.master, Direction::OneWay, 800);
    }
    stage.world.kill(stage.process(first[0]), Death::Kill);
    stage.pass(900);
    stage.write("k", "after the change")?;
    stage.write("l", "after the change")?;
    let record = stage.record()?;
    let recorded = record.epochs.get(&head).copied().unwrap_or_default();
    ensure(
        recorded > ReplicationEpoch(1),
        "a change of the head's backups was recorded",
    )?;
    let held = stage.held();
    let stale = (held.iter()).any(|held| {
        (held.replicas.iter())
            .any(|(info, _)| info.segment == head && !info.closed && info.epoch < recorded)
    });
    ensure(
        stale,
        "somebody holds a copy of an epoch that was tried or outdated",
    )?;
    stage.survives_and(&[first[0]], 1)?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// From before the first message of a change until its record is confirmed, nothing is
/// acknowledged.
pub(super) fn nothing_before_the_record(lines: Lines) -> Played {
    let mut stage = Stage::new(4, lines)?;
    stage.write("k", "before")?;
    let head = stage.head();
    let first = stage.backups_of(head);
    let coordinator = stage.process(stage.coordinator);
    stage.world.kill(coordinator, Death::Kill);
    stage.world.kill(stage.process(first[0]), Death::PowerLoss);
    stage.sever(stage.master, first[1]);
    stage.pass(20);
    stage.begin_write(0, "k", "while nobody records");
    stage.pass(400);
    ensure(
        !stage.answered("k"),
        "the write was acknowledged although the head's new backups are not recorded",
    )?;
    stage.world.start(stage.coordinator);
    stage.until("the write is answered", Stage::idle)?;
    ensure(
        matches!(stage.last("k").outcome, Outcome::Written { .. }),
        "the write succeeds once the change is recorded",
    )?;
    stage.survives_and(&[first[0]], 1)?;
    stage.close()
}

/// Once a backup holds an epoch, what was sent under an older one changes nothing there.
pub(super) fn late_bytes_of_an_older_epoch(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    stage.write("k", "before")?;
    let head = stage.head();
    let first = stage.backups_of(head);
    stage.begin_write(0, "k", "under way");
    stage.until("it is on its way to the backups", |stage| {
        stage.master_has(1)
    })?;
    stage.sever_late(stage.master, first[1], 100);
    stage.world.kill(stage.process(first[0]), Death::Kill);
    stage.pass(80);
    ensure(
        stage.backups_of(head).contains(&first[1]),
        "the backup is counted on again under a new epoch",
    )?;
    for _ in 0..40 {
        stage.pass(1);
        stage.survives_and(&[first[0]], 0)?;
    }
    stage.until("the write is answered or open", Stage::idle)?;
    stage.write("k", "after")?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// What the master wanted recorded earlier and arrives late does not undo what is recorded.
pub(super) fn a_record_that_comes_late(lines: Lines) -> Played {
    // Late enough for the next change to be recorded before, and early enough that the floor, which
    // would refuse it as well, has not risen to that yet: one of these is.
    [15, 20, 25, 30, 40]
        .into_iter()
        .try_for_each(|late| a_record_so_late(late, lines))
}

fn a_record_so_late(late: u64, lines: Lines) -> Played {
    let mut stage = Stage::new(5, lines)?;
    stage.write("k", "before")?;
    let head = stage.head();
    let first = stage.backups_of(head);
    stage.world.kill(stage.process(first[0]), Death::Kill);
    stage.until("the change is to be recorded", |stage| {
        (stage.world.server(stage.master)).is_some_and(|node| node.core.asks_for_a_record())
    })?;
    let tried = stage.backups_of(head);
    let new = (tried.iter().copied()).find(|m| !first.contains(m));
    let new = new.ok_or("another backup took the place of the lost one")?;
    stage.sever_late(stage.master, stage.coordinator, late);
    stage.cut(stage.master, new, Direction::Both, 400);
    stage.sever(stage.master, new);
    stage.until("the second change is recorded", |stage| {
        let record = stage.record().ok();
        record.is_some_and(|r| r.epochs.get(&head).is_some_and(|e| e.0 > 2))
    })?;
    let recorded = stage.record()?.epochs.get(&head).copied();
    stage.pass(late);
    ensure(
        recorded == stage.record()?.epochs.get(&head).copied(),
        "a record that came late changed what is recorded",
    )?;
    stage.write("k", "after the second change")?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// With no replacement to be had reads go on, writes are refused with a clear error until k backups
/// are there again.
pub(super) fn one_backup_too_few(lines: Lines) -> Played {
    let mut stage = Stage::new(2, lines)?;
    stage.write("k", "v")?;
    let lost = stage.backups[0];
    stage.world.kill(stage.process(lost), Death::Kill);
    stage.pass(100);
    // At the latest once it is decided dead: the others alone grant the lease from then on.
    stage.begin(1, "k", Action::Read);
    stage.pass(1_000);
    let found = |stage: &Stage| matches!(stage.last("k").outcome, Outcome::Found { .. });
    ensure(found(&stage), "a read of what is durable goes on")?;
    stage.pass(1_000);
    stage.begin(1, "k", Action::Read);
    stage.pass(5);
    ensure(found(&stage), "and is as quick as ever")?;
    stage.begin_write(0, "l", "refused");
    stage.pass(50);
    ensure(
        stage.last("l").outcome == Outcome::Failed,
        "a write is refused while a backup is missing",
    )?;
    stage.world.start(lost);
    stage.pass(1_000);
    stage.write("l", "taken")?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// A loaded machine doesn't answer slowness with copying.
pub(super) fn suspicion_is_bounded(lines: Lines) -> Played {
    const CHANGES: u32 = 8;
    let mut stage = Stage::new(5, lines)?;
    stage.write("k", "v")?;
    let head = stage.head();
    for round in 0..40 {
        for machine in stage.backups.clone() {
            let process = stage.process(machine);
            let pause = std::time::Duration::from_millis(250);
            stage.world.pause(process, pause);
        }
        stage.begin_write(0, "k", &format!("{round}"));
        stage.pass(300);
    }
    let epoch = (stage.record()?.epochs.get(&head).copied()).unwrap_or_default();
    ensure(
        epoch.0 <= CHANGES,
        &format!("{epoch:?} after twelve seconds of slow backups: too many changes"),
    )?;
    stage.until("everybody is answered", Stage::idle)?;
    stage.survives_and(&[], 1)?;
    stage.close()
}
