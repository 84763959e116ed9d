//! `ramkeep`: the command line.
fn main() {}
