//! The group of coordinators: leaders that die, sleep and come back, disks that are lost, outages
//! of the whole group, requests and orders that come late.

use std::time::Duration;

use ramkeep_coordinator::state::Server;
use ramkeep_wire::ServerId;

use super::Outcome as Played;
use super::stage::{Stage, ensure};
use crate::history::{Action, Outcome};
use crate::network::Direction;
use crate::node::Node;
use crate::trace::Lines;
use crate::world::Death;

/// Servers that were decided dead.
pub(super) fn dead(stage: &Stage) -> Result<Vec<ServerId>, String> {
    let state = stage.state()?;
    let servers = state.servers().iter();
    let dead = servers.filter(|(_, server)| Server::is_crashed(server));
    Ok(dead.map(|(id, _)| id).collect())
}

/// Writes and reads for so long, a pair every 50 ms, of which none may fail.
pub(super) fn works_for(stage: &mut Stage, milliseconds: u64) -> Played {
    for round in 0..milliseconds / 50 {
        let (key, value) = (format!("k{}", round % 7), format!("{round}"));
        stage.begin_write(0, &key, &value);
        stage.begin(1, "k0", Action::Read);
        stage.pass(50);
    }
    stage.until("all operations have ended", Stage::idle)?;
    let failed = stage.failed();
    ensure(failed == 0, &format!("{failed} operations failed"))
}

/// A table can be made and dropped, within 2 seconds.
fn tables_can_be_made(stage: &mut Stage) -> Played {
    let admin = stage.add_admin(1, 0);
    let done = |stage: &Stage| stage.world.admin(admin).is_some_and(|a| a.is_idle());
    stage.pass(2_000);
    ensure(done(stage), "a table can't be made and dropped within 2 s")?;
    stage.group_is_sound()
}

/// The whole group is down for half a minute: reads and writes go on, and when it comes back nobody
/// is taken for dead.
pub(super) fn a_long_outage(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k0", "before")?;
    // Both clients know their way.
    stage.begin(1, "k0", Action::Read);
    stage.until("the read is answered", Stage::idle)?;
    for machine in stage.coordinators.clone() {
        stage.world.kill(stage.process(machine), Death::Kill);
    }
    works_for(&mut stage, 30_000)?;
    // One server can't be reached when they come back: its silence before does not count.
    for machine in stage.coordinators.clone() {
        stage.world.start(machine);
        let (server, coordinator) = (stage.backups[0], machine);
        stage.cut(server, coordinator, Direction::Both, 1_500);
    }
    stage.until("somebody leads", |stage| stage.world.leader().is_some())?;
    stage.pass(3_000);
    let dead = dead(&stage)?;
    ensure(dead.is_empty(), &format!("{dead:?} were decided dead"))?;
    works_for(&mut stage, 2_000)?;
    tables_can_be_made(&mut stage)?;
    stage.survives_and(&[], 1)?;
    stage.close()
}

/// The coordinators can reach neither each other nor any server for a while, the leader goes on
/// meanwhile: what it did not hear then is nobody's silence.
pub(super) fn cut_off_together(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k0", "before")?;
    // Both clients know their way.
    stage.begin(1, "k0", Action::Read);
    stage.until("the read is answered", Stage::idle)?;
    let others = (stage.backups.iter().copied()).chain([stage.master]);
    let others: Vec<usize> = others.chain(stage.coordinators.clone()).collect();
    for machine in stage.coordinators.clone() {
        for other in &others {
            if machine != *other {
                stage.cut(machine, *other, Direction::Both, 10_000);
            }
        }
    }
    works_for(&mut stage, 11_000)?;
    stage.until("somebody leads", |stage| stage.world.leader().is_some())?;
    stage.pass(3_000);
    let dead = dead(&stage)?;
    ensure(dead.is_empty(), &format!("{dead:?} were decided dead"))?;
    works_for(&mut stage, 2_000)?;
    tables_can_be_made(&mut stage)?;
    stage.close()
}

/// The leader is killed when a master has asked it to record a change of its head's backups.
pub(super) fn killed_in_an_epoch_change(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k", "before")?;
    let head = stage.head();
    let lost = stage.backups_of(head)[0];
    stage.world.kill(stage.process(lost), Death::Kill);
    stage.until("the change is to be recorded", |stage| {
        (stage.world.server(stage.master)).is_some_and(|node| node.core.asks_for_a_record())
    })?;
    let leader = stage.leader()?;
    stage.world.kill(stage.process(leader), Death::Kill);
    stage.begin_write(0, "k", "after");
    stage.pass(2_000);
    ensure(
        matches!(stage.last("k").outcome, Outcome::Written { .. }),
        "within 2 s another leader has recorded the change, and the write is answered",
    )?;
    let epoch = stage.record()?.epochs.get(&head).copied();
    ensure(
        epoch.is_some_and(|epoch| epoch.0 > 1),
        "the change of the head's backups is recorded",
    )?;
    stage.survives_and(&[lost], 0)?;
    stage.close()
}

