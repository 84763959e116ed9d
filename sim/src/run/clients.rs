//! Who works on the cluster in a run: clients that stay, and guests that come and go.

use std::time::Duration;

use ramkeep_wire::TableId;
use ramkeep_wire::data::RejectRules;

use crate::history::Action;
use crate::node::Node;
use crate::rng::Rng;
use crate::workload::client::ClientConfig;
use crate::workload::{Mix, Step, Workload};
use crate::world::World;

/// Guests that leave before they have done what they came for, in a hundred.
const LEAVE_EARLY: u64 = 20;
/// Guests that leave without a farewell, in a hundred.
const DIE: u64 = 40;
/// How long operations may take where only coordinators are harmed: whoever comes then must wait for
/// them first.
const PATIENT: Duration = Duration::from_secs(20);

/// The clients of a run.
#[derive(Debug)]
pub(super) struct Clients {
    rng: Rng,
    mix: Mix,
    guests: Vec<usize>,
    next: u32,
    /// Between two looks at the guests, microseconds.
    every: u64,
    patient: bool,
    /// Tables that they work on.
    tables: usize,
    /// Where the rest is drawn from, so that it changes nothing else of a seed.
    more: Rng,
}

impl Clients {
    /// None yet.
    pub(super) fn new(mut rng: Rng, patient: bool) -> Self {
        let mut more = rng.fork(9);
        let mix = Mix {
            steps: 0,
            hot: rng.below(1..6),
            counters: rng.below(1..3),
            longest: *rng.choose(&[20, 200, 1_500]),
            scans_per_mille: *rng.choose(&[0, 10, 30]),
            many_per_mille: *rng.choose(&[(30, 3), (100, 6), (150, 30)]),
            cancels_per_mille: *rng.choose(&[1, 3, 10]),
            held_per_mille: *rng.choose(&[5, 30]),
        };
        Self {
            mix,
            guests: Vec::new(),
            next: 0,
            every: *rng.choose(&[60_000, 300_000]),
            patient,
            tables: *more.choose(&[1, 1, 2, 5]),
            more,
            rng,
        }
    }

    /// Those that stay come first.
    pub(super) fn all_come(&mut self, world: &mut World) -> Vec<usize> {
        let steps = self.rng.below(50..500);
        let stay: Vec<_> = (0..self.rng.below(2..5))
            .map(|_| self.one_comes(world, steps))
            .collect();
        let guests = match self.rng.percent(10) {
            true => self.rng.below(6..12),
            false => self.rng.below(1..4),
        };
        self.guests = (0..guests)
            .map(|_| {
                let steps = self.rng.below(2..20);
                self.one_comes(world, steps)
            })
            .collect();
        stay.iter().chain(&self.guests).copied().collect()
    }

    fn one_comes(&mut self, world: &mut World, steps: u64) -> usize {
        let (config, workload) = self.one(world, steps);
        world.add_client(config, workload)
    }

    fn one(&mut self, world: &World, steps: u64) -> (ClientConfig, Workload) {
        let number = self.next;
        self.next += 1;
        let deadline =
            *self
                .rng
                .choose(&[Duration::from_millis(500), Duration::from_secs(3), PATIENT]);
        let config = ClientConfig {
            number,
            coordinators: world.coordinators(),
            tables: self.tables,
            sessions: *self.rng.choose(&[1, 1, 2, 3]),
            deadline: if self.patient { PATIENT } else { deadline },
            depth: *self.rng.choose(&[1, 2, 8]),
            think: *self.rng.choose(&[500, 10_000]),
        };
        let steps = steps as usize;
        let mix = Mix { steps, ..self.mix };
        let rng = self.rng.fork(100 + u64::from(number));
        (config, Workload::new(rng, number, mix))
    }

    /// Somebody fills a table that an admin has made, and will drop.
    pub(super) fn fill(&mut self, world: &mut World, clients: &[usize], admins: &[usize]) {
        for admin in admins {
            let table = world.admin(*admin).and_then(|admin| admin.table());
            let client = *self.more.choose(clients);
            let process = world.machines[client].process;
            let (Some(table), Some(process)) = (table, process) else {
                continue;
            };
            let writes: Vec<_> = (0..self.more.below(0..8))
                .map(|_| self.one_in(table))
                .collect();
            world.with(process, |node, context| {
                if let Node::Client(client) = node {
                    let add = |step| client.books.workload_mut().add(step);
                    writes.into_iter().for_each(add);
                    client.poke(context);
                }
            });
        }
    }

    fn one_in(&mut self, table: TableId) -> Step {
        let key = format!("doomed{}", self.more.below(0..20)).into_bytes();
        let action = match self.more.percent(70) {
            true => Action::Write {
                value: vec![b'-'; self.more.below(8..self.mix.longest + 9) as usize + 1],
                rules: RejectRules::default(),
            },
            false => Action::Read,
        };
        Step::Doomed((table, key), action)
    }

    /// Some guests leave, and others come in their place. Returns when to look again.
    pub(super) fn come_and_go(&mut self, world: &mut World) -> Duration {
        for machine in self.guests.clone() {
            let done = world.client(machine).is_none_or(|books| books.is_idle());
            if done || self.rng.percent(LEAVE_EARLY) {
                let steps = self.rng.below(2..20);
                let (config, workload) = self.one(world, steps);
                let farewell = !self.rng.percent(DIE);
                world.replace_client(machine, farewell, config, workload);
            }
        }
        self.rng.micros(self.every / 2..self.every * 2)
    }
}
