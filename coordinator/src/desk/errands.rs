//! Orders and questions on their way to servers: one wire to each, made when first needed.
//!
//! # Invariants
//! 1. Of every question the core hears what came of it, if only that nothing did. Orders may be lost: the
//!    core repeats them.
//! 2. The core hears of the end of each wire once, whatever was on it, and with what that proves.
//! 3. There are no wires to servers that are not living.
//! 4. Nothing is dropped at a bound unsaid: the core hears that there is no room for an order, and when there
//!    is again.

use std::time::Duration;

use ramkeep_rpc::wires::{CallLost, CallRules, Calls, WireEnd, WireId, WireRules};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::order::{Command as OrderCommand, Order, OrderReply};
use ramkeep_wire::postcards::Malformed;
use ramkeep_wire::{Micros, Party, ServerId, postcards};

use super::Desk;

/// The room of wires to servers.
const ROOM: u8 = 1;
/// Orders and questions on their way to one server; the core keeps what is more.
const MAX_IN_FLIGHT: usize = 32;
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is on its way to a server.
#[derive(Debug)]
pub(super) enum Errand {
    /// An order.
    Order(Box<OrderCommand>),
    /// A question, by its token.
    Ask(u64),
}

/// No wires yet.
pub(super) fn none() -> Calls<ServerId, Errand> {
    let wires = WireRules {
        // The core says when a server is probed again.
        rest: Duration::ZERO,
        max_waiting: MAX_IN_FLIGHT,
    };
    let rules = CallRules {
        patience: PATIENCE,
        max_in_flight: MAX_IN_FLIGHT,
    };
    Calls::new(ROOM, wires, rules)
}

impl Desk {
    pub(super) fn order(
        &mut self,
        now: Micros,
        server: ServerId,
        addresses: &[String],
        order: Order,
    ) {
        let payload = postcards::encode(&order);
        let errand = Errand::Order(Box::new(order.command));
        self.send(now, server, addresses, Kind::Order, &payload, errand);
    }

    pub(super) fn ask(
        &mut self,
        now: Micros,
        server: ServerId,
        addresses: &[String],
        token: u64,
        request: &BackupRequest,
    ) {
        let (kind, payload) = (Kind::BackupRequest, postcards::encode(request));
        self.send(now, server, addresses, kind, &payload, Errand::Ask(token));
    }

    fn send(
        &mut self,
        now: Micros,
        server: ServerId,
        addresses: &[String],
        kind: Kind,
        payload: &[u8],
        errand: Errand,
    ) {
        let to = Party::server(server);
        let errands = &mut self.errands;
        let Err(errand) = errands.call(now, &server, addresses, to, kind, payload, errand) else {
            return;
        };
        if let Errand::Order(command) = &errand
            && !mutants::active(Mutant::CrowdedOrdersAreLost)
        {
            self.crowded.insert(server);
            self.core.handle_no_room(now, server, command);
        }
        self.comes_to_nothing(now, server, &errand);
    }

    /// Less is on its way to a server.
    fn has_room(&mut self, now: Micros, server: ServerId) {
        if self.crowded.remove(&server) {
            self.core.handle_room(now, server);
        }
    }

    /// A server answered something.
    pub(super) fn errand_answered(&mut self, now: Micros, wire: WireId, envelope: &Envelope<'_>) {
        let Some((server, errand)) = self.errands.handle_received(wire, envelope) else {
            return;
        };
        let taken = match &errand {
            Errand::Order(command) => {
                postcards::decode::<OrderReply>(envelope.payload).map(|reply| {
                    self.core.handle_order_reply(now, server, command, reply);
                })
            }
            Errand::Ask(token) => BackupResponse::read(envelope.payload).map(|(answer, bytes)| {
                let answer = Some((answer, bytes.to_vec()));
                self.core.handle_backup_answer(now, server, *token, answer);
            }),
        };
        if let Err(error) = taken {
            self.unreadable(now, server, &errand, &error);
        }
        self.has_room(now, server);
    }

    fn unreadable(&mut self, now: Micros, server: ServerId, errand: &Errand, error: &Malformed) {
        tracing::warn!(%server, %error, "unreadable reply");
        self.tell_lost(now, server, CallLost::Unclear);
        self.comes_to_nothing(now, server, errand);
    }

    /// A wire to a server has ended, or could not be made. False: it is none of these.
    pub(super) fn errands_ended(&mut self, now: Micros, wire: WireId, end: &WireEnd) -> bool {
        let Some(ended) = self.errands.handle_down(now, wire, end) else {
            return false;
        };
        tracing::debug!(server = %ended.key, %end, "no connection with a server");
        self.tell_lost(now, ended.key, ended.lost);
        for errand in ended.calls {
            self.comes_to_nothing(now, ended.key, &errand);
        }
        self.has_room(now, ended.key);
        true
    }

    /// Gives up what was not answered in time.
    pub(super) fn errands_late(&mut self, now: Micros) {
        for (server, errand) in self.errands.handle_tick(now) {
            tracing::debug!(%server, ?errand, "no reply");
            self.tell_lost(now, server, CallLost::Late);
            self.comes_to_nothing(now, server, &errand);
            self.has_room(now, server);
        }
    }

    /// Gives up the wires to servers that are no longer living. False: there is nothing to look for.
    pub(super) fn forget_the_dead(&mut self, now: Micros) -> bool {
        let version = self.core.state().list_version();
        if std::mem::replace(&mut self.errands_of, version) == version {
            return false;
        }
        let state = self.core.state();
        let known = self.errands.wires().keys().copied();
        let dead: Vec<ServerId> = known.filter(|id| state.living(*id).is_err()).collect();
        for server in dead {
            self.crowded.remove(&server);
            for errand in self.errands.forget(&server) {
                self.comes_to_nothing(now, server, &errand);
            }
        }
        true
    }

    fn tell_lost(&mut self, now: Micros, server: ServerId, lost: CallLost) {
        let core = &mut self.core;
        match lost {
            CallLost::Nobody => core.handle_probe_failed(now, server, true),
            CallLost::Closed => core.handle_link_down(now, server),
            CallLost::Late | CallLost::Unclear => core.handle_probe_failed(now, server, false),
        }
    }

    /// An errand has no answer.
    fn comes_to_nothing(&mut self, now: Micros, server: ServerId, errand: &Errand) {
        if let Errand::Ask(token) = errand
            && !mutants::active(Mutant::LoseQuestions)
        {
            self.core.handle_backup_answer(now, server, *token, None);
        }
    }
}
