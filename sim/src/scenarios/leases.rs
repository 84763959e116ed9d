//! SAFETY 1, 5, 7 and 8: who may answer, and until when. In each story the master loses the right
//! while a client goes on asking it; the world says so if it answers once it has none
//! (`crate::right`).

use std::time::Duration;

use super::Outcome as Played;
use super::stage::{REPLICAS, Stage, ensure};
use crate::clock::MAX_DRIFT_PPM;
use crate::history::{Action, Outcome};
use crate::network::Direction::{Both, OneWay};
use crate::trace::Lines;
use crate::world::Death;

/// A cut that outlasts a story, milliseconds.
const LONG: u64 = 60_000;

/// *R removed k; zombie M answers write-if-absent with "exists".* M sleeps until it is dead and
/// replaced; acknowledgements from before wait in its sockets, and so do questions.
pub(super) fn a_zombie_that_wakes_up(lines: Lines) -> Played {
    let mut stage = Stage::serving(4, lines)?;
    for moment in 0..20 {
        // Asleep at one moment or another between a renewal and its answer.
        stage.ask_reads(moment % 3, 50);
        if stage
            .world
            .server(stage.master)
            .is_some_and(|n| n.stopped())
        {
            break;
        }
    }
    let sleeper = stage.process(stage.master);
    stage.world.pause(sleeper, Duration::from_secs(6));
    stage.ask_reads(1_000, 500);
    stage.until_fenced()?;
    stage.ask_reads(8_000, 2_000);
    stage.innocent()?;
    ensure(
        stage.world.server(stage.master).is_none_or(|n| n.stopped()),
        "the zombie has learned that it is dead",
    )
}

/// A client reaches it, and nobody else does.
pub(super) fn cut_off_from_all_but_a_client(lines: Lines) -> Played {
    let mut stage = Stage::serving(4, lines)?;
    stage.isolate(stage.master, LONG);
    stage.ask_reads(200, 1_000);
    ensure(
        stage.found("k") >= 1,
        "it answers as long as its lease lasts",
    )?;
    stage.ask_reads(5_000, 2_000);
    stage.innocent()?;
    stage.until_fenced()?;
    let before = stage.found("k");
    stage.ask_reads(2_000, 2_000);
    stage.innocent()?;
    ensure(
        stage.found("k") == before,
        "a read was answered by a master that is cut off",
    )
}

/// What a backup granted long ago arrives now: it counts from when it was asked for.
pub(super) fn a_grant_that_comes_late(lines: Lines) -> Played {
    let mut stage = Stage::serving(2, lines)?;
    let backups = stage.backups.clone();
    for backup in &backups {
        stage.cut(*backup, stage.master, OneWay, 300);
    }
    // The next renewal gets there and is granted; then nothing more gets there.
    stage.pass(30);
    for backup in &backups {
        stage.cut(stage.master, *backup, OneWay, 1_900);
    }
    stage.fence_now(&backups);
    stage.pass(200);
    stage.ask_reads(150, 50);
    stage.innocent()
}

/// Both ends of what clocks may differ by: the master's is slow, the backups' are fast.
pub(super) fn clocks_at_the_bound(lines: Lines) -> Played {
    for late in 0..12 {
        let mut stage = Stage::serving(2, lines)?;
        stage.world.set_rate(stage.master, -MAX_DRIFT_PPM);
        for backup in stage.backups.clone() {
            stage.world.set_rate(backup, MAX_DRIFT_PPM);
        }
        stage.pass(500 + late);
        // They fence it at once, and wait for their last grant only.
        for backup in stage.backups.clone() {
            stage.cut(stage.master, backup, OneWay, LONG);
        }
        stage.fence_now(&stage.backups.clone());
        stage.ask_reads(70, 40);
        stage.innocent()?;
    }
    Ok(())
}

/// Until the record is confirmed, the old backups could be taken for the end as well.
pub(super) fn old_and_new_backups(lines: Lines) -> Played {
    let mut stage = Stage::serving(4, lines)?;
    let head = stage.head();
    let old = stage.backups_of(head);
    let lost = old[0];
    // The change to another set can't be recorded; the new set is well and knows nothing.
    stage.cut(stage.master, stage.coordinator, Both, LONG);
    stage.sever(stage.master, lost);
    stage.cut(stage.master, lost, Both, LONG);
    stage.pass(20);
    ensure(
        !stage.backups_of(head).contains(&lost),
        "another takes the place of the one that is lost",
    )?;
    stage.fence_now(&[lost]);
    stage.ask_reads(500, 200);
    stage.innocent()
}

