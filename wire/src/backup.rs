//! What is asked of a backup beside replication. Postcard, but for the bytes of a fetch, which
//! follow the postcard part of the response.

use serde::{Deserialize, Serialize};

use crate::certificate::{Certificate, SegmentKind};
use crate::ids::{BootId, ReplicationEpoch, SegmentId, ServerId};
use crate::postcards::Malformed;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupRequest {
    /// The master frees its replicas of these segments, however old.
    Free {
        /// Whose: must be the sender.
        master: ServerId,
        /// Which.
        segments: Vec<SegmentId>,
    },
    /// What replicas of this master's segments are held? Answered in pages of at most
    /// `limits::MAX_INVENTORY` in order of segments; a shorter page is the last. For anyone but the
    /// master itself the backup must have fenced the master first.
    Inventory {
        /// Whose.
        master: ServerId,
        /// Only segments after this one.
        after: Option<SegmentId>,
    },
    /// Bytes of a replica.
    Fetch {
        /// Whose.
        master: ServerId,
        /// Which segment.
        segment: SegmentId,
        /// From where.
        offset: u32,
        /// How many at most; bounded by `limits::MAX_REPLICATE_BYTES`.
        length: u32,
    },
}

/// One replica as a backup holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaInfo {
    /// Whose.
    pub master: ServerId,
    /// Which segment.
    pub segment: SegmentId,
    /// What the segment is for.
    pub kind: SegmentKind,
    /// Its replication epoch.
    pub epoch: ReplicationEpoch,
    /// Bytes under the certificate.
    pub length: u32,
    /// Nothing follows.
    pub closed: bool,
    /// The certificate of those bytes.
    pub certificate: Certificate,
    /// The boot of the machine that wrote it last (SAFETY 14).
    pub boot: BootId,
    /// Written before this process started.
    pub inherited: bool,
}

/// The backup's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackupResponse {
    /// Done.
    Done,
    /// Complete replicas (copies under way are not shown).
    Inventory(Vec<ReplicaInfo>),
    /// The replica, and how many of its bytes follow this message in the payload.
    Bytes {
        /// As held.
        replica: ReplicaInfo,
        /// Bytes that follow.
        length: u32,
    },
    /// No such replica.
    Unknown,
    /// The master may still hold a lease granted here (SAFETY 5): ask again after this long.
    NotYet {
        /// How long, microseconds.
        wait_us: u64,
    },
    /// The request makes no sense, or is not the sender's to make.
    Refused(String),
}

impl BackupResponse {
    /// The response in a payload, and the bytes that follow it: as many as a `Bytes` names, none
    /// after any other.
    pub fn read(payload: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (response, rest) =
            postcard::take_from_bytes(payload).map_err(|error| Malformed(error.to_string()))?;
        let wanted = match &response {
            Self::Bytes { length, .. } => *length as usize,
            _ => 0,
        };
        if rest.len() == wanted {
            Ok((response, rest))
        } else {
            let found = rest.len();
            Err(Malformed(format!("{found} bytes follow, not {wanted}")))
        }
    }
}
