//! What peers say to each other. Any of it may be lost, repeated, delayed or reordered.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{Ballot, Entry, Group, GroupId, Incarnation, PeerId, Slot, Time};

/// A message with who says it to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender's group, if it has one.
    pub group: Option<GroupId>,
    /// The sender.
    pub from: PeerId,
    /// Of the sender's disk.
    pub incarnation: Incarnation,
    /// The receiver.
    pub to: PeerId,
    /// What it says.
    pub body: Body,
}

/// An entry that an acceptor reports to a new leader.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reported {
    /// In which slot.
    pub slot: Slot,
    /// Under which ballot it was accepted.
    pub ballot: Ballot,
    /// What.
    pub entry: Entry,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Body {
    /// One without a group asks whether there is one.
    Ask {
        /// Where it is reached: who joins is in nobody's list.
        address: String,
    },
    /// To `Ask`: the sender has no group either.
    Fresh {
        /// The disk of the one who asked: answers to an earlier life don't count.
        asker: Incarnation,
    },
    /// To `Ask`, or to one who is not a member: the group.
    Grouped {
        /// As far as the sender knows.
        group: Group,
    },
    /// One who is not a member learns, and wants to become one.
    Join {
        /// Where it is reached.
        address: String,
        /// Its last decided slot.
        decided: Slot,
    },
    /// Would you promise this ballot? Binds nobody.
    PreVote {
        /// The ballot that the sender would use.
        ballot: Ballot,
    },
    /// To `PreVote`.
    PreVoted {
        /// The one asked about.
        ballot: Ballot,
        /// Whether it would.
        yes: bool,
        /// The sender's last decided slot.
        decided: Slot,
    },
    /// Promise to take part in no lower ballot, and report what you accepted.
    Prepare {
        /// The sender's ballot.
        ballot: Ballot,
        /// Reports begin with this slot.
        from: Slot,
    },
    /// To `Prepare`: a promise, and one page of the report.
    Promise {
        /// The ballot promised.
        ballot: Ballot,
        /// The slot at which this page begins.
        from: Slot,
        /// What was accepted.
        accepted: Vec<Reported>,
        /// Where the next page begins; `None` when this is the last.
        next: Option<Slot>,
        /// Slots up to here can't be reported: only a snapshot has them.
        trimmed: Slot,
    },
    /// A ballot is refused.
    Nack {
        /// The one refused.
        ballot: Ballot,
        /// The one promised.
        promised: Ballot,
    },
    /// Accept these entries.
    Accept {
        /// The leader's ballot.
        ballot: Ballot,
        /// Slot of the first entry; the others follow.
        first: Slot,
        /// What.
        entries: Vec<Entry>,
        /// All slots up to here are decided.
        commit: Slot,
        /// When the leader sent it.
        stamp: Time,
    },
    /// To `Accept`: accepted and on the disk. Grants the leader its lease, as of `stamp`.
    Accepted {
        /// The leader's ballot.
        ballot: Ballot,
        /// First slot.
        first: Slot,
        /// Last slot.
        last: Slot,
        /// From the message that is answered.
        stamp: Time,
        /// The sender's last decided slot.
        decided: Slot,
    },
    /// The leader is there.
    Heartbeat {
        /// The leader's ballot.
        ballot: Ballot,
        /// All slots up to here are decided.
        commit: Slot,
        /// When the leader sent it.
        stamp: Time,
    },
    /// To `Heartbeat`. Grants the leader its lease, as of `stamp`.
    HeartbeatAck {
        /// The leader's ballot.
        ballot: Ballot,
        /// From the message that is answered.
        stamp: Time,
        /// The sender's last decided slot.
        decided: Slot,
    },
    /// Send what is decided.
    Learn {
        /// From this slot on.
        from: Slot,
        /// Bytes of the snapshot that the sender has of the receiver's, if one was begun.
        snapshot: Option<(Slot, u64)>,
    },
    /// To `Learn`: decided entries.
    Page {
        /// Slot of the first.
        first: Slot,
        /// Each with the ballot under which the sender has it.
        entries: Vec<(Ballot, Entry)>,
        /// The sender's last decided slot.
        decided: Slot,
    },
    /// To `Learn` when entries so old are gone: a part of a snapshot.
    SnapshotPage {
        /// The last slot in it.
        slot: Slot,
        /// Who the members are after that slot.
        group: Group,
        /// Bytes of the whole.
        total: u64,
        /// CRC-32C of the whole.
        crc: u32,
        /// Where this part begins.
        offset: u64,
        /// The part.
        bytes: Bytes,
        /// The sender's last decided slot.
        decided: Slot,
    },
    /// A member is not where the group has it.
    Moved {
        /// Where it is reached.
        address: String,
    },
    /// To the leader: a member has `Moved`, and the sender's configuration has it there, too.
    Called {
        /// Which.
        member: PeerId,
        /// Where.
        address: String,
    },
}
