//! What is fetched from backups, for recoveries and for scrubbing: over connections of its own, so that
//! replication does not wait behind segments.
//!
//! # Invariants
//! 1. Every request of a recovery, and of scrubbing, is answered once, if only with nothing.
//! 2. A backup that lets one request wait for [`PATIENCE`] loses the connection, and what was asked on
//!    it: answers come in order, so that what was asked later is late as well.
//! 3. What the backup of this server holds is answered by a call; a few of them at a time, so that
//!    nobody waits long behind them.

use std::collections::VecDeque;
use std::time::Duration;

use ramkeep_backup::{Backup, FrameStore};
use ramkeep_master::core::{Master, ScrubAsk};
use ramkeep_master::recovery::gather::MAX_ASKS;
use ramkeep_master::recovery::{Ask, AskId, MAX_RECOVERIES, RecoveryId};
use ramkeep_rpc::wires::{CallRules, Calls, WireEnd, WireId, WireRules};
use ramkeep_wire::backup::{BackupRequest, BackupResponse};
use ramkeep_wire::envelope::{Envelope, Kind};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Micros, Party, ServerId, postcards};

/// A backup may take as long to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Requests under way to one backup: all that recoveries may have, and one of scrubbing.
const MAX_IN_FLIGHT: usize = MAX_RECOVERIES * MAX_ASKS + 1;
/// Requests to the backup of this server that are answered in one go, of a quarter of a MiB each.
const OWN_AT_A_TIME: usize = 4;
/// A recovery waits by itself before it asks again one that did not answer.
const WIRES: WireRules = WireRules {
    rest: Duration::ZERO,
    max_waiting: MAX_IN_FLIGHT,
};
const CALLS: CallRules = CallRules {
    patience: PATIENCE,
    max_in_flight: MAX_IN_FLIGHT,
};

/// For whom something is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FetchFor {
    Recovery((RecoveryId, AskId)),
    Scrub,
}

/// The requests on their way.
#[derive(Debug)]
pub(super) struct Fetches {
    me: ServerId,
    calls: Calls<ServerId, FetchFor>,
    /// For the backup of this server.
    own: VecDeque<(FetchFor, BackupRequest)>,
    scrub_every: Duration,
    next_scrub: Micros,
    is_scrubbing: bool,
    /// Whom scrubbing asked last.
    scrubbed: ServerId,
}

impl Fetches {
    pub(super) fn new(room: u8, me: ServerId, scrub_every: Duration) -> Self {
        Self {
            me,
            calls: Calls::new(room, WIRES, CALLS),
            own: VecDeque::new(),
            scrub_every,
            next_scrub: Micros(0),
            is_scrubbing: false,
            scrubbed: me,
        }
    }

    pub(super) fn calls(&mut self) -> &mut Calls<ServerId, FetchFor> {
        &mut self.calls
    }

    /// Whether there is more to do at once.
    pub(super) fn is_due(&self) -> bool {
        !self.own.is_empty()
    }

    /// Asks for what recoveries and scrubbing want next. Returns whether the master is to be pumped.
    pub(super) fn handle_tick<S: FrameStore>(
        &mut self,
        now: Micros,
        master: &Master,
        backup: Option<&parking_lot::Mutex<Backup<S>>>,
    ) -> bool {
        let mut found = self.expire(now, master);
        found |= self.scrub(now, master);
        let mut left = OWN_AT_A_TIME;
        loop {
            self.poll_asks(now, master);
            if left == 0 {
                break;
            }
            left -= 1;
            let Some((by, request)) = self.own.pop_front() else {
                break;
            };
            let Some(backup) = backup else {
                found |= self.lose(now, master, by);
                continue;
            };
            let mut backup = backup.lock();
            let answered = backup.handle_request(now, Party::server(self.me), request);
            let answered = (answered.response, answered.bytes);
            found |= self.answer(now, master, by, Some(answered));
        }
        self.rest(master);
        found
    }

