//! One seed: a cluster, a workload and faults, then quiet, then the checks.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use ramkeep_coordinator::Coordinator;
use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::coordinator::{Roles, Settings};
use ramkeep_wire::data::RejectRules;
use ramkeep_wire::mutants::Mutant;
use ramkeep_wire::{KeyHash, Micros, SegmentId, ServerId, TableId, key_hash};

use crate::check::check_history;
use crate::check::log_end::MasterRecord;
use crate::faults::{self, Faults};
use crate::history::Action;
use crate::inspect;
use crate::network::Delays;
use crate::node::Node;
use crate::node::client::ClientConfig;
use crate::rng::Rng;
use crate::trace::Lines;
use crate::workload::{Mix, Step, Workload};
use crate::world::{World, WorldConfig};

/// How long a cluster may take to be whole once faults stop.
const CONVERGENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes of each value written at the end.
const LAST_VALUE: usize = 1_000;

const STEP_FAULT: u32 = 1;
const STEP_CHECK: u32 = 2;
const STEP_QUIET: u32 = 3;
const STEP_LOOK: u32 = 4;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// A planted fault.
    pub mutant: Option<Mutant>,
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
    /// Keys that the search gave up on.
    pub undecided: usize,
    /// True time that the run took, in virtual seconds.
    pub virtual_seconds: f64,
    /// Faults that happened.
    pub faults: u32,
    /// Operations that clients were refused.
    pub refused: u64,
    /// The last lines of the trace, if kept.
    pub lines: Vec<String>,
}