/// While the log rolls over, the old head could be taken for the end as well as the new one.
pub(super) fn old_and_new_head(lines: Lines) -> Played {
    let mut stage = Stage::serving(6, lines)?;
    for _ in 0..20 {
        let old = stage.head();
        let lost = stage.backups_of(old)[0];
        stage.cut(stage.master, stage.coordinator, Both, 1_000);
        stage.begin_fill();
        stage.until("a new head is begun", |stage| stage.head() != old)?;
        // The old head stays open on one of its backups: nothing reaches it any more.
        stage.cut(stage.master, lost, Both, 1_000);
        stage.pass(1);
        let both = stage.backups_of(stage.head()).contains(&lost);
        if !both && stage.backups_of(old).contains(&lost) {
            stage.fence_now(&[lost]);
            stage.ask_reads(300, 200);
            return stage.innocent();
        }
        stage.world.network.heal(&mut stage.world.events);
        stage.until("the fill is over", Stage::idle)?;
        stage.pass(500);
    }
    Err("no new head had other backups than the one before".into())
}

/// *Inventory first, then acknowledging while waiting: acknowledged bytes are missing.* A backup
/// that fences a master waits out what it granted it.
pub(super) fn a_backup_waits_out_its_grant(lines: Lines) -> Played {
    let mut stage = Stage::serving(2, lines)?;
    let backups = stage.backups.clone();
    for backup in &backups {
        stage.cut(stage.master, *backup, OneWay, LONG);
    }
    stage.fence_now(&backups);
    stage.ask_reads(200, 200);
    ensure(stage.found("k") >= 1, "reads go on until the grant is over")?;
    stage.innocent()?;
    let before = stage.found("k");
    stage.ask_reads(200, 20);
    stage.innocent()?;
    ensure(stage.found("k") == before, "and not after")
}

/// A backup that restarts has forgotten what it granted; it waits as if it had granted just before.
pub(super) fn a_restarted_backup_waits(lines: Lines) -> Played {
    for late in [0, 3, 7, 11, 20] {
        let mut stage = Stage::serving(3, lines)?;
        let head = stage.head();
        let lost = stage.backups_of(head)[0];
        stage.cut(stage.master, stage.coordinator, Both, LONG);
        // Of those who live now nobody is told; the one that starts again is another process.
        for backup in stage.backups.clone() {
            stage.cut(stage.coordinator, backup, Both, LONG);
        }
        stage.declare_dead()?;
        stage.pass(late);
        stage.world.kill(stage.process(lost), Death::Kill);
        stage.world.start(lost);
        stage.ask_reads(120, 100);
        stage.innocent()?;
    }
    Ok(())
}

/// Without backups the coordinator grants the lease, and takes a master for fenced only when its
/// grant is over.
pub(super) fn without_backups(lines: Lines) -> Played {
    let mut stage = Stage::with(0, 1, lines)?;
    stage.write("k", "v")?;
    stage.pass(1_000);
    stage.ask_reads(200, 100);
    let before = stage.found("k");
    ensure(before >= 90, "it reads under the coordinator's lease")?;
    stage.cut(stage.master, stage.coordinator, Both, 300);
    stage.ask_reads(300, 300);
    let during = stage.found("k") - before;
    ensure(
        during < 150,
        "cut off from the coordinator, it stops answering when its lease is over",
    )?;
    stage.ask_reads(500, 100);
    ensure(stage.found("k") > before + during, "then it goes on")?;
    stage.write("k", "w")?;
    stage.cut(stage.master, stage.coordinator, Both, LONG);
    stage.ask_reads(6_000, 3_000);
    stage.until_fenced()?;
    stage.ask_reads(1_000, 1_000);
    stage.innocent()
}

