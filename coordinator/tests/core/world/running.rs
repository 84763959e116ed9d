//! What coordinators say is carried out, and time passes.

use ramkeep_coordinator::{Coordinator, Output};
use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::Request;

use super::*;

impl World {
    /// Something happens to a coordinator that runs.
    pub fn input(&mut self, peer: u32, input: impl FnOnce(&mut Coordinator, Micros)) {
        let now = self.now;
        let core = self.machine(peer).core.as_mut();
        input(core.expect("it runs"), now);
        self.pump(peer);
    }

    pub(super) fn pump(&mut self, peer: u32) {
        loop {
            let core = self.machine(peer).core.as_mut();
            match core.and_then(Coordinator::poll_output) {
                Some(output) => self.take(peer, output),
                None if self.machine(peer).hold_disk || !self.write(peer) => break,
                None => {}
            }
        }
        self.check_ends(peer);
    }

    fn take(&mut self, peer: u32, output: Output) {
        let (now, alone) = (self.now, self.is_alone());
        let cut = self.cut.contains(&peer);
        let machine = self.machines.get_mut(&peer).unwrap();
        let core = machine.core.as_ref().expect("it runs");
        match output {
            Output::Persist { seq, records } => {
                machine.persists += 1;
                machine.held.push_back((seq, Write::Records(records)));
            }
            Output::SaveSnapshot {
                seq,
                snapshot,
                records,
            } => {
                let write = Write::Snapshot(snapshot, records);
                machine.held.push_back((seq, write));
            }
            Output::Send { addresses, message } => {
                assert!(!alone, "{message:?} of one that is alone");
                assert_eq!(addresses.first(), Some(&address(message.to.0)));
                if !cut {
                    self.wire.push_back((Micros(now.0 + TRIP), message));
                }
            }
            Output::Reply {
                token,
                response,
                until,
            } => {
                assert!(!alone || until.is_none_or(|until| until > now), "alone");
                assert!(response.ballot >= core.state().ballot());
                assert!(self.answered.insert(token), "answered twice");
                machine.answers.insert(token, (response, until));
            }
            Output::ReplyMap { token, until } => {
                assert!(!alone || until.is_none_or(|until| until > now), "alone");
                assert!(self.answered.insert(token), "answered twice");
                machine.answers.insert(token, (core.map_response(), until));
            }
            Output::Order { server, order, .. } => {
                assert_eq!(order.ballot, core.ballot());
                match &mut self.mail {
                    Some(mail) => mail.push_back(Mail::Order(server, order)),
                    None => machine.orders.push((server, order)),
                }
            }
            Output::Ask {
                server,
                token,
                request,
                ..
            } => {
                // A test that answers orders itself asks for no more.
                if let Some(mail) = &mut self.mail {
                    mail.push_back(Mail::Question(server, token, request));
                }
            }
            Output::Removed => {
                assert!(!alone, "nobody takes its place");
                machine.removed = true;
            }
            Output::Stop(why) => panic!("{why}"),
        }
    }

    /// The oldest that is held is on the disk for good; false if nothing is held.
    fn write(&mut self, peer: u32) -> bool {
        let now = self.now;
        let machine = self.machine(peer);
        let Some((seq, write)) = machine.held.pop_front() else {
            return false;
        };
        match write {
            Write::Records(records) => machine.disk.records.extend(records),
            Write::Snapshot(snapshot, records) => {
                machine.disk = Stored {
                    snapshot: Some(snapshot),
                    records,
                };
            }
        }
        if let Some(core) = &mut machine.core {
            core.handle_persisted(now, seq);
        }
        true
    }

    /// One more is on the disk; with a disk that is not held, all.
    pub fn sync(&mut self, peer: u32) {
        self.write(peer);
        self.pump(peer);
    }

    /// Bytes of entries that wait for the disk.
    pub fn unwritten(&self, peer: u32) -> usize {
        let held = self.machines[&peer].held.iter();
        held.map(|(_, write)| match write {
            Write::Records(records) | Write::Snapshot(_, records) => {
                records.iter().map(Record::size).sum::<usize>()
            }
        })
        .sum()
    }

    /// Time passes: ticks when they are due, messages, and the reports of servers.
    pub fn run(&mut self, ms: u64) {
        let end = Micros(self.now.0 + ms * 1_000);
        while self.now < end {
            if self.now >= self.beat {
                self.beat = Micros(self.now.0 + BEAT);
                self.beats();
            }
            self.now = self.next().min(end);
            self.deliver();
            self.tick();
            self.deliver_mail();
        }
    }

    /// When something happens next. Servers that answer by themselves do so once in a millisecond.
    fn next(&self) -> Micros {
        if self.mail.is_some() {
            return Micros(self.now.0 + TRIP);
        }
        let arrives = self.wire.front().map(|(at, _)| *at);
        let cores = self.machines.values().filter_map(|m| m.core.as_ref());
        let due = cores.filter_map(Coordinator::next_timeout);
        let next = due.chain(arrives).min();
        let later = Micros(self.now.0 + 1);
        next.map_or(self.beat, |at| at.min(self.beat)).max(later)
    }

    fn deliver(&mut self) {
        while self.wire.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, message) = self.wire.pop_front().unwrap();
            let to = message.to.0;
            let cut = self.cut.contains(&to) || self.cut.contains(&message.from.0);
            let runs = self.machines.get(&to).is_some_and(|m| m.core.is_some());
            if runs && !cut {
                self.input(to, |core, now| core.handle_message(now, message));
            }
        }
    }

    fn tick(&mut self) {
        for peer in self.machines.keys().copied().collect::<Vec<_>>() {
            let core = self.machines[&peer].core.as_ref();
            let due = core.and_then(Coordinator::next_timeout);
            if due.is_some_and(|due| due <= self.now) {
                self.input(peer, Coordinator::handle_tick);
                let core = self.machines[&peer].core.as_ref();
                let due = core.and_then(Coordinator::next_timeout);
                assert!(
                    due.is_none_or(|due| due > self.now),
                    "its timer never rests"
                );
            }
        }
    }

    /// Everybody alive reports to the one that answers, if there is one.
    fn beats(&mut self) {
        let Some(peer) = self.speaker() else {
            return;
        };
        for server in self.reporting() {
            let report = Request::Heartbeat(self.report(server));
            let token = self.ask_of(peer, report);
            let answer = self.machine(peer).answers.remove(&token);
            assert!(answer.is_some(), "reports are answered at once");
        }
    }
}
