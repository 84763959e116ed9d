//! The coordinator process: files, sockets and the clock around the core.

pub mod files;
