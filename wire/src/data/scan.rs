//! Scans: where one goes on, and the pages of objects that answer it.

use super::error::DataError;
use crate::bytes::Reader;
use crate::hash::KeyHash;
use crate::ids::Version;
use crate::limits::MAX_KEY;

/// Where a scan goes on: after `key` of hash `hash`, in order of (hash, key).
///
/// As an item's value: `hash u64 | until u64 | key bytes`. An empty key means: from `hash` on,
/// inclusive. `until` is the last hash wanted, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanCursor<'a> {
    /// Go on at this hash.
    pub hash: KeyHash,
    /// Stop after this one.
    pub until: KeyHash,
    /// Go on after this key of that hash.
    pub after: &'a [u8],
}

impl<'a> ScanCursor<'a> {
    /// Appends the cursor.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.hash.0.to_le_bytes());
        out.extend_from_slice(&self.until.0.to_le_bytes());
        out.extend_from_slice(self.after);
    }

    /// Reads one from an item's value.
    pub fn read(value: &'a [u8]) -> Result<Self, DataError> {
        let mut reader = Reader(value);
        let (hash, until) = (KeyHash(reader.u64()?), KeyHash(reader.u64()?));
        if reader.0.len() > MAX_KEY {
            return Err(DataError::Length);
        }
        Ok(Self {
            hash,
            until,
            after: reader.0,
        })
    }
}

/// One object in a scan's page. A page is `more u8 | objects until the end`; each object is
/// `version u64 | key_len u16 | value_len u32 | key | value`, in order of (hash, key). `more` 0:
/// the range is at its end; 1: go on after the last object's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanObject<'a> {
    /// Its version.
    pub version: Version,
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

impl<'a> ScanObject<'a> {
    /// Appends the object to a page.
    pub fn write(&self, page: &mut Vec<u8>) {
        page.extend_from_slice(&self.version.0.to_le_bytes());
        page.extend_from_slice(&(self.key.len() as u16).to_le_bytes());
        page.extend_from_slice(&(self.value.len() as u32).to_le_bytes());
        page.extend_from_slice(self.key);
        page.extend_from_slice(self.value);
    }

    /// Reads the next object of a page after its first byte, `Ok(None)` at its end.
    pub fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, DataError> {
        if reader.is_empty() {
            return Ok(None);
        }
        let version = Version(reader.u64()?);
        let (key_len, value_len) = (usize::from(reader.u16()?), reader.u32()? as usize);
        Ok(Some(Self {
            version,
            key: reader.take(key_len)?,
            value: reader.take(value_len)?,
        }))
    }
}
