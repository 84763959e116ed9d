//! What a server without a master owes the coordinator: reports, and answers to orders.
//!
//! # Invariants
//! 1. Orders with a lower ballot than one seen are refused.
//! 2. A master that is listed as crashed changes nothing in the frames from then on.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ramkeep_backup::shell::BackupService;
use ramkeep_master::shell::{ControlEnd, Coordinators, Probing};
use ramkeep_rpc::{Batch, Peer, Service, Session, Wake};
use ramkeep_wire::coordinator::{Answer, Heartbeat, Refused, Request, ServerList};
use ramkeep_wire::envelope::{self, Envelope, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::order::{Command, Order, OrderReply, ServerStatus};
use ramkeep_wire::{Ballot, ListVersion, Micros, ServerId, postcards};
use tokio::time::MissedTickBehavior;

use super::resident;

/// A server with a backup and no master. Clones share it.
#[derive(Clone)]
pub(super) struct BackupOnly(Arc<Inner>);

struct Inner {
    me: ServerId,
    backup: Option<BackupService>,
    seen: Mutex<Seen>,
}

/// The newest that was heard of the coordinator.
#[derive(Default)]
struct Seen {
    ballot: Ballot,
    list: ServerList,
}

impl BackupOnly {
    /// An enlisted server.
    pub(super) fn new(me: ServerId, list: ServerList, backup: Option<BackupService>) -> Self {
        let only = Self(Arc::new(Inner {
            me,
            backup,
            seen: Mutex::default(),
        }));
        only.0.take_list(&mut only.0.seen.lock(), list);
        only
    }

    /// Reports, and probes others, until the coordinator says that this server is dead.
    pub(super) async fn run(
        self,
        coordinators: Arc<Coordinators>,
        every: Duration,
        probing: Arc<Probing>,
    ) -> ControlEnd {
        let inner = self.0.clone();
        tokio::select! {
            end = self.report(coordinators, every) => end,
            () = probing.run(move |known| inner.list_after(known)) => ControlEnd::Stopped,
        }
    }

    async fn report(self, coordinators: Arc<Coordinators>, every: Duration) -> ControlEnd {
        let mut interval = tokio::time::interval(every);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let report = Request::Heartbeat(self.0.heartbeat());
            let Ok(response) = coordinators.call(&report).await else {
                continue;
            };
            match response.answer {
                Answer::Refused(Refused::Crashed) => return ControlEnd::Fenced,
                Answer::Heard {
                    list: Some(list), ..
                } => {
                    self.0.take_list(&mut self.0.seen.lock(), list);
                }
                Answer::Refused(refused) => tracing::warn!(%refused, "a report was refused"),
                _ => {}
            }
        }
    }
}

