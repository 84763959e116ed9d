//! The desk behind its mutex, and what carries its outputs out: sessions, wires and the journal.
//!
//! # Invariants
//! 1. What the desk wants done is carried out before the mutex is let go, so it happens in order.
//! 2. The clock is read anew for each output.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};
use ramkeep_rpc::wires::{WireEnd, WireId};
use ramkeep_rpc::{Batch, Identity, Peer, PollMode, Wake, WireHandler, Wiring, clock};
use ramkeep_wire::envelope::Envelope;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{ClusterId, Micros, Party};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::ShellError;
use super::journal_thread::Job;
use crate::desk::{Desk, DeskOutput, SessionId};

/// Where a session's replies wait until its connection takes them.
#[derive(Default)]
pub(super) struct Outbox {
    /// Whole envelopes.
    pub(super) bytes: Vec<u8>,
    /// Requests without an answer yet, as the desk has it.
    pub(super) unanswered: usize,
}

struct SessionEntry {
    outbox: Arc<Mutex<Outbox>>,
    wake: Wake,
}

struct Inner {
    desk: Desk,
    sessions: BTreeMap<SessionId, SessionEntry>,
    last: u64,
    /// When the timer will look next.
    armed: Option<Micros>,
}

/// The desk and all that is around it.
pub(super) struct Hub {
    inner: Mutex<Inner>,
    /// This one, for the tasks of wires.
    me: Weak<Self>,
    wiring: Wiring,
    identity: Identity,
    jobs: Sender<Job>,
    timer: Notify,
    /// It may be known now whether this coordinator runs where it was.
    asked: Condvar,
    failure: Mutex<Option<ShellError>>,
    failed: Notify,
}

impl Hub {
    pub(super) fn new(
        desk: Desk,
        identity: Identity,
        runtime: Handle,
    ) -> (Arc<Self>, Receiver<Job>) {
        let (sender, jobs) = mpsc::channel();
        let hub = Arc::new_cyclic(|me| Self {
            inner: Mutex::new(Inner {
                desk,
                sessions: BTreeMap::new(),
                last: 0,
                armed: None,
            }),
            me: me.clone(),
            wiring: Wiring::new(identity.clone(), PollMode::Never, runtime),
            identity,
            jobs: sender,
            timer: Notify::new(),
            asked: Condvar::new(),
            failure: Mutex::new(None),
            failed: Notify::new(),
        });
        (hub, jobs)
    }

    /// Gives the desk an input, and carries out what follows.
    pub(super) fn input<T>(&self, input: impl FnOnce(&mut Desk, Micros) -> T) -> T {
        let mut inner = self.inner.lock();
        let given = input(&mut inner.desk, clock::now());
        self.carry_out(&mut inner);
        given
    }

    /// Carries out what the desk wanted done when it was made.
    pub(super) fn begin(&self) {
        self.input(|_, _| ());
    }

    /// Waits until it is known that this coordinator does not run where its directory says that it was.
    /// Blocks for as long as a silent address is given.
    ///
    /// # Errors
    /// When it does: this one has a copy.
    pub(super) fn ask_where_it_was(&self) -> Result<(), ShellError> {
        let mut inner = self.inner.lock();
        if !inner.desk.is_asking_where_it_was() {
            return Ok(());
        }
        while inner.desk.is_asking_where_it_was() {
            self.carry_out(&mut inner);
            let Some(due) = inner.desk.next_timeout() else {
                break;
            };
            let late = self.asked.wait_for(&mut inner, due.since(clock::now()));
            if late.timed_out() {
                inner.desk.handle_tick(clock::now());
            }
        }
        self.carry_out(&mut inner);
        drop(inner);
        self.failure.lock().take().map_or(Ok(()), Err)
    }

    /// Makes room for a session's replies.
    pub(super) fn open_session(&self, peer: &Peer, wake: Wake) -> (SessionId, Arc<Mutex<Outbox>>) {
        let outbox = Arc::new(Mutex::new(Outbox::default()));
        let mut inner = self.inner.lock();
        inner.last += 1;
        let session = SessionId(inner.last);
        inner.desk.open_session(session, peer.party, peer.cluster);
        let entry = SessionEntry {
            outbox: outbox.clone(),
            wake,
        };
        inner.sessions.insert(session, entry);
        (session, outbox)
    }

