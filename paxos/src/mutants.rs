//! Planted faults: each is a step that the code skips or does wrongly when a test asks for it, so
//! that a check can be shown to bite. Without the feature `mutants`, [`active`] is constant `false`
//! and the hooks compile away.

/// A planted fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutant {
    /// A leader counts its own vote before its disk has it.
    VoteBeforeDisk,
    /// Promises and votes leave before the disk has them.
    AnswerBeforeDisk,
    /// A restart forgets what was promised.
    ForgetPromise,
    /// A restart forgets that it may have granted a lease.
    ForgetGrant,
    /// A new leader adopts the entry of the lowest ballot reported.
    AdoptLowestBallot,
    /// Entries are trimmed up to what is decided, not to what the last saved snapshot has.
    TrimPastSnapshot,
    /// An entry is applied before those of lower slots.
    ApplyOutOfOrder,
    /// A new leader serves reads before a slot of its own is decided.
    SkipOpening,
    /// A new leader skips slots that nobody reported instead of filling them.
    SkipNoop,
    /// A retried command is applied again.
    DoubleApply,
    /// A member with a wiped disk votes as if it remembered.
    CountWipedMember,
    /// A leader counts its lease from when the grant arrived.
    LeaseFromReceipt,
    /// A member promises another ballot while its grant runs.
    PromiseInGrant,
    /// Half of the members decide.
    HalfIsEnough,
    /// A follower takes whatever it accepted for decided, whatever ballot it is of.
    CommitAnyBallot,
    /// An acceptor takes part in lower ballots than it promised.
    AcceptLower,
    /// A ballot is used before the disk has it.
    BallotBeforeDisk,
    /// Slots above one that changes the group, another change among them, are proposed before that
    /// one is decided.
    SkipBarrier,
    /// A leader answers reads without a lease.
    ReadWithoutLease,
    /// A leader goes on after a change of the group without promises of the new one.
    SkipPrepareOfNewGroup,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 20] = [
        Self::VoteBeforeDisk,
        Self::AnswerBeforeDisk,
        Self::ForgetPromise,
        Self::ForgetGrant,
        Self::AdoptLowestBallot,
        Self::TrimPastSnapshot,
        Self::ApplyOutOfOrder,
        Self::SkipOpening,
        Self::SkipNoop,
        Self::DoubleApply,
        Self::CountWipedMember,
        Self::LeaseFromReceipt,
        Self::PromiseInGrant,
        Self::HalfIsEnough,
        Self::CommitAnyBallot,
        Self::AcceptLower,
        Self::BallotBeforeDisk,
        Self::SkipBarrier,
        Self::ReadWithoutLease,
        Self::SkipPrepareOfNewGroup,
    ];
}

#[cfg(feature = "mutants")]
mod registry {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with the fault planted.
    #[must_use]
    pub fn active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// Plants a fault in this thread, or none; returns the one before.
    pub fn plant(mutant: Option<Mutant>) -> Option<Mutant> {
        ACTIVE.replace(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use registry::{active, plant};

/// Whether the fault is planted: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn active(_: Mutant) -> bool {
    false
}
