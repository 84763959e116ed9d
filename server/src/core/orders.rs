//! What the coordinators order, and what anybody asks: orders, questions about how it is, probes.

use ramkeep_backup::{Backup, FrameStore};
use ramkeep_rpc::Batch;
use ramkeep_wire::envelope::{self, Envelope, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command, Order, OrderReply, ServerStatus};
use ramkeep_wire::{Ballot, Micros, Party, postcards};

use super::enlisted::Enlisted;
use super::links::LinkCarrier;
use super::server::{Life, ServerCore};

impl<S: FrameStore, C: LinkCarrier> ServerCore<S, C> {
    /// Answers the envelopes of [`super::CONTROL_KINDS`] in a batch, as many as there is room for:
    /// appends the replies to `out`.
    ///
    /// # Errors
    /// A refusal closes the connection.
    pub fn handle_requests(
        &mut self,
        now: Micros,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        while out.len() <= MAX_UNSENT {
            let Some(envelope) = batch.next() else { break };
            self.handle_request(now, &envelope, out)?;
        }
        Ok(())
    }

    fn handle_request(
        &mut self,
        now: Micros,
        envelope: &Envelope<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let heard = self.outlet.asking.conversation().ballot();
        let enlisted = match &mut self.life {
            // Nobody can mean this process yet; who asks tries again.
            Life::Unborn | Life::Joining(_) => return Err(Refusal::Party(Party::NONE)),
            Life::Ended(_) => return Err(Refusal::Stopping),
            Life::Enlisted(enlisted) => enlisted,
        };
        let header = &envelope.header;
        match header.kind {
            Kind::Probe => envelope::append(out, header.reply(Kind::ProbeReply), &[]),
            Kind::StatusRequest => {
                let status = postcards::encode(&enlisted.status());
                envelope::append(out, header.reply(Kind::StatusResponse), &status);
            }
            Kind::Order if header.from.as_coordinator().is_some() => {
                let order = postcards::decode(envelope.payload);
                let order = order.map_err(|error| Refusal::Malformed(error.to_string()))?;
                let reply = postcards::encode(&enlisted.handle_order(heard, order));
                envelope::append(out, header.reply(Kind::OrderReply), &reply);
            }
            Kind::Order => {
                return Err(Refusal::Malformed("only a coordinator gives orders".into()));
            }
            other => {
                return Err(Refusal::Malformed(format!(
                    "{other:?} is not asked of a server"
                )));
            }
        }
        self.settle(now);
        Ok(())
    }
}

impl<S: FrameStore, C: LinkCarrier> Enlisted<S, C> {
    /// Carries out an order. `heard` is the ballot of the leader that answered last.
    fn handle_order(&mut self, heard: Ballot, order: Order) -> OrderReply {
        self.ballot = self.ballot.max(heard);
        if order.ballot < self.ballot && !mutants::active(Mutant::ObeyOldBallots) {
            return OrderReply::StaleBallot(self.ballot);
        }
        self.ballot = self.ballot.max(order.ballot);
        if let Command::UpdateServers(list) = &order.command {
            self.take_list(list);
        }
        match &self.plane {
            Some(plane) => plane.master().handle_order(order),
            None => without_a_master(&order.command),
        }
    }

    fn status(&self) -> ServerStatus {
        let master = self.plane.as_ref().map(|plane| plane.master());
        ServerStatus {
            server: self.me,
            list: self.list.version,
            master: master.map(|master| master.stats()),
            backup: self
                .backup
                .as_ref()
                .map(|backup| Backup::stats(&backup.lock())),
            tablets: master.map_or_else(Vec::new, |master| master.tablets()),
        }
    }
}

fn without_a_master(command: &Command) -> OrderReply {
    match command {
        Command::Probe | Command::DropTables(_) | Command::UpdateServers(_) => OrderReply::Done,
        Command::TakeTablets(_) | Command::TakeRecovered(_) => OrderReply::NotReady,
        Command::Recover(_) => OrderReply::CannotRecover("there is no master here".into()),
    }
}
