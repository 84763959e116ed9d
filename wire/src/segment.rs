//! Segments as bytes from elsewhere: unverified until their certificate fits, then iterable.
//!
//! # Invariants
//! 1. The entries of a [`VerifiedSegment`] can be taken as the master wrote them.
//! 2. Nothing but [`UnverifiedSegment::verify`] makes one, or a [`ProvedSegment`] that it proved.

use crate::certificate::{Certificate, CertificateKey, Claim, verify};
use crate::entry::{self, Entry, EntryError};
use crate::mutants::{self, Mutant};

/// Bytes that claim to be a segment's, from a backup or a file.
#[derive(Clone, Copy, Debug)]
pub struct UnverifiedSegment<'a> {
    claim: Claim,
    certificate: Certificate,
    contents: &'a [u8],
}

/// A segment's bytes, proved by its certificate and by every entry's checksum.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedSegment<'a> {
    claim: Claim,
    contents: &'a [u8],
}

/// A verified segment that owns its bytes.
#[derive(Clone, Debug)]
pub struct ProvedSegment {
    claim: Claim,
    contents: Vec<u8>,
}

/// Why a segment is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The certificate does not fit claim and contents.
    #[error("certificate does not fit the segment's contents")]
    Certificate,
    /// An entry is damaged.
    #[error("entry at offset {offset}: {error}")]
    Entry {
        /// Where.
        offset: usize,
        /// How.
        error: EntryError,
    },
    /// The first entry is not the header, or it names something else than was claimed.
    #[error("the segment's header is missing or names another segment")]
    Header,
}

impl<'a> UnverifiedSegment<'a> {
    /// Takes bytes with what is claimed of them.
    #[must_use]
    pub fn new(claim: Claim, certificate: Certificate, contents: &'a [u8]) -> Self {
        Self {
            claim,
            certificate,
            contents,
        }
    }

    /// What is claimed.
    #[must_use]
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Proves the bytes: certificate, header, and every entry.
    pub fn verify(self, key: &CertificateKey) -> Result<VerifiedSegment<'a>, SegmentError> {
        if !verify(key, &self.claim, self.contents, &self.certificate) {
            return Err(SegmentError::Certificate);
        }
        let mut first = true;
        for entry in entries(self.contents) {
            let (_, entry) = entry?;
            if first && !self.is_own_header(&entry) {
                return Err(SegmentError::Header);
            }
            first = false;
        }
        if first && !self.contents.is_empty() {
            return Err(SegmentError::Header);
        }
        Ok(VerifiedSegment {
            claim: self.claim,
            contents: self.contents,
        })
    }

    fn is_own_header(&self, entry: &Entry<'_>) -> bool {
        matches!(entry, Entry::SegmentHeader(header)
            if header.segment == self.claim.segment
                && header.master == self.claim.master
                && header.cluster == self.claim.cluster
                && header.kind == self.claim.kind)
    }
}

impl<'a> VerifiedSegment<'a> {
    /// What was claimed, and holds.
    #[must_use]
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The bytes.
    #[must_use]
    pub fn contents(&self) -> &'a [u8] {
        self.contents
    }

    /// The entries with their offsets, in the order written.
    pub fn entries(&self) -> impl Iterator<Item = (usize, Entry<'a>)> + use<'a> {
        self.entries_from(0)
    }

    /// The entries from the one at `offset` on. None if no entry begins there.
    pub fn entries_from(
        &self,
        offset: usize,
    ) -> impl Iterator<Item = (usize, Entry<'a>)> + use<'a> {
        let contents = self.contents;
        let mut at = offset;
        std::iter::from_fn(move || {
            let rest = contents.get(at..).filter(|rest| !rest.is_empty())?;
            let (entry, len) = entry::read_again(rest).ok()?;
            let begin = at;
            at += len;
            Some((begin, entry))
        })
    }
}

impl ProvedSegment {
    /// Proves bytes as [`UnverifiedSegment::verify`] does.
    pub fn prove(
        claim: Claim,
        certificate: Certificate,
        contents: Vec<u8>,
        key: &CertificateKey,
    ) -> Result<Self, SegmentError> {
        match UnverifiedSegment::new(claim, certificate, &contents).verify(key) {
            Err(SegmentError::Certificate) if mutants::active(Mutant::NotProved) => {}
            verified => drop(verified?),
        }
        Ok(Self { claim, contents })
    }

    /// Its bytes, for their memory to be used again.
    #[must_use]
    pub fn into_contents(self) -> Vec<u8> {
        self.contents
    }

    /// The segment.
    #[must_use]
    pub fn segment(&self) -> VerifiedSegment<'_> {
        VerifiedSegment {
            claim: self.claim,
            contents: &self.contents,
        }
    }
}

/// The entries of `contents` with their offsets; ends after the first error.
pub fn entries(
    contents: &[u8],
) -> impl Iterator<Item = Result<(usize, Entry<'_>), SegmentError>> + '_ {
    let mut offset = 0;
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed || offset >= contents.len() {
            return None;
        }
        match entry::read(&contents[offset..]) {
            Ok((entry, len)) => {
                let at = offset;
                offset += len;
                Some(Ok((at, entry)))
            }
            Err(error) => {
                failed = true;
                Some(Err(SegmentError::Entry { offset, error }))
            }
        }
    })
}