/// The leader stands still for longer than its lease; another leads and decides; then it wakes up
/// and finds requests that came meanwhile.
pub(super) fn a_leader_that_sleeps(lines: Lines) -> Played {
    for sleep in [300, 600, 1_200, 1_800] {
        let mut stage = Stage::with_group(3, 3, lines)?;
        stage.write("k", "v")?;
        let leader = stage.leader()?;
        let ballot = stage.state()?.ballot();
        let sleeper = stage.process(leader);
        let pause = Duration::from_millis(sleep);
        stage.world.pause(sleeper, pause);
        let admin = stage.add_admin(3, 0);
        stage.pass(sleep + 50);
        stage.group_is_sound()?;
        stage.until("all tables are made and dropped", |stage| {
            stage
                .world
                .admin(admin)
                .is_some_and(|admin| admin.is_idle())
        })?;
        ensure(
            sleep < 1_000 || stage.state()?.ballot() > ballot,
            "another has led meanwhile",
        )?;
        stage.close()?;
    }
    Ok(())
}

/// A coordinator loses its disk and is taken in again; then its vote counts.
pub(super) fn a_wiped_coordinator(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 3, lines)?;
    stage.write("k", "v")?;
    let leader = stage.leader()?;
    let mut others = stage.coordinators.iter().copied().filter(|m| *m != leader);
    let wiped = others.next_back().ok_or("there are others")?;
    stage.world.kill(stage.process(wiped), Death::Kill);
    stage.world.wipe(wiped);
    tables_can_be_made(&mut stage)?;
    stage.world.start(wiped);
    stage.until("it is a member and has everything", |stage| {
        stage.world.coordinator(wiped).is_some_and(|node| {
            let peer = node.core().node();
            peer.is_member() && peer.decided().0 >= stage.world.group.slot()
        })
    })?;
    stage.world.kill(stage.process(leader), Death::Kill);
    stage.until("another leads", |stage| stage.world.leader().is_some())?;
    tables_can_be_made(&mut stage)?;
    stage.world.start(leader);
    stage.pass(2_000);
    let states: Vec<_> = (stage.coordinators.iter())
        .filter_map(|m| stage.world.coordinator(*m))
        .map(|node| (node.core().node().decided(), node.core().state().clone()))
        .collect();
    ensure(
        states.len() == 3 && states.windows(2).all(|pair| pair[0] == pair[1]),
        "all coordinators have the same state",
    )?;
    stage.close()
}

/// A drop is sent again when its connection breaks; the first copy arrives when the table of that
/// name has been made again.
pub(super) fn a_retried_drop(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 3, lines)?;
    let admin = stage.add_admin(1, 50_000);
    stage.until(
        "the table is to be dropped",
        |stage| matches!(stage.world.node(admin), Some(Node::Admin(node)) if node.drops()),
    )?;
    let leader = stage.leader()?;
    stage.sever_late(admin, leader, 2_000);
    let late = stage.now() + Duration::from_millis(2_000);
    stage.until("it is dropped", |stage| {
        stage
            .world
            .admin(admin)
            .is_some_and(|admin| admin.is_idle())
    })?;
    let process = stage.process(admin);
    stage.world.with(process, |node, context| {
        if let Node::Admin(node) = node {
            node.books.more_rounds(1);
            node.poke(context);
        }
    });
    stage.until("it is made again", |stage| {
        stage
            .world
            .admin(admin)
            .is_some_and(|admin| admin.table().is_some())
    })?;
    ensure(stage.now() < late, "the first drop is still on its way")?;
    stage.world.with(process, |node, context| {
        if let Node::Admin(node) = node {
            node.books.hold(context.now + Duration::from_secs(3));
        }
    });
    stage.until("the table was looked at, and dropped", |stage| {
        let admin = stage.world.admin(admin);
        admin.is_some_and(|a| a.is_idle() || !a.complaints.is_empty())
    })?;
    ensure(stage.now() > late, "the first drop has arrived meanwhile")?;
    stage.close()
}

/// What a leader ordered arrives when another leads: master and backups refuse it.
pub(super) fn a_late_order(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k", "v")?;
    let leader = stage.leader()?;
    let (master, backup) = (stage.master, stage.backups[0]);
    for server in [master, backup] {
        stage.cut(leader, server, Direction::OneWay, 1_900);
    }
    // A table is made, and the list changes: both are to be told of it.
    let admin = stage.add_admin(1, 0);
    let restarted = stage.backups[1];
    stage.world.kill(stage.process(restarted), Death::Kill);
    stage.world.start(restarted);
    stage.pass(200);
    let sleeper = stage.process(leader);
    stage.world.pause(sleeper, Duration::from_secs(5));
    stage.until(
        "another leader has made the table and dropped it",
        |stage| {
            stage
                .world
                .admin(admin)
                .is_some_and(|admin| admin.is_idle())
        },
    )?;
    stage.pass(2_500);
    for server in [master, backup] {
        let node = stage.world.server(server).ok_or("it runs")?;
        ensure(
            node.watch.stale_orders() > 0,
            &format!("machine {server} has refused the late order"),
        )?;
    }
    stage.until("everybody is awake", |stage| !stage.world.is_paused(leader))?;
    stage.write("k", "after")?;
    stage.close()
}
