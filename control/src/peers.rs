//! Finding the leader: whom to ask, and what an answer says about who leads. Clients, servers and the
//! command line follow the same rules.
//!
//! # Invariants
//! 1. A coordinator keeps its number as long as it is listed, and no other ever gets that number.
//! 2. What a leader says of the group takes the place of what was known, unless an earlier one of a later
//!    generation said more (SAFETY 28). Addresses that this process was started with stay, but are
//!    tried only when none of the known members answers.
//! 3. An answer under a lower ballot than one that was taken before is not taken.
//! 4. Between two rests at most as many are left as are known: two that name each other as the
//!    leader don't keep the asker busy, and a group without a leader is asked at a bounded pace.
//! 5. One that was silent is asked again only after [`AVOID`], unless all others are like that.

use std::time::Duration;

use ramkeep_rpc::Identity;
use ramkeep_wire::coordinator::{Answer, GroupFacts, Refused, Response};
use ramkeep_wire::limits::MAX_COORDINATORS;
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Ballot, ClusterId, Micros};

/// A coordinator that owes an answer, or a connection, for this long is given up for the next.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// One that was silent is not asked again for this long while others are known, though they name it
/// as the leader: with [`PATIENCE`], longer than they take to elect another. Nor much longer: it may
/// have been slow only.
pub const AVOID: Duration = Duration::from_millis(300);
/// Longest rest before all are asked anew while some say that they don't lead.
pub const ELECTION_REST: Duration = Duration::from_millis(20);
/// First rest after all were asked in vain; each further one is twice as long.
const FIRST_REST: Duration = Duration::from_millis(1);
/// Longest rest while none answers.
const LONGEST_REST: Duration = Duration::from_millis(128);
/// Rest while nobody answers but coordinators of another cluster: that may last.
const FOREIGN_REST: Duration = Duration::from_secs(1);
/// Enough to get from the first to the longest.
const MAX_DOUBLINGS: u32 = 7;

const _: () = assert!(FIRST_REST.as_millis() << MAX_DOUBLINGS == LONGEST_REST.as_millis());

#[derive(Debug)]
struct Peer {
    number: usize,
    address: String,
    /// This process was started with it.
    configured: bool,
    /// The leader names it.
    member: bool,
    /// It did not answer, since the leader answered last.
    silent: bool,
    /// Of the process that its connection leads to, as far as that knew it.
    cluster: ClusterId,
    /// Since when a connection is being opened.
    connecting: Option<Micros>,
    avoided_until: Micros,
    /// Why it was left, since the leader answered last.
    trouble: Option<String>,
}

/// The coordinators that a process knows, and the one whose turn it is.
#[derive(Debug)]
pub struct Peers {
    identity: Identity,
    all: Vec<Peer>,
    /// So many numbers were given.
    numbers: usize,
    /// The group as the leader says.
    known: Option<GroupFacts>,
    /// Those that are listed no more, whose connections are to be closed.
    gone: Vec<usize>,
    /// Another cluster was met where the coordinators are, since the leader answered last.
    foreign: Option<ClusterId>,
    current: usize,
    /// The last one taken in turn, not on another's word.
    turn: usize,
    resting: Option<Micros>,
    /// When [`Peers::ready`] named the current one last.
    looked: Micros,
    /// How many were left since the last rest.
    left: usize,
    rests: u32,
    /// One of those said that it does not lead: an election may be under way.
    answered: bool,
    /// The highest under which an answer was taken.
    ballot: Ballot,
    trouble: Option<String>,
}

impl Peers {
    /// At these addresses, for this process.
    #[must_use]
    pub fn new(identity: Identity, addresses: Vec<String>) -> Self {
        let mut peers = Self {
            identity,
            all: Vec::new(),
            numbers: 0,
            known: None,
            gone: Vec::new(),
            foreign: None,
            current: 0,
            turn: 0,
            resting: None,
            looked: Micros(0),
            left: 0,
            rests: 0,
            answered: false,
            ballot: Ballot::default(),
            trouble: None,
        };
        for address in addresses {
            peers.add(address).configured = true;
        }
        peers
    }

