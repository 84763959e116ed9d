//! A server with an identity: reports, requests of its master, and its connections to other servers.

use std::sync::Arc;
use std::time::Duration;

use ramkeep_backup::FrameStore;
use ramkeep_control::Answered;
use ramkeep_control::limits::MAX_ASKS;
use ramkeep_master::core::Master;
use ramkeep_rpc::wires::{WireEnd, WireId, WireOutput, WireRules, Wires};
use ramkeep_wire::coordinator::{
    Answer, Heartbeat, Refused, Request, ServerList, ServerState, Settings,
};
use ramkeep_wire::envelope::Envelope;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command, Order};
use ramkeep_wire::{Ballot, ClusterId, Micros, Party, ServerId};

use super::fetching::Fetches;
use super::links::LinkCarrier;
use super::plane::DataPlane;
use super::probes::Probes;
use super::words::{Asker, Outlet, Room, ServerConfig, ServerOutput, SharedBackup};

/// How often time is let pass.
const TICK: Duration = Duration::from_millis(10);
/// How often copies of segments may go on while there are some.
const HEALING_TICK: Duration = Duration::from_millis(1);
/// How long the leader is looked for, so that an election is bridged.
const ASK_PATIENCE: Duration = Duration::from_secs(1);
/// A symptom that the leader has not heard of by then has come again.
const TELL_PATIENCE: Duration = Duration::from_millis(500);

/// A server that its cluster knows.
#[derive(Debug)]
pub(super) struct Enlisted<S, C> {
    pub(super) cluster: ClusterId,
    pub(super) me: ServerId,
    pub(super) backup: Option<SharedBackup<S>>,
    pub(super) plane: Option<Arc<DataPlane<C>>>,
    /// The highest under which an order was carried out.
    pub(super) ballot: Ballot,
    pub(super) list: ServerList,
    report_every: Duration,
    next_report: Micros,
    is_reporting: bool,
    /// Why reports are refused, as was told.
    refused: Option<Refused>,
    next_tick: Micros,
    pumped: Micros,
    links: Wires<ServerId>,
    probes: Probes,
    fetches: Fetches,
    /// It was decided crashed.
    is_crashed: bool,
}

impl<S: FrameStore, C: LinkCarrier> Enlisted<S, C> {
    pub(super) fn new(
        now: Micros,
        (cluster, me): (ClusterId, ServerId),
        config: &ServerConfig,
        settings: &Settings,
        backup: Option<SharedBackup<S>>,
        plane: Option<Arc<DataPlane<C>>>,
    ) -> Self {
        let heartbeat = Duration::from_micros(settings.heartbeat_us.into());
        let renew = plane
            .as_ref()
            .and_then(|plane| plane.master().renew_every());
        let links = WireRules {
            rest: config.reconnect,
            // Nothing is sent before a connection is there.
            max_waiting: 0,
        };
        Self {
            cluster,
            me,
            backup,
            plane,
            ballot: Ballot::default(),
            list: ServerList::default(),
            report_every: renew.map_or(heartbeat, |renew| renew.min(heartbeat)),
            next_report: now,
            is_reporting: false,
            refused: None,
            next_tick: now,
            pumped: now,
            links: Wires::new(Room::Links as u8, links),
            probes: Probes::new(Room::Probes as u8, me, config.seed),
            fetches: Fetches::new(Room::Fetches as u8, me, config.scrub_every),
            is_crashed: false,
        }
    }

    /// The first list is known, under the ballot that gave this identity.
    pub(super) fn begin(&mut self, ballot: Ballot, list: &ServerList) {
        self.take_list(list);
        if let Some(plane) = &self.plane {
            let command = Command::UpdateServers(list.clone());
            plane.master().handle_order(Order { ballot, command });
        }
    }

    fn master(&self) -> Option<&Arc<Master>> {
        self.plane.as_ref().map(|plane| plane.master())
    }

    /// Whether it was decided crashed, as an answer, a list or a backup says.
    pub(super) fn is_over(&self) -> bool {
        let is_fenced = self.master().is_some_and(|master| master.is_fenced());
        (self.is_crashed || is_fenced) && !mutants::active(Mutant::OutliveTheDecision)
    }

