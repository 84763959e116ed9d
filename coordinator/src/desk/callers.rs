//! Who asks: the connections that others made to this process, and the requests that wait for answers.
//!
//! # Invariants
//! 1. A reply goes to the session that asked, with the correlation of its request, or nowhere.
//! 2. A leader's answer says who the coordinators are, unless that session was told just that; and when they
//!    change, every session that was told before is told anew, also one that asks nothing (SAFETY 28).
//! 3. At most [`MAX_UNANSWERED`] requests of one session wait for their answer.

use std::collections::BTreeMap;

use ramkeep_wire::coordinator::{Answer, GroupFacts, Refused, Response};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::limits::{MAX_PAYLOAD, MAX_UNSENT};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Ballot, ClusterId, Party, ServerId, postcards};

use crate::limits::MAX_LIST_BYTES;

/// Requests of one session that are answered at the same time; more are left unread.
pub const MAX_UNANSWERED: usize = 48;

// The largest answers that are not given at once carry the server list.
const _: () = assert!(MAX_UNANSWERED * (MAX_LIST_BYTES + 1_024) <= 2 * MAX_UNSENT);

/// The correlation of what nobody asked for: no request has it.
const UNASKED: u64 = u64::MAX;

/// Names a connection that another process made to this one. Later ones have higher numbers, and none
/// comes twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// One connection.
#[derive(Debug)]
struct Session {
    /// Who said hello.
    party: Party,
    /// Of which cluster, as it said.
    cluster: ClusterId,
    /// Whose it is: as it said hello, or as its heartbeats say.
    server: Option<ServerId>,
    unanswered: usize,
    /// What it was told of the group last, and with which header.
    told: Option<(GroupFacts, Header)>,
}

/// A request without an answer yet.
#[derive(Debug)]
struct Asked {
    by: SessionId,
    /// Of the answer.
    header: Header,
}

/// All who ask.
#[derive(Debug, Default)]
pub(super) struct Callers {
    sessions: BTreeMap<SessionId, Session>,
    /// By token.
    asked: BTreeMap<u64, Asked>,
    last: u64,
}

impl Callers {
    pub(super) fn open(&mut self, id: SessionId, party: Party, cluster: ClusterId) {
        let session = Session {
            party,
            cluster,
            server: party.as_server(),
            unanswered: 0,
            told: None,
        };
        self.sessions.insert(id, session);
    }

    /// A session is over; the server whose it was, if it was one's.
    pub(super) fn close(&mut self, id: SessionId) -> Option<ServerId> {
        let session = self.sessions.remove(&id)?;
        self.asked.retain(|_, asked| asked.by != id);
        session.server
    }

    pub(super) fn party(&self, id: SessionId) -> Option<Party> {
        self.sessions.get(&id).map(|session| session.party)
    }

    pub(super) fn cluster(&self, id: SessionId) -> Option<ClusterId> {
        self.sessions.get(&id).map(|session| session.cluster)
    }

    pub(super) fn unanswered(&self, id: SessionId) -> usize {
        self.sessions
            .get(&id)
            .map_or(0, |session| session.unanswered)
    }

    /// Notes whose a session is.
    pub(super) fn is_of(&mut self, id: SessionId, server: ServerId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.server = Some(server);
        }
    }

    /// Takes a request; its token. `None`: the session is over.
    pub(super) fn ask(&mut self, by: SessionId, request: &Header) -> Option<u64> {
        self.sessions.get_mut(&by)?.unanswered += 1;
        self.last += 1;
        let header = request.reply(Kind::CoordinatorResponse);
        self.asked.insert(self.last, Asked { by, header });
        Some(self.last)
    }

    /// The envelope of an answer, and whose it is, if who asked is still there. `payload` says nothing of the
    /// group; `facts` are a leader's, and are told with it unless they were.
    pub(super) fn reply(
        &mut self,
        token: u64,
        payload: &[u8],
        facts: Option<GroupFacts>,
    ) -> Option<(SessionId, Vec<u8>)> {
        let Asked { mut by, header } = self.asked.remove(&token)?;
        if mutants::active(Mutant::AnswerTheNewest) {
            by = *self.sessions.last_key_value()?.0;
        }
        let session = self.sessions.get_mut(&by)?;
        session.unanswered = session.unanswered.saturating_sub(1);
        let told = session.told.as_ref().map(|(told, _)| told);
        let untold =
            facts.filter(|facts| told != Some(facts) && !mutants::active(Mutant::HideTheGroup));
        let telling = untold.map(|facts| (Response::telling(payload, &facts), facts));
        let mut payload = payload;
        if let Some((told, facts)) = &telling
            && told.len() <= MAX_PAYLOAD
        {
            session.told = Some((facts.clone(), header));
            payload = told;
        }
        let mut bytes = Vec::with_capacity(envelope::HEADER_LEN + payload.len());
        envelope::append(&mut bytes, header, payload);
        Some((by, bytes))
    }
}

impl Callers {
    /// What a session is told that asked before, and was not told this of the group; none if all were.
    pub(super) fn tell(
        &mut self,
        ballot: Ballot,
        facts: &GroupFacts,
    ) -> Option<(SessionId, Vec<u8>)> {
        let mut sessions = self.sessions.iter_mut();
        let behind = |session: &Session| matches!(&session.told, Some((told, _)) if told != facts);
        let (id, session) = sessions.find(|(_, session)| behind(session))?;
        let (told, header) = session.told.as_mut()?;
        told.clone_from(facts);
        let mut header = *header;
        header.correlation = UNASKED;
        let mut response = Response::new(ballot, Answer::Noted);
        response.group = Some(facts.clone());
        let mut bytes = Vec::new();
        envelope::append(&mut bytes, header, &postcards::encode(&response));
        Some((*id, bytes))
    }
}

/// The answer, or why there is none if it fits no envelope.
pub(super) fn encode(response: &Response) -> Vec<u8> {
    let payload = postcards::encode(response);
    if payload.len() <= MAX_PAYLOAD {
        return payload;
    }
    postcards::encode(&Response {
        ballot: response.ballot,
        answer: Answer::Refused(Refused::Limit("an answer's size".into())),
        group: response.group.clone(),
    })
}
