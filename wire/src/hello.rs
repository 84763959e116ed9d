//! The three envelopes that open a connection: protocol version, cluster id, and a shared-key
//! challenge in both directions.
//!
//! ```text
//! connecting side                      accepting side
//!   Hello { cluster, nonce_c, .. }  ->
//!                                   <- Welcome { cluster, nonce_s, mac = M(accepting) }
//!   Proof { mac = M(connecting) }   ->
//! ```
//! M(side) is keyed BLAKE3, under the cluster's shared key, of the side's label and all that both sides
//! have said: see [`mac`]. Without a key both macs are zero, and only loopback is talked to. The protocol
//! version is in every header.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Party};

/// The shared key of a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey(pub [u8; 32]);

impl std::fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

impl SharedKey {
    /// The key made from the contents of a key file: at least 16 bytes after trimming white space.
    #[must_use]
    pub fn from_file_contents(contents: &[u8]) -> Option<Self> {
        let trimmed = contents.trim_ascii();
        (trimmed.len() >= Self::MIN_FILE_BYTES)
            .then(|| Self(blake3::derive_key("ramkeep shared key file v1", trimmed)))
    }

    /// Fewest bytes a key file may hold.
    pub const MIN_FILE_BYTES: usize = 16;
}

/// Opens a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster the sender belongs to; zero when it doesn't know yet.
    pub cluster: ClusterId,
    /// Who connects; `NONE` for one without an id yet.
    pub from: Party,
    /// Whom it means to reach; `NONE` when any will do.
    pub to: Party,
    /// Fresh random bytes.
    pub nonce: [u8; 16],
}

/// Answers a hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster the accepting side belongs to; zero when it doesn't know yet.
    pub cluster: ClusterId,
    /// Who accepts.
    pub party: Party,
    /// Fresh random bytes.
    pub nonce: [u8; 16],
    /// Proof that the accepting side has the key.
    pub mac: [u8; 32],
}

/// Ends the challenge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Proof that the connecting side has the key.
    pub mac: [u8; 32],
}

/// Why a side closes the connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Another protocol version; names the one spoken here.
    #[error("the peer speaks protocol version {0}")]
    Version(u16),
    /// Another cluster.
    #[error("the peer belongs to cluster {0}")]
    Cluster(ClusterId),
    /// The shared keys differ, or one side has none.
    #[error("the peer does not share this cluster's key")]
    Key,
    /// Meant for another process (a restarted server is a new one).
    #[error("the peer is {0:?}")]
    Party(Party),
    /// Too many connections.
    #[error("the peer takes no more connections")]
    Busy,
    /// The envelope was not one.
    #[error("the peer could not read what it was sent: {0}")]
    Malformed(String),
    /// The process is stopping.
    #[error("the peer is stopping")]
    Stopping,
    /// One side does not know its cluster yet, and only coordinators are asked by such, or ask.
    #[error("one of the two sides does not know its cluster yet")]
    NoCluster,
}

/// Which side a mac speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Connecting,
    /// The one that accepted.
    Accepting,
}

/// The mac of one side over the whole exchange: everything in `hello` and, but for its mac, in
/// `welcome`. Zero without a key.
#[must_use]
pub fn mac(key: Option<&SharedKey>, side: Side, hello: &Hello, welcome: &Welcome) -> [u8; 32] {
    let Some(key) = key else { return [0; 32] };
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(match side {
        Side::Connecting => b"ramkeep hello: connecting",
        Side::Accepting => b"ramkeep hello: accepting ",
    });
    hasher.update(&hello.nonce);
    hasher.update(&welcome.nonce);
    hasher.update(&hello.cluster.0);
    hasher.update(&welcome.cluster.0);
    hasher.update(&hello.from.0.to_le_bytes());
    hasher.update(&hello.to.0.to_le_bytes());
    hasher.update(&welcome.party.0.to_le_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ServerId;

    #[test]
    fn a_mac_covers_all_that_both_sides_said() {
        let key = SharedKey([1; 32]);
        let hello = Hello {
            cluster: ClusterId([2; 16]),
            from: Party::server(ServerId(3)),
            to: Party::server(ServerId(4)),
            nonce: [5; 16],
        };
        let welcome = Welcome {
            cluster: ClusterId([2; 16]),
            party: Party::server(ServerId(4)),
            nonce: [6; 16],
            mac: [0; 32],
        };
        let (cluster, party, nonce) = (ClusterId([9; 16]), Party::NONE, [9; 16]);
        let mut exchanges = vec![(hello.clone(), welcome.clone())];
        let others = [
            Hello {
                cluster,
                ..hello.clone()
            },
            Hello {
                from: party,
                ..hello.clone()
            },
            Hello {
                to: party,
                ..hello.clone()
            },
            Hello {
                nonce,
                ..hello.clone()
            },
        ];
        exchanges.extend(others.map(|other| (other, welcome.clone())));
        let others = [
            Welcome {
                cluster,
                ..welcome.clone()
            },
            Welcome {
                party,
                ..welcome.clone()
            },
            Welcome {
                nonce,
                ..welcome.clone()
            },
        ];
        exchanges.extend(others.map(|other| (hello.clone(), other)));
        let macs: std::collections::BTreeSet<[u8; 32]> = exchanges
            .iter()
            .flat_map(|(hello, welcome)| {
                [Side::Connecting, Side::Accepting]
                    .map(|side| mac(Some(&key), side, hello, welcome))
            })
            .collect();
        assert_eq!(macs.len(), 2 * exchanges.len());
        assert_eq!(mac(None, Side::Accepting, &hello, &welcome), [0; 32]);
    }
}
