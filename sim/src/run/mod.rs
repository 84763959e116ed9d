//! One seed: a cluster, a workload and faults, then quiet, then the checks.

mod clients;
mod durability;
mod group;
mod operator;
mod quiet;
mod room;

use self::clients::Clients;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use paxos::limits::Timing;
use ramkeep_coordinator::limits::SNAPSHOT_AFTER;
use ramkeep_wire::coordinator::{Roles, Settings};
use ramkeep_wire::mutants::Mutant;
use ramkeep_wire::{Micros, ServerId};

use crate::check::check_history;
use crate::check::log_end::MasterRecord;
use crate::crash_points::{CrashPoint, Decisions, Most, Reached};
use crate::faults::{self, Dying, Fault, Faults};
use crate::network::Delays;
use crate::rng::Rng;
use crate::trace::Lines;
use crate::workload::tables::AdminConfig;

use crate::world::{World, WorldConfig};

/// How long a cluster may take to be whole once faults stop.
const CONVERGENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(100);

const STEP_FAULT: u32 = 1;
const STEP_CHECK: u32 = 2;
const STEP_QUIET: u32 = 3;
const STEP_LOOK: u32 = 4;
const STEP_GUESTS: u32 = 5;
const STEP_MEETING: u32 = 6;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// A planted fault.
    pub mutant: Option<Mutant>,
    /// Somebody dies in this moment of recoveries, whatever the seed says.
    pub crash_at: Option<CrashPoint>,
    /// What of the trace is kept as text.
    pub lines: Lines,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What should not have happened.
    pub findings: Vec<String>,
    /// Hash over everything that happened.
    pub trace: u64,
    /// Events that happened.
    pub events: u64,
    /// Operations in the history.
    pub operations: usize,
    /// Envelopes sent.
    pub envelopes: u64,
    /// Times that a master's log was recovered from what backups held.
    pub recoveries: usize,
    /// Dead masters whose tablets are down in the end, since there is no memory for them.
    pub too_full: usize,
    /// It ended with something waiting for frames that are not there.
    pub short_of_frames: bool,
    /// True time that the run took, in virtual seconds.
    pub virtual_seconds: f64,
    /// How often which fault happened.
    pub faults: BTreeMap<Fault, u32>,
    /// Operations that clients were refused.
    pub refused: u64,
    /// How often who died in which moment of a recovery.
    pub struck: BTreeMap<(CrashPoint, Dying), u32>,
    /// How much there was to recover at a time.
    pub most: Most,
    /// More was lost than the promise covers.
    pub beyond: bool,
    /// Moments of recoveries that came.
    pub reached: BTreeMap<CrashPoint, u32>,
    /// An operator gave up what is lost of a log.
    pub gave_up: bool,
    /// The last lines of the trace, if kept.
    pub lines: Vec<String>,
}

/// Runs one seed.
#[must_use]
pub fn run(options: Options) -> Report {
    let planted = Plant::new(options.mutant);
    let ran = catch_unwind(AssertUnwindSafe(|| Run::new(options).finish_all()));
    planted.pull_out();
    ran.unwrap_or_else(|panic| {
        let text = (panic.downcast_ref::<String>().map(String::as_str))
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("without words");
        Report {
            seed: options.seed,
            findings: vec![format!("a core panicked: {text}")],
            ..Report::default()
        }
    })
}

/// A fault that is planted in this thread.
#[derive(Debug)]
#[must_use = "a planted fault stays until it is pulled out"]
pub struct Plant {
    #[cfg(feature = "mutants")]
    before: Option<Mutant>,
}

impl Plant {
    /// Plants a fault in this thread.
    ///
    /// # Panics
    /// If one is asked for in a build without the feature `mutants`.
    pub fn new(mutant: Option<Mutant>) -> Self {
        #[cfg(feature = "mutants")]
        return Self {
            before: ramkeep_wire::mutants::plant(mutant),
        };
        #[cfg(not(feature = "mutants"))]
        {
            assert!(
                mutant.is_none(),
                "planted faults need the feature `mutants`"
            );
            Self {}
        }
    }

    /// What was planted before is back.
    pub fn pull_out(self) {
        #[cfg(feature = "mutants")]
        ramkeep_wire::mutants::plant(self.before);
    }
}

