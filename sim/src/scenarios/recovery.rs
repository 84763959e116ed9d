//! SAFETY 5 and 12 to 24 with a recovery: a master dies, and what must come of it.

use ramkeep_backup::{Area, FrameStore, MemoryStore};
use ramkeep_wire::coordinator::{AcceptedLoss, Answer, Loss, Refused, Request};
use ramkeep_wire::order::LogEnd;
use ramkeep_wire::{SegmentId, ServerId};

use super::Outcome as Played;
use super::stage::{Stage, ensure};
use crate::faults::{flip, spoil};
use crate::history::{Action, Outcome};
use crate::network::Direction;
use crate::rng::Rng;
use crate::trace::Lines;
use crate::world::{Death, Disk};

/// The frames of a backup, as they are.
fn frames_of(stage: &Stage, machine: usize) -> Result<MemoryStore, String> {
    let frames = stage.world.copy_frames(machine);
    frames.ok_or_else(|| "a backup runs there".into())
}

/// All frames become what they were; the superblock, which every start of a process writes, does not.
fn bring_back(stage: &mut Stage, machine: usize, older: &MemoryStore) -> Played {
    let Disk::Frames(frames) = &mut stage.world.machines[machine].disk else {
        return Err("its frames outlive the process".into());
    };
    for frame in 0..older.geometry().frames() {
        frames.bring_back(older, Area::Frame(frame));
    }
    Ok(())
}

/// The end that is decided for the log of a dead master.
fn decided_end(stage: &Stage, master: ServerId) -> Option<LogEnd> {
    let state = stage.state().ok()?;
    Some(state.recoveries().by_master(master)?.end)
}

fn is_crashed(stage: &Stage, server: ServerId) -> bool {
    let state = stage.state().ok();
    let crashed = |state: std::sync::Arc<ramkeep_coordinator::State>| {
        Some(state.servers().by_id(server)?.is_crashed())
    };
    state.and_then(crashed).unwrap_or(false)
}

/// A master that can't reach the coordinators is decided dead and goes on: its backups take nothing from
/// it any more.
pub(super) fn a_zombie_is_not_heard(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    let heir = stage.add_master()?;
    stage.write("k", "before")?;
    let (master, id) = (stage.master, stage.master_id());
    for machine in stage.coordinators.clone() {
        stage.cut(master, machine, Direction::Both, 8_000);
    }
    stage.until("it is decided dead", |stage| is_crashed(stage, id))?;
    for number in 0..40 {
        stage.begin_write(0, "k", &format!("to the zombie, or its heir {number}"));
        stage.pass(20);
    }
    stage.until_served_by(heir)?;
    for number in 0..10 {
        stage.begin_write(1, "k", &format!("after {number}"));
        stage.pass(20);
    }
    stage.world.network.heal(&mut stage.world.events);
    stage.until("everybody is answered", Stage::idle)?;
    stage.pass(1_000);
    stage.is_readable("k")?;
    stage.close()
}

/// *A backup whose newest certificate is torn, or whose frame comes back as it was, shows an old, shorter
/// and valid replica of the end.*
pub(super) fn an_old_copy_takes_nothing_away(lines: Lines) -> Played {
    let mut stage = Stage::new(2, lines)?;
    let heir = stage.add_master()?;
    stage.write("k", "first")?;
    let machine = stage.backups[0];
    let older = frames_of(&stage, machine)?;
    stage.write("k", "second")?;
    stage.kill_master();
    stage.world.kill(stage.process(machine), Death::Kill);
    bring_back(&mut stage, machine, &older)?;
    stage.world.start(machine);
    stage.until_served_by(heir)?;
    stage.reads("k", "second")?;
    stage.close()
}

/// A segment that nobody holds any more keeps the tablets down, and everything is served once it is back.
pub(super) fn a_missing_segment_keeps_tablets_down(lines: Lines) -> Played {
    let mut stage = Stage::new(6, lines)?;
    let heir = stage.add_master()?;
    let (dead, holders, disks) = lose_a_closed_segment(&mut stage, true)?;
    stage.pass(3_000);
    ensure(
        !stage.is_served() && decided_end(&stage, dead).is_none(),
        "without a segment of the log nothing is planned and nothing is served",
    )?;
    for (machine, disk) in holders.into_iter().zip(disks) {
        stage.world.machines[machine].disk = disk;
        stage.world.start(machine);
    }
    stage.until_served_by(heir)?;
    stage.reads("old", "in the first segment")?;
    stage.close()
}

