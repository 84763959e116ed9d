//! What can be wrong with a batch of items.

use crate::bytes::Short;
use crate::limits::MAX_ITEMS;

/// Why a request can't be read. The connection it came on is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Cut short.
    #[error("data message is cut short")]
    Short,
    /// More items than allowed.
    #[error("{0} items in one envelope, at most {MAX_ITEMS} are allowed")]
    Items(u32),
    /// Unknown operation.
    #[error("unknown operation {0}")]
    Op(u8),
    /// Unknown flags, or reject rules for an operation that has none.
    #[error("flags {0:#04x} of an item mean nothing here")]
    Flags(u8),
    /// Unknown status in a response.
    #[error("unknown status {0} of an item")]
    Status(u8),
    /// Bytes that have no meaning yet are not zero.
    #[error("reserved bytes of an item are not zero")]
    Reserved,
    /// Bytes after the last item.
    #[error("bytes after the last item")]
    Trailing,
    /// Key or value of a length that can't be.
    #[error("key or value of an impossible length")]
    Length,
}

impl From<Short> for DataError {
    fn from(_: Short) -> Self {
        Self::Short
    }
}