#[derive(Debug)]
struct Run {
    world: World,
    faults: Faults,
    replicas: usize,
    /// Of each backup.
    frames: u32,
    people: Clients,
    /// Their machines; on the first somebody stays.
    clients: Vec<usize>,
    admins: Vec<usize>,
    /// Only coordinators are harmed: no operation of a client may fail.
    group_only: bool,
    /// More is lost than the promise covers: what is gone may be refused, never made up.
    beyond: bool,
    /// Since when faults have stopped, and what must work again since then.
    quiet_since: Micros,
    joined: Option<usize>,
    quiet: bool,
    gives_up: Micros,
    /// When workloads that are not done by then stop.
    patience: Micros,
    /// Since when, by the history's stamps, the last reading of every key is under way.
    read_since: Option<u64>,
    /// An operator has given up what is lost of a log: what was written does not count any more.
    gave_up: bool,
    deaths: u64,
    /// The last decided slot that was looked at.
    slot: u64,
    dead: BTreeMap<ServerId, Dead>,
    decisions: Decisions,
    report: Report,
}

/// A master that was decided dead.
#[derive(Clone, Debug)]
struct Dead {
    /// What was recorded of it then.
    record: MasterRecord,
    /// The losses that were not made up for then, and how many there had been.
    lost: BTreeSet<usize>,
    since: usize,
    /// How many hashes its tablets had then.
    width: u128,
}

/// Settings of a simulated cluster: small segments, short times.
#[must_use]
pub fn settings(rng: &mut Rng, replicas: u8) -> Settings {
    Settings {
        replicas,
        lease_us: *rng.choose(&[20_000, 60_000, 200_000]),
        backup_wait_us: *rng.choose(&[300_000, 2_000_000]),
        heartbeat_us: 50_000,
        suspect_us: 400_000,
        segment_size: *rng.choose(&[8 << 10, 16 << 10, 32 << 10]),
    }
}

/// How long disks of coordinators take to sync, microseconds.
const SYNCS: [(u64, u64); 4] = [(100, 500), (100, 500), (1_000, 10_000), (20_000, 100_000)];

/// Frames that each simulated backup has, where they are not short.
pub const FRAMES: u32 = 512;
/// Segments that each simulated master has memory for: few enough that a digest of them leaves
/// room in a small segment.
pub const SEGMENTS: u64 = 80;

/// The same, in most runs: in some it is short.
const ROOMS: [u64; 4] = [SEGMENTS, SEGMENTS, 24, 12];