/// Kills the master and all backups of its first segment, none of which has its head; gives them, and
/// their frames.
fn lose_a_closed_segment(
    stage: &mut Stage,
    keep: bool,
) -> Result<(ServerId, Vec<usize>, Vec<Disk>), String> {
    stage.write("old", "in the first segment")?;
    let first = stage.head();
    let holders = stage.backups_of(first);
    for _ in 0..20 {
        stage.roll()?;
        let head = stage.backups_of(stage.head());
        if head.iter().all(|machine| !holders.contains(machine)) {
            break;
        }
    }
    stage.write("new", "in the head")?;
    stage.pass(100);
    let head = stage.backups_of(stage.head());
    ensure(
        head.iter().all(|machine| !holders.contains(machine)),
        "another pair of backups has the head",
    )?;
    let dead = stage.kill_master();
    let mut disks = Vec::new();
    for machine in &holders {
        stage.world.kill(stage.process(*machine), Death::Kill);
        let disk = std::mem::replace(&mut stage.world.machines[*machine].disk, Disk::None);
        disks.push(if keep { disk } else { Disk::None });
    }
    Ok((dead, holders, disks))
}

/// Both backups of the head are lost; on one of them, old pages come back after its machine has booted.
pub(super) fn old_pages_are_not_served(lines: Lines) -> Played {
    let mut stage = Stage::new(2, lines)?;
    stage.add_master()?;
    stage.write("k", "first")?;
    let backups = stage.backups.clone();
    let older = frames_of(&stage, backups[0])?;
    stage.write("k", "second")?;
    stage.kill_master();
    for machine in &backups {
        stage.world.kill(stage.process(*machine), Death::PowerLoss);
    }
    stage.world.machines[backups[0]].disk = Disk::Frames(older);
    for machine in &backups {
        stage.world.start(*machine);
    }
    stage.pass(4_000);
    ensure(
        !stage.is_served(),
        "what came back with old pages is served, though the last write is lost",
    )
}

/// Of each segment one honest copy is left, each on another backup as chance has it: it is enough, and no
/// damaged one is believed.
pub(super) fn one_honest_copy_is_enough(lines: Lines) -> Played {
    for seed in 0..4 {
        let mut stage = Stage::new(4, lines)?;
        let heir = stage.add_master()?;
        for number in 0..5 {
            stage.write(&format!("k{number}"), &format!("v{number}"))?;
            stage.roll()?;
        }
        let id = stage.kill_master();
        stage.until("it is decided dead", |stage| is_crashed(stage, id))?;
        spoil(&mut stage.world, &mut Rng::new(seed), id);
        stage.until_served_by(heir)?;
        for number in 0..5 {
            stage.reads(&format!("k{number}"), &format!("v{number}"))?;
        }
        stage.close()?;
    }
    Ok(())
}

/// A copy of a living master is damaged: it is found, and replaced before the honest one is lost.
pub(super) fn a_damaged_copy_is_replaced(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    let heir = stage.add_master()?;
    stage.write("k", "in the first segment")?;
    let first = stage.head();
    stage.roll()?;
    stage.roll()?;
    stage.pass(100);
    let (master, holders) = (stage.master_id(), stage.backups_of(first));
    let [liar, honest] = holders[..] else {
        return Err(format!("it has two copies: {holders:?}"));
    };
    flip_one(&mut stage, liar, master, first);
    stage.until("the damaged copy is found and replaced", |stage| {
        let node = stage.world.server(stage.master);
        let report = node.and_then(|node| Some(node.master()?.heartbeat()));
        report.is_some_and(|report| {
            let whole = report.master.is_some_and(|one| one.under_replicated == 0);
            whole && report.damaged.iter().any(|one| one.segment == first)
        })
    })?;
    stage.kill_master();
    stage.world.kill(stage.process(honest), Death::PowerLoss);
    stage.until_served_by(heir)?;
    stage.reads("k", "in the first segment")?;
    stage.close()
}

/// *R takes ownership, the dead master's replicas are freed, R dies: what it had replayed is durable.*
pub(super) fn what_is_owned_is_durable(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    let heir = stage.add_master()?;
    for number in 0..12 {
        stage.write(&format!("k{number}"), &format!("v{number}"))?;
    }
    stage.kill_master();
    // What it has replicated takes long to arrive.
    let process = stage.process(heir);
    for machine in stage.backups.clone() {
        let until = stage.now() + std::time::Duration::from_secs(20);
        let backup = stage.process(machine);
        stage.world.network.slow_down(process, backup, 300, until);
    }
    let server = stage.server_of(heir);
    stage.until("it owns the tablets", |stage| stage.owns(server))?;
    stage.world.kill(process, Death::Kill);
    let next = stage.add_master()?;
    stage.until_served_by(next)?;
    for number in 0..12 {
        stage.reads(&format!("k{number}"), &format!("v{number}"))?;
    }
    stage.close()
}