/// With healthy backups everything goes on for ever, whether there is a coordinator or not; and
/// nobody is taken for dead for its silence meanwhile.
pub(super) fn without_a_coordinator(lines: Lines) -> Played {
    let mut stage = Stage::serving(3, lines)?;
    stage
        .world
        .kill(stage.process(stage.coordinator), Death::Kill);
    for minute in 0..10 {
        stage.pass(59_000);
        stage.ask_reads(500, 50);
        stage.write("k", &format!("{minute}"))?;
    }
    stage.roll()?;
    let found = stage.found("k");
    ensure(found >= 500, &format!("{found} of 500 reads were answered"))?;
    stage.world.start(stage.coordinator);
    stage.pass(5_000);
    ensure(
        stage
            .world
            .server(stage.master)
            .is_some_and(|n| !n.stopped()),
        "the master is not taken for dead",
    )?;
    stage.write("k", "after")?;
    stage.innocent()?;
    stage.close()
}

/// A backup that dies, stops or is cut off is replaced before the lease of the old set runs out.
pub(super) fn a_lost_backup_is_not_seen_by_readers(lines: Lines) -> Played {
    let mut stage = Stage::serving(usize::from(REPLICAS) + 3, lines)?;
    let head = stage.head();
    for loss in 0..3 {
        let lost = stage.backups_of(head)[0];
        match loss {
            0 => stage.world.kill(stage.process(lost), Death::Kill),
            1 => {
                let process = stage.process(lost);
                stage.world.pause(process, Duration::from_secs(20));
            }
            _ => stage.isolate(lost, 20_000),
        }
        let slowest = stage.slowest_read(400);
        ensure(
            slowest < 50_000,
            &format!("loss {loss}: a read took {slowest} us, longer than a lease"),
        )?;
        stage.pass(3_000);
        stage.write("k", "still there")?;
    }
    stage.innocent()?;
    stage.close()
}

impl Stage {
    /// A stage on which both clients know who has the key `k`.
    fn serving(backups: usize, lines: Lines) -> Result<Self, String> {
        let mut stage = Self::new(backups, lines)?;
        stage.write("k", "v")?;
        stage.ask_reads(50, 10);
        Ok(stage)
    }

    /// A client reads the same key so many times, evenly spread over so many milliseconds.
    fn ask_reads(&mut self, milliseconds: u64, count: u64) {
        for _ in 0..count {
            self.begin(1, "k", Action::Read);
            self.pass_us(milliseconds * 1_000 / count);
        }
    }

    /// A client reads, one read after the other, for so many milliseconds; returns the time that
    /// the slowest took, microseconds.
    fn slowest_read(&mut self, milliseconds: u64) -> u64 {
        let end = self.now() + Duration::from_millis(milliseconds);
        let mut slowest = 0;
        while self.now() < end {
            let began = self.now();
            self.begin(1, "k", Action::Read);
            while !self.answered("k") && self.now() < end + Duration::from_secs(10) {
                self.step();
            }
            slowest = slowest.max(self.now().0 - began.0);
            self.pass_us(500);
        }
        slowest
    }

    /// Reads of a key that were answered.
    fn found(&self, key: &str) -> usize {
        let all = self.operations(key).iter();
        all.filter(|op| matches!(op.outcome, Outcome::Found { .. }))
            .count()
    }

    /// Nobody but clients hears of a machine, or it of them.
    fn isolate(&mut self, machine: usize, milliseconds: u64) {
        let mut others = self.backups.clone();
        others.extend([self.coordinator, self.master]);
        for other in others {
            if other != machine && self.world.machines[other].process.is_some() {
                self.cut(machine, other, Both, milliseconds);
            }
        }
    }

    /// The coordinator decides that the master is dead, and takes it for fenced in the end.
    fn until_fenced(&mut self) -> Played {
        self.decided("the master is taken for fenced", |server| server.fenced)
    }

    fn declare_dead(&mut self) -> Played {
        self.decided("the master is decided dead", |server| server.is_crashed())
    }

    fn decided(
        &mut self,
        what: &str,
        holds: impl Fn(&ramkeep_coordinator::state::Server) -> bool,
    ) -> Played {
        let (coordinator, id) = (self.coordinator, self.master_id());
        self.until(what, |stage| {
            let node = stage.world.coordinator(coordinator);
            node.is_some_and(|n| n.core().state().servers().by_id(id).is_none_or(&holds))
        })
    }

    /// Some backups hear right now that the master was decided dead.
    fn fence_now(&mut self, backups: &[usize]) {
        let master = self.master_id();
        for backup in backups {
            let process = self.process(*backup);
            self.world.with_node(process, |node| {
                if let crate::node::Node::Server(node) = node
                    && let Some(mut backup) = node.backup()
                {
                    backup.fence(master);
                }
            });
        }
    }
}
