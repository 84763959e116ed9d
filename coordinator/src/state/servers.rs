//! Servers: enlistment, crashes, and what is proved of each master's log.
//!
//! # Invariants
//! 1. A nonce has one ServerId for as long as the server is listed.
//! 2. An epoch of a segment only grows; the same epoch always has the same backups.
//! 3. A floor only rises; epochs of segments below it are not kept.
//! 4. From the decision that a server crashed, its epochs, floor and key stay as they were.
//! 5. Only crashed servers that are recovered and own no tablet are ever forgotten, the oldest crash
//!    first; an id that was issued and is not listed counts as crashed.
//! 6. A server is recovered from when it is fenced and no tablet waits for its log, never before.

use std::collections::{BTreeMap, BTreeSet};

use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{Enlist, Refused, Roles, ServerEntry, ServerState};
use ramkeep_wire::limits::{MAX_ADDRESS, MAX_REPLICAS, MAX_SERVERS};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{BootId, ListVersion, ReplicationEpoch, SegmentId, ServerId};
use serde::{Deserialize, Serialize};

use super::State;
use crate::command::{Applied, Outcome};
use crate::limits::{
    CRASHED_KEPT, MAX_ADDRESSES, MAX_EPOCHS_PER_MASTER, MAX_LIST_BYTES, SERVER_BYTES,
};

/// The recorded set of backups of a head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedEpoch {
    /// Replicas below it never count.
    pub epoch: ReplicationEpoch,
    /// Who holds the head.
    pub backups: Vec<ServerId>,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Recognises retries of its enlistment.
    pub nonce: [u8; 16],
    /// What it does.
    pub roles: Roles,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// How it is.
    pub state: ServerState,
    /// Its predecessor: whose frames it took over.
    pub replaces: Option<ServerId>,
    /// Boot of its machine.
    pub boot: BootId,
    /// Frames it offers.
    pub frames: u32,
    /// Bytes for its log and index.
    pub memory: u64,
    /// Proves its replicas (SAFETY 16).
    pub key: CertificateKey,
    /// Open replicas below it never count (SAFETY 13).
    pub floor: Option<(SegmentId, ReplicationEpoch)>,
    /// Recorded sets of backups, by segment.
    pub epochs: BTreeMap<SegmentId, RecordedEpoch>,
    /// The list in which it first appeared.
    pub enlisted_in: ListVersion,
    /// The list in which it first appeared as crashed.
    pub crashed_in: Option<ListVersion>,
    /// Crashed, and can neither read nor write any more.
    pub fenced: bool,
    /// Fenced, and no tablet waits for its log.
    pub recovered: bool,
}

impl Server {
    fn new(request: &Enlist, key: CertificateKey, list: ListVersion) -> Self {
        Self {
            nonce: request.nonce,
            roles: request.roles,
            addresses: request.addresses.clone(),
            state: ServerState::Joining,
            replaces: request.replaces,
            boot: request.boot,
            frames: request.frames,
            memory: request.memory,
            key,
            floor: None,
            epochs: BTreeMap::new(),
            enlisted_in: list,
            crashed_in: None,
            fenced: false,
            recovered: false,
        }
    }

    /// Whether it may own tablets.
    #[must_use]
    pub fn is_ready_master(&self) -> bool {
        self.roles.master && self.state == ServerState::Up
    }

    /// Whether it was decided crashed.
    #[must_use]
    pub fn is_crashed(&self) -> bool {
        self.state == ServerState::Crashed
    }

    fn entry(&self, server: ServerId) -> ServerEntry {
        ServerEntry {
            server,
            roles: self.roles,
            addresses: self.addresses.clone(),
            state: self.state,
            replaces: self.replaces,
            recovered: self.recovered,
        }
    }
}

fn list_bytes(addresses: &[String]) -> usize {
    SERVER_BYTES + addresses.iter().map(|a| a.len() + 2).sum::<usize>()
}

/// All servers that have not been forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Servers {
    last: u64,
    by_id: BTreeMap<ServerId, Server>,
    nonces: BTreeMap<[u8; 16], ServerId>,
}

impl Servers {
    /// A server that was not decided crashed; otherwise why not.
    pub fn living(&self, server: ServerId) -> Result<&Server, Refused> {
        match self.by_id.get(&server) {
            Some(found) if !found.is_crashed() => Ok(found),
            Some(found) if mutants::active(Mutant::HearTheDead) => Ok(found),
            Some(_) => Err(Refused::Crashed),
            None if self.was_issued(server) => Err(Refused::Crashed),
            None => Err(Refused::Unknown),
        }
    }

    fn living_mut(&mut self, server: ServerId) -> Result<&mut Server, Refused> {
        self.living(server)?;
        self.by_id.get_mut(&server).ok_or(Refused::Unknown)
    }

