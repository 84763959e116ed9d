//! The Ramkeep coordinator: one deterministic state machine.
