//! The master's service on the server's port: data operations, orders and status requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ramkeep_rpc::{Batch, Peer, Service, Session, Wake, clock};
use ramkeep_wire::envelope::{self, Envelope, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::order::{Command, Order, ServerStatus};
use ramkeep_wire::{Micros, postcards};

use super::MasterShell;
use crate::store::{DataSession, MasterLease};

/// Answers [`MasterService::KINDS`].
#[derive(Clone, Debug)]
pub struct MasterService(pub Arc<MasterShell>);

impl MasterService {
    /// The kinds of envelopes to route here.
    pub const KINDS: &'static [Kind] = &[
        Kind::DataRequest,
        Kind::Order,
        Kind::StatusRequest,
        Kind::Probe,
    ];
}

impl Service for MasterService {
    fn open(&self, _: &Peer, wake: Wake) -> Box<dyn Session> {
        let data = DataSession::new();
        Box::new(MasterSession {
            shell: self.0.clone(),
            data,
            wake,
            registered: None,
            nudged: Arc::default(),
        })
    }
}

struct MasterSession {
    shell: Arc<MasterShell>,
    data: DataSession,
    wake: Wake,
    /// The wake is among those to be woken when more is durable, as long as the shell still
    /// counts this many wakes.
    registered: Option<u64>,
    /// The wake is about to be called because there is more work to do.
    nudged: Arc<AtomicBool>,
}

impl Session for MasterSession {
    fn handle_batch(
        &mut self,
        now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let Self { shell, data, .. } = self;
        let (mut now, mut mutated) = (now, false);
        while !data.full() && out.len() <= MAX_UNSENT {
            match batch.peek() {
                None => break,
                Some(Kind::DataRequest) => {
                    let run = data_run(shell, data, batch, out)?;
                    mutated |= run.mutated;
                    now = run.ended;
                }
                Some(_) => {
                    let Some(envelope) = batch.next() else { break };
                    answer_control(shell, &envelope, out)?;
                }
            }
        }
        if mutated {
            shell.pump(now);
        }
        if self.data.holds() {
            self.release(out);
        }
        Ok(())
    }

    fn poll(&mut self, now: Micros, out: &mut Vec<u8>) -> bool {
        self.shell.drive(now);
        self.release(out)
    }

    fn holds(&self) -> bool {
        self.data.holds()
    }
}

impl MasterSession {
    /// Releases what is durable and may be told. What is still held then has this connection woken
    /// when more is.
    fn release(&mut self, out: &mut Vec<u8>) -> bool {
        let (shell, data) = (&self.shell, &mut self.data);
        let lease = || shell.master.lease(clock::now());
        let mut released = data.release(shell.master.store(), lease, out);
        if !data.holds() {
            return released;
        }
        if self.registered != Some(shell.wakes()) {
            self.registered = Some(shell.hold(&self.wake));
            // It may have become durable between the two.
            released |= data.release(shell.master.store(), lease, out);
        }
        if lease() != MasterLease::Held {
            shell.wait_for_lease();
            // It may be here again, or given up, by the time that others know of the wait.
            released |= data.release(shell.master.store(), lease, out);
        } else if data.works() && out.len() <= MAX_UNSENT {
            self.nudge();
        }
        released
    }

    /// Has this connection look again soon, once others on this worker have had their turn: a scan
    /// goes on by itself, and nothing else may ever wake it.
    fn nudge(&self) {
        if self.nudged.swap(true, Ordering::AcqRel) {
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

/// What came of a run of data envelopes.
struct Run {
    /// Something was changed.
    mutated: bool,
    /// When the last of them was done, by a clock read after that.
    ended: Micros,
}

/// Runs the data envelopes at the front of a batch under one writer's lock.
fn data_run(
    shell: &MasterShell,
    data: &mut DataSession,
    batch: &mut Batch<'_>,
    out: &mut Vec<u8>,
) -> Result<Run, Refusal> {
    let mut session = data.begin(shell.master.store(), out);
    let mut outcome = Ok(());
    while outcome.is_ok() && !session.full() && batch.peek() == Some(Kind::DataRequest) {
        let Some(envelope) = batch.next() else { break };
        outcome = session
            .envelope(&envelope.header, envelope.payload)
            .map_err(malformed);
    }
    let mutated = session.writer().is_some();
    let mut ended = Micros(0);
    session.end(|| {
        ended = clock::now();
        shell.master.lease(ended)
    });
    outcome.map(|()| Run { mutated, ended })
}

fn malformed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Malformed(error.to_string())
}

fn answer_control(
    shell: &MasterShell,
    envelope: &Envelope<'_>,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    match envelope.header.kind {
        Kind::Order => {
            if envelope.header.from.as_coordinator().is_none() {
                return Err(Refusal::Malformed("only a coordinator gives orders".into()));
            }
            let order: Order = postcards::decode(envelope.payload).map_err(malformed)?;
            if let Command::UpdateServers(list) = &order.command {
                shell.fence_crashed(list);
            }
            let reply = shell.master.handle_order(order);
            let header = envelope.header.reply(Kind::OrderReply);
            envelope::append(out, header, &postcards::encode(&reply));
        }
        Kind::StatusRequest => {
            let status = ServerStatus {
                server: shell.master.me(),
                list: shell.master.list_version(),
                master: Some(shell.master.stats()),
                backup: shell.backup_stats(),
                tablets: shell.master.tablets(),
            };
            let header = envelope.header.reply(Kind::StatusResponse);
            envelope::append(out, header, &postcards::encode(&status));
        }
        Kind::Probe => {
            envelope::append(out, envelope.header.reply(Kind::ProbeReply), &[]);
        }
        other => {
            return Err(Refusal::Malformed(format!(
                "{other:?} is not asked of a master"
            )));
        }
    }
    Ok(())
}
