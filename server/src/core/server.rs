//! The server as its shell, or the simulator, sees it: what comes in, and what goes out.

use std::collections::VecDeque;
use std::sync::Arc;

use ramkeep_backup::FrameStore;
use ramkeep_control::{Answered, Asking, Sequencing};
use ramkeep_master::core::Master;
use ramkeep_rpc::wires::{WireEnd, WireId};
use ramkeep_rpc::{Identity, Wake};
use ramkeep_wire::coordinator::ServerList;
use ramkeep_wire::envelope::Envelope;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{ClusterId, Micros, Party, ServerId};

use super::data::DataLine;
use super::enlisted::Enlisted;
use super::joining::{self, Joining};
use super::links::LinkCarrier;
use super::plane::DataPlane;
use super::words::{Asker, Outlet, Room, ServerConfig, ServerEnd, ServerOutput, SharedBackup};

/// How far a server is.
#[derive(Debug)]
pub(super) enum Life<S, C> {
    /// It does not listen yet.
    Unborn,
    /// It asks for an identity.
    Joining(Joining),
    /// It has one.
    Enlisted(Box<Enlisted<S, C>>),
    /// It is to do nothing more. What it was can be looked at.
    Ended(Option<Box<Enlisted<S, C>>>),
}

/// A server. `S` is where frames are, `C` what carries replication to a backup.
#[derive(Debug)]
pub struct ServerCore<S, C> {
    config: ServerConfig,
    identity: Identity,
    backup: Option<SharedBackup<S>>,
    pub(super) life: Life<S, C>,
    pub(super) outlet: Outlet,
    /// Bytes of this process in memory.
    resident: u64,
    /// Of another cluster's coordinators it was told that they are where its own were.
    told_foreign: Option<ClusterId>,
}

impl<S: FrameStore, C: LinkCarrier> ServerCore<S, C> {
    /// A process that has opened its frames, if it is a backup. It is of the cluster that they say.
    #[must_use]
    pub fn new(config: ServerConfig, identity: Identity, backup: Option<SharedBackup<S>>) -> Self {
        let of_frames = |backup: &SharedBackup<S>| backup.lock().cluster();
        if let Some(cluster) = backup.as_ref().and_then(of_frames) {
            identity.join(cluster);
        }
        let (control, coordinators) = (Room::Control as u8, config.coordinators.clone());
        let asking = Asking::new(control, identity.clone(), coordinators, Sequencing::AsGiven);
        Self {
            outlet: Outlet {
                asking,
                outputs: VecDeque::new(),
            },
            config,
            identity,
            backup,
            life: Life::Unborn,
            resident: 0,
            told_foreign: None,
        }
    }

    /// This process listens at these addresses: it joins the cluster. The first is for clients.
    pub fn start(&mut self, now: Micros, addresses: Vec<String>) {
        let backup = self.backup.as_ref().map(|backup| backup.lock());
        let joining = Joining::new(&self.config, backup.as_deref(), addresses);
        drop(backup);
        self.life = Life::Joining(joining);
        self.handle_tick(now);
    }

    /// A wire is up, between these parties of this cluster. `carrier` is asked for what carries it if it leads to a
    /// backup of the master; without one it is as good as broken.
    pub fn handle_up(
        &mut self,
        now: Micros,
        wire: WireId,
        (local, peer): (Party, Party),
        cluster: ClusterId,
        carrier: impl FnOnce() -> Option<C>,
    ) {
        match (Room::of(wire), &mut self.life) {
            (Some(Room::Control), _) => {
                let asking = &mut self.outlet.asking;
                asking.handle_up(now, wire, (local, peer), cluster);
            }
            (Some(room), Life::Enlisted(enlisted)) => {
                enlisted.handle_up(&mut self.outlet, room, wire, (local, peer), carrier);
            }
            _ => {}
        }
        self.settle(now);
    }

    /// An envelope came on a wire that is not in [`Room::Links`].
    pub fn handle_received(&mut self, now: Micros, wire: WireId, envelope: &Envelope<'_>) {
        match (Room::of(wire), &mut self.life) {
            (Some(Room::Control), _) => {
                self.outlet.asking.handle_received(now, wire, envelope);
            }
            (Some(room), Life::Enlisted(enlisted)) => {
                enlisted.handle_received(&mut self.outlet, now, room, wire, envelope);
            }
            _ => {}
        }
        self.settle(now);
    }

    /// A wire has ended, or could not be made.
    pub fn handle_down(&mut self, now: Micros, wire: WireId, end: &WireEnd) {
        match (Room::of(wire), &mut self.life) {
            (Some(Room::Control), _) => {
                self.outlet.asking.handle_down(now, wire, end);
            }
            (Some(room), Life::Enlisted(enlisted)) => {
                enlisted.handle_down(&mut self.outlet, now, room, wire, end);
            }
            _ => {}
        }
        self.settle(now);
    }

    /// Lets time pass. It may be called at any time, and is to be called soon after a replayer has told
    /// its recovery something.
    pub fn handle_tick(&mut self, now: Micros) {
        self.outlet.asking.handle_tick(now);
        match &mut self.life {
            Life::Joining(joining) => joining.handle_tick(now, &mut self.outlet),
            Life::Enlisted(enlisted) => {
                enlisted.handle_tick(now, &mut self.outlet, self.resident);
            }
            Life::Unborn | Life::Ended(_) => {}
        }
        self.tell_foreign();
        self.settle(now);
    }

