//! Data operations: batches of items in one envelope, answered by batches of items.
//!
//! Each file draws the layout that it reads and writes.

mod error;
mod request;
mod response;
mod scan;

pub use error::DataError;
pub use request::{
    ITEM_HEADER_LEN, Item, Items, Op, REQUEST_HEADER_LEN, RejectRules, begin_request, flags,
    item_len, set_client, set_count,
};
pub use response::{RESPONSE_ITEM_LEN, ResponseItem, Status};
pub use scan::{ScanCursor, ScanObject};