impl Run {
    fn new(options: Options) -> Self {
        let mut rng = Rng::new(options.seed).fork(77);
        let replicas = *rng.choose(&[1, 2, 2, 2, 3]);
        // Forks of their own: they change nothing else of a seed.
        let replicas: usize = match Rng::new(options.seed).fork(80).percent(4) {
            true => 0,
            false => replicas,
        };
        let group_only = rng.percent(10);
        let mut settings = settings(&mut rng, replicas as u8);
        // Logs of several masters at a time, in several partitions.
        let crowded = !group_only && rng.percent(25);
        let mut late_per_mille = *rng.choose(&[0, 10, 50]);
        if group_only {
            // Nothing but the coordinators may give a master reason to change its backups.
            settings.lease_us = 200_000;
            late_per_mille = 0;
        }
        let mut world = World::new(WorldConfig {
            seed: options.seed,
            settings,
            delays: Delays {
                usual: *rng.choose(&[(10, 50), (20, 200), (100, 2_000)]),
                late_per_mille,
                late: (500, 8_000),
            },
            sync: (0..5).map(|_| *rng.choose(&SYNCS)).collect(),
            timing: Timing::default(),
            partition_bytes: match crowded {
                true => *rng.choose(&[512, 2 << 10, 4 << 10]),
                false => *rng.choose(&[4 << 10, 64 << 10, 1 << 30]),
            },
            snapshot_after: *rng.choose(&[1 << 10, 16 << 10, SNAPSHOT_AFTER]),
            reconnect: Duration::from_millis(*rng.choose(&[1, 10, 50])),
            lines: options.lines,
        });
        let group = *rng.choose(&[1, 3, 3, 3, 3, 3, 3, 5]);
        world.add_coordinators(group);
        let segments = *Rng::new(options.seed).fork(79).choose(&ROOMS);
        let memory = segments * u64::from(world.config.settings.segment_size);
        let masters = match crowded {
            true => rng.below(3..7),
            false => rng.below(1..5),
        };
        let both: Vec<bool> = (0..masters).map(|_| rng.percent(50)).collect();
        let spare = rng.below(1..4) + replicas as u64;
        let backups = spare + both.iter().filter(|backs_up| **backs_up).count() as u64;
        // Just enough for all that masters have memory for, if one backup is missing.
        let copies = masters * segments * replicas as u64;
        let frames = match Rng::new(options.seed).fork(82).percent(25) {
            true => (copies.div_ceil((backups - 1).max(1)) + 2 * masters) as u32,
            false => FRAMES,
        };
        for backup in both {
            let master = true;
            world.add_server(Roles { master, backup }, frames, memory);
        }
        for _ in 0..spare {
            let (master, backup) = (false, true);
            world.add_server(Roles { master, backup }, frames, memory);
        }
        let mut people = Clients::new(rng.fork(7), group_only);
        let clients = people.all_come(&mut world);
        // More than are named in one message.
        let leases = match Rng::new(options.seed).fork(81).percent(5) {
            true => 300,
            false => 0,
        };
        let admins = (0..rng.below(1..3) as u32)
            .map(|number| {
                let coordinators = world.coordinators();
                world.add_admin(AdminConfig {
                    number,
                    coordinators,
                    think: *rng.choose(&[1_000, 30_000]),
                    rounds: rng.below(1..60) as u32,
                    leases: if number == 0 { leases } else { 0 },
                })
            })
            .collect();
        let deep = rng.percent(25);
        let beyond = !group_only && (rng.percent(10) || replicas == 0);
        let mut faults = if group_only {
            Faults::of_the_group_only(rng.fork(5))
        } else {
            Faults::new(rng.fork(5), replicas.saturating_sub(1).max(1))
        };
        if crowded {
            faults.kill_in_pairs();
        }
        if beyond {
            faults.go_beyond();
        } else if deep || faults.kills_masters() {
            faults.may_lack(replicas);
        }
        // A fork of its own: what is forced changes nothing else of a seed.
        let mut chance = rng.fork(6);
        let chosen = chance.percent(30).then(|| *chance.choose(CrashPoint::ALL));
        if let Some(point) = options.crash_at.or(chosen.filter(|_| !group_only)) {
            faults.strike_at(point);
        }
        faults.may_meet(rng.fork(8), group_only);
        let mut run = Self {
            faults,
            replicas,
            frames,
            admins,
            group_only,
            beyond,
            quiet_since: Micros(0),
            joined: None,
            people,
            clients,
            quiet: false,
            gives_up: Micros(u64::MAX),
            patience: Micros(u64::MAX),
            read_since: None,
            gave_up: false,
            deaths: 0,
            slot: 0,
            dead: BTreeMap::new(),
            decisions: Decisions::default(),
            report: Report {
                seed: options.seed,
                ..Report::default()
            },
            world,
        };
        // A leader is elected meanwhile, and the clients have their table.
        let calm = if group_only {
            3_000
        } else {
            *rng.choose(&[300, 1_500])
        };
        let calm = Duration::from_millis(calm);
        let active = match run.faults.strikes_at_points() {
            // Long enough for recoveries to come to their end.
            true => rng.micros(4_000_000..9_000_000),
            false => rng.micros(500_000..4_000_000),
        };
        let start = run.world.events.now();
        use crate::world::Event::Step;
        run.world.events.at(start + calm, Step(STEP_FAULT));
        run.world.events.at(start + calm, Step(STEP_CHECK));
        run.world.events.at(start + calm, Step(STEP_GUESTS));
        run.world.events.at(start + calm + active, Step(STEP_QUIET));
        run.await_meeting(start + calm);
        run
    }