    /// Takes in a newer server list for everybody but the master, who is told of it after this.
    pub(super) fn take_list(&mut self, list: &ServerList) {
        if list.version <= self.list.version {
            return;
        }
        self.list = list.clone();
        if !mutants::active(Mutant::KnowBeforeFencing) {
            self.fence();
        }
        self.probes.take_list(list);
        let me = list.servers.iter().find(|entry| entry.server == self.me);
        self.is_crashed |= me.is_some_and(|entry| entry.state == ServerState::Crashed);
    }

    /// Has the backup refuse who was decided crashed, and free what nobody needs any more.
    fn fence(&self) {
        if let Some(backup) = &self.backup {
            backup.lock().take_list(&self.list);
        }
    }

    pub(super) fn handle_tick(&mut self, now: Micros, outlet: &mut Outlet, resident: u64) {
        if now >= self.next_tick {
            self.next_tick = now + TICK;
            if mutants::active(Mutant::KnowBeforeFencing) {
                self.fence();
            }
            if let Some(plane) = self.plane.clone() {
                plane.master().handle_tick(now);
                self.connect_backups(now, &plane);
                self.pump(now, outlet);
            }
            for request in self.probes.handle_tick(now) {
                let until = Some(now + TELL_PATIENCE);
                // Too much is asked already: the symptom comes again.
                let _ = outlet.asking.ask(now, Asker::Suspicion, request, until);
            }
        }
        self.report(now, outlet, resident);
        let Some(plane) = self.plane.clone() else {
            return;
        };
        self.pass_on_requests(now, plane.master(), outlet);
        self.recover(now, plane.master(), outlet);
        if self.heals_again(now) {
            self.pump(now, outlet);
        }
    }

    fn pump(&mut self, now: Micros, outlet: &mut Outlet) {
        self.pumped = now;
        outlet.pump();
    }

    /// Whether copies of segments may go on by now.
    fn heals_again(&self, now: Micros) -> bool {
        self.next_healing().is_some_and(|due| due <= now)
    }

    fn next_healing(&self) -> Option<Micros> {
        let master = self.master()?;
        master.is_healing().then_some(self.pumped + HEALING_TICK)
    }

    pub(super) fn next_timeout(&self) -> Micros {
        if self.fetches.is_due() {
            return Micros(0);
        }
        let due = self.next_tick;
        self.next_healing().map_or(due, |healing| healing.min(due))
    }

    /// Keeps a connection to every living backup, and none to others.
    fn connect_backups(&mut self, now: Micros, plane: &DataPlane<C>) {
        let backups = plane.master().backups();
        let wanted = |server: &ServerId| backups.iter().any(|(known, _)| known == server);
        self.links.retain(wanted);
        for (server, addresses) in &backups {
            let to = Party::server(*server);
            self.links.ensure(now, server, addresses, to);
        }
        let links = &self.links;
        let is_current = |server: &ServerId, number| {
            let wire = links.wire(server);
            wire.is_some_and(|wire| wire.number == number)
        };
        let is_over = |server, number| !is_current(&server, number);
        plane.links().remove(plane.master(), is_over);
    }

    fn report(&mut self, now: Micros, outlet: &mut Outlet, resident: u64) {
        if self.is_reporting || now < self.next_report {
            return;
        }
        self.next_report = now + self.report_every;
        let request = Request::Heartbeat(self.heartbeat(resident));
        let until = Some(now + ASK_PATIENCE);
        let asked = outlet.asking.ask(now, Asker::Report, request, until);
        self.is_reporting = asked.is_ok();
    }

    fn heartbeat(&self, resident: u64) -> Heartbeat {
        let report = match self.master() {
            Some(master) => master.heartbeat(),
            None => Heartbeat {
                list: self.list.version,
                ready: true,
                ..Heartbeat::of(self.me)
            },
        };
        Heartbeat {
            backup: self.backup.as_ref().map(|backup| backup.lock().stats()),
            resident,
            ..report
        }
    }

    fn pass_on_requests(&mut self, now: Micros, master: &Master, outlet: &mut Outlet) {
        while outlet.asking.conversation().len() < MAX_ASKS
            && let Some(request) = master.poll_request()
        {
            let until = Some(now + ASK_PATIENCE);
            // There is room.
            let _ = outlet.asking.ask(now, Asker::Master, request, until);
        }
    }

