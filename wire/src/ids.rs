//! Identities. Each is a newtype, so that one can't be passed where another is meant.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id!(
    /// A server process's identity, issued at enlistment and never reused. 0 means none.
    ServerId(u64), "server-");
id!(
    /// A table, issued by the coordinator and never reused. 0 means none.
    TableId(u32), "table-");
id!(
    /// A segment of one master. Ids of all kinds grow in creation order; 0 means none.
    SegmentId(u64), "segment-");
id!(
    /// A client that holds a client lease. 0 means none: its rpcs are not remembered.
    ClientId(u64), "client-");
id!(
    /// A client's call. 0 means an operation that need not be remembered.
    RpcId(u64), "rpc-");
id!(
    /// A coordinator process. 0 means none.
    PeerId(u32), "peer-");
id!(
    /// A version of one key's object. Grows, is never used twice; 0 means no object.
    Version(u64), "v");
id!(
    /// Outdates replicas of an open segment after its set of backups changed.
    ReplicationEpoch(u32), "epoch-");
id!(
    /// Version of the server list.
    ListVersion(u64), "list-");
id!(
    /// Version of the tables and tablets.
    MapVersion(u64), "map-");

impl Version {
    /// The version that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

macro_rules! opaque16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

opaque16!(
    /// The cluster, chosen at random when its first coordinator starts. All zero: not known yet.
    ClusterId);
opaque16!(
    /// The boot of the machine that a process runs on.
    BootId);

/// An ordered proposal number with its peer; also the fencing epoch of everything that the
/// coordinator says. Ordered by round, then by peer.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Ballot {
    /// Grows with each attempt to lead.
    pub round: u64,
    /// Who proposed.
    pub peer: PeerId,
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.round, self.peer)
    }
}

/// Who sent an envelope, or whom it is for: a server, a client, a coordinator, or not known yet.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Party(pub u64);

impl Party {
    /// Not known yet, or of no matter.
    pub const NONE: Self = Self(0);
    const TAG_SHIFT: u32 = 62;
    const CLIENT: u64 = 1;
    const COORDINATOR: u64 = 2;

    /// The server's party.
    #[must_use]
    pub fn server(id: ServerId) -> Self {
        Self(id.0)
    }

    /// The client's party.
    #[must_use]
    pub fn client(id: ClientId) -> Self {
        Self(Self::CLIENT << Self::TAG_SHIFT | id.0)
    }

    /// The coordinator's party.
    #[must_use]
    pub fn coordinator(id: PeerId) -> Self {
        Self(Self::COORDINATOR << Self::TAG_SHIFT | u64::from(id.0))
    }

    /// The server, if it is one.
    #[must_use]
    pub fn as_server(self) -> Option<ServerId> {
        (self.0 != 0 && self.0 >> Self::TAG_SHIFT == 0).then_some(ServerId(self.0))
    }

    /// The client, if it is one.
    #[must_use]
    pub fn as_client(self) -> Option<ClientId> {
        (self.0 >> Self::TAG_SHIFT == Self::CLIENT)
            .then_some(ClientId(self.0 & !(Self::CLIENT << Self::TAG_SHIFT)))
    }

    /// The coordinator, if it is one.
    #[must_use]
    pub fn as_coordinator(self) -> Option<PeerId> {
        if self.0 >> Self::TAG_SHIFT != Self::COORDINATOR {
            return None;
        }
        let id = self.0 & !(Self::COORDINATOR << Self::TAG_SHIFT);
        u32::try_from(id).ok().map(PeerId)
    }
}

impl fmt::Debug for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(id) = self.as_server() {
            write!(f, "{id:?}")
        } else if let Some(id) = self.as_client() {
            write!(f, "{id:?}")
        } else if let Some(id) = self.as_coordinator() {
            write!(f, "{id:?}")
        } else {
            write!(f, "nobody")
        }
    }
}

/// A place in a master's log: segment and offset in one integer, so that order is comparison.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct LogPosition(pub u64);

impl LogPosition {
    /// Before everything.
    pub const ZERO: Self = Self(0);
    const OFFSET_BITS: u32 = 24;

    /// The position at `offset` of `segment`; an offset may be the segment's end.
    #[must_use]
    pub fn new(segment: SegmentId, offset: u32) -> Self {
        debug_assert!(offset < 1 << Self::OFFSET_BITS);
        Self(segment.0 << Self::OFFSET_BITS | u64::from(offset))
    }

    /// The segment.
    #[must_use]
    pub fn segment(self) -> SegmentId {
        SegmentId(self.0 >> Self::OFFSET_BITS)
    }

    /// The offset in it.
    #[must_use]
    pub fn offset(self) -> u32 {
        (self.0 & ((1 << Self::OFFSET_BITS) - 1)) as u32
    }

    /// Bytes from an earlier position to this one, as far as this one's segment has them.
    #[must_use]
    pub fn bytes_since(self, earlier: Self) -> u32 {
        let is_same = earlier.segment() == self.segment();
        let from = if is_same { earlier.offset() } else { 0 };
        self.offset().saturating_sub(from)
    }
}

impl fmt::Debug for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}+{}", self.segment(), self.offset())
    }
}

const _: () = assert!(crate::limits::SEGMENT_SIZE < 1 << LogPosition::OFFSET_BITS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_keep_their_kind_apart() {
        assert_eq!(Party::server(ServerId(7)).as_server(), Some(ServerId(7)));
        assert_eq!(Party::server(ServerId(7)).as_client(), None);
        assert_eq!(Party::client(ClientId(7)).as_client(), Some(ClientId(7)));
        assert_eq!(Party::client(ClientId(7)).as_server(), None);
        assert_eq!(
            Party::coordinator(PeerId(2)).as_coordinator(),
            Some(PeerId(2))
        );
        assert_eq!(Party::coordinator(PeerId(2)).as_client(), None);
        assert_eq!(Party::NONE.as_server(), None);
        let beyond = Party(Party::coordinator(PeerId(2)).0 | 1 << 32);
        assert_eq!(beyond.as_coordinator(), None, "a peer's id has 32 bits");
    }

    #[test]
    fn positions_order_by_segment_then_offset() {
        let early = LogPosition::new(SegmentId(3), 8_388_608);
        let late = LogPosition::new(SegmentId(4), 0);
        assert!(early < late);
        assert_eq!((early.segment(), early.offset()), (SegmentId(3), 8_388_608));
    }
}