    /// Says once that the coordinators are of another cluster, and what leads out. It takes part in nothing
    /// there (SAFETY 30).
    fn tell_foreign(&mut self) {
        let foreign = self.outlet.asking.conversation().foreign();
        if std::mem::replace(&mut self.told_foreign, foreign) == foreign {
            return;
        }
        if let Some(theirs) = foreign {
            self.outlet.outputs.push_back(ServerOutput::Foreign {
                ours: self.identity.cluster(),
                theirs,
            });
        }
    }

    /// Bytes of this process in memory, for its reports.
    pub fn set_resident(&mut self, bytes: u64) {
        self.resident = bytes;
    }

    /// Until when there is nothing to do but to wait for others.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        let own = match &self.life {
            Life::Unborn | Life::Ended(_) => return None,
            Life::Joining(joining) => joining.next_timeout(),
            Life::Enlisted(enlisted) => enlisted.next_timeout(),
        };
        let asking = self.outlet.asking.next_timeout();
        Some(asking.map_or(own, |asking| asking.min(own)))
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<ServerOutput> {
        if let Some(output) = self.outlet.outputs.pop_front() {
            return Some(output);
        }
        let asking = &mut self.outlet.asking;
        let wire = match &mut self.life {
            Life::Unborn | Life::Ended(_) => None,
            Life::Joining(_) => asking.poll_output(),
            Life::Enlisted(enlisted) => asking.poll_output().or_else(|| enlisted.poll_wire()),
        };
        wire.map(ServerOutput::Wire)
    }

    /// This server, once it is enlisted.
    #[must_use]
    pub fn me(&self) -> Option<ServerId> {
        self.enlisted().map(|enlisted| enlisted.me)
    }

    /// What its workers share, once it is enlisted and if it has a master.
    #[must_use]
    pub fn plane(&self) -> Option<&Arc<DataPlane<C>>> {
        self.enlisted()?.plane.as_ref()
    }

    /// A connection that sends data requests; `wake` has what it holds released.
    ///
    /// # Errors
    /// If there is no master here, or nobody can mean it yet: who asks tries again then.
    pub fn open_line(&self, wake: Wake) -> Result<DataLine<C>, Refusal> {
        let plane = match &self.life {
            Life::Unborn | Life::Joining(_) => return Err(Refusal::Party(Party::NONE)),
            Life::Ended(_) => return Err(Refusal::Stopping),
            Life::Enlisted(enlisted) => enlisted.plane.clone(),
        };
        let none = || Refusal::Malformed("a data request, and there is no master here".into());
        Ok(DataLine::new(plane.ok_or_else(none)?, wake))
    }

    /// Its master.
    #[must_use]
    pub fn master(&self) -> Option<&Arc<Master>> {
        self.plane().map(|plane| plane.master())
    }

    /// Its backup.
    #[must_use]
    pub fn backup(&self) -> Option<&SharedBackup<S>> {
        self.backup.as_ref()
    }

    /// The newest server list that it has heard of.
    #[must_use]
    pub fn list(&self) -> Option<&ServerList> {
        self.enlisted().map(|enlisted| &enlisted.list)
    }

    /// Whether it has asked for a new set of backups to be recorded, and was not answered.
    #[must_use]
    pub fn asks_for_a_record(&self) -> bool {
        self.outlet.asking.conversation().is_sent(&Asker::Master)
    }

    fn enlisted(&self) -> Option<&Enlisted<S, C>> {
        match &self.life {
            Life::Enlisted(enlisted) | Life::Ended(Some(enlisted)) => Some(enlisted),
            Life::Unborn | Life::Joining(_) | Life::Ended(None) => None,
        }
    }

    /// Takes in what was answered, and ends if that is what it means.
    pub(super) fn settle(&mut self, now: Micros) {
        while let Some(answered) = self.outlet.asking.poll_answered() {
            self.take_answer(now, &answered);
        }
        if let Life::Enlisted(enlisted) = &self.life
            && enlisted.is_over()
        {
            if let Some(plane) = &enlisted.plane {
                plane.master().fence();
            }
            self.end(ServerEnd::Crashed);
        }
    }

    fn take_answer(&mut self, now: Micros, answered: &Answered<Asker>) {
        match &mut self.life {
            Life::Joining(_) => self.take_identity(now, answered),
            Life::Enlisted(enlisted) => enlisted.handle_answered(&mut self.outlet, now, answered),
            Life::Unborn | Life::Ended(_) => {}
        }
    }

    /// It has an identity, or is not to have one.
    fn take_identity(&mut self, now: Micros, answered: &Answered<Asker>) {
        let Ok(response) = &answered.outcome else {
            return;
        };
        match joining::adopt(now, &self.config, self.backup.clone(), response) {
            Err(end) => self.end(end),
            Ok(enlisted) => {
                let server = enlisted.me;
                self.identity.join(enlisted.cluster);
                self.identity.set_party(Party::server(server));
                self.life = Life::Enlisted(Box::new(enlisted));
                let adopt = ServerOutput::Adopt { server };
                self.outlet.outputs.push_back(adopt);
                // These connections say who they come from.
                self.outlet.asking.reconnect(now);
            }
        }
    }

    fn end(&mut self, end: ServerEnd) {
        self.life = match std::mem::replace(&mut self.life, Life::Unborn) {
            Life::Enlisted(enlisted) | Life::Ended(Some(enlisted)) => Life::Ended(Some(enlisted)),
            Life::Unborn | Life::Joining(_) | Life::Ended(None) => Life::Ended(None),
        };
        self.outlet.outputs.push_back(ServerOutput::End(end));
    }
}