    pub(super) fn close_session(&self, session: SessionId) {
        self.inner.lock().sessions.remove(&session);
        self.input(|desk, now| desk.close_session(now, session));
    }

    /// Gives the desk a session's next envelope, if it takes one. False: it was left.
    pub(super) fn take(
        &self,
        session: SessionId,
        unsent: usize,
        batch: &mut Batch<'_>,
    ) -> Result<bool, Refusal> {
        let mut inner = self.inner.lock();
        if !inner.desk.takes(session, unsent) {
            return Ok(false);
        }
        let Some(envelope) = batch.next() else {
            return Ok(false);
        };
        let taken = inner.desk.handle_envelope(clock::now(), session, &envelope);
        self.carry_out(&mut inner);
        inner.note_unanswered(session);
        taken.map(|()| true)
    }

    fn carry_out(&self, inner: &mut Inner) {
        while let Some(output) = inner.desk.poll_output(clock::now) {
            match output {
                DeskOutput::Persist(job) => self.job(Job::Persist(job)),
                DeskOutput::Wire(output) => {
                    if let Some(me) = self.me.upgrade() {
                        self.wiring.perform(output, &me);
                    }
                }
                DeskOutput::Reply { session, bytes } => inner.reply(session, bytes),
                DeskOutput::KnowCluster(cluster) => drop(self.identity.join(cluster)),
                DeskOutput::End(why) => self.failed_by(why.into()),
            }
        }
        self.asked.notify_all();
        let due = inner.desk.next_timeout();
        if due.is_some_and(|due| inner.armed.is_none_or(|armed| due < armed)) {
            self.timer.notify_one();
        }
    }

    /// A journal thread that has ended has said why.
    fn job(&self, job: Job) {
        let _ = self.jobs.send(job);
    }

    /// This process can't go on: whatever the desk says from then on goes nowhere.
    pub(super) fn fail(&self, error: impl Into<ShellError>) {
        self.inner.lock().desk.end();
        self.failed_by(error.into());
    }

    fn failed_by(&self, error: ShellError) {
        *self.failure.lock() = Some(error);
        self.failed.notify_one();
    }

    /// Waits until it can't go on.
    pub(super) async fn failed(&self) -> ShellError {
        loop {
            self.failed.notified().await;
            if let Some(error) = self.failure.lock().take() {
                return error;
            }
        }
    }

    /// Ends the journal thread after what was given to it.
    pub(super) fn close_journal(&self) {
        // If it has ended already, so much the better.
        self.job(Job::Close);
    }

    /// The timer: lets time pass in the desk when it is due.
    pub(super) async fn tick(self: Arc<Self>) {
        loop {
            let due = {
                let mut inner = self.inner.lock();
                inner.armed = inner.desk.next_timeout();
                inner.armed
            };
            match due {
                None => self.timer.notified().await,
                Some(due) => {
                    let sleep = tokio::time::sleep(due.since(clock::now()));
                    tokio::select! {
                        () = sleep => self.input(Desk::handle_tick),
                        () = self.timer.notified() => {}
                    }
                }
            }
        }
    }
}

impl Inner {
    fn reply(&mut self, session: SessionId, mut bytes: Vec<u8>) {
        let Some(entry) = self.sessions.get(&session) else {
            return;
        };
        let mut outbox = entry.outbox.lock();
        if outbox.bytes.is_empty() {
            outbox.bytes = bytes;
        } else {
            outbox.bytes.append(&mut bytes);
        }
        outbox.unanswered = self.desk.unanswered(session);
        drop(outbox);
        entry.wake.wake();
    }

    fn note_unanswered(&self, session: SessionId) {
        if let Some(entry) = self.sessions.get(&session) {
            entry.outbox.lock().unanswered = self.desk.unanswered(session);
        }
    }
}

impl WireHandler for Hub {
    fn up(&self, wire: WireId, local: Party, peer: Party, _cluster: ClusterId) {
        self.input(|desk, _| desk.handle_wire_up(wire, local, peer));
    }

    fn received(&self, wire: WireId, envelope: &Envelope<'_>) {
        self.input(|desk, now| desk.handle_received(now, wire, envelope));
    }

    fn down(&self, wire: WireId, end: WireEnd) {
        self.input(|desk, now| desk.handle_wire_down(now, wire, &end));
    }
}
