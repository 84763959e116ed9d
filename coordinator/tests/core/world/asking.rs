//! What tests ask of coordinators, and what servers do by their orders.

use ramkeep_wire::coordinator::{
    Answer, ClusterStatus, Enlist, Once, RecoveryReport, Refused, Request, ServerState, Table,
};
use ramkeep_wire::order::{Command, Order, OrderReply};
use ramkeep_wire::{ClientId, LogPosition, Party, ServerId};

use super::*;

/// Milliseconds in which a group answers.
const PATIENCE: u64 = 100;

impl World {
    pub fn ask_from(&mut self, peer: u32, from: Party, request: Request) -> u64 {
        self.tokens += 1;
        let token = self.tokens;
        self.input(peer, |core, now| {
            core.handle_request(now, from, token, request);
        });
        token
    }

    pub fn ask_of(&mut self, peer: u32, request: Request) -> u64 {
        self.ask_from(peer, Party::NONE, request)
    }

    /// Asks the one that is alone, or the leader.
    pub fn ask(&mut self, request: Request) -> u64 {
        let peer = self.speaker().expect("somebody leads");
        self.ask_of(peer, request)
    }

    /// What a process answers by now, if it does.
    pub fn given_by(&self, peer: u32, token: u64) -> Option<Answer> {
        let (response, until) = self.machines[&peer].answers.get(&token)?;
        assert!(until.is_none_or(|until| until > self.now), "it came late");
        Some(response.answer.clone())
    }

    pub fn given(&self, token: u64) -> Option<Answer> {
        self.given_by(self.speaker().expect("somebody leads"), token)
    }

    /// What is answered: by one that is alone at once, by a leader in the end.
    pub fn answer(&mut self, request: Request) -> Answer {
        let peer = self.speaker().expect("somebody leads");
        let token = self.ask_of(peer, request);
        let patience = if self.is_alone() { 0 } else { PATIENCE };
        for _ in 0..patience {
            if self.machines[&peer].answers.contains_key(&token) {
                break;
            }
            self.run(1);
        }
        let answer = self.machine(peer).answers.remove(&token);
        answer.expect("answered in time").0.answer
    }

    pub fn status(&mut self) -> ClusterStatus {
        match self.answer(Request::Status) {
            Answer::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub fn reports(&mut self) -> Vec<RecoveryReport> {
        self.status().recoveries
    }

    pub fn enlist(&mut self, nonce: u8) -> ServerId {
        match self.answer(enlist(nonce)) {
            Answer::Enlisted { server, .. } => server,
            other => panic!("{other:?}"),
        }
    }

    /// A server that is in service and stays.
    pub fn up(&mut self, nonce: u8) -> ServerId {
        let server = self.enlist(nonce);
        self.beat(server);
        if !self.is_alone() {
            self.run(20);
        }
        assert_eq!(self.state_of(server), ServerState::Up);
        self.alive.insert(server);
        server
    }

    /// A server reports.
    pub fn beat(&mut self, server: ServerId) -> Answer {
        let report = self.report(server);
        self.answer(Request::Heartbeat(report))
    }

    pub fn state_of(&self, server: ServerId) -> ServerState {
        self.state().servers().by_id(server).unwrap().state
    }

    pub fn lease(&mut self, nonce: u8) -> ClientId {
        let open = Request::OpenClientLease { nonce: [nonce; 16] };
        match self.answer(open) {
            Answer::ClientLease { client, .. } => client,
            other => panic!("{other:?}"),
        }
    }

    /// The orders that `peer` gave since the last call; those of other kinds are forgotten.
    pub fn orders_of(&mut self, peer: u32, kind: fn(&Command) -> bool) -> Vec<(ServerId, Order)> {
        let mut orders = std::mem::take(&mut self.machine(peer).orders);
        orders.retain(|(_, order)| kind(&order.command));
        orders
    }

    pub fn reply(&mut self, peer: u32, server: ServerId, command: &Command, reply: OrderReply) {
        self.input(peer, |core, now| {
            core.handle_order_reply(now, server, command, reply);
        });
    }

    /// A server does as `peer` ordered.
    pub fn obey_one(&mut self, peer: u32, (server, order): &(ServerId, Order)) {
        self.reply(peer, *server, &order.command, done(&order.command));
    }

    /// Servers do what `peer` ordered of some kind; who was ordered what.
    pub fn obey(&mut self, peer: u32, kind: fn(&Command) -> bool) -> Vec<(ServerId, Order)> {
        let orders = self.orders_of(peer, kind);
        for order in &orders {
            self.obey_one(peer, order);
        }
        orders
    }
}

/// What a server replies that does as it is told.
pub fn done(command: &Command) -> OrderReply {
    match command {
        Command::TakeTablets(grants) => {
            OrderReply::Taken(grants.iter().map(|_| Some(LogPosition(42))).collect())
        }
        Command::TakeRecovered(recovered) => {
            OrderReply::Taken(recovered.iter().map(|one| Some(one.takeover)).collect())
        }
        _ => OrderReply::Done,
    }
}

pub fn enlistment(nonce: u8) -> Enlist {
    let address = format!("127.0.0.1:{}", 7_200 + u16::from(nonce));
    Enlist {
        frames: 8,
        memory: 1 << 26,
        ..Enlist::server([nonce; 16], address)
    }
}

pub fn enlist(nonce: u8) -> Request {
    Request::Enlist(enlistment(nonce))
}

pub fn create(name: &str, once: Option<Once>) -> Request {
    Request::CreateTable {
        name: name.into(),
        once,
    }
}

pub fn drop_table(name: &str, once: Option<Once>) -> Request {
    Request::DropTable {
        name: name.into(),
        once,
    }
}

pub fn table_of(answer: Option<Answer>) -> Table {
    match answer {
        Some(Answer::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

pub fn is_not_leader(answer: Option<&Answer>) -> bool {
    matches!(answer, Some(Answer::Refused(Refused::NotLeader { .. })))
}

pub fn is_take(command: &Command) -> bool {
    matches!(command, Command::TakeTablets(_))
}

pub fn is_drop(command: &Command) -> bool {
    matches!(command, Command::DropTables(_))
}
