//! Enlistment: an identity is asked for until the coordinators give one, or refuse.

use std::sync::Arc;
use std::time::Duration;

use ramkeep_backup::{Backup, FrameStore};
use ramkeep_master::core::{Master, MasterConfig};
use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::{Answer, Enlist, Request, Response};

use super::enlisted::Enlisted;
use super::links::LinkCarrier;
use super::plane::DataPlane;
use super::words::{Asker, Outlet, ServerConfig, ServerEnd, SharedBackup};

/// How often it is looked why there is no answer.
const LOOK: Duration = Duration::from_millis(100);
/// Reasons that are told; they differ in little.
const MAX_TOLD: usize = 8;
/// For so long there need not be one: the coordinators may just elect who leads.
const ELECTION: Duration = Duration::from_secs(1);

/// A server that asks for an identity.
#[derive(Debug)]
pub(super) struct Joining {
    /// Until it is asked.
    request: Option<Box<Enlist>>,
    next_look: Micros,
    /// The reasons for waiting that were told.
    told: Vec<String>,
}

impl Joining {
    pub(super) fn new<S: FrameStore>(
        config: &ServerConfig,
        backup: Option<&Backup<S>>,
        addresses: Vec<String>,
    ) -> Self {
        let request = Enlist {
            nonce: config.nonce,
            roles: config.roles,
            addresses,
            replaces: backup.and_then(Backup::replaces),
            boot: config.boot,
            frames: backup.map_or(0, |backup| backup.stats().frames),
            memory: config.memory,
        };
        Self {
            request: Some(Box::new(request)),
            next_look: Micros(0),
            told: Vec::new(),
        }
    }

    /// Asks, and says why it waits, once for each reason.
    pub(super) fn handle_tick(&mut self, now: Micros, outlet: &mut Outlet) {
        if let Some(request) = self.request.take() {
            let request = Request::Enlist(*request);
            // The first that is asked for: there is room.
            let _ = outlet.asking.ask(now, Asker::Enlistment, request, None);
            self.next_look = now + ELECTION;
        }
        if now < self.next_look {
            return;
        }
        self.next_look = now + LOOK;
        let trouble = outlet.asking.conversation().trouble();
        // Of another cluster's it is told by itself.
        let tells = self.told.len() < MAX_TOLD && outlet.asking.conversation().foreign().is_none();
        let fresh = trouble.filter(|&reason| tells && !self.told.iter().any(|told| told == reason));
        if let Some(reason) = fresh {
            tracing::warn!(%reason, "waiting for a coordinator");
            self.told.push(reason.to_owned());
        }
    }

    pub(super) fn next_timeout(&self) -> Micros {
        self.next_look
    }
}

/// Becomes the server that the leader's answer names.
pub(super) fn adopt<S: FrameStore, C: LinkCarrier>(
    now: Micros,
    config: &ServerConfig,
    backup: Option<SharedBackup<S>>,
    response: &Response,
) -> Result<Enlisted<S, C>, ServerEnd> {
    let (server, cluster, key, settings, list) = match &response.answer {
        Answer::Enlisted {
            server,
            cluster,
            key,
            settings,
            list,
        } => (*server, *cluster, *key, settings, list),
        Answer::Refused(refused) => return Err(ServerEnd::Refused(refused.clone())),
        _ => return Err(ServerEnd::Senseless),
    };
    if let Some(backup) = &backup {
        let mut backup = backup.lock();
        let assigned = backup.assign(cluster, server, settings.lease_us);
        assigned.map_err(ServerEnd::Frames)?;
    }
    let mut plane = None;
    if config.roles.master {
        let master = Master::new(MasterConfig {
            me: server,
            cluster,
            key,
            settings: settings.clone(),
            memory: config.memory,
            seed: config.seed,
        });
        let master = Arc::new(master.map_err(ServerEnd::Memory)?);
        plane = Some(Arc::new(DataPlane::new(master)));
    }
    let identity = (cluster, server);
    let mut enlisted = Enlisted::new(now, identity, config, settings, backup, plane);
    enlisted.begin(response.ballot, list);
    Ok(enlisted)
}
