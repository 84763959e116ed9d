//! Servers that probe each other at random, so that one that hangs is suspected soon however few
//! talk to it (RAMCloud, TOCS 2015, section 5.1).
//!
//! # Invariants
//! 1. At most one probe is under way, and only to a server that the list names as living.
//! 2. Silence counts only while this prober was awake: after a gap in its ticks of [`PROBE_PAUSE`] or
//!    more, an answer has its whole time again; once, so that a busy machine still notices.
//! 3. What is told is a symptom. Whether that server is dead is verified and decided by the
//!    coordinators (SAFETY 6 and 10).
//!
//! Pure: the time comes in, and choices are of a seeded generator.

use std::collections::VecDeque;
use std::time::Duration;

use ramkeep_master::replication::placement::Random;
use ramkeep_wire::coordinator::{Request, ServerList, ServerState, Symptom};
use ramkeep_wire::limits::{PROBE_INTERVAL, PROBE_PATIENCE, PROBE_PAUSE};
use ramkeep_wire::{ListVersion, Micros, ServerId};

/// What a prober wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeStep {
    /// Probe a server: what came of it goes to [`Prober::handle_answer`] or
    /// [`Prober::handle_failed`], with the number.
    Probe {
        /// Names this probe.
        number: u64,
        /// Whom.
        server: ServerId,
        /// Where it listens.
        addresses: Vec<String>,
    },
    /// Tell the coordinators' leader. That it did not hear is nothing to mind: the symptom comes again.
    Tell(Request),
}

/// Chooses whom to probe, and notices who does not answer.
#[derive(Debug)]
pub struct Prober {
    me: ServerId,
    random: Random,
    version: ListVersion,
    peers: Vec<(ServerId, Vec<String>)>,
    ticked: Option<Micros>,
    next: Micros,
    last: u64,
    asked: Option<Asked>,
    steps: VecDeque<ProbeStep>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    number: u64,
    server: ServerId,
    since: Micros,
    /// Its time began anew after a pause.
    renewed: bool,
}

impl Prober {
    /// Of this server; the choices follow from the seed.
    #[must_use]
    pub fn new(me: ServerId, seed: u64) -> Self {
        Self {
            me,
            random: Random::new(seed),
            version: ListVersion(0),
            peers: Vec::new(),
            ticked: None,
            next: Micros(0),
            last: 0,
            asked: None,
            steps: VecDeque::new(),
        }
    }

    /// Whether a server is one to be probed.
    #[must_use]
    pub fn knows(&self, server: ServerId) -> bool {
        self.peers.iter().any(|(known, _)| *known == server)
    }

    /// Those whom a newer list names as living are probed from now on.
    pub fn take_list(&mut self, list: &ServerList) {
        if list.version <= self.version {
            return;
        }
        self.version = list.version;
        let others = list.servers.iter().filter(|entry| entry.server != self.me);
        let living = others.filter(|entry| entry.state != ServerState::Crashed);
        self.peers = living
            .map(|entry| (entry.server, entry.addresses.clone()))
            .collect();
        self.asked = self.asked.filter(|asked| self.knows(asked.server));
    }

    /// Lets time pass: call every few milliseconds, then drain [`Prober::poll_step`].
    pub fn handle_tick(&mut self, now: Micros) {
        let before = self.ticked.replace(now).unwrap_or(now);
        if let Some(asked) = &mut self.asked {
            if now.since(before) >= PROBE_PAUSE && !asked.renewed {
                (asked.since, asked.renewed) = (now, true);
            } else if now.since(asked.since) >= PROBE_PATIENCE {
                let server = asked.server;
                self.asked = None;
                self.tell(server, Symptom::Silent);
            }
        }
        if self.asked.is_none() && now >= self.next {
            self.probe(now);
        }
    }