    /// Ends the connections to those who let something wait too long.
    fn expire(&mut self, now: Micros, master: &Master) -> bool {
        let mut found = false;
        for (server, by) in self.calls.handle_tick(now) {
            found |= self.lose(now, master, by);
            for by in self.calls.forget(&server) {
                found |= self.lose(now, master, by);
            }
        }
        found
    }

    /// Reads back a little, if it is time.
    fn scrub(&mut self, now: Micros, master: &Master) -> bool {
        if self.is_scrubbing || now < self.next_scrub {
            return false;
        }
        self.next_scrub = now + self.scrub_every;
        let Some(ScrubAsk { to, request }) = master.poll_scrub() else {
            return false;
        };
        self.is_scrubbing = true;
        self.scrubbed = to;
        self.ask(now, master, to, FetchFor::Scrub, request)
    }

    fn poll_asks(&mut self, now: Micros, master: &Master) {
        loop {
            let ask = master.recoveries().poll_ask(now);
            let Some(Ask { to, id, request }) = ask else {
                return;
            };
            self.ask(now, master, to, FetchFor::Recovery(id), request);
        }
    }

    fn ask(
        &mut self,
        now: Micros,
        master: &Master,
        to: ServerId,
        by: FetchFor,
        request: BackupRequest,
    ) -> bool {
        if to == self.me {
            self.own.push_back((by, request));
            return false;
        }
        let (addresses, party) = (master.addresses_of(to), Party::server(to));
        let (kind, payload) = (Kind::BackupRequest, postcards::encode(&request));
        let called = (self.calls).call(now, &to, &addresses, party, kind, &payload, by);
        called.is_err() && self.lose(now, master, by)
    }

    /// A backup has answered. Returns whether the master is to be pumped.
    pub(super) fn handle_received(
        &mut self,
        now: Micros,
        master: &Master,
        wire: WireId,
        envelope: &Envelope<'_>,
    ) -> bool {
        let Some((server, by)) = self.calls.handle_received(wire, envelope) else {
            return false;
        };
        match BackupResponse::read(envelope.payload) {
            Ok(read) => self.answer(now, master, by, Some(read)),
            Err(error) => {
                tracing::debug!(backup = %server, %error, "a backup's answer can't be read");
                let mut found = self.lose(now, master, by);
                for by in self.calls.forget(&server) {
                    found |= self.lose(now, master, by);
                }
                found
            }
        }
    }

    /// A connection has ended, or could not be made.
    pub(super) fn handle_down(
        &mut self,
        now: Micros,
        master: &Master,
        wire: WireId,
        end: &WireEnd,
    ) -> bool {
        let Some(ended) = self.calls.handle_down(now, wire, end) else {
            return false;
        };
        if !ended.calls.is_empty() {
            tracing::debug!(backup = %ended.key, %end, "a backup did not answer");
        }
        let lost = ended.calls.into_iter();
        lost.fold(false, |found, by| found | self.lose(now, master, by))
    }

    /// Nothing will come of a request.
    fn lose(&mut self, now: Micros, master: &Master, by: FetchFor) -> bool {
        if mutants::active(Mutant::ForgetLostFetch) {
            return false;
        }
        self.answer(now, master, by, None)
    }

    fn answer(
        &mut self,
        now: Micros,
        master: &Master,
        by: FetchFor,
        read: Option<(BackupResponse, &[u8])>,
    ) -> bool {
        match by {
            FetchFor::Recovery(id) => {
                master.recoveries().handle_answer(now, id, read);
                false
            }
            FetchFor::Scrub => {
                self.is_scrubbing = false;
                master.handle_scrubbed(read.as_ref())
            }
        }
    }

    /// Without a recovery only the connection that scrubbing used last is kept.
    fn rest(&mut self, master: &Master) {
        if master.recoveries().is_idle() && self.own.is_empty() {
            let (calls, kept) = (&mut self.calls, self.scrubbed);
            let idle: Vec<ServerId> = calls.wires().keys().copied().collect();
            for server in idle.into_iter().filter(|server| *server != kept) {
                // What is under way was asked for a recovery that is gone.
                calls.forget(&server);
            }
        }
    }
}