    fn add(&mut self, address: String) -> &mut Peer {
        let number = self.numbers;
        self.numbers += 1;
        self.all.push(Peer::new(number, address));
        self.all.last_mut().expect("it was just put there")
    }

    fn get(&self, number: usize) -> Option<&Peer> {
        self.all.iter().find(|peer| peer.number == number)
    }

    fn get_mut(&mut self, number: usize) -> Option<&mut Peer> {
        self.all.iter_mut().find(|peer| peer.number == number)
    }

    /// Whose turn it is.
    #[must_use]
    pub fn current(&self) -> usize {
        self.current
    }

    /// The highest ballot under which an answer was taken.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// Where the coordinator of this number listens.
    #[must_use]
    pub fn address(&self, peer: usize) -> Option<&String> {
        self.get(peer).map(|peer| &peer.address)
    }

    /// What each one said that was asked in vain since the leader answered last.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// The leader answers, but not as wished.
    pub fn set_trouble(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    /// Whether the current one can be sent to.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        let connecting = |peer: &Peer| peer.connecting.is_some();
        self.resting.is_none() && !self.get(self.current).is_none_or(connecting)
    }

    /// The current one, if it can be sent to.
    pub fn ready(&mut self, now: Micros) -> Option<usize> {
        self.looked = now;
        self.is_usable().then_some(self.current)
    }

    /// A connection to this one is being opened, since it was ready.
    pub fn connecting(&mut self, peer: usize) {
        let looked = self.looked;
        if let Some(peer) = self.get_mut(peer) {
            peer.connecting = Some(looked);
        }
    }

    /// The connection that was being opened is up, to a process of this cluster.
    pub fn link_up(&mut self, peer: usize, cluster: ClusterId) {
        self.ended_connecting(peer);
        if let Some(peer) = self.get_mut(peer) {
            peer.cluster = cluster;
        }
        if peer == self.current {
            self.resting = None;
        }
    }

    /// The connection to this one broke or could not be made. Returns whether it was the current
    /// one, and is left.
    pub fn link_down(&mut self, now: Micros, peer: usize, reason: &str) -> bool {
        self.ended_connecting(peer);
        self.is_silent(peer);
        self.leave(now, peer, now + ELECTION_REST, reason)
    }

    /// A process of this cluster was met where a coordinator is.
    pub fn met(&mut self, cluster: ClusterId) {
        let known = [ClusterId::default(), self.identity.cluster()];
        if !known.contains(&cluster) {
            self.foreign = Some(cluster);
        }
    }

    /// The cluster that was met where the coordinators of this process's own were, as long as none of
    /// those answers as the leader.
    #[must_use]
    pub fn foreign(&self) -> Option<ClusterId> {
        self.foreign
    }

    /// One that is listed no more: its connection is to be closed.
    pub fn pop_gone(&mut self) -> Option<usize> {
        self.gone.pop()
    }

    /// This side has closed the connection to this one, or the attempt to open it.
    pub fn link_closed(&mut self, peer: usize) {
        self.ended_connecting(peer);
    }

    fn ended_connecting(&mut self, peer: usize) {
        if let Some(peer) = self.get_mut(peer) {
            peer.connecting = None;
        }
    }

    fn is_silent(&mut self, peer: usize) {
        if let Some(peer) = self.get_mut(peer) {
            peer.silent = true;
        }
    }

    /// The socket takes no more.
    pub fn rest(&mut self, until: Micros) {
        self.resting = Some(until);
    }

    /// Whether an answer comes from this process's cluster. The first leader that answers says which that
    /// is: whoever else is met at a known address may be of any.
    pub fn is_ours(&mut self, peer: usize, response: &Response) -> bool {
        let Some(cluster) = self.get(peer).map(|peer| peer.cluster) else {
            return false;
        };
        let ours = match response.answer {
            Answer::Refused(Refused::NotLeader { .. })
                if !mutants::active(Mutant::JoinOnAnyWord) =>
            {
                self.identity.may_join(cluster)
            }
            _ => self.identity.join(cluster),
        };
        if !ours {
            self.met(cluster);
        }
        ours
    }