    fn probe(&mut self, now: Micros) {
        // Uneven, so that the probes of a cluster that started at once spread out.
        let interval = PROBE_INTERVAL * 3 / 4;
        let spread = self.random.next_u64() % micros(PROBE_INTERVAL / 2);
        self.next = now + interval + Duration::from_micros(spread);
        if self.peers.is_empty() {
            return;
        }
        let at = (self.random.next_u64() % self.peers.len() as u64) as usize;
        let (server, addresses) = self.peers[at].clone();
        self.last += 1;
        let number = self.last;
        self.asked = Some(Asked {
            number,
            server,
            since: now,
            renewed: false,
        });
        self.steps.push_back(ProbeStep::Probe {
            number,
            server,
            addresses,
        });
    }

    /// The server that was probed under this number has answered.
    pub fn handle_answer(&mut self, number: u64) {
        self.asked = self.asked.filter(|asked| asked.number != number);
    }

    /// The probe of this number met with this; that there was no answer in time is noticed here.
    pub fn handle_failed(&mut self, number: u64, symptom: Symptom) {
        if let Some(asked) = self.asked.take_if(|asked| asked.number == number) {
            self.tell(asked.server, symptom);
        }
    }

    /// A connection with a server closed that this one did not close.
    pub fn handle_closed(&mut self, server: ServerId) {
        self.tell(server, Symptom::Closed);
    }

    /// The next thing to do.
    pub fn poll_step(&mut self) -> Option<ProbeStep> {
        self.steps.pop_front()
    }

    /// At most once for each server until it is drained.
    fn tell(&mut self, server: ServerId, symptom: Symptom) {
        let is_same = |step: &ProbeStep| matches!(step, ProbeStep::Tell(Request::Suspect { server: told, .. }) if *told == server);
        if self.knows(server) && !self.steps.iter().any(is_same) {
            self.steps.push_back(ProbeStep::Tell(Request::Suspect {
                server,
                by: self.me,
                symptom,
            }));
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::coordinator::{Roles, ServerEntry};

    use super::*;

    const ME: ServerId = ServerId(1);
    const TICK: Duration = Duration::from_millis(10);

    fn entry(id: u64, state: ServerState) -> ServerEntry {
        ServerEntry {
            server: ServerId(id),
            roles: Roles {
                master: true,
                backup: true,
            },
            addresses: vec![format!("server-{id}")],
            state,
            replaces: None,
            recovered: false,
        }
    }

    fn list(version: u64, servers: &[(u64, ServerState)]) -> ServerList {
        let servers = servers.iter().map(|(id, state)| entry(*id, *state));
        ServerList {
            version: ListVersion(version),
            servers: servers.collect(),
        }
    }

    fn prober() -> Prober {
        let mut prober = Prober::new(ME, 7);
        let up = |id| (id, ServerState::Up);
        prober.take_list(&list(1, &[up(1), up(2), up(3), up(4)]));
        prober
    }

    /// Ticks for so long; probes meet `answer`. What was told, and whom it probed.
    fn run(
        prober: &mut Prober,
        from: Micros,
        time: Duration,
        mut answer: impl FnMut(&mut Prober, u64, ServerId),
    ) -> (Vec<(ServerId, Symptom)>, Vec<ServerId>) {
        let (mut told, mut probed, mut now) = (Vec::new(), Vec::new(), from);
        while now < from + time {
            prober.handle_tick(now);
            while let Some(step) = prober.poll_step() {
                match step {
                    ProbeStep::Probe { number, server, .. } => {
                        probed.push(server);
                        answer(prober, number, server);
                    }
                    ProbeStep::Tell(Request::Suspect {
                        server,
                        by,
                        symptom,
                    }) => {
                        assert_eq!(by, ME);
                        told.push((server, symptom));
                    }
                    ProbeStep::Tell(other) => panic!("{other:?}"),
                }
            }
            now = now + TICK;
        }
        (told, probed)
    }

    #[test]
    fn all_others_are_probed_at_the_interval_and_nobody_who_answers_is_told_of() {
        let mut prober = prober();
        let time = PROBE_INTERVAL * 100;
        let (told, probed) = run(&mut prober, Micros(0), time, |prober, number, _| {
            prober.handle_answer(number);
        });
        assert_eq!(told, []);
        assert!((85..=115).contains(&probed.len()), "{}", probed.len());
        for server in [2, 3, 4].map(ServerId) {
            let count = probed.iter().filter(|one| **one == server).count();
            assert!((18..=52).contains(&count), "{server}: {count}");
        }
        assert!(!probed.contains(&ME));
    }

    #[test]
    fn one_that_is_silent_is_told_of_once_for_each_probe() {
        let mut prober = prober();
        let silent = ServerId(3);
        let time = PROBE_INTERVAL * 50;
        let (told, probed) = run(&mut prober, Micros(0), time, |prober, number, server| {
            if server != silent {
                prober.handle_answer(number);
            }
        });
        let count = probed.iter().filter(|one| **one == silent).count();
        assert!(told.iter().all(|one| *one == (silent, Symptom::Silent)));
        assert!(count > 5 && (count - 1..=count).contains(&told.len()));
    }

    #[test]
    fn a_refused_probe_is_told_at_once_and_an_answer_comes_too_late_for_another_probe() {
        let mut prober = prober();
        let (told, _) = run(&mut prober, Micros(0), TICK, |prober, number, _| {
            prober.handle_failed(number + 1, Symptom::Refused);
            prober.handle_answer(number + 1);
            prober.handle_failed(number, Symptom::Refused);
            prober.handle_failed(number, Symptom::Refused);
        });
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].1, Symptom::Refused);
    }

