//! Failure detection: servers that can't reach each other, and that say so.

use std::time::Duration;

use ramkeep_wire::coordinator::SuspicionCounts;

use super::Outcome as Played;
use super::group::dead;
use super::stage::{Stage, ensure};
use crate::network::Direction;
use crate::trace::Lines;
use crate::world::Death;

/// What the leader has counted of the suspicion that the server on a machine is dead.
fn counted(stage: &Stage, machine: usize) -> Result<SuspicionCounts, String> {
    let leader = stage.leader()?;
    let server = stage.world.server(machine).ok_or("it runs")?.server();
    let node = stage.world.coordinator(leader).ok_or("it leads")?;
    Ok(node.core().suspected(server))
}

/// Two servers can't reach each other, one way or both, for eight seconds; the coordinators reach
/// both. Each tells of the other, is looked into at a bounded pace, and nobody is dead.
pub(super) fn a_cut_between_two_servers(lines: Lines) -> Played {
    const CUT: u64 = 8_000;
    for (way, direction) in [Direction::OneWay, Direction::Both].into_iter().enumerate() {
        let mut stage = Stage::with_group(3, 4, lines)?;
        stage.write("k", "v")?;
        let (one, two) = (stage.backups[0], stage.backups[1]);
        let before = counted(&stage, two)?;
        stage.cut(one, two, direction, CUT);
        stage.pass(CUT);
        let after = counted(&stage, two)?;
        let (told, asked) = (after.reports - before.reports, after.probes - before.probes);
        ensure(
            told >= 5,
            &format!("way {way}: it was told of {told} times"),
        )?;
        ensure(
            (1..=2 * CUT / 100).contains(&asked),
            &format!("way {way}: it was asked {asked} times"),
        )?;
        stage.pass(3_000);
        let dead = dead(&stage)?;
        ensure(dead.is_empty(), &format!("{dead:?} were decided dead"))?;
        stage.write("k", "after")?;
        stage.close()?;
    }
    Ok(())
}

/// A master can't reach a backup of its head any more. The coordinators can: another backup takes
/// its place, and the one that is cut off is not dead.
pub(super) fn a_master_cut_off_from_a_backup(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k", "v")?;
    let backup = stage.backups_of(stage.head())[0];
    let master = stage.master;
    stage.cut(master, backup, Direction::Both, 8_000);
    stage.pass(1_000);
    stage.write("k", "meanwhile")?;
    stage.pass(10_000);
    let dead = dead(&stage)?;
    ensure(dead.is_empty(), &format!("{dead:?} were decided dead"))?;
    stage.write("k", "after")?;
    stage.close()
}

/// One that hangs is suspected by the others' probes before it has been silent for as long as the
/// leader would wait by itself; and dead only once it has left the leader's own probes unanswered.
pub(super) fn one_that_hangs_is_told_of(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k", "v")?;
    let hangs = stage.backups[2];
    let process = stage.process(hangs);
    // Whom the others probe is chance: now and then none of them chooses this one for so long.
    let is_told_of = (0..4).any(|_| is_told_of(&mut stage, hangs).is_ok_and(|told| told));
    ensure(
        is_told_of,
        "others have told of it, and it is being looked into",
    )?;
    stage.world.pause(process, Duration::from_millis(1_500));
    stage.pass(3_000);
    ensure(dead(&stage)?.is_empty(), "1.5 s are not death")?;
    stage.world.pause(process, Duration::from_secs(10));
    stage.pass(2_500);
    ensure(dead(&stage)?.len() == 1, "2.5 s are")?;
    stage.group_is_sound()
}

/// Whether others tell of one that hangs, before 400 ms of silence are suspicious by themselves:
/// heartbeats come every 50 ms here.
fn is_told_of(stage: &mut Stage, hangs: usize) -> Result<bool, String> {
    let before = counted(stage, hangs)?;
    let process = stage.process(hangs);
    stage.world.pause(process, Duration::from_millis(300));
    stage.pass(300);
    let after = counted(stage, hangs)?;
    stage.pass(1_000);
    Ok(after.reports > before.reports && after.suspicions == before.suspicions + 1)
}

/// One that is killed is dead within half a second.
pub(super) fn one_that_is_killed(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k", "v")?;
    let killed = stage.backups[1];
    stage.world.kill(stage.process(killed), Death::Kill);
    stage.pass(500);
    ensure(dead(&stage)?.len() == 1, "it is decided dead within 500 ms")?;
    stage.write("k", "after")?;
    stage.close()
}