    pub(super) fn handle_answered(
        &mut self,
        outlet: &mut Outlet,
        now: Micros,
        answered: &Answered<Asker>,
    ) {
        let response = answered.outcome.as_ref().ok();
        match response.map(|response| &response.answer) {
            Some(Answer::Refused(Refused::Crashed)) => self.is_crashed = true,
            Some(Answer::Refused(refused)) => self.refused(answered.owner, refused),
            Some(Answer::Heard {
                list: Some(list), ..
            }) => self.take_list(list),
            Some(_) => {}
            None => tracing::debug!(asked = ?answered.owner, "no coordinator answers"),
        }
        match answered.owner {
            Asker::Suspicion | Asker::Enlistment => return,
            Asker::Report => self.is_reporting = false,
            Asker::Master => {}
        }
        if let Some(plane) = &self.plane {
            let (sent, asked) = (answered.sent, &answered.request);
            plane.master().handle_answer(now, sent, asked, response);
            outlet.pump();
        }
    }

    /// Says so, once for each reason.
    fn refused(&mut self, asker: Asker, refused: &Refused) {
        if asker == Asker::Report && self.refused.as_ref() != Some(refused) {
            tracing::warn!(%refused, "the coordinator refuses this server's reports");
            self.refused = Some(refused.clone());
        }
    }

    /// Hands out what is to be replayed, and fetches what is wanted.
    fn recover(&mut self, now: Micros, master: &Master, outlet: &mut Outlet) {
        loop {
            let started = master.recoveries().poll_started();
            let Some((id, replayer)) = started else { break };
            let start = ServerOutput::StartReplay(id, Box::new(replayer));
            outlet.outputs.push_back(start);
        }
        if self
            .fetches
            .handle_tick(now, master, self.backup.as_deref())
        {
            outlet.pump();
        }
    }

    pub(super) fn handle_up(
        &mut self,
        outlet: &mut Outlet,
        room: Room,
        wire: WireId,
        (local, peer): (Party, Party),
        carrier: impl FnOnce() -> Option<C>,
    ) {
        match room {
            Room::Control => {}
            Room::Probes => drop(self.probes.calls().handle_up(wire, local, peer)),
            Room::Fetches => drop(self.fetches.calls().handle_up(wire, local, peer)),
            Room::Links => {
                let up = self.links.handle_up(wire, local, peer);
                if let (Some(server), Some(plane)) = (up, &self.plane)
                    && let Some(carrier) = carrier()
                {
                    let master = plane.master();
                    plane.links().add(master, server, wire.number, carrier);
                    outlet.pump();
                }
            }
        }
    }

    pub(super) fn handle_received(
        &mut self,
        outlet: &mut Outlet,
        now: Micros,
        room: Room,
        wire: WireId,
        envelope: &Envelope<'_>,
    ) {
        match room {
            Room::Control | Room::Links => {}
            Room::Probes => self.probes.handle_received(wire, envelope),
            Room::Fetches => {
                let Some(plane) = self.plane.clone() else {
                    return;
                };
                let master = plane.master();
                let found = (self.fetches).handle_received(now, master, wire, envelope);
                if found {
                    outlet.pump();
                }
                self.recover(now, master, outlet);
            }
        }
    }

    pub(super) fn handle_down(
        &mut self,
        outlet: &mut Outlet,
        now: Micros,
        room: Room,
        wire: WireId,
        end: &WireEnd,
    ) {
        match room {
            Room::Control => {}
            Room::Probes => self.probes.handle_down(now, wire, end),
            Room::Fetches => {
                let Some(plane) = self.plane.clone() else {
                    return;
                };
                let master = plane.master();
                if self.fetches.handle_down(now, master, wire, end) {
                    outlet.pump();
                }
                self.recover(now, master, outlet);
            }
            Room::Links => self.backup_lost(outlet, now, wire, end),
        }
    }

    fn backup_lost(&mut self, outlet: &mut Outlet, now: Micros, wire: WireId, end: &WireEnd) {
        let Some((server, was_up)) = self.links.handle_down(now, wire) else {
            return;
        };
        if !was_up {
            return;
        }
        tracing::info!(%server, %end, "the connection to a backup broke");
        if let Some(plane) = &self.plane {
            let is_it = |_, number| number == wire.number;
            plane.links().remove(plane.master(), is_it);
        }
        self.probes.handle_closed(server);
        outlet.pump();
    }

    pub(super) fn poll_wire(&mut self) -> Option<WireOutput> {
        let links = self.links.poll_output();
        let probes = links.or_else(|| self.probes.calls().wires().poll_output());
        probes.or_else(|| self.fetches.calls().wires().poll_output())
    }
}