    /// The server, living or crashed.
    #[must_use]
    pub fn by_id(&self, server: ServerId) -> Option<&Server> {
        self.by_id.get(&server)
    }

    /// The server that enlisted with `nonce`.
    #[must_use]
    pub fn by_nonce(&self, nonce: &[u8; 16]) -> Option<ServerId> {
        self.nonces.get(nonce).copied()
    }

    /// All, by id.
    pub fn iter(&self) -> impl Iterator<Item = (ServerId, &Server)> + '_ {
        self.by_id.iter().map(|(id, server)| (*id, server))
    }

    /// All as the server list shows them.
    pub fn entries(&self) -> impl Iterator<Item = ServerEntry> + '_ {
        self.iter().map(|(id, server)| server.entry(id))
    }

    /// Crashed backups whose frames no living server has: nobody came back with them, or who did has
    /// crashed, too, and nobody has come since.
    #[must_use]
    pub fn away(&self) -> BTreeSet<ServerId> {
        let mut back = BTreeSet::new();
        // Younger servers come first, so that whoever came back is known before who it replaces.
        for (id, server) in self.by_id.iter().rev() {
            if !server.is_crashed() || back.contains(id) {
                back.extend(server.replaces);
            }
        }
        let gone = self.iter().filter(|(id, server)| {
            server.is_crashed() && server.roles.backup && !back.contains(id)
        });
        gone.map(|(id, _)| id).collect()
    }

    /// Whether this cluster ever gave this id out.
    #[must_use]
    pub fn was_issued(&self, server: ServerId) -> bool {
        (1..=self.last).contains(&server.0)
    }

    fn issue(&mut self, server: Server) -> ServerId {
        self.last += 1;
        let id = ServerId(self.last);
        self.nonces.insert(server.nonce, id);
        self.by_id.insert(id, server);
        id
    }

    fn forget(&mut self, server: ServerId) {
        if let Some(gone) = self.by_id.remove(&server) {
            self.nonces.remove(&gone.nonce);
        }
    }
}

impl State {
    pub(super) fn enlist(&mut self, request: &Enlist, key: CertificateKey) -> Outcome {
        if let Some(known) = self.servers.by_nonce(&request.nonce) {
            self.servers.living(known)?;
            return Ok(Applied::Server(known));
        }
        check_enlist(request)?;
        if let Some(old) = request.replaces
            && !self.servers.was_issued(old)
        {
            return Err(Refused::Invalid(format!(
                "its directory names {old:?}, which this cluster never issued"
            )));
        }
        let forgettable = self.forgettable();
        self.check_room(request, &forgettable)?;
        for gone in forgettable {
            self.servers.forget(gone);
        }
        if let Some(old) = request.replaces {
            self.crash(old);
        }
        self.list_changed();
        let server = Server::new(request, key, self.list_version);
        let id = self.servers.issue(server);
        Ok(Applied::Server(id))
    }

    fn check_room(&self, request: &Enlist, forgettable: &[ServerId]) -> Result<(), Refused> {
        let count = self.servers.by_id.len() - forgettable.len();
        if count >= MAX_SERVERS {
            return Err(Refused::Limit(format!("{MAX_SERVERS} servers")));
        }
        let kept = self
            .servers
            .iter()
            .filter(|(id, _)| !forgettable.contains(id));
        let bytes: usize = kept.map(|(_, server)| list_bytes(&server.addresses)).sum();
        if bytes + list_bytes(&request.addresses) > MAX_LIST_BYTES {
            return Err(Refused::Limit(format!(
                "a server list of {MAX_LIST_BYTES} bytes"
            )));
        }
        Ok(())
    }

    /// The crashed servers beyond [`CRASHED_KEPT`] that hold nothing, the oldest crash first.
    fn forgettable(&self) -> Vec<ServerId> {
        let owners = self.tables.owners();
        let mut idle: Vec<_> = self
            .servers
            .iter()
            .filter(|(id, server)| server.recovered && !owners.contains(id))
            .map(|(id, server)| (server.crashed_in, id))
            .collect();
        idle.sort_unstable();
        let beyond = idle.len().saturating_sub(CRASHED_KEPT);
        idle.into_iter().take(beyond).map(|(_, id)| id).collect()
    }

    pub(super) fn declare_crashed(&mut self, server: ServerId) -> Outcome {
        if !self.servers.was_issued(server) {
            return Err(Refused::Unknown);
        }
        self.crash(server);
        Ok(Applied::Done)
    }

    /// Decides that a server is dead, once.
    fn crash(&mut self, server: ServerId) {
        let found = self.servers.by_id(server);
        if found.is_none_or(Server::is_crashed) {
            return;
        }
        self.list_changed();
        let version = self.list_version;
        if let Some(dead) = self.servers.by_id.get_mut(&server) {
            dead.state = ServerState::Crashed;
            dead.crashed_in = Some(version);
        }
        if self.tables.owner_crashed(server) {
            self.map_changed();
        }
    }