    /// Takes what an answer of this coordinator says about who leads. Returns whether it is the
    /// leader's; else the request is to be made again.
    pub fn judge(&mut self, now: Micros, peer: usize, response: &Response) -> bool {
        let older = response.ballot < self.ballot;
        let stale = older && !mutants::active(Mutant::TakeOldBallot);
        if let Some(peer) = self.get_mut(peer) {
            peer.silent = false;
        }
        match &response.answer {
            Answer::Refused(Refused::NotLeader {
                leader,
                coordinators,
                why,
            }) => {
                // It may know a ballot under which nobody leads: that is not held against others.
                let leader = leader.as_deref().filter(|_| !stale);
                for address in coordinators.iter().map(String::as_str).chain(leader) {
                    self.learn(address, MAX_COORDINATORS);
                }
                if peer == self.current {
                    self.redirect(now, leader, why.as_deref());
                }
                false
            }
            _ if stale => {
                self.leave(now, peer, now, "it follows a leader that was replaced");
                false
            }
            _ => {
                self.ballot = response.ballot;
                self.current = peer;
                self.recover();
                if let Some(facts) = &response.group {
                    self.replace(facts);
                }
                true
            }
        }
    }

    /// Takes what an answer says of the group that answers nothing any more: it is said once.
    pub fn hear_facts(&mut self, peer: usize, response: &Response) {
        let ours = |peer: &Peer| peer.cluster == self.identity.cluster();
        let known = self.get(peer).is_some_and(ours);
        if let Some(facts) = &response.group
            && known
            && response.ballot >= self.ballot
        {
            self.replace(facts);
        }
    }

    /// The leader says who the coordinators are: what was known before counts no more. Whoever this
    /// process was started with stays, and the one that says so.
    fn replace(&mut self, facts: &GroupFacts) {
        let older = |known: &GroupFacts| facts.generation < known.generation;
        if self.known.as_ref().is_some_and(older) {
            return;
        }
        let named = |peer: &Peer| facts.coordinators.contains(&peer.address);
        let current = self.current;
        self.all
            .iter_mut()
            .for_each(|peer| peer.member = named(peer));
        if !mutants::active(Mutant::OnlyLearnCoordinators) {
            let gone = self.all.extract_if(.., |peer| {
                !peer.member && !peer.configured && peer.number != current
            });
            self.gone.extend(gone.map(|peer| peer.number));
        }
        for address in facts.coordinators.iter().take(MAX_COORDINATORS) {
            self.learn(address, 2 * MAX_COORDINATORS);
            if let Some(peer) = self.number(address).and_then(|number| self.get_mut(number)) {
                peer.member = true;
            }
        }
        self.known = Some(facts.clone());
    }

    fn learn(&mut self, address: &str, most: usize) {
        let room = self.all.len() < most;
        if room && !address.is_empty() && self.number(address).is_none() {
            self.add(address.to_owned());
        }
    }

    fn number(&self, address: &str) -> Option<usize> {
        let found = self.all.iter().find(|peer| peer.address == address);
        found.map(|peer| peer.number)
    }

    /// The current one does not lead: on to the one that it names, or to the next.
    fn redirect(&mut self, now: Micros, leader: Option<&str>, why: Option<&str>) {
        self.answered = true;
        let named = leader.and_then(|address| self.number(address));
        let fit = |&number: &usize| {
            let rested = |peer: &Peer| peer.avoided_until <= now;
            number != self.current && self.get(number).is_some_and(rested)
        };
        let named = named.filter(fit);
        match why {
            None => self.go(now, named, "it does not lead"),
            Some(why) => self.go(now, named, &format!("it does not lead: {why}")),
        }
    }

    /// This one is silent: if it is the current one, on to the next, and not back soon.
    pub fn give_up(&mut self, now: Micros, peer: usize, reason: &str) {
        self.is_silent(peer);
        self.leave(now, peer, now + AVOID, reason);
    }

    fn leave(&mut self, now: Micros, peer: usize, avoid: Micros, reason: &str) -> bool {
        let is_current = peer == self.current;
        if is_current {
            if let Some(peer) = self.get_mut(peer) {
                peer.avoided_until = peer.avoided_until.max(avoid);
            }
            self.go(now, None, reason);
        }
        is_current
    }

