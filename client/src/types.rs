//! What operations take and give back.

use bytes::Bytes;
use ramkeep_wire::data::RejectRules;
use ramkeep_wire::{KeyHash, TableId, Version};

/// A value with the version at which it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The value.
    pub value: Bytes,
    /// Grows with each change of this key; never used twice, also across removal.
    pub version: Version,
}

/// Conditions under which a write or remove is refused with [`Error::Rejected`].
///
/// [`Error::Rejected`]: crate::Error::Rejected
///
/// ```
/// use ramkeep_client::{Reject, Version};
///
/// // Create, but never overwrite:
/// let create = Reject::exists();
/// // Overwrite just what was read (compare and swap):
/// let swap = Reject::unless_version(Version(7));
/// // Update, but never create:
/// let update = Reject::absent();
/// assert_ne!(create, update);
/// assert_ne!(swap, Reject::never());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reject(pub(crate) RejectRules);

impl Reject {
    /// Refuse nothing.
    #[must_use]
    pub fn never() -> Self {
        Self::default()
    }

    /// Refuse if the object exists.
    #[must_use]
    pub fn exists() -> Self {
        Self(RejectRules {
            exists: true,
            ..RejectRules::default()
        })
    }

    /// Refuse if there is no such object.
    #[must_use]
    pub fn absent() -> Self {
        Self(RejectRules {
            absent: true,
            ..RejectRules::default()
        })
    }

    /// Refuse unless the object exists with just this version.
    #[must_use]
    pub fn unless_version(version: Version) -> Self {
        Self(RejectRules {
            unless_version: Some(version),
            ..RejectRules::default()
        })
    }
}

/// One operation on one table, as the core takes it. Keys and values are copied at once.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// The object of a key.
    Read {
        /// The table.
        table: TableId,
        /// The key.
        key: &'a [u8],
    },
    /// Set a key's value.
    Write {
        /// The table.
        table: TableId,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
        /// When to refuse.
        reject: Reject,
    },
    /// Remove a key's object.
    Remove {
        /// The table.
        table: TableId,
        /// The key.
        key: &'a [u8],
        /// When to refuse.
        reject: Reject,
    },
    /// Add to a counter; absent counts as 0.
    Increment {
        /// The table.
        table: TableId,
        /// The key.
        key: &'a [u8],
        /// What to add.
        delta: i64,
    },
    /// A page of a table's objects.
    Scan {
        /// The table.
        table: TableId,
        /// Where to go on.
        from: &'a ScanPosition,
    },
}

/// Where a scan goes on: at `hash`, after the key `after` of that hash (empty: with the first).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPosition {
    /// Go on at this hash.
    pub hash: KeyHash,
    /// Go on after this key of that hash.
    pub after: Bytes,
}

/// A page of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Objects in order of (key hash, key).
    pub objects: Vec<(Bytes, Object)>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<ScanPosition>,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Of a read.
    Read(Option<Object>),
    /// Of a write: the new version.
    Written(Version),
    /// Of a remove: the version of what was removed.
    Removed(Option<Version>),
    /// Of an increment.
    Incremented {
        /// The counter after the increment.
        value: i64,
        /// The new version.
        version: Version,
    },
    /// Of a scan.
    Page(Box<Page>),
    /// Of a request to the coordinator.
    Answer(Box<ramkeep_wire::coordinator::Answer>),
}
