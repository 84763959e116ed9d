//! Copies of directories beside their originals, and coordinators that others took the places of.

use ramkeep_wire::PeerId;
use ramkeep_wire::coordinator::Request;

use super::Outcome as Played;
use super::group::{dead, works_for};
use super::stage::{Stage, ensure};
use crate::node::Node;
use crate::trace::Lines;
use crate::world::Death;

/// A coordinator is lost, and one at another address takes its place.
fn replace(stage: &mut Stage, lost: usize, by: u32) -> Played {
    let peer = |stage: &Stage, machine| {
        let node = stage.world.coordinator(machine);
        node.map(|node| node.core().peer_id())
    };
    let gone = peer(stage, lost).ok_or("it does not run")?;
    stage.world.kill(stage.process(lost), Death::Kill);
    let newcomer = stage.world.add_newcomer(lost, PeerId(by));
    let newcomer = newcomer.ok_or("it is no coordinator")?;
    let request = Request::ReplaceCoordinator {
        lost: gone,
        by: PeerId(by),
    };
    for _ in 0..200 {
        stage.pass(50);
        let node = stage.world.coordinator(newcomer);
        if node.is_some_and(|node| node.core().node().is_member()) {
            return Ok(());
        }
        let leader = stage.leader()?;
        stage.world.with(stage.process(leader), |node, context| {
            if let Node::Coordinator(node) = node {
                node.ask(context, &request);
            }
        });
    }
    Err("nobody took its place".into())
}

/// Servers and clients have only ever talked to the leader. The other two are replaced at new addresses,
/// then it dies: everybody finds those that are left.
pub(super) fn members_at_new_addresses(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k0", "before")?;
    let leader = stage.leader()?;
    let others: Vec<usize> = stage.coordinators.clone();
    let others = others.into_iter().filter(|machine| *machine != leader);
    for (by, lost) in (4..).zip(others.collect::<Vec<_>>()) {
        replace(&mut stage, lost, by)?;
        stage.pass(500);
    }
    stage.world.kill(stage.process(leader), Death::Kill);
    stage.pass(3_000);
    stage.until("another leads", |stage| stage.world.leader().is_some())?;
    changes_backups(stage)
}

/// A backup dies: without a record of the change nobody could write any more.
fn changes_backups(mut stage: Stage) -> Played {
    let lost = stage.backups_of(stage.head())[0];
    stage.world.kill(stage.process(lost), Death::Kill);
    stage.pass(3_000);
    works_for(&mut stage, 1_000)?;
    stage.close()
}

/// Two of three coordinators stop, and one of those goes on elsewhere: nobody calls it there before the
/// third is told. Then the group has its address, and who was told nothing finds it, too.
pub(super) fn a_moved_coordinator(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k0", "before")?;
    let told = stage.leader()?;
    let others = stage.coordinators.iter().copied();
    let others: Vec<usize> = others.filter(|machine| *machine != told).collect();
    let peer = stage
        .world
        .coordinator(others[0])
        .ok_or("it does not run")?;
    let peer = peer.core().peer_id();
    for machine in &others {
        stage.world.kill(stage.process(*machine), Death::Kill);
    }
    let moved = stage.world.move_journal(others[0]);
    let moved = moved.ok_or("it is no coordinator")?;
    stage.pass(5_000);
    ensure(stage.world.leader().is_none(), "nobody was told")?;
    let address = stage.world.machines[moved].address.clone();
    stage.world.kill(stage.process(told), Death::Kill);
    stage.world.tell_coordinator(told, peer, &address);
    stage.world.start(told);
    let recorded = |stage: &Stage, by: usize| {
        let node = stage.world.coordinator(by)?.core().node();
        let member = node.group()?.member(paxos::PeerId(peer.0))?;
        Some(member.address == address)
    };
    stage.until("the group has its address", |stage| {
        recorded(stage, told) == Some(true)
    })?;
    stage.world.start(others[1]);
    stage.until("who was told nothing has it", |stage| {
        recorded(stage, others[1]) == Some(true)
    })?;
    stage.pass(1_000);
    stage.world.kill(stage.process(told), Death::Kill);
    stage.pass(3_000);
    stage.until("the two others go on", |stage| {
        stage.world.leader().is_some()
    })?;
    changes_backups(stage)
}

/// A coordinator's directory is copied, and the copy started elsewhere: it takes part in nothing.
pub(super) fn a_coordinators_copy(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k0", "before")?;
    let original = stage.leader()?;
    let disk = stage
        .world
        .copy_journal(original)
        .ok_or("it has no journal")?;
    let copy = stage.world.start_journal(original, disk);
    let copy = copy.ok_or("it is no coordinator")?;
    stage.pass(2_500);
    ensure(
        stage.world.coordinator(copy).is_none(),
        "the copy has ended",
    )?;
    ensure(stage.leader()? == original, "the original leads on")?;
    works_for(&mut stage, 1_000)?;
    stage.close()
}

/// A server's directory is copied, and copies started elsewhere: the original lives on.
pub(super) fn a_servers_copies(lines: Lines) -> Played {
    let mut stage = Stage::with_group(3, 4, lines)?;
    stage.write("k0", "before")?;
    let original = stage.backups[0];
    for _ in 0..2 {
        let frames = stage
            .world
            .copy_frames(original)
            .ok_or("it has no frames")?;
        stage.world.start_frames(original, frames);
    }
    stage.pass(3_000);
    let dead = dead(&stage)?;
    ensure(dead.is_empty(), &format!("{dead:?} were decided dead"))?;
    works_for(&mut stage, 1_000)?;
    stage.close()
}