    fn go(&mut self, now: Micros, named: Option<usize>, reason: &str) {
        if let Some(peer) = self.get_mut(self.current) {
            peer.trouble = Some(reason.to_owned());
        }
        self.trouble = Some(self.troubles());
        self.current = match named {
            Some(peer) => peer,
            None => self.take_turn(now),
        };
        self.left += 1;
        let wide = self.none_answers();
        let in_turn = self.all.iter().filter(|peer| wide || self.counts(peer));
        if self.left >= in_turn.count() && !mutants::active(Mutant::RedirectWithoutRest) {
            self.left = 0;
            self.rests += 1;
            let longest = if self.answered {
                ELECTION_REST
            } else {
                LONGEST_REST
            };
            self.answered = false;
            let doubled = FIRST_REST * 2_u32.pow((self.rests - 1).min(MAX_DOUBLINGS));
            let alone = self.foreign.is_some() && doubled == LONGEST_REST;
            let rest = if alone {
                FOREIGN_REST
            } else {
                doubled.min(longest)
            };
            self.resting = Some(now + rest);
        }
    }

    fn take_turn(&mut self, now: Micros) -> usize {
        let (count, wide) = (self.all.len(), self.none_answers());
        let last = self.all.iter().position(|peer| peer.number == self.turn);
        let in_order = (1..=count).map(|step| &self.all[(last.unwrap_or(0) + step) % count]);
        let others = in_order.filter(|peer| peer.number != self.current);
        let others = || others.clone().filter(|peer| wide || self.counts(peer));
        let fit = others().find(|peer| peer.avoided_until <= now);
        let next = fit.or_else(|| others().next()).map(|peer| peer.number);
        self.turn = next.unwrap_or(self.current);
        self.turn
    }

    /// Whether one is asked in turn as long as any such one answers.
    fn counts(&self, peer: &Peer) -> bool {
        self.known.is_none() || peer.member || !peer.configured
    }

    /// None of those who count has answered, since the leader answered last.
    fn none_answers(&self) -> bool {
        let mut counted = self.all.iter().filter(|peer| self.counts(peer));
        counted.all(|peer| peer.silent)
    }

    fn troubles(&self) -> String {
        let said = |peer: &Peer| {
            let trouble = peer.trouble.as_ref()?;
            Some(format!("coordinator {}: {trouble}", peer.address))
        };
        let all: Vec<_> = self.all.iter().filter_map(said).collect();
        all.join("; ")
    }

    /// The current one answers as the leader does.
    fn recover(&mut self) {
        self.turn = self.current;
        self.foreign = None;
        if self.trouble.is_none() && self.left == 0 && self.rests == 0 {
            return;
        }
        (self.left, self.rests, self.answered) = (0, 0, false);
        self.trouble = None;
        for peer in &mut self.all {
            (peer.trouble, peer.silent) = (None, false);
        }
    }

    /// Lets time pass. Returns whether the current one was left, as it takes too long to connect.
    pub fn tick(&mut self, now: Micros) -> bool {
        if self.resting.is_some_and(|until| until <= now) {
            self.resting = None;
        }
        let late = self.connecting_until().is_some_and(|until| until <= now);
        if late {
            self.give_up(now, self.current, "no connection in time");
        }
        late
    }

    /// When [`Peers::tick`] has something to do.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Micros> {
        self.resting.or_else(|| self.connecting_until())
    }

    fn connecting_until(&self) -> Option<Micros> {
        if self.resting.is_some() {
            return None;
        }
        let since = self.get(self.current)?.connecting?;
        Some(since + PATIENCE)
    }
}

