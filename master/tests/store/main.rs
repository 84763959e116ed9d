//! What a master's store promises, shown from outside.
#![allow(clippy::unwrap_used)]

mod calls;
mod concurrent;
mod log;
mod memory;
mod model;
mod replay;
mod scan;
mod session;
mod support;
mod tablets;
