//! The services on a server's port: data requests, and what the core answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ramkeep_rpc::{Batch, Link, Peer, Router, Service, Session, Wake, clock};
use ramkeep_wire::Micros;
use ramkeep_wire::hello::Refusal;

use super::server::ServerShell;
use crate::core::{CONTROL_KINDS, DATA_KINDS, DataLine};

/// Answers [`crate::core::DATA_KINDS`].
#[derive(Debug)]
pub(super) struct DataService(pub(super) Arc<ServerShell>);

/// Answers [`crate::core::CONTROL_KINDS`].
#[derive(Clone, Debug)]
pub(super) struct ControlService(pub(super) Arc<ServerShell>);

impl ServerShell {
    /// What answers on the server's port: nothing is served before it is enlisted.
    #[must_use]
    pub fn router(self: &Arc<Self>) -> Router {
        let router = Router::new()
            .route(DATA_KINDS, Arc::new(DataService(self.clone())))
            .route(CONTROL_KINDS, Arc::new(ControlService(self.clone())));
        match &self.backup {
            Some(backup) => router.route(ramkeep_backup::KINDS, Arc::new(backup.clone())),
            None => router,
        }
    }
}

impl Service for DataService {
    fn open(&self, _: &Peer, wake: Wake) -> Box<dyn Session> {
        Box::new(DataPort {
            shell: self.0.clone(),
            line: None,
            wake,
            nudged: Arc::default(),
        })
    }
}

struct DataPort {
    shell: Arc<ServerShell>,
    /// Once there is a master.
    line: Option<DataLine<Link>>,
    wake: Wake,
    /// The wake is about to be called because there is more work to do.
    nudged: Arc<AtomicBool>,
}

impl Session for DataPort {
    fn handle_batch(
        &mut self,
        _: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let line = match &mut self.line {
            Some(line) => line,
            none => none.insert(self.shell.open_line(&self.wake)?),
        };
        line.handle(batch, out, &clock::now)?;
        self.nudge();
        Ok(())
    }

    fn poll(&mut self, now: Micros, out: &mut Vec<u8>) -> bool {
        let (Some(line), Some(plane)) = (&mut self.line, self.shell.plane()) else {
            return false;
        };
        self.shell.drive(plane, now);
        let released = line.release(out, &clock::now);
        self.nudge();
        released
    }

    fn holds(&self) -> bool {
        self.line.as_ref().is_some_and(DataLine::holds)
    }
}

impl DataPort {
    /// Has this connection look again soon if it goes on by itself, once others on this worker have
    /// had their turn.
    fn nudge(&self) {
        let wants_a_turn = self.line.as_ref().is_some_and(DataLine::wants_a_turn);
        if !wants_a_turn || self.nudged.swap(true, Ordering::AcqRel) {
            return;
        }
        let (wake, nudged) = (self.wake.clone(), self.nudged.clone());
        tokio::spawn(async move {
            tokio::task::yield_now().await;
            nudged.store(false, Ordering::Release);
            wake.wake();
        });
    }
}

impl Service for ControlService {
    fn open(&self, _: &Peer, _: Wake) -> Box<dyn Session> {
        Box::new(self.clone())
    }
}

impl Session for ControlService {
    fn handle_batch(
        &mut self,
        _: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        self.0
            .with_core(|core, now| core.handle_requests(now, batch, out))
    }

    fn poll(&mut self, _: Micros, _: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}
