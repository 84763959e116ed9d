//! Carries a server's probes of others, and tells the coordinators' leader what came of them.
//!
//! # Invariants
//! 1. To each server at most one probe is on its way: one that hangs holds one task and one
//!    connection, however often it is chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_rpc::{CallError, Caller, Identity, Link, PollMode, Unreached, clock};
use ramkeep_wire::coordinator::{Request, ServerList, Symptom};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{ListVersion, ServerId};
use tokio::time::MissedTickBehavior;

use crate::probing::{Prober, Step};
use ramkeep_control::shell::Coordinators;

/// How often time is let pass.
const TICK: Duration = Duration::from_millis(10);
/// A probe that hangs is given up after this. Long before, [`Prober`] has noticed.
const PATIENCE: Duration = Duration::from_secs(1);
/// A symptom that the leader has not heard of by then has come again.
const TELL_PATIENCE: Duration = Duration::from_millis(500);

/// A server's prober with its connections.
#[derive(Debug)]
pub struct Probing {
    prober: Mutex<Prober>,
    callers: Mutex<BTreeMap<ServerId, Caller>>,
    /// Those to whom a probe is on its way.
    asked: Mutex<BTreeSet<ServerId>>,
    identity: Identity,
    coordinators: Arc<Coordinators>,
}

impl Probing {
    /// With no connections yet.
    #[must_use]
    pub fn new(prober: Prober, identity: Identity, coordinators: Arc<Coordinators>) -> Arc<Self> {
        Arc::new(Self {
            prober: Mutex::new(prober),
            callers: Mutex::default(),
            asked: Mutex::default(),
            identity,
            coordinators,
        })
    }

    /// A connection with a server closed, and not because it was not needed any more.
    pub(super) fn closed(&self, server: ServerId) {
        self.prober.lock().handle_closed(server);
    }

    /// Probes for as long as it is polled. `list` gives the server list if it is another than the one
    /// of that version.
    pub async fn run(self: Arc<Self>, list: impl Fn(ListVersion) -> Option<ServerList>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tick.tick().await;
            self.take_list(&list);
            self.prober.lock().handle_tick(clock::now());
            while let Some(step) = self.step() {
                match step {
                    Step::Probe {
                        number,
                        server,
                        addresses,
                    } => self.clone().begin(number, server, addresses),
                    Step::Tell(request) => {
                        tokio::spawn(self.clone().tell(request));
                    }
                }
            }
        }
    }

    fn take_list(&self, list: impl Fn(ListVersion) -> Option<ServerList>) {
        let mut prober = self.prober.lock();
        if let Some(list) = list(prober.list_version()) {
            prober.take_list(&list);
            let mut callers = self.callers.lock();
            callers.retain(|server, _| prober.knows(*server));
        }
    }

    fn step(&self) -> Option<Step> {
        self.prober.lock().poll_step()
    }

    fn begin(self: Arc<Self>, number: u64, server: ServerId, addresses: Vec<String>) {
        if !self.asked.lock().insert(server) {
            return;
        }
        tokio::spawn(async move {
            let outcome = self.probe(server, &addresses).await;
            self.asked.lock().remove(&server);
            let mut prober = self.prober.lock();
            match outcome {
                Ok(()) => prober.handle_answer(number),
                Err(Some(symptom)) => prober.handle_failed(number, symptom),
                Err(None) => {}
            }
        });
    }

    /// `Err(None)`: nothing was heard, which is noticed by the time that passes.
    async fn probe(&self, server: ServerId, addresses: &[String]) -> Result<(), Option<Symptom>> {
        let caller = self.caller(server, addresses).await?;
        match caller.call(Kind::Probe, &[], PATIENCE).await {
            Ok(_) => Ok(()),
            Err(CallError::Closed(_)) => Err(Some(Symptom::Closed)),
            Err(_) => Err(None),
        }
    }

    async fn caller(
        &self,
        server: ServerId,
        addresses: &[String],
    ) -> Result<Caller, Option<Symptom>> {
        let known = self.callers.lock().get(&server).cloned();
        if let Some(caller) = known.filter(|caller| !caller.link().is_closed()) {
            return Ok(caller);
        }
        let link = Link::reach(server, addresses, &self.identity, PollMode::Never);
        let link = link.await.map_err(|unreached| match unreached {
            Unreached::Nobody => Some(Symptom::Refused),
            Unreached::Unclear => None,
        })?;
        let caller = Caller::new(link);
        self.callers.lock().insert(server, caller.clone());
        Ok(caller)
    }

    async fn tell(self: Arc<Self>, request: Request) {
        if let Request::Suspect {
            server, symptom, ..
        } = &request
        {
            tracing::debug!(%server, ?symptom, "another server seems to be dead");
        }
        if let Err(error) = self.coordinators.call_within(&request, TELL_PATIENCE).await {
            tracing::debug!(%error, "nobody to tell of a symptom");
        }
    }
}
