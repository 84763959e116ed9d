//! Certificates: what proves a replica's contents to one who has the master's key.
//!
//! Keyed BLAKE3 (SAFETY 16) over the segment's contents followed by a fixed trailer that names
//! cluster, master, segment, kind, epoch, length and closed. The key is random, one per master,
//! lives in the coordinator's state, and no backup ever has it: who only holds bytes can neither
//! forge nor splice. Contents come first so that appending hashes only the appended bytes; the
//! trailer has a fixed length and holds the contents' length, so no two inputs collide by shifting.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bytes::{Reader, Short, Writer};
use crate::ids::{ClusterId, ReplicationEpoch, SegmentId, ServerId, TableId};

/// Algorithm tag of keyed BLAKE3, 32 bytes.
pub const BLAKE3_KEYED: u8 = 1;

/// Random key of one master.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateKey(pub [u8; 32]);

impl CertificateKey {
    /// A hash of an object's key that nobody can choose keys for who does not have this one.
    #[must_use]
    pub fn fingerprint(&self, table: TableId, key: &[u8]) -> u128 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&table.0.to_le_bytes()).update(key);
        let hash = hasher.finalize();
        let half = hash.as_bytes().first_chunk().expect("it has 32 bytes");
        u128::from_le_bytes(*half)
    }
}

impl fmt::Debug for CertificateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateKey(..)")
    }
}

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum SegmentKind {
    /// Was or is the log's head.
    Head = 1,
    /// Written by the cleaner.
    Survivor = 2,
    /// Outside the log until it is fused into it.
    Side = 3,
}

impl SegmentKind {
    /// The kind with this code.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Head),
            2 => Some(Self::Survivor),
            3 => Some(Self::Side),
            _ => None,
        }
    }
}

/// Algorithm tag and 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Certificate {
    /// [`BLAKE3_KEYED`], or 0 for none.
    pub algorithm: u8,
    /// The keyed hash.
    pub hash: [u8; 32],
}

impl Certificate {
    /// No certificate: what a replica has until its copy is complete.
    pub const NONE: Self = Self {
        algorithm: 0,
        hash: [0; 32],
    };
    /// Bytes on the wire and in frames.
    pub const LEN: usize = 33;

    /// Whether there is one.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.algorithm != 0
    }

    /// Appends it.
    pub fn write(&self, writer: &mut Writer<'_>) {
        writer.u8(self.algorithm);
        writer.put(&self.hash);
    }

    /// Reads one. Unknown algorithms are kept, so that they can be named when they don't fit.
    pub fn read(reader: &mut Reader<'_>) -> Result<Self, Short> {
        Ok(Self {
            algorithm: reader.u8()?,
            hash: reader.array()?,
        })
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_some() {
            return f.write_str("no certificate");
        }
        write!(f, "certificate {}:", self.algorithm)?;
        self.hash[..4]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a certificate says about the contents it was made over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The cluster.
    pub cluster: ClusterId,
    /// Whose log.
    pub master: ServerId,
    /// Which segment of it.
    pub segment: SegmentId,
    /// What for.
    pub kind: SegmentKind,
    /// The replication epoch of the replica.
    pub epoch: ReplicationEpoch,
    /// Bytes of contents.
    pub length: u32,
    /// Nothing follows these bytes.
    pub closed: bool,
}

const TRAILER_LEN: usize = 16 + 8 + 8 + 1 + 4 + 4 + 1;

impl Claim {
    /// The claim of a closed segment. It names epoch 0: a closed replica can't be outdated by a
    /// change of backups, and the digest of the next head names its certificate once and for all.
    #[must_use]
    pub fn closed(
        cluster: ClusterId,
        master: ServerId,
        segment: SegmentId,
        kind: SegmentKind,
        length: u32,
    ) -> Self {
        Self {
            cluster,
            master,
            segment,
            kind,
            epoch: ReplicationEpoch(0),
            length,
            closed: true,
        }
    }

    fn trailer(&self) -> [u8; TRAILER_LEN] {
        let mut bytes = [0; TRAILER_LEN];
        let mut writer = Writer::new(&mut bytes);
        writer.put(&self.cluster.0);
        writer.u64(self.master.0);
        writer.u64(self.segment.0);
        writer.u8(self.kind as u8);
        writer.u32(self.epoch.0);
        writer.u32(self.length);
        writer.u8(u8::from(self.closed));
        bytes
    }
}

/// Hashes a segment as it grows.
#[derive(Clone)]
pub struct Certifier {
    hasher: blake3::Hasher,
    length: u32,
}

impl fmt::Debug for Certifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certifier({} bytes)", self.length)
    }
}

impl Certifier {
    /// Over no bytes yet.
    #[must_use]
    pub fn new(key: &CertificateKey) -> Self {
        Self {
            hasher: blake3::Hasher::new_keyed(&key.0),
            length: 0,
        }
    }

    /// Adds the bytes that follow.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.length += u32::try_from(bytes.len()).expect("a segment's length fits u32");
    }

    /// Bytes hashed so far.
    #[must_use]
    pub fn length(&self) -> u32 {
        self.length
    }

    /// The certificate of `claim` over the bytes so far; its length must be theirs.
    #[must_use]
    pub fn certify(&self, claim: &Claim) -> Certificate {
        assert_eq!(
            claim.length, self.length,
            "a certificate covers just the bytes hashed"
        );
        let mut hasher = self.hasher.clone();
        hasher.update(&claim.trailer());
        Certificate {
            algorithm: BLAKE3_KEYED,
            hash: *hasher.finalize().as_bytes(),
        }
    }
}

/// Whether `certificate` proves `claim` over `contents`.
#[must_use]
pub fn verify(
    key: &CertificateKey,
    claim: &Claim,
    contents: &[u8],
    certificate: &Certificate,
) -> bool {
    if certificate.algorithm != BLAKE3_KEYED || contents.len() != claim.length as usize {
        return false;
    }
    let mut certifier = Certifier::new(key);
    certifier.update(contents);
    // blake3::Hash compares in constant time.
    blake3::Hash::from_bytes(certifier.certify(claim).hash)
        == blake3::Hash::from_bytes(certificate.hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim() -> Claim {
        Claim {
            cluster: ClusterId([1; 16]),
            master: ServerId(2),
            segment: SegmentId(3),
            kind: SegmentKind::Head,
            epoch: ReplicationEpoch(4),
            length: 5,
            closed: false,
        }
    }

    #[test]
    fn a_certificate_fits_only_its_own_claim_and_contents() {
        let key = CertificateKey([9; 32]);
        let mut certifier = Certifier::new(&key);
        certifier.update(b"he");
        certifier.update(b"llo");
        let certificate = certifier.certify(&claim());
        assert!(verify(&key, &claim(), b"hello", &certificate));
        assert!(!verify(&key, &claim(), b"hellO", &certificate));
        assert!(!verify(
            &CertificateKey([8; 32]),
            &claim(),
            b"hello",
            &certificate
        ));
        let others = [
            Claim {
                cluster: ClusterId([2; 16]),
                ..claim()
            },
            Claim {
                master: ServerId(9),
                ..claim()
            },
            Claim {
                segment: SegmentId(9),
                ..claim()
            },
            Claim {
                kind: SegmentKind::Side,
                ..claim()
            },
            Claim {
                epoch: ReplicationEpoch(9),
                ..claim()
            },
            Claim {
                closed: true,
                ..claim()
            },
        ];
        for other in others {
            assert!(!verify(&key, &other, b"hello", &certificate), "{other:?}");
        }
    }
}
