//! Names of files by which a directory shows whose it is: a process of one role makes no files beside those
//! of the other.

/// In a coordinator's directory, from its first start on.
pub const JOURNAL: &str = "journal";
/// In the directory of a server with a backup, from its first start on.
pub const FRAMES: &str = "frames";
