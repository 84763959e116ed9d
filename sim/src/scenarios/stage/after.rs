//! What a story asks after a death: who has the tablets, and what is still there.

use ramkeep_wire::coordinator::{Answer, Request, Roles, ServerState, TabletState};
use ramkeep_wire::data::RejectRules;
use ramkeep_wire::{LogPosition, ServerId, Version};

use super::{Played, SEGMENT, Stage, ensure};
use crate::history::{Action, Outcome};
use crate::node::Node;

impl Stage {
    /// Another master begins to join; gives its machine.
    pub fn begin_master(&mut self) -> usize {
        let (master, backup) = (true, false);
        let memory = 60 * u64::from(SEGMENT);
        self.world.add_server(Roles { master, backup }, 1, memory)
    }

    /// Another master, which has no tablets yet; gives its machine.
    pub fn add_master(&mut self) -> Result<usize, String> {
        let machine = self.begin_master();
        self.until("another master is up", |stage| {
            let server = stage.server_of(machine);
            stage.state().is_ok_and(|state| {
                let found = state.servers().by_id(server);
                found.is_some_and(|found| found.state == ServerState::Up)
            })
        })?;
        Ok(machine)
    }

    /// The server on a machine.
    #[must_use]
    pub fn server_of(&self, machine: usize) -> ServerId {
        let node = self.world.server(machine);
        node.map(|node| node.server()).unwrap_or_default()
    }

    /// Kills the master.
    pub fn kill_master(&mut self) -> ServerId {
        let id = self.master_id();
        let process = self.process(self.master);
        self.world.kill(process, crate::world::Death::Kill);
        id
    }

    /// Whether all tablets of the clients' table are a server's, confirmed or not.
    #[must_use]
    pub fn owns(&self, server: ServerId) -> bool {
        self.tablets(|tablet| tablet.owner == server)
    }

    /// Whether all tablets of the clients' table are served.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.tablets(|tablet| tablet.state == TabletState::Normal)
    }

    fn tablets(&self, all: impl Fn(&ramkeep_wire::coordinator::Tablet) -> bool) -> bool {
        let Ok(state) = self.state() else {
            return false;
        };
        let record = state.tables().by_id(self.table());
        record.is_some_and(|record| record.table.tablets.iter().all(all))
    }

    /// Until all tablets of the clients' table are served by whoever runs on a machine.
    pub fn until_served_by(&mut self, machine: usize) -> Played {
        self.until("the tablets are served by the next master", |stage| {
            stage.owns(stage.server_of(machine)) && stage.is_served()
        })
    }

    /// Where the tablets' takeovers are.
    pub fn takeovers(&self) -> Result<Vec<LogPosition>, String> {
        let state = self.state()?;
        let record = state.tables().by_id(self.table());
        let record = record.ok_or("the table is there")?;
        let tablets = record.table.tablets.iter();
        Ok(tablets.map(|tablet| tablet.takeover).collect())
    }

    /// Where the log of the master on a machine stands.
    #[must_use]
    pub fn appended(&self, machine: usize) -> LogPosition {
        let master = self.world.server(machine).and_then(|node| node.master());
        master.map_or(LogPosition::ZERO, |master| {
            master.store().writer().log().appended_position()
        })
    }

    fn answer(&mut self, key: &str, action: Action) -> Result<Outcome, String> {
        self.begin(0, key, action);
        self.until("it is answered", Stage::idle)?;
        Ok(self.last(key).outcome.clone())
    }

    /// A key has this value.
    pub fn reads(&mut self, key: &str, wanted: &str) -> Played {
        match self.answer(key, Action::Read)? {
            Outcome::Found { value, .. } if value == wanted.as_bytes() => Ok(()),
            other => Err(format!("{key}, which is {wanted}, was read as {other:?}")),
        }
    }

    /// A key can be read.
    pub fn is_readable(&mut self, key: &str) -> Played {
        match self.answer(key, Action::Read)? {
            Outcome::Found { .. } | Outcome::Absent => Ok(()),
            other => Err(format!("{key} was read as {other:?}")),
        }
    }

    /// There is no object of this key.
    pub fn is_absent(&mut self, key: &str) -> Played {
        match self.answer(key, Action::Read)? {
            Outcome::Absent => Ok(()),
            other => Err(format!("{key}, which was removed, was read as {other:?}")),
        }
    }

    /// A key is removed.
    pub fn remove(&mut self, key: &str) -> Played {
        let rules = RejectRules::default();
        match self.answer(key, Action::Remove { rules })? {
            Outcome::Removed { version: Some(_) } => Ok(()),
            other => Err(format!("the removal of {key} was answered {other:?}")),
        }
    }

    /// The highest version that an answer named of a key.
    #[must_use]
    pub fn highest(&self, key: &str) -> Option<Version> {
        let versions = self
            .operations(key)
            .iter()
            .filter_map(|o| match &o.outcome {
                Outcome::Written { version } | Outcome::Found { version, .. } => Some(*version),
                _ => None,
            });
        versions.max()
    }

    /// What the coordinators answer.
    pub fn ask(&mut self, request: Request) -> Result<Answer, String> {
        let machine = self.add_admin(0, 0);
        let process = self.process(machine);
        self.world.with(process, |node, context| {
            if let Node::Admin(node) = node {
                node.books.ask_for(request);
                node.poke(context);
            }
        });
        self.until("the coordinators answer", |stage| {
            let admin = stage.world.admin(machine);
            admin.is_some_and(|admin| admin.answer().is_some())
        })?;
        let answer = self.world.admin(machine).and_then(|admin| admin.answer());
        answer.cloned().ok_or_else(|| "no answer".into())
    }

    /// Writes to so many keys, one after another, until one is refused; gives what was written.
    pub fn fill(&mut self, most: usize) -> Result<Vec<String>, String> {
        let mut keys = Vec::new();
        loop {
            let key = format!("k{}", keys.len() % most);
            let (value, rules) = ("x".repeat(800).into_bytes(), RejectRules::default());
            match self.answer(&key, Action::Write { value, rules })? {
                Outcome::Written { .. } => keys.push(key),
                Outcome::Failed | Outcome::Unknown => return Ok(keys),
                other => return Err(format!("a write was answered {other:?}")),
            }
            ensure(keys.len() < 10_000, "memory and frames are bounded")?;
        }
    }
}
