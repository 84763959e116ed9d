//! SAFETY 4 and 6: the dead and the new.

use std::time::Duration;

use super::Outcome as Played;
use super::stage::{Stage, ensure};
use crate::trace::Lines;
use crate::world::Death;

/// *crash(M) in slot 10, M's epoch change in slot 11; M acknowledges on a set that recovery doesn't
/// know.*
pub(super) fn nothing_from_the_dead(lines: Lines) -> Played {
    let mut stage = Stage::new(4, lines)?;
    stage.write("k", "v")?;
    let (master, id, head) = (stage.master, stage.master_id(), stage.head());
    // It wants a change of its head's backups recorded and falls asleep; what it has sent is on its
    // way for longer than it takes to find it dead.
    let lost = stage.backups_of(head)[0];
    stage.world.kill(stage.process(lost), Death::Kill);
    stage.until("the change is to be recorded", |stage| {
        (stage.world.server(master)).is_some_and(|node| node.core.asks_for_a_record())
    })?;
    stage.sever_late(master, stage.coordinator, 5_000);
    let sleeper = stage.process(master);
    stage.world.pause(sleeper, Duration::from_secs(6));
    stage.until("the master is decided dead", |stage| {
        let node = stage.world.coordinator(stage.coordinator);
        let found = node.and_then(|n| n.core().state().servers().by_id(id));
        found.is_some_and(ramkeep_coordinator::state::Server::is_crashed)
    })?;
    let before = stage.record()?;
    stage.pass(8_000);
    let coordinator =
        crate::inspect::recorded(&stage.world).ok_or("the coordinators have decided nothing")?;
    let after = crate::inspect::master_record(&coordinator, id).ok_or("the master is forgotten")?;
    ensure(
        before.epochs == after.epochs && before.floor == after.floor,
        "the record of a dead master changed",
    )?;
    ensure(
        stage.world.server(master).is_none_or(|node| node.stopped()),
        "the zombie wakes up, learns that it is dead and stops",
    )?;
    stage.is_replayed_by(&before, &[], 0)
}

/// A master can't go on with a backup that forgot what it had promised.
pub(super) fn a_restarted_backup(lines: Lines) -> Played {
    let mut stage = Stage::new(2, lines)?;
    stage.write("k", "v")?;
    // Nobody can tell the master that there is a new server at the old address.
    stage
        .world
        .kill(stage.process(stage.coordinator), Death::Kill);
    let restarted = stage.backups[0];
    stage.world.kill(stage.process(restarted), Death::Kill);
    stage.world.start(restarted);
    stage.pass(200);
    stage.begin_write(0, "k", "for the old one");
    stage.pass(200);
    ensure(
        !stage.answered("k"),
        "a write was acknowledged with a backup that is not the one it was meant for",
    )?;
    let held = stage.held();
    let taken = (held.iter().filter(|held| held.machine == restarted))
        .any(|held| held.replicas.iter().any(|(info, _)| !info.inherited));
    ensure(
        !taken,
        "the restarted backup took bytes that were meant for the one before",
    )?;
    stage.world.start(stage.coordinator);
    stage.until("the write is answered", Stage::idle)?;
    stage.pass(1_000);
    stage.write("k", "for the new one")?;
    stage.survives_and(&[], 1)?;
    stage.close()
}