/// The leader dies right after the plan is decided, and the next one: the end stays what it was.
pub(super) fn the_plan_outlives_leaders(lines: Lines) -> Played {
    let mut stage = Stage::with_group(5, 4, lines)?;
    let heir = stage.add_master()?;
    for number in 0..30 {
        stage.write(&format!("k{number}"), &"x".repeat(700))?;
    }
    let id = stage.kill_master();
    // It can't replay for now.
    for machine in stage.backups.clone() {
        stage.cut(heir, machine, Direction::Both, 6_000);
    }
    stage.until("a plan is decided", |stage| {
        decided_end(stage, id).is_some()
    })?;
    let end = decided_end(&stage, id);
    for _ in 0..2 {
        let leader = stage.leader()?;
        stage.world.kill(stage.process(leader), Death::Kill);
        stage.until("another leads", |stage| stage.world.leader().is_some())?;
        stage.pass(300);
        ensure(
            decided_end(&stage, id) == end,
            "the plan is there, with the same end, under another leader",
        )?;
    }
    stage.until_served_by(heir)?;
    for number in 0..30 {
        stage.reads(&format!("k{number}"), &"x".repeat(700))?;
    }
    stage.close()
}

/// Only who names all of a loss, and nothing else, may accept it; then the rest is served.
pub(super) fn a_loss_is_accepted_whole(lines: Lines) -> Played {
    let mut stage = Stage::new(6, lines)?;
    let heir = stage.add_master()?;
    let first = stage.head();
    let (master, holders, _) = lose_a_closed_segment(&mut stage, false)?;
    stage.pass(3_000);
    ensure(!stage.is_served(), "a segment is missing")?;
    let Answer::Status(status) = stage.ask(Request::Status)? else {
        return Err("status is answered".into());
    };
    let missing = status.recoveries.iter().find_map(|one| one.missing.clone());
    let loss = missing.ok_or("status says what is missing")?;
    ensure(
        loss.segments.contains(&first) && loss.dead.len() == holders.len() && !loss.tail,
        &format!("the first segment is missing, and its backups are dead: {loss:?}"),
    )?;
    let accept = |loss: Loss| Request::AcceptLoss(AcceptedLoss { master, loss });
    let mut less = loss.clone();
    less.dead.pop();
    let mut more = loss.clone();
    more.segments.push(SegmentId(first.0 + 1_000));
    for wrong in [less, more] {
        let answer = stage.ask(accept(wrong.clone()))?;
        ensure(
            matches!(answer, Answer::Refused(Refused::Invalid(_))),
            &format!("{wrong:?} was answered {answer:?}"),
        )?;
    }
    ensure(!stage.is_served(), "nothing was accepted")?;
    let answer = stage.ask(accept(loss))?;
    ensure(answer == Answer::Noted, &format!("{answer:?}"))?;
    stage.until_served_by(heir)?;
    stage.reads("new", "in the head")?;
    stage.begin(0, "old", Action::Read);
    stage.until("it is answered", Stage::idle)?;
    ensure(
        stage.last("old").outcome == Outcome::Absent,
        "what was in the lost segment is lost",
    )
}

/// *R's log still has k from a first try.* What an abandoned replay left stands before the takeover.
pub(super) fn an_abandoned_try_does_not_count(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    let heir = stage.add_master()?;
    stage.write("k", "v")?;
    stage.roll()?;
    stage.roll()?;
    stage.write("k", "w")?;
    let oldest = SegmentId(1);
    let id = stage.kill_master();
    stage.until("it is decided dead", |stage| is_crashed(stage, id))?;
    // All copies of the oldest segment are damaged: it is replayed last, and can't be.
    flip_all(&mut stage, id, oldest);
    let began = stage.appended(heir);
    stage.until("something is replayed", |stage| {
        stage.appended(heir) > began
    })?;
    stage.pass(1_500);
    ensure(!stage.is_served(), "a segment is damaged everywhere")?;
    let left = stage.appended(heir);
    flip_all(&mut stage, id, oldest);
    stage.until_served_by(heir)?;
    let takeover = stage.takeovers()?;
    ensure(
        takeover.iter().all(|at| *at >= left),
        &format!("the tablets are taken over at {takeover:?}, after what was left at {left:?}"),
    )?;
    stage.reads("k", "w")?;
    stage.remove("k")?;
    stage.world.kill(stage.process(heir), Death::Kill);
    let next = stage.add_master()?;
    stage.until_served_by(next)?;
    stage.is_absent("k")?;
    stage.close()
}