    #[test]
    fn its_own_pause_is_nobodys_silence() {
        let mut prober = prober();
        let never = |_: &mut Prober, _, _| ();
        let (_, probed) = run(&mut prober, Micros(0), TICK, never);
        assert_eq!(probed.len(), 1);
        // It stood still for ten seconds; the answer lies in the socket.
        let woken = Micros(10_000_000);
        prober.handle_tick(woken);
        assert_eq!(prober.poll_step(), None);
        prober.handle_answer(1);
        let (told, _) = run(&mut prober, woken + TICK, PROBE_PATIENCE, never);
        assert_eq!(told, []);
    }

    #[test]
    fn one_whose_ticks_are_always_late_notices_silence_all_the_same() {
        let mut prober = prober();
        let mut told = 0;
        for tick in 0..100 {
            prober.handle_tick(Micros(tick * 40_000));
            while let Some(step) = prober.poll_step() {
                told += u32::from(matches!(step, ProbeStep::Tell(_)));
            }
        }
        assert!(told > 20, "{told}");
    }

    #[test]
    fn the_dead_are_neither_probed_nor_told_of() {
        let mut prober = prober();
        let (_, probed) = run(&mut prober, Micros(0), TICK, |_, _, _| ());
        let dead = probed[0];
        let state = |id| match ServerId(id) == dead {
            true => (id, ServerState::Crashed),
            false => (id, ServerState::Up),
        };
        prober.take_list(&list(2, &[1, 2, 3, 4].map(state)));
        prober.take_list(&list(1, &[1, 2, 3, 4].map(|id| (id, ServerState::Up))));
        prober.handle_closed(dead);
        let time = PROBE_INTERVAL * 20;
        let (told, probed) = run(&mut prober, Micros(10_000), time, |prober, number, _| {
            prober.handle_answer(number);
        });
        assert_eq!(told, []);
        assert!(probed.len() > 10 && !probed.contains(&dead));
    }

    #[test]
    fn a_closed_connection_is_told_of_at_once() {
        let mut prober = prober();
        prober.handle_closed(ServerId(2));
        prober.handle_closed(ServerId(2));
        prober.handle_closed(ServerId(4));
        let (told, _) = run(&mut prober, Micros(0), TICK, |_, _, _| ());
        let closed = |id| (ServerId(id), Symptom::Closed);
        assert_eq!(told, [closed(2), closed(4)]);
    }
}