/// Runs one seed.
#[must_use]
pub fn run(options: Options) -> Report {
    let planted = Plant::new(options.mutant);
    let ran = catch_unwind(AssertUnwindSafe(|| Run::new(options).to_end()));
    drop(planted);
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

/// Plants a fault for as long as it lives.
pub struct Plant {
    #[cfg(feature = "mutants")]
    before: Option<Mutant>,
}

impl Plant {
    /// Plants a fault in this thread.
    ///
    /// # Panics
    /// If one is asked for in a build without the feature `mutants`.
    #[must_use]
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
}

#[cfg(feature = "mutants")]
impl Drop for Plant {
    fn drop(&mut self) {
        ramkeep_wire::mutants::plant(self.before);
    }
}

fn brief(info: &ReplicaInfo) -> String {
    format!(
        "{}: {}{}{} bytes at {}",
        info.segment,
        if info.closed { "closed " } else { "" },
        if info.inherited { "inherited " } else { "" },
        info.length,
        info.epoch
    )
}

#[derive(Debug)]
struct Run {
    world: World,
    faults: Faults,
    replicas: usize,
    coordinator: usize,
    clients: Vec<usize>,
    quiet: bool,
    gives_up: Micros,
    /// When workloads that are not done by then stop.
    patience: Micros,
    /// The last reading of every key is under way.
    reading: bool,
    deaths: u64,
    /// What was recorded of masters when they were decided dead, and the losses until then.
    dead: BTreeMap<ServerId, (MasterRecord, usize)>,
    report: Report,
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

/// Frames that each simulated backup has.
pub const FRAMES: u32 = 512;
/// Segments that each simulated master has memory for: few enough that a digest of them leaves
/// room in a small segment.
pub const SEGMENTS: u64 = 80;

impl Run {
    fn new(options: Options) -> Self {
        let mut rng = Rng::new(options.seed).fork(77);
        let replicas = *rng.choose(&[1, 2, 2, 2, 3]);
        let mut world = World::new(WorldConfig {
            seed: options.seed,
            settings: settings(&mut rng, replicas as u8),
            delays: Delays {
                usual: *rng.choose(&[(10, 50), (20, 200), (100, 2_000)]),
                late_per_mille: *rng.choose(&[0, 10, 50]),
                late: (500, 8_000),
            },
            sync: *rng.choose(&[(100, 500), (1_000, 10_000), (20_000, 100_000)]),
            reconnect: Duration::from_millis(*rng.choose(&[1, 10, 50])),
            lines: options.lines,
        });
        let coordinator = world.add_coordinator();
        let memory = SEGMENTS * u64::from(world.config.settings.segment_size);
        for _ in 0..rng.below(1..4) {
            let backup = rng.percent(50);
            let master = true;
            world.add_server(Roles { master, backup }, FRAMES, memory);
        }
        let spare = rng.below(1..4);
        for _ in 0..replicas as u64 + spare {
            let (master, backup) = (false, true);
            world.add_server(Roles { master, backup }, FRAMES, memory);
        }
        let clients = Self::add_clients(&mut world, &mut rng);
        let deep = rng.percent(25);
        let most_lost = if deep { replicas } else { replicas - 1 };
        let mut run = Self {
            faults: Faults::new(rng.fork(5), most_lost.max(1)),
            replicas,
            coordinator,
            clients,
            quiet: false,
            gives_up: Micros(u64::MAX),
            patience: Micros(u64::MAX),
            reading: false,
            deaths: 0,
            dead: BTreeMap::new(),
            report: Report {
                seed: options.seed,
                ..Report::default()
            },
            world,
        };
        let calm = Duration::from_millis(300);
        let active = rng.micros(500_000..4_000_000);
        let start = run.world.events.now();
        use crate::world::Event::Step;
        run.world.events.at(start + calm, Step(STEP_FAULT));
        run.world.events.at(start + calm, Step(STEP_CHECK));
        run.world.events.at(start + calm + active, Step(STEP_QUIET));
        run
    }

    fn add_clients(world: &mut World, rng: &mut Rng) -> Vec<usize> {
        let mix = Mix {
            steps: rng.below(50..500) as usize,
            hot: rng.below(1..6),
            counters: rng.below(1..3),
            longest: *rng.choose(&[20, 200, 1_500]),
            scans_per_mille: *rng.choose(&[0, 10, 30]),
        };
        (0..rng.below(2..5) as u32)
            .map(|number| {
                let config = ClientConfig {
                    number,
                    coordinators: World::coordinators(),
                    deadline: *rng.choose(&[
                        Duration::from_millis(500),
                        Duration::from_secs(3),
                        Duration::from_secs(20),
                    ]),
                    depth: *rng.choose(&[1, 2, 8]),
                    think: *rng.choose(&[500, 10_000]),
                };
                let workload = Workload::new(rng.fork(100 + u64::from(number)), number, mix);
                world.add_client(config, workload)
            })
            .collect()
    }

    fn to_end(mut self) -> Report {
        let mut done = false;
        while !done {
            match self.world.step() {
                None => done = true,
                Some(Some(step)) => done = self.act(step),
                Some(None) => self.notice_deaths(),
            }
            done |= !self.report.findings.is_empty();
        }
        self.judge();
        self.finish()
    }

    /// What is left right after a death is what counts; and what is recorded of a master when it is
    /// decided dead is what its recovery goes by (SAFETY 4).
    fn notice_deaths(&mut self) {
        if let Some(node) = self.world.coordinator(self.coordinator) {
            for (server, found) in node.core().state().servers().iter() {
                if found.is_crashed()
                    && found.roles.master
                    && !self.dead.contains_key(&server)
                    && let Some(record) = inspect::master_record(node.core(), server)
                {
                    let before = self.world.losses - self.world.wiped.len();
                    self.dead.insert(server, (record, before));
                }
            }
        }
        if self.deaths != self.world.deaths {
            self.deaths = self.world.deaths;
            if !self.quiet {
                self.check_durability();
            }
        }
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
            STEP_QUIET => {
                self.quiet = true;
                self.gives_up = now + CONVERGENCE;
                self.patience = now + CONVERGENCE / 4;
                faults::end(&mut self.world);
                self.world.events.at(now + LOOK, Step(STEP_LOOK));
            }
            STEP_LOOK => return self.look(now),
            _ => {}
        }
        false
    }

    /// Looks whether the cluster is whole again; true when the run is over.
    fn look(&mut self, now: Micros) -> bool {
        // Whatever was about to be killed or restarted when faults stopped.
        faults::end(&mut self.world);
        faults::note_recovered(&mut self.world);
        let lacking = self.lacking();
        if lacking.is_empty() {
            if self.reading {
                return true;
            }
            self.reading = true;
            self.read_everything();
        } else if now > self.patience && !self.reading {
            self.stop_workloads();
        }
        if !lacking.is_empty() && now > self.gives_up {
            let lacking = lacking.join("; ");
            self.find(format!("not whole again after {CONVERGENCE:?}: {lacking}"));
            return true;
        }
        self.world
            .events
            .at(now + LOOK, crate::world::Event::Step(STEP_LOOK));
        false
    }

    /// With a tablet down for good, every operation on it takes its whole deadline.
    fn stop_workloads(&mut self) {
        for machine in self.clients.clone() {
            let process = self.world.machines[machine].process;
            let _ = process.and_then(|process| {
                self.world.with(process, |node, _| {
                    if let Node::Client(client) = node {
                        client.workload_mut().stop();
                    }
                })
            });
        }
    }

    /// What is not as it should be in a cluster without faults.
    fn lacking(&mut self) -> Vec<String> {
        let mut lacking = Vec::new();
        for machine in &self.clients {
            if let Some(client) = self.world.client(*machine)
                && !client.is_idle()
            {
                lacking.push(format!(
                    "{} has {} operations under way",
                    self.world.machines[*machine].address,
                    client.under_way()
                ));
            }
        }
        let Some(coordinator) = inspect::recorded(&self.world, self.coordinator) else {
            return vec!["the coordinator has no journal".into()];
        };
        let masters = inspect::living_masters(&self.world, &coordinator);
        for (machine, server) in &masters {
            let stats = self
                .world
                .server(*machine)
                .and_then(|node| node.master())
                .map(|master| master.stats())
                .unwrap_or_default();
            if stats.under_replicated > 0 {
                lacking.push(format!(
                    "{server:?} has {} segments that lack a replica of {:?}",
                    stats.under_replicated,
                    inspect::placement(&self.world, *machine)
                ));
            }
        }
        if lacking.is_empty() {
            lacking.extend(self.leaks(&masters));
        }
        lacking
    }

    /// Frames in use that no living master's log accounts for, or too few.
    fn leaks(&mut self, masters: &[(usize, ServerId)]) -> Vec<String> {
        let mut wanted = std::collections::BTreeSet::new();
        for (machine, server) in masters {
            let Some(master) = self.world.server(*machine).and_then(|node| node.master()) else {
                continue;
            };
            for segment in inspect::segments(&self.world, *machine) {
                for backup in master.backups_of(segment) {
                    wanted.insert((backup, *server, segment));
                }
            }
        }
        let mut found = std::collections::BTreeSet::new();
        for (_, server) in masters {
            for held in inspect::held(&mut self.world, *server) {
                let backup = self.world.server(held.machine).map(|node| node.server());
                for (info, _) in held.replicas {
                    found.insert((backup.unwrap_or_default(), *server, info.segment));
                }
            }
        }
        let mut leaks: Vec<String> = wanted
            .difference(&found)
            .map(|(backup, master, segment)| format!("{backup:?} lacks {master:?} {segment:?}"))
            .collect();
        // What a change of an open head's backups left behind is kept until that head is closed.
        let heads: Vec<(ServerId, SegmentId)> = masters
            .iter()
            .filter_map(|(machine, server)| Some((*server, inspect::head(&self.world, *machine)?)))
            .collect();
        let (kept, extra): (Vec<_>, Vec<_>) = found
            .difference(&wanted)
            .partition(|(_, master, segment)| heads.contains(&(*master, *segment)));
        leaks.extend(extra.into_iter().map(|(backup, master, segment)| {
            format!("{backup:?} still has {master:?} {segment:?}")
        }));
        // Frames of masters decided dead are kept for their recovery, also when their machine has
        // come back as another server.
        if leaks.is_empty() && kept.is_empty() && self.dead.is_empty() {
            leaks.extend(self.lost_frames(&wanted));
        }
        leaks
    }

    /// Frames that are in use without holding a complete replica.
    fn lost_frames(
        &self,
        wanted: &std::collections::BTreeSet<(ServerId, ServerId, SegmentId)>,
    ) -> Vec<String> {
        let mut lost = Vec::new();
        for machine in self.world.server_machines() {
            let Some(node) = self.world.server(machine) else {
                continue;
            };
            let Some(backup) = node.backup() else { continue };
            let count = wanted.iter().filter(|(b, _, _)| *b == node.server()).count();
            let used = backup.stats().used as usize;
            if used != count {
                let server = node.server();
                lost.push(format!("{server:?} has {used} frames in use for {count} replicas"));
            }
        }
        lost
    }

    fn read_everything(&mut self) {
        // Nobody serves the tablets of a master that is dead.
        let Some(coordinator) = inspect::recorded(&self.world, self.coordinator) else {
            return;
        };
        let served = |table: TableId, key: &[u8]| {
            let hash = key_hash(table, key);
            !self.dead.keys().any(|dead| {
                (inspect::tablets(&coordinator, *dead).iter())
                    .any(|(t, first, last)| *t == table && (*first..=*last).contains(&hash))
            })
        };
        let keys: Vec<Vec<u8>> = (self.world.history.keys())
            .filter(|(place, _)| served(place.0, &place.1))
            .map(|(place, _)| place.1.clone())
            .collect();
        let table = self.world.history.keys().next().map(|(place, _)| place.0);
        let whole = self.dead.is_empty();
        let Some(process) = self
            .clients
            .first()
            .and_then(|machine| self.world.machines[*machine].process)
        else {
            return;
        };
        // Enough writes that every head rolls over, then a look at everything.
        let segment = self.world.config.settings.segment_size as usize;
        let masters = (self.world.server_machines())
            .filter(|m| faults::is_master(&self.world, *m))
            .count();
        let writes = masters * 2 * segment / LAST_VALUE;
        let last: Vec<u64> = (0..writes as u64)
            .filter(|n| table.is_some_and(|table| served(table, format!("last{n}").as_bytes())))
            .collect();
        self.world.with(process, |node, context| {
            if let Node::Client(client) = node {
                for number in last {
                    let mut value = format!("last{number}-").into_bytes();
                    value.resize(LAST_VALUE, b'.');
                    let rules = RejectRules::default();
                    let key = format!("last{number}").into_bytes();
                    let write = Action::Write { value, rules };
                    client.workload_mut().add(Step::Key(key, write));
                }
                if whole {
                    client.workload_mut().add(Step::Scan);
                }
                for key in keys {
                    client.workload_mut().add(Step::Key(key, Action::Read));
                }
                client.poke(context);
            }
        });
    }

    fn find(&mut self, what: String) {
        let at = self.world.events.now().0 as f64 / 1000.0;
        self.report.findings.push(format!("{what} (at {at:.3} ms)"));
    }

    /// Takes every master for dead, one at a time, and recovers its log from what backups hold.
    fn check_durability(&mut self) {
        faults::note_recovered(&mut self.world);
        let down: BTreeSet<usize> = (faults::down(&self.world).into_iter())
            .filter(|m| self.world.machines[*m].process.is_none())
            .collect();
        let Some(coordinator) = inspect::recorded(&self.world, self.coordinator) else {
            return;
        };
        let living = inspect::living_masters(&self.world, &coordinator);
        let wiped = self.world.wiped.len();
        for (_, server) in &living {
            if let Some(record) = inspect::master_record(&coordinator, *server) {
                self.check_master(&coordinator, &record, &down, wiped);
            }
        }
        // Nobody makes up for what a dead master's replicas lose.
        for (record, before) in self.dead.clone().into_values() {
            let lost = self.world.losses - before;
            self.check_master(&coordinator, &record, &down, lost);
        }
    }

    fn check_master(
        &mut self,
        coordinator: &Coordinator,
        record: &MasterRecord,
        down: &BTreeSet<usize>,
        lost: usize,
    ) {
        let owned = inspect::tablets(coordinator, record.master);
        if owned.is_empty() {
            return;
        }
        let held = inspect::held(&mut self.world, record.master);
        let owns = |table: TableId, hash: KeyHash| {
            (owned.iter()).any(|(t, first, last)| *t == table && (*first..=*last).contains(&hash))
        };
        // Frames that were lost count against the promise until they are made up for, though their
        // machine may hold new ones by now. A killed process comes back with its frames: it may be
        // taken for lost, or not.
        let none = BTreeSet::new();
        for (down, lost) in [(down, lost + down.len()), (&none, lost)] {
            let Some(more) = (self.replicas - 1).checked_sub(lost) else {
                continue;
            };
            match inspect::check_master(&self.world, &held, record, &owns, down, more) {
                Ok(checked) => self.report.recoveries += checked,
                Err(why) => {
                    self.show_held(record.master, &held);
                    return self.find(why.to_string());
                }
            }
        }
    }

    fn show_held(&mut self, master: ServerId, held: &[inspect::Held]) {
        let machines: Vec<usize> = self.world.server_machines().collect();
        for machine in machines {
            if self.world.server(machine).is_some_and(|n| n.server() == master) {
                let placement = inspect::placement(&self.world, machine);
                self.world
                    .say(format_args!("-- {master:?} counts on {placement:?}"));
            }
        }
        for held in held {
            let infos: Vec<_> = held.replicas.iter().map(|(i, _)| brief(i)).collect();
            let (machine, text) = (held.machine, infos.join(", "));
            self.world
                .say(format_args!("-- machine {machine} holds {text}"));
        }
    }

    /// The checks at the end.
    fn judge(&mut self) {
        if self.report.findings.is_empty() {
            self.check_durability();
        }
        let verdict = check_history(&self.world.history);
        self.report.undecided = verdict.undecided;
        for ((table, key), why) in verdict.violations {
            let key = String::from_utf8_lossy(&key).into_owned();
            let operations = self.world.history.of(&(table, key.clone().into_bytes()));
            if self.world.trace.wants_lines() {
                for operation in operations {
                    println!("{operation:?}");
                }
            }
            self.find(format!("{key}: {why}"));
        }
        for machine in self.clients.clone() {
            let Some(client) = self.world.client(machine) else {
                continue;
            };
            let (repeated, complaints) = (client.repeated.clone(), client.complaints.clone());
            self.report.refused += client.ended.0 - client.ended.1;
            for (_, key) in repeated {
                let key = String::from_utf8_lossy(&key).into_owned();
                self.find(format!("{key}: a scan returned it twice"));
            }
            for complaint in complaints {
                self.find(format!("a client was told: {complaint}"));
            }
        }
    }

    fn finish(mut self) -> Report {
        self.report.trace = self.world.trace.hash();
        self.report.events = self.world.trace.events();
        self.report.operations = self.world.history.len();
        self.report.envelopes = self.world.network.envelopes;
        self.report.virtual_seconds = self.world.events.now().0 as f64 / 1e6;
        self.report.faults = self.faults.done.values().sum();
        self.report.lines = self.world.trace.kept().map(str::to_owned).collect();
        self.report
    }
}