/// *One bit flipped in each copy of a closed segment; the log goes round for ever, and fills its heir.*
/// It is named, nobody tries again before something has changed, and an operator leads out.
pub(super) fn damage_is_named_and_tried_once(lines: Lines) -> Played {
    let mut stage = Stage::with_group(5, 4, lines)?;
    let heir = stage.add_master()?;
    stage.write("old", "v")?;
    let oldest = stage.head();
    stage.roll()?;
    stage.roll()?;
    stage.write("new", "w")?;
    let master = stage.kill_master();
    stage.until("it is decided dead", |stage| is_crashed(stage, master))?;
    flip_all(&mut stage, master, oldest);
    stage.pass(3_000);
    let left = stage.appended(heir);
    for _ in 0..2 {
        stage.pass(5_000);
        ensure(!stage.is_served(), "a segment is damaged everywhere")?;
        ensure(
            stage.appended(heir) == left,
            &format!("it was tried again: {left:?} to {:?}", stage.appended(heir)),
        )?;
        let leader = stage.leader()?;
        stage.world.kill(stage.process(leader), Death::Kill);
        stage.until("another leads", |stage| stage.world.leader().is_some())?;
    }
    stage.pass(3_000);
    let Answer::Status(status) = stage.ask(Request::Status)? else {
        return Err("status is answered".into());
    };
    let missing = status.recoveries.iter().find_map(|one| one.missing.clone());
    let loss = missing.ok_or("status says what can't be proved")?;
    ensure(
        loss.segments == [oldest] && loss.dead.is_empty() && !loss.tail,
        &format!("it is the damaged segment: {loss:?}"),
    )?;
    let answer = stage.ask(Request::AcceptLoss(AcceptedLoss { master, loss }))?;
    ensure(answer == Answer::Noted, &format!("{answer:?}"))?;
    stage.until_served_by(heir)?;
    stage.reads("new", "w")?;
    stage.begin(0, "old", Action::Read);
    stage.until("it is answered", Stage::idle)?;
    ensure(
        stage.last("old").outcome == Outcome::Absent,
        "what was in the damaged segment is lost",
    )
}

/// One bit of each copy flips; once more, and it is as it was.
fn flip_all(stage: &mut Stage, master: ServerId, segment: SegmentId) {
    for machine in stage.backups.clone() {
        flip_one(stage, machine, master, segment);
    }
}

/// The same of the copy on a machine.
fn flip_one(stage: &mut Stage, machine: usize, master: ServerId, segment: SegmentId) {
    flip(&mut stage.world, machine, (master, segment), &[(100, 3)]);
}

/// *k@5 is in R's log, M's tombstone names M's segment; k is back after R's own recovery.*
pub(super) fn removed_over_two_recoveries(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    let heir = stage.add_master()?;
    for round in 0..3 {
        stage.write("k", &format!("v{round}"))?;
        stage.write("kept", &format!("v{round}"))?;
        stage.roll()?;
        stage.remove("k")?;
        stage.roll()?;
    }
    stage.kill_master();
    stage.until_served_by(heir)?;
    stage.is_absent("k")?;
    stage.world.kill(stage.process(heir), Death::Kill);
    let next = stage.add_master()?;
    stage.until_served_by(next)?;
    stage.is_absent("k")?;
    stage.reads("kept", "v2")?;
    let highest = stage.highest("k");
    stage.write("k", "anew")?;
    ensure(
        stage.highest("k") > highest,
        "its new version is above all that were removed",
    )?;
    stage.close()
}

/// A master without a head that is open on its backups gets nothing.
pub(super) fn no_tablets_without_a_head(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    stage.write("k", "v")?;
    let heir = stage.begin_master();
    for machine in stage.backups.clone() {
        stage.cut(heir, machine, Direction::Both, 4_000);
    }
    stage.pass(500);
    let id = stage.kill_master();
    stage.until("it is decided dead", |stage| is_crashed(stage, id))?;
    stage.pass(1_500);
    ensure(
        decided_end(&stage, id).is_none() && !stage.is_served(),
        "its tablets were given to one whose head is open nowhere",
    )?;
    stage.until_served_by(heir)?;
    stage.reads("k", "v")?;
    stage.close()
}

/// Everything can be removed from a full master, and stays removed.
pub(super) fn a_full_master_can_remove(lines: Lines) -> Played {
    let mut stage = Stage::new(3, lines)?;
    let heir = stage.add_master()?;
    let keys = stage.fill(usize::MAX)?;
    ensure(keys.len() > 20, "there is room for something")?;
    for key in &keys {
        stage.remove(key)?;
    }
    stage.kill_master();
    stage.until_served_by(heir)?;
    for key in &keys {
        stage.is_absent(key)?;
    }
    stage.close()
}

/// Backups have no frames left for writers, and some for a recovery.
pub(super) fn frames_are_kept_for_recovery(lines: Lines) -> Played {
    let mut stage = Stage::with_frames(24, 3, lines)?;
    let heir = stage.add_master()?;
    let keys = stage.fill(5)?;
    ensure(keys.len() > 100, "there is room for something")?;
    stage.kill_master();
    stage.until_served_by(heir)?;
    for number in 0..5 {
        stage.reads(&format!("k{number}"), &"x".repeat(800))?;
    }
    stage.close()
}