impl Inner {
    fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            list: self.seen.lock().list.version,
            backup: self.backup.as_ref().map(BackupService::stats),
            resident: resident::bytes(),
            ..Heartbeat::of(self.me)
        }
    }

    fn list_after(&self, known: ListVersion) -> Option<ServerList> {
        let seen = self.seen.lock();
        (seen.list.version != known).then(|| seen.list.clone())
    }

    fn take_list(&self, seen: &mut Seen, list: ServerList) {
        if list.version <= seen.list.version {
            return;
        }
        if let Some(backup) = &self.backup {
            backup.take_list(&list);
        }
        seen.list = list;
    }

    fn handle_order(&self, order: Order) -> OrderReply {
        let mut seen = self.seen.lock();
        if order.ballot < seen.ballot {
            return OrderReply::StaleBallot(seen.ballot);
        }
        seen.ballot = order.ballot;
        match order.command {
            Command::Probe | Command::DropTable(_) => OrderReply::Done,
            Command::UpdateServers(list) => {
                self.take_list(&mut seen, list);
                OrderReply::Done
            }
            Command::TakeTablets(_) | Command::TakeRecovered(_) => OrderReply::NotReady,
            Command::Recover(_) => OrderReply::CannotRecover("there is no master here".into()),
        }
    }

    fn status(&self) -> ServerStatus {
        ServerStatus {
            server: self.me,
            list: self.seen.lock().list.version,
            master: None,
            backup: self.backup.as_ref().map(BackupService::stats),
            tablets: Vec::new(),
        }
    }

    fn answer(&self, envelope: &Envelope<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let malformed = |what: &dyn std::fmt::Display| Refusal::Malformed(what.to_string());
        let header = &envelope.header;
        match header.kind {
            Kind::Order if header.from.as_coordinator().is_none() => {
                Err(malformed(&"only a coordinator gives orders"))
            }
            Kind::Order => {
                let order = postcards::decode(envelope.payload).map_err(|e| malformed(&e))?;
                let reply = postcards::encode(&self.handle_order(order));
                envelope::append(out, header.reply(Kind::OrderReply), &reply);
                Ok(())
            }
            Kind::Probe => {
                envelope::append(out, header.reply(Kind::ProbeReply), &[]);
                Ok(())
            }
            Kind::StatusRequest => {
                let status = postcards::encode(&self.status());
                envelope::append(out, header.reply(Kind::StatusResponse), &status);
                Ok(())
            }
            other => Err(malformed(&format_args!(
                "{other:?} sent to a server without a master"
            ))),
        }
    }
}

impl Service for BackupOnly {
    fn open(&self, _: &Peer, _: Wake) -> Box<dyn Session> {
        Box::new(self.clone())
    }
}

impl Session for BackupOnly {
    fn handle_batch(
        &mut self,
        _: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        while out.len() <= MAX_UNSENT {
            let Some(envelope) = batch.next() else { break };
            self.0.answer(&envelope, out)?;
        }
        Ok(())
    }

    fn poll(&mut self, _: Micros, _: &mut Vec<u8>) -> bool {
        false
    }

    fn holds(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramkeep_wire::envelope::Header;
    use ramkeep_wire::{Party, PeerId};

    fn order(round: u64, command: Command) -> Order {
        Order {
            ballot: Ballot {
                round,
                peer: PeerId(1),
            },
            command,
        }
    }

    #[test]
    fn an_order_of_an_older_ballot_is_refused() {
        let only = BackupOnly::new(ServerId(3), ServerList::default(), None);
        assert_eq!(
            only.0.handle_order(order(2, Command::Probe)),
            OrderReply::Done
        );
        let newest = Ballot {
            round: 2,
            peer: PeerId(1),
        };
        let reply = only.0.handle_order(order(1, Command::Probe));
        assert_eq!(reply, OrderReply::StaleBallot(newest));
    }

    #[test]
    fn what_does_not_fit_is_left_for_later() {
        let mut only = BackupOnly::new(ServerId(3), ServerList::default(), None);
        let header = Header::new(Kind::StatusRequest, 1, Party::NONE, Party::NONE);
        let mut bytes = Vec::new();
        envelope::append(&mut bytes, header, &[]);
        let bytes = bytes.repeat(4);
        let mut batch = Batch::new(&bytes);
        let mut out = vec![0; MAX_UNSENT];
        only.handle_batch(Micros(1), &mut batch, &mut out).unwrap();
        assert_eq!(batch.taken(), bytes.len() / 4, "the one that fills it");
        out.clear();
        only.handle_batch(Micros(1), &mut batch, &mut out).unwrap();
        assert_eq!(batch.taken(), bytes.len());
    }

    #[test]
    fn an_older_server_list_is_not_taken() {
        let list = |version| ServerList {
            version: ListVersion(version),
            servers: Vec::new(),
        };
        let only = BackupOnly::new(ServerId(3), list(5), None);
        only.0
            .handle_order(order(1, Command::UpdateServers(list(4))));
        assert_eq!(only.0.heartbeat().list, ListVersion(5));
        only.0
            .handle_order(order(1, Command::UpdateServers(list(6))));
        assert_eq!(only.0.heartbeat().list, ListVersion(6));
    }
}
