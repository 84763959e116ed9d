//! SAFETY 11 to 15: where the log ends, and what counts as evidence for it.

use std::collections::BTreeSet;

use ramkeep_wire::SegmentId;

use super::Outcome as Played;
use super::stage::{Stage, ensure};
use crate::check::log_end::{Choice, Found, Refusal, log_end};
use crate::check::{durable, zones::State};
use crate::inspect::Held;
use crate::network::Direction;
use crate::trace::Lines;
use crate::world::Death;

fn open_segments(held: &[Held]) -> BTreeSet<SegmentId> {
    (held.iter().flat_map(|held| &held.replicas))
        .filter(|(info, _)| !info.closed && !info.inherited)
        .map(|(info, _)| info.segment)
        .collect()
}

/// S2 opens on all its backups, S1 closes on all of its own, then S2 gets its active mark, only
/// then is anything acknowledged in S2; never a third open head.
pub(super) fn roll_over(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    stage.write("k", "v")?;
    let head = stage.head();
    // The word that S1 is closed does not come back from one backup.
    let slow = stage.backups_of(head)[0];
    for number in 0..60 {
        stage.begin_write(0, &format!("k{number}"), &"x".repeat(900));
        if number == 7 {
            stage.cut(slow, stage.master, Direction::OneWay, 150);
        }
        for _ in 0..40 {
            stage.step();
            let open = open_segments(&stage.held());
            ensure(open.len() <= 2, &format!("three heads are open: {open:?}"))?;
        }
        stage.survives_and(&[], 1)?;
    }
    stage.until("all are answered", Stage::idle)?;
    ensure(
        stage.head() > SegmentId(head.0 + 2),
        "the log has rolled over",
    )?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// *one stale frame of S1 truncates the log at S1; recovery hears C with S2 first, reads S1 from an
/// unfenced A while S1's last bytes are in flight.*
pub(super) fn at_every_moment(lines: Lines) -> Played {
    let mut stage = Stage::new(5, lines)?;
    for round in 0..6 {
        for number in 0..6 {
            stage.begin_write(0, &format!("k{round}-{number}"), &"x".repeat(700));
            stage.begin_write(1, "hot", &format!("{round}-{number}"));
        }
        let backups = stage.backups_of(stage.head());
        if let Some(backup) = backups.get(round % 2) {
            stage.sever(stage.master, *backup);
        }
        for _ in 0..150 {
            stage.step();
            stage.survives_and(&[], 1)?;
        }
    }
    stage.until("all are answered", Stage::idle)?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// An old head's open replica comes back long after that head was closed elsewhere.
pub(super) fn below_the_floor(lines: Lines) -> Played {
    let mut stage = Stage::new(4, lines)?;
    stage.write("k", "old")?;
    let head = stage.head();
    let gone = stage.backups_of(head)[0];
    stage.world.kill(stage.process(gone), Death::Kill);
    for _ in 0..4 {
        stage.roll()?;
    }
    stage.write("k", "new")?;
    stage.pass(300);
    let record = stage.record()?;
    ensure(
        record.floor.is_some_and(|(segment, _)| segment > head),
        "the floor has risen above the old head",
    )?;
    let held = stage.held();
    let came_back = (held.iter().filter(|held| held.machine == gone))
        .any(|held| (held.replicas.iter()).any(|(i, _)| i.segment == head && !i.closed));
    ensure(
        came_back,
        "the old head's open replica is still in its frame",
    )?;
    for machine in stage.backups.clone() {
        stage.survives(&[machine])?;
    }
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// Frames on disk from before a reboot are never evidence for the end by themselves: old pages may
/// have come back.
pub(super) fn before_a_reboot(lines: Lines) -> Played {
    let mut stage = Stage::new(2, lines)?;
    stage.write("k", "first")?;
    let machine = stage.backups[0];
    let old = stage.world.copy_frames(machine);
    let old = old.ok_or("a backup runs there")?;
    stage.write("k", "second")?;
    let told = durable::told((stage.world.history).of(&(stage.table(), b"k".to_vec())));
    let told = told.ok_or("a write was answered")?.state;
    // The master is cut off for good, one backup is lost, the other one's machine boots anew.
    stage.world.kill(stage.process(machine), Death::PowerLoss);
    stage.world.put_frames(machine, old);
    let record = stage.record()?;
    let held = stage.held();
    let held = (held.iter().find(|held| held.machine == machine)).ok_or("it has frames")?;
    let boot = stage.world.boot(machine);
    let found = |trusting: bool| -> Vec<Found<'_>> {
        (held.replicas.iter())
            .map(|(info, contents)| Found {
                backup: stage.master_id(),
                info: *info,
                before_reboot: !trusting && info.boot != boot,
                contents,
            })
            .collect()
    };
    ensure(
        log_end(&record, &found(false), Choice::Shortest).is_err_and(|why| why == Refusal::NoHead),
        "old pages alone were taken for the log's end",
    )?;
    let trusting = found(true);
    let log = log_end(&record, &trusting, Choice::Shortest).map_err(|why| why.to_string())?;
    let state = durable::replay(&log.segments, &|_, _| true).state(&(stage.table(), b"k".to_vec()));
    ensure(
        state < told && state > State::INITIAL,
        "without the rule, an acknowledged write would be lost",
    )
}

/// *everything is killed while a certificate is being rewritten; no valid copy of acknowledged
/// bytes is left.*
pub(super) fn a_kill_at_any_byte(lines: Lines) -> Played {
    for bytes in (0..400).step_by(9) {
        let mut stage = Stage::new(2, lines)?;
        stage.write("k", "first")?;
        stage.write("k", "second")?;
        for machine in stage.backups.clone() {
            stage
                .world
                .kill_while_storing(stage.process(machine), bytes);
        }
        stage.begin_write(0, "k", "third");
        stage.until("both backups are dead", |stage| {
            (stage.backups.iter()).all(|m| stage.world.machines[*m].process.is_none())
        })?;
        for lost in stage.backups.clone() {
            (stage.survives(&[lost]))
                .map_err(|why| format!("killed after {bytes} bytes: {why}"))?;
        }
        stage.close()?;
    }
    Ok(())
}