impl Peer {
    fn new(number: usize, address: String) -> Self {
        Self {
            number,
            address,
            configured: false,
            member: false,
            silent: false,
            cluster: ClusterId::default(),
            connecting: None,
            avoided_until: Micros(0),
            trouble: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramkeep_wire::PeerId;

    const NOW: Micros = Micros(1_000_000);

    fn peers() -> Peers {
        Peers::new(
            Identity::new(None),
            ["a", "b", "c"].map(str::to_owned).to_vec(),
        )
    }

    fn under(round: u64, answer: Answer) -> Response {
        let peer = PeerId(1);
        let ballot = Ballot { round, peer };
        Response::new(ballot, answer)
    }

    fn led(round: u64) -> Response {
        under(round, Answer::Map(None))
    }

    fn elsewhere(round: u64, leader: Option<&str>) -> Response {
        let refused = Refused::NotLeader {
            leader: leader.map(str::to_owned),
            coordinators: Vec::new(),
            why: None,
        };
        under(round, Answer::Refused(refused))
    }

    #[test]
    fn an_old_leader_is_not_believed_neither_what_it_says_nor_whom_it_names() {
        let mut peers = peers();
        assert!(peers.judge(NOW, 2, &led(5)));
        assert_eq!(peers.current(), 2);
        assert!(!peers.judge(NOW, 2, &led(4)));
        assert_eq!(peers.current(), 0);
        assert!(!peers.judge(NOW, 0, &elsewhere(4, Some("c"))));
        assert_eq!(peers.current(), 1);
        assert!(peers.judge(NOW, 1, &led(6)));
    }

    #[test]
    fn a_ballot_that_nobody_leads_under_does_not_discredit_the_leader() {
        let mut peers = peers();
        assert!(!peers.judge(NOW, 0, &elsewhere(9, Some("b"))));
        assert_eq!(peers.current(), 1);
        assert!(peers.judge(NOW, 1, &led(5)));
    }

    #[test]
    fn an_answer_from_before_is_no_reason_to_leave_the_present_one() {
        let mut peers = peers();
        assert!(peers.link_down(NOW, 0, "broken"));
        assert!(!peers.judge(NOW, 0, &elsewhere(1, Some("c"))));
        peers.give_up(NOW, 0, "silent");
        assert!(!peers.link_down(NOW, 0, "broken"));
        assert_eq!(peers.current(), 1);
        // But the leader is the leader, however late it says so.
        assert!(peers.judge(NOW, 0, &led(1)));
        assert_eq!((peers.current(), peers.trouble()), (0, None));
    }

    #[test]
    fn trouble_names_what_each_one_said() {
        let mut peers = peers();
        peers.link_down(NOW, 0, "connection refused");
        peers.judge(NOW, 1, &elsewhere(1, None));
        peers.give_up(NOW, 2, "no answer");
        let trouble = peers.trouble().unwrap();
        let said = [
            "coordinator a: connection refused",
            "coordinator b: it does not lead",
            "coordinator c: no answer",
        ];
        assert_eq!(trouble, said.join("; "));
        assert_eq!((peers.ready(NOW), peers.is_usable()), (None, false));
    }

    #[test]
    fn rests_grow_while_none_answers_and_stay_short_while_some_do() {
        for (answers, longest) in [(false, LONGEST_REST), (true, ELECTION_REST)] {
            let (mut peers, mut now) = (peers(), NOW);
            let mut rests = Vec::new();
            while rests.len() < 12 {
                let current = peers.current();
                if answers {
                    peers.judge(now, current, &elsewhere(1, None));
                } else {
                    peers.link_down(now, current, "broken");
                }
                if let Some(until) = peers.next_timeout() {
                    rests.push(until.since(now));
                    now = until;
                    peers.tick(now);
                }
            }
            assert!(rests.is_sorted() && rests[0] == FIRST_REST, "{rests:?}");
            assert_eq!(rests.last(), Some(&longest));
        }
    }

    #[test]
    fn one_alone_is_asked_again_after_each_rest() {
        let mut peers = Peers::new(Identity::new(None), vec!["a".to_owned()]);
        peers.give_up(NOW, 0, "no answer");
        assert_eq!(peers.ready(NOW), None);
        let until = peers.next_timeout().unwrap();
        peers.tick(until);
        assert_eq!(peers.ready(until), Some(0));
        assert!(
            Peers::new(Identity::new(None), Vec::new())
                .ready(NOW)
                .is_none()
        );
    }
}
