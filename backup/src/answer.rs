//! What a backup answers to an envelope: replication, and what is asked beside it.
//!
//! # Invariants
//! 1. Only what is meant for this server is looked at; until it knows who it is, nothing is (SAFETY 6).
//! 2. What is left of an earlier connection of a master changes nothing: the number of the connection
//!    is the correlation of what it sends to change its replicas.

use std::fmt::Display;

use ramkeep_wire::backup::BackupRequest;
use ramkeep_wire::envelope::{self, Envelope, Header, Kind};
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::replicate::Replicate;
use ramkeep_wire::{Micros, Party, ServerId, postcards};

use crate::core::Backup;
use crate::store::FrameStore;

/// The kinds of envelopes that a backup answers.
pub const KINDS: &[Kind] = &[Kind::Replicate, Kind::BackupRequest];

impl<S: FrameStore> Backup<S> {
    /// Answers an envelope of [`KINDS`] that came at `now`: appends the reply to `out`.
    ///
    /// # Errors
    /// A refusal closes the connection.
    pub fn answer(
        &mut self,
        now: Micros,
        envelope: &Envelope<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let header = &envelope.header;
        let own = self.server().map_or(Party::NONE, Party::server);
        let is_meant = own != Party::NONE && header.to == own;
        if !is_meant && !mutants::active(Mutant::IgnoreServerId) {
            return Err(Refusal::Party(own));
        }
        match header.kind {
            Kind::Replicate => self.answer_replicate(now, envelope, out),
            Kind::BackupRequest => self.answer_request(now, envelope, out),
            other => Err(malformed(&format_args!("{other:?} sent to a backup"))),
        }
    }

    fn answer_replicate(
        &mut self,
        now: Micros,
        envelope: &Envelope<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let header = &envelope.header;
        let Some(master) = header.from.as_server() else {
            return Err(malformed(&"replication from one that is no server"));
        };
        self.hear(now, master, header)?;
        let message = Replicate::read(envelope.payload).map_err(|error| malformed(&error))?;
        let ack = self.handle_replicate(now, master, &message);
        envelope::append(out, header.reply(Kind::ReplicateAck), &ack.to_bytes());
        Ok(())
    }

    fn answer_request(
        &mut self,
        now: Micros,
        envelope: &Envelope<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Refusal> {
        let header = &envelope.header;
        let request: BackupRequest =
            postcards::decode(envelope.payload).map_err(|error| malformed(&error))?;
        if let BackupRequest::Free { master, .. } = request {
            self.hear(now, master, header)?;
        }
        let answer = self.handle_request(now, header.from, request);
        let start = envelope::begin(out, header.reply(Kind::BackupResponse));
        out.extend_from_slice(&postcards::encode(&answer.response));
        out.extend_from_slice(answer.bytes);
        envelope::seal(out, start);
        Ok(())
    }

    /// Refuses what is left of an earlier connection of the master.
    fn hear(&mut self, now: Micros, master: ServerId, header: &Header) -> Result<(), Refusal> {
        if header.from == Party::server(master) && !self.hears(now, master, header.correlation) {
            return Err(malformed(
                &"it came over a connection that another has replaced",
            ));
        }
        Ok(())
    }
}

fn malformed(what: &dyn Display) -> Refusal {
    Refusal::Malformed(what.to_string())
}
