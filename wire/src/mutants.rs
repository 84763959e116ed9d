//! Planted faults: each is a step that some code skips or does wrongly when the simulator asks for
//! it, so that a check can be shown to bite.
//!
//! A hook is one line, `if mutants::active(Mutant::AckEarly) { .. }`. Without the cargo feature
//! `mutants`, which only the simulator's mutant runs turn on, [`active`] is constant `false` and the
//! hook compiles away.

crate::named! {
    /// A planted fault.
    Mutant:
    /// Master: writes are answered at once, not when they are durable.
    AckEarly = "ack-early",
    /// Master: reads answer what is not durable yet.
    ShowNotDurable = "show-not-durable",
    /// Master: a miss (absent key, rejection) answers without waiting for the durable position.
    MissDoesNotWait = "miss-does-not-wait",
    /// Master: a removal appends no tombstone.
    LoseTombstone = "lose-tombstone",
    /// Master: a key written after its removal starts again at version 1.
    ReuseVersion = "reuse-version",
    /// Master: a call that comes again runs again.
    ForgetCompletion = "forget-completion",
    /// Master: results are forgotten before their client has said that it has them.
    ForgetUnacknowledged = "forget-unacknowledged",
    /// Master: calls of a client whose lease has ended run.
    ServeEndedClients = "serve-ended-clients",
    /// Master: completions of a crashed master are not replayed.
    CompletionsNotReplayed = "completions-not-replayed",
    /// Master: a head's new set of backups is used without being recorded at the coordinator.
    SkipEpochRecord = "skip-epoch-record",
    /// Master: every attempt at a new set of backups uses the same epoch number.
    ReuseEpoch = "reuse-epoch",
    /// Master: a digest leaves out the segment before the head.
    DigestForgetsSegment = "digest-forgets-segment",
    /// Master: the active mark is written before the previous head is closed on its backups.
    ActiveTooEarly = "active-too-early",
    /// Master: the old head closes before the new one is open on its backups.
    CloseBeforeOpen = "close-before-open",
    /// Master: reads are answered without a lease.
    ReadWithoutLease = "read-without-lease",
    /// Master: a lease counts from when its grant was received, not from when it was asked for.
    LeaseFromReceipt = "lease-from-receipt",
    /// Master: while the log rolls over, the new head's backups alone grant the lease.
    LeaseIgnoresOldHead = "lease-ignores-old-head",
    /// Master: from the start of a change, the new set of backups alone grants the lease.
    LeaseIgnoresOldSet = "lease-ignores-old-set",
    /// Master: the lease is judged before something is looked up, not after.
    LeaseBeforeLooking = "lease-before-looking",
    /// Master: one acknowledgement of the k is enough.
    OneAckIsEnough = "one-ack-is-enough",
    /// Backup: acknowledges before the certificate's slot is written.
    AckBeforeCertificate = "ack-before-certificate",
    /// Backup: writes the certificate over the one in use, instead of in the other slot.
    CertificateInPlace = "certificate-in-place",
    /// Backup: takes bytes of a replication epoch below the one it holds.
    AcceptStaleEpoch = "accept-stale-epoch",
    /// Backup: shows copies under way in its inventory.
    ShowIncomplete = "show-incomplete",
    /// Backup: waits out a grant without the margin for another's clock.
    NoClockMargin = "no-clock-margin",
    /// Backup: answers recovery after a restart without waiting out what it may have granted before.
    ForgetGrants = "forget-grants",
    /// Backup: answers recovery at once when the master is fenced, not when its grant is over.
    InventoryBeforeWaiting = "inventory-before-waiting",
    /// Backup: goes on taking bytes from a master that it has fenced.
    HearFenced = "hear-fenced",
    /// Connections: neither side minds for which process something is meant.
    IgnoreServerId = "ignore-server-id",
    /// Connections: a hello of another cluster is welcomed.
    HelloAnyCluster = "hello-any-cluster",
    /// Connections: a link between servers is made though one side does not know its cluster.
    HelloUnknownCluster = "hello-unknown-cluster",
    /// Coordinator: who connected while it had no cluster is heard also if it is of another.
    KeepOldSessions = "keep-old-sessions",
    /// Server: an order under an old ballot is carried out.
    ObeyOldBallots = "obey-old-ballots",
    /// Server: a link to a backup of an older life is kept as current.
    KeepOldLink = "keep-old-link",
    /// Server: a server list is told as known before the backup has fenced whom it names.
    KnowBeforeFencing = "know-before-fencing",
    /// Server: a recovery is not told that a fetch was lost.
    ForgetLostFetch = "forget-lost-fetch",
    /// Server: it goes on after it was decided crashed.
    OutliveTheDecision = "outlive-the-decision",
    /// Connections: a wire that has broken is kept.
    KeepBrokenWire = "keep-broken-wire",
    /// Connections: who called over a wire that has ended is not told.
    ForgetLostCalls = "forget-lost-calls",
    /// Client: what may have been applied goes out again as another call.
    RetryAsAnotherCall = "retry-as-another-call",
    /// Control: a process is of the cluster of whoever answers first, leader or not.
    JoinOnAnyWord = "join-on-any-word",
    /// Control: what a leader says of the group is only added to what is known.
    OnlyLearnCoordinators = "only-learn-coordinators",
    /// Control: coordinators that name each other as the leader are followed without a rest.
    RedirectWithoutRest = "redirect-without-rest",
    /// Control: a retry forgets that the request may have been applied before.
    ForgetEarlierSend = "forget-earlier-send",
    /// Control: takes an answer under a lower ballot than one before.
    TakeOldBallot = "take-old-ballot",
    /// Control: a mutation that is sent again gets another sequence.
    ResendAsAnother = "resend-as-another",
    /// Control: takes the answer to a send that was given up.
    TakeOldCorrelation = "take-old-correlation",
    /// Coordinator: a living server is decided crashed by whoever has a copy of its directory.
    KillTheOriginal = "kill-the-original",
    /// Coordinator: a copy of a coordinator's directory takes part beside its original.
    StartCopies = "start-copies",
    /// Coordinator: a rescue leaves out what the last one had accepted.
    RescueForgets = "rescue-forgets",
    /// Coordinator: a rescue makes a group that those who were lost can outvote.
    RescueKeepsGeneration = "rescue-keeps-generation",
    /// Coordinator: an empty group makes a new cluster although nobody asked for one.
    FoundUnasked = "found-unasked",
    /// Coordinator: a leader does not say who the coordinators are.
    HideTheGroup = "hide-the-group",
    /// Coordinator: answers before its journal is synced.
    AnswerBeforeSync = "answer-before-sync",
    /// Coordinator: takes an epoch that is not above the recorded one.
    RecordAnyEpoch = "record-any-epoch",
    /// Coordinator: takes commands from a server decided crashed.
    HearTheDead = "hear-the-dead",
    /// Coordinator: a leader answers from its state when its lease has run out.
    AnswerWithoutLease = "answer-without-lease",
    /// Coordinator: an answer is given although the lease ended after the core had made it.
    StaleReply = "stale-reply",
    /// Coordinator: an answer goes to whoever connected last.
    AnswerTheNewest = "answer-the-newest",
    /// Coordinator: another coordinator may speak for a third.
    HearAnyPeer = "hear-any-peer",
    /// Coordinator: the core is not told that a question to a backup was lost.
    LoseQuestions = "lose-questions",
    /// Coordinator: a request that a client sends again runs again.
    ForgetOnce = "forget-once",
    /// Coordinator: a new leader takes the time before it led for silence of the servers.
    TimersNotAfresh = "timers-not-afresh",
    /// Coordinator: an open head counts whatever epoch is recorded.
    EndIgnoresEpoch = "end-ignores-epoch",
    /// Coordinator: an open head counts below the floor.
    EndIgnoresFloor = "end-ignores-floor",
    /// Coordinator: an open head from before a restart of its machine counts.
    EndIgnoresReboot = "end-ignores-reboot",
    /// Coordinator: a log ends with the shortest replica of its last head.
    ShortestEnd = "shortest-end",
    /// Coordinator and recovery master: a segment that nobody has is left out.
    MissingSegmentIgnored = "missing-segment-ignored",
    /// Coordinator: a server that another takes for dead is declared crashed unverified.
    BelievePeers = "believe-peers",
    /// Coordinator: a partition is given to who had replayed it after it was given up.
    TakeLateRecovered = "take-late-recovered",
    /// Coordinator: says that nothing of a crashed master is needed once its replay is planned.
    FreedEarly = "freed-early",
    /// Backup: frees the replicas of a crashed master at once.
    FreeTheCrashed = "free-the-crashed",
    /// Recovery master: says that a partition is replayed before that is durable.
    RecoveredBeforeDurable = "recovered-before-durable",
    /// Recovery master: replays a segment that its certificate does not prove.
    NotProved = "not-proved",
    /// Recovery master: tombstones are not replayed.
    ReplayForgetsTombstones = "replay-forgets-tombstones",
    /// Recovery master: the crashed master's safe version is not taken over.
    ReplayForgetsSafeVersion = "replay-forgets-safe-version",
    /// Recovery master: what a replayed tombstone takes out of its own log gets no tombstone there.
    ReplayLeavesNoTombstone = "replay-leaves-no-tombstone",
    /// Recovery master: entries before the takeover are replayed.
    ReplayIgnoresTakeover = "replay-ignores-takeover",
    /// Recovery master: a dropped table ends a finished replay of others.
    DropEndsFinishedReplay = "drop-ends-finished-replay",
    /// Coordinator: a server that has just enlisted counts as one that has heard of no crash.
    NewcomersHaveHeardNothing = "newcomers-have-heard-nothing",
    /// Coordinator: a segment is there when a backup says so, whoever could not prove it.
    BelieveInventories = "believe-inventories",
    /// Coordinator: of what is missing only that is named which was not given up before.
    NameWhatIsNew = "name-what-is-new",
    /// Coordinator: what an earlier leader planned takes nobody knows what, until it is over.
    PlansOfOthersAreUnknown = "plans-of-others-are-unknown",
    /// Coordinator: what nobody can replay takes frames all the same.
    StuckPlansTakeFrames = "stuck-plans-take-frames",
    /// Coordinator: no recovery master is told that what it has replayed is wanted no more.
    UnwantedTriesStay = "unwanted-tries-stay",
    /// Coordinator: a try is over as soon as another owner is decided, taken over or not.
    DecidedTriesAreOver = "decided-tries-are-over",
    /// Recovery master: a try ends by what was said of it before it was finished.
    OldVerdictsEndTries = "old-verdicts-end-tries",
    /// Recovery master: begins to replay what it has no memory for.
    AdmitUnmeasured = "admit-unmeasured",
    /// Recovery master: clients may take the memory that a replay was admitted for.
    PromiseNothing = "promise-nothing",
    /// Recovery master: replays while it proves, whatever that may leave behind.
    ReplayBeforeProof = "replay-before-proof",
    /// Recovery master: names the first segment alone that it can't prove.
    FirstDamageOnly = "first-damage-only",
    /// Recovery master: says that a partition is replayed before it has heard which leases have ended.
    RecoveredBeforeTold = "recovered-before-told",
    /// Coordinator: tells of the clients with the lowest ids only whether their leases have ended.
    FirstClientsOnly = "first-clients-only",
    /// Recovery master: a repeated order that knows more begins its try anew.
    RestartOnNews = "restart-on-news",
    /// Recovery master: a try that has failed begins anew when its order is repeated.
    FailedTryBeginsAnew = "failed-try-begins-anew",
    /// Coordinator: an order for which there is no room is lost, and repeated when its time comes.
    CrowdedOrdersAreLost = "crowded-orders-are-lost",
    /// Coordinator: a tablet that its owner can't take counts as taken with the others of its order.
    RefusedIsTaken = "refused-is-taken",
    /// Coordinator: each tablet and each table is an order of its own.
    OrdersOneByOne = "orders-one-by-one",
}

#[cfg(feature = "mutants")]
mod registry {
    use super::Mutant;
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Whether this thread runs with the fault planted.
    #[inline]
    #[must_use]
    pub fn active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// Plants a fault in this thread, or none; returns the one before.
    pub fn plant(mutant: Option<Mutant>) -> Option<Mutant> {
        ACTIVE.replace(mutant)
    }

    /// Whether a test, which says so by a panic, fails with the fault planted.
    pub fn fails(mutant: Mutant, test: fn()) -> bool {
        let before = plant(Some(mutant));
        let failed = std::panic::catch_unwind(test).is_err();
        plant(before);
        failed
    }
}

#[cfg(feature = "mutants")]
pub use registry::{active, fails, plant};

/// Whether the fault is planted: never, in this build.
#[cfg(not(feature = "mutants"))]
#[inline]
#[must_use]
pub const fn active(_: Mutant) -> bool {
    false
}