    fn finish_all(mut self) -> Report {
        let mut done = false;
        while !done {
            match self.world.step() {
                None => done = true,
                Some(Some(step)) => done = self.act(step),
                Some(None) => {
                    self.notice_deaths();
                    self.notice_points();
                }
            }
            if let Some(wrong) = self.world.wrongs.pop() {
                self.report.findings.push(wrong);
            }
            for found in self.world.group.findings().to_vec() {
                self.find(&found);
            }
            done |= !self.report.findings.is_empty();
        }
        self.judge();
        self.finish()
    }

    fn act(&mut self, step: u32) -> bool {
        use crate::world::Event::Step;
        let now = self.world.events.now();
        match step {
            STEP_FAULT if !self.quiet => {
                faults::restart_stopped(&mut self.world);
                faults::note_recovered(&mut self.world);
                self.faults.strike(&mut self.world);
                let next = now + self.faults.next_gap();
                self.world.events.at(next, Step(STEP_FAULT));
            }
            STEP_CHECK if !self.quiet => {
                self.check_durability();
                let next = now + self.world.rng.micros(5_000..150_000);
                self.world.events.at(next, Step(STEP_CHECK));
            }
            STEP_GUESTS if !self.quiet => {
                self.people
                    .fill(&mut self.world, &self.clients, &self.admins);
                let next = now + self.people.come_and_go(&mut self.world);
                self.world.events.at(next, Step(STEP_GUESTS));
            }
            STEP_MEETING if !self.quiet => {
                self.faults.meet(&mut self.world);
                self.await_meeting(now);
            }
            STEP_QUIET => {
                self.quiet = true;
                self.quiet_since = now;
                self.gives_up = now + CONVERGENCE;
                self.patience = now + CONVERGENCE / 4;
                faults::end(&mut self.world);
                self.group_must_work();
                self.world.events.at(now + LOOK, Step(STEP_LOOK));
            }
            STEP_LOOK => return self.look(now),
            _ => {}
        }
        false
    }

    fn await_meeting(&mut self, now: Micros) {
        if let Some(gap) = self.faults.next_meeting() {
            let step = crate::world::Event::Step(STEP_MEETING);
            self.world.events.at(now + gap, step);
        }
    }

    /// Somebody may die in a moment of a recovery that has just come.
    fn notice_points(&mut self) {
        for reached in std::mem::take(&mut self.world.reached) {
            *self.report.reached.entry(reached.point).or_default() += 1;
            if !self.quiet {
                self.faults.reached(&mut self.world, reached);
            }
        }
    }

    fn find(&mut self, what: &str) {
        let at = self.world.events.now().0 as f64 / 1000.0;
        self.report.findings.push(format!("{what} (at {at:.3} ms)"));
    }

    /// The checks at the end.
    fn judge(&mut self) {
        if self.report.findings.is_empty() {
            self.check_durability();
        }
        self.judge_group();
        self.report.too_full = self.too_full();
        if !self.gave_up {
            self.judge_history();
        }
        let mut found = Vec::new();
        for books in self.world.client_books() {
            self.report.refused += books.ended.0 - books.ended.1;
            for (_, key) in &books.repeated {
                let key = String::from_utf8_lossy(key);
                found.push(format!("{key}: a scan returned it twice"));
            }
            for complaint in &books.complaints {
                found.push(format!("a client was told: {complaint}"));
            }
        }
        found.iter().for_each(|found| self.find(found));
    }

    fn judge_history(&mut self) {
        for ((table, key), why) in check_history(&self.world.history) {
            let key = String::from_utf8_lossy(&key).into_owned();
            let operations = self.world.history.of(&(table, key.clone().into_bytes()));
            if self.world.trace.wants_lines() {
                for operation in operations {
                    println!("{operation:?}");
                }
            }
            self.find(&format!("{key}: {why}"));
        }
    }

    fn finish(mut self) -> Report {
        self.report.trace = self.world.trace.hash();
        self.report.events = self.world.trace.events();
        self.report.operations = self.world.history.len();
        self.report.envelopes = self.world.network.envelopes;
        self.report.virtual_seconds = self.world.events.now().0 as f64 / 1e6;
        self.report.faults = self.faults.done.clone();
        self.report.struck = self.faults.struck.clone();
        self.report.most = self.decisions.most();
        self.report.beyond = self.beyond;
        self.report.gave_up = self.gave_up;
        self.report.lines = self.world.trace.kept().map(str::to_owned).collect();
        self.report
    }
}