    pub(super) fn fenced(&mut self, server: ServerId) -> Outcome {
        let Some(dead) = self.servers.by_id.get_mut(&server) else {
            return Err(Refused::Unknown);
        };
        if !dead.is_crashed() {
            return Err(Refused::Invalid(format!("{server:?} is not crashed")));
        }
        if !dead.fenced {
            dead.fenced = true;
            if self.tables.owner_fenced(server) {
                self.map_changed();
            }
            self.settle_recovery(server);
        }
        Ok(Applied::Done)
    }

    /// Nothing of a fenced server is needed any more.
    pub(super) fn recovered(&mut self, server: ServerId) {
        if let Some(dead) = self.servers.by_id.get_mut(&server)
            && dead.fenced
            && !dead.recovered
        {
            dead.recovered = true;
            self.list_changed();
        }
    }

    pub(super) fn server_ready(&mut self, server: ServerId) -> Outcome {
        let found = self.servers.living_mut(server)?;
        if found.state == ServerState::Joining {
            found.state = ServerState::Up;
            self.list_changed();
        }
        Ok(Applied::Done)
    }

    pub(super) fn record_epoch(
        &mut self,
        master: ServerId,
        segment: SegmentId,
        epoch: ReplicationEpoch,
        backups: &[ServerId],
    ) -> Outcome {
        let found = self.servers.living(master)?;
        if !found.roles.master {
            return Err(Refused::Invalid(format!("{master:?} is no master")));
        }
        if let Some(recorded) = found.epochs.get(&segment) {
            if recorded.epoch == epoch && recorded.backups == backups {
                return Ok(Applied::Done);
            }
            if epoch <= recorded.epoch && !mutants::active(Mutant::RecordAnyEpoch) {
                return Err(Refused::Epoch);
            }
        } else if found.epochs.len() >= MAX_EPOCHS_PER_MASTER {
            return Err(Refused::Limit(format!(
                "{MAX_EPOCHS_PER_MASTER} segments with a recorded epoch"
            )));
        }
        if found.floor.is_some_and(|floor| (segment, epoch) < floor) {
            return Err(Refused::Epoch);
        }
        self.check_backups(master, backups)?;
        let recorded = RecordedEpoch {
            epoch,
            backups: backups.to_vec(),
        };
        self.servers
            .living_mut(master)?
            .epochs
            .insert(segment, recorded);
        Ok(Applied::Done)
    }

    fn check_backups(&self, master: ServerId, backups: &[ServerId]) -> Result<(), Refused> {
        let refuse = |why: String| Err(Refused::Invalid(why));
        let wanted = self.constants.as_ref().map_or(0, |c| c.settings.replicas);
        // Without a backup nobody could fence the master: it would read on for ever (SAFETY 9).
        if backups.len() > MAX_REPLICAS || (backups.is_empty() && wanted > 0) {
            return refuse(format!("{} backups for a segment", backups.len()));
        }
        for (place, backup) in backups.iter().enumerate() {
            if *backup == master || backups[..place].contains(backup) {
                return refuse(format!("{backup:?} can't be a backup here, or not twice"));
            }
            match self.servers.living(*backup) {
                Ok(found) if found.roles.backup => {}
                Ok(_) => return refuse(format!("{backup:?} is no backup")),
                Err(why) => return refuse(format!("backup {backup:?}: {why}")),
            }
        }
        Ok(())
    }

    pub(super) fn raise_floor(
        &mut self,
        master: ServerId,
        segment: SegmentId,
        epoch: ReplicationEpoch,
    ) -> Outcome {
        let found = self.servers.living_mut(master)?;
        if found.floor.is_none_or(|floor| floor < (segment, epoch)) {
            found.floor = Some((segment, epoch));
            found.epochs = found.epochs.split_off(&segment);
        }
        Ok(Applied::Done)
    }
}

/// What can be judged of an enlistment by itself. Also judged before it is proposed.
pub(crate) fn check_enlist(request: &Enlist) -> Result<(), Refused> {
    let refuse = |why: &str| Err(Refused::Invalid(why.into()));
    if !request.roles.master && !request.roles.backup {
        return refuse("a server is a master, a backup or both");
    }
    if request.addresses.is_empty() || request.addresses.len() > MAX_ADDRESSES {
        return refuse("a server has one to four addresses");
    }
    let fits = |address: &String| (1..=MAX_ADDRESS).contains(&address.len());
    if !request.addresses.iter().all(fits) {
        return refuse("an address is empty or too long");
    }
    Ok(())
}
