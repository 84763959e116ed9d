//! The core behind its mutex, and the ways from it to sessions, servers, peers and the journal.
//!
//! # Invariants
//! 1. What the core wants done is passed on before the mutex is let go, so it happens in order.
//! 2. A reply goes to the session that asked, with the correlation of its request, or nowhere.
//! 3. A reply that counts while a lease runs is given only if a clock that is read after the core
//!    made it says so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use parking_lot::Mutex;
use ramkeep_rpc::{Identity, Wake, clock};
use ramkeep_wire::coordinator::{Answer, Refused, Request, Response};
use ramkeep_wire::envelope::{self, Header, Kind};
use ramkeep_wire::limits::MAX_PAYLOAD;
use ramkeep_wire::{ListVersion, Micros, ServerId, postcards};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::ShellError;
use super::journal_thread::Job;
use super::orders::{self, Post};
use super::peers::Peers;
use crate::core::{Coordinator, Output};

/// Where a session's replies wait until its connection takes them.
#[derive(Default)]
pub(super) struct Outbox {
    /// Whole envelopes.
    pub(super) bytes: Vec<u8>,
    /// Requests without an answer yet.
    pub(super) unanswered: usize,
}

struct SessionEntry {
    outbox: Arc<Mutex<Outbox>>,
    wake: Wake,
}

struct Inner {
    core: Coordinator,
    sessions: BTreeMap<u64, SessionEntry>,
    /// By token: who asked, and the header of the answer.
    asked: BTreeMap<u64, (u64, Header)>,
    posts: BTreeMap<ServerId, Arc<Post>>,
    posts_of: ListVersion,
    peers: Peers,
    next: u64,
    /// When the timer will look next.
    armed: Option<Micros>,
}

/// The core and all that is around it.
pub(super) struct Hub {
    inner: Mutex<Inner>,
    jobs: Sender<Job>,
    runtime: Handle,
    identity: Identity,
    timer: Notify,
    /// It can't go on: whatever the core says from then on goes nowhere.
    dead: AtomicBool,
    failure: Mutex<Option<ShellError>>,
    failed: Notify,
}

impl Hub {
    pub(super) fn new(
        core: Coordinator,
        identity: Identity,
        runtime: Handle,
    ) -> (Arc<Self>, Receiver<Job>) {
        let (sender, jobs) = mpsc::channel();
        let hub = Self {
            inner: Mutex::new(Inner {
                core,
                sessions: BTreeMap::new(),
                asked: BTreeMap::new(),
                posts: BTreeMap::new(),
                posts_of: ListVersion(0),
                peers: Peers::default(),
                next: 0,
                armed: None,
            }),
            jobs: sender,
            runtime,
            identity,
            timer: Notify::new(),
            dead: AtomicBool::new(false),
            failure: Mutex::new(None),
            failed: Notify::new(),
        };
        (Arc::new(hub), jobs)
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Gives the core an input, and passes on what follows.
    pub(super) fn input(self: &Arc<Self>, input: impl FnOnce(&mut Coordinator, Micros)) {
        let mut inner = self.inner.lock();
        input(&mut inner.core, clock::now());
        self.pass_on(&mut inner);
    }

    /// Passes on what the core wanted done when it was made.
    pub(super) fn begin(self: &Arc<Self>) {
        let mut inner = self.inner.lock();
        self.pass_on(&mut inner);
    }

    /// Looks at the connections to the other coordinators.
    pub(super) fn with_peers<T>(&self, look: impl FnOnce(&mut Peers) -> T) -> T {
        look(&mut self.inner.lock().peers)
    }

    /// Makes room for a session's replies; the number is its name.
    pub(super) fn open_session(&self, wake: Wake) -> (u64, Arc<Mutex<Outbox>>) {
        let outbox = Arc::new(Mutex::new(Outbox::default()));
        let mut inner = self.inner.lock();
        inner.next += 1;
        let session = inner.next;
        let entry = SessionEntry {
            outbox: outbox.clone(),
            wake,
        };
        inner.sessions.insert(session, entry);
        (session, outbox)
    }

    /// The session is gone, and whose it was, if that is known to be a server.
    pub(super) fn close_session(self: &Arc<Self>, session: u64, server: Option<ServerId>) {
        let mut inner = self.inner.lock();
        inner.sessions.remove(&session);
        inner.asked.retain(|_, (asker, _)| *asker != session);
        if let Some(server) = server {
            inner.core.handle_link_down(clock::now(), server);
            self.pass_on(&mut inner);
        }
    }

    /// A request of a session.
    pub(super) fn request(
        self: &Arc<Self>,
        now: Micros,
        session: u64,
        header: Header,
        request: Request,
    ) {
        let mut inner = self.inner.lock();
        inner.next += 1;
        let token = inner.next;
        let reply = header.reply(Kind::CoordinatorResponse);
        inner.asked.insert(token, (session, reply));
        inner.core.handle_request(now, header.from, token, request);
        self.pass_on(&mut inner);
    }

    fn pass_on(self: &Arc<Self>, inner: &mut Inner) {
        while let Some(output) = inner.core.poll_output() {
            if self.dead.load(Ordering::Acquire) {
                continue;
            }
            match output {
                // A journal thread that has ended has said why.
                Output::Persist { seq, records } => {
                    let _ = self.jobs.send(Job::Persist { seq, records });
                }
                Output::SaveSnapshot {
                    seq,
                    snapshot,
                    records,
                } => {
                    let _ = self.jobs.send(Job::Snapshot {
                        seq,
                        snapshot,
                        records,
                    });
                }
                Output::Send { addresses, message } => {
                    inner.peers.send(self, addresses, &message);
                }
                Output::Reply {
                    token,
                    response,
                    until,
                } => {
                    let late = until.is_some_and(|until| clock::now() >= until);
                    let response = if late {
                        inner.core.not_leader()
                    } else {
                        response
                    };
                    inner.reply(token, &response);
                }
                Output::Removed => self.fail(ShellError::Removed),
                Output::Stop(why) => self.fail(why),
                Output::Order {
                    server,
                    addresses,
                    order,
                } => {
                    let post = inner.posts.entry(server).or_default().clone();
                    if post.begin() {
                        let delivery =
                            orders::deliver(self.clone(), post, server, addresses, order);
                        self.runtime.spawn(delivery);
                    }
                }
                Output::Ask {
                    server,
                    addresses,
                    token,
                    request,
                } => {
                    let post = inner.posts.entry(server).or_default().clone();
                    let hub = self.clone();
                    if post.begin() {
                        let asked = orders::ask(hub, post, server, addresses, token, request);
                        self.runtime.spawn(asked);
                    } else {
                        self.runtime.spawn(async move {
                            hub.input(|core, now| {
                                core.handle_backup_answer(now, server, token, None);
                            });
                        });
                    }
                }
            }
        }
        inner.forget_posts();
        self.know_cluster(inner);
        let due = inner.core.next_timeout();
        if due.is_some_and(|due| inner.armed.is_none_or(|armed| due < armed)) {
            self.timer.notify_one();
        }
    }

    /// Once there is a cluster, nobody of another is talked to.
    fn know_cluster(&self, inner: &Inner) {
        if let Some(constants) = inner.core.state().constants()
            && self.identity.cluster() != constants.cluster
        {
            self.identity.set_cluster(constants.cluster);
            tracing::info!(cluster = %constants.cluster, settings = ?constants.settings, "cluster");
        }
    }

    /// This process can't go on.
    pub(super) fn fail(&self, error: impl Into<ShellError>) {
        self.dead.store(true, Ordering::Release);
        *self.failure.lock() = Some(error.into());
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
        let _ = self.jobs.send(Job::Close);
    }
}

impl Inner {
    fn reply(&mut self, token: u64, response: &Response) {
        let Some((session, header)) = self.asked.remove(&token) else {
            return;
        };
        let Some(entry) = self.sessions.get(&session) else {
            return;
        };
        let mut payload = postcards::encode(response);
        if payload.len() > MAX_PAYLOAD {
            payload = postcards::encode(&Response {
                ballot: response.ballot,
                answer: Answer::Refused(Refused::Limit("an answer's size".into())),
            });
        }
        let mut outbox = entry.outbox.lock();
        outbox.unanswered = outbox.unanswered.saturating_sub(1);
        envelope::append(&mut outbox.bytes, header, &payload);
        drop(outbox);
        entry.wake.wake();
    }

    /// Connections to servers that are no longer living are closed.
    fn forget_posts(&mut self) {
        let version = self.core.state().list_version();
        if self.posts_of != version {
            self.posts_of = version;
            let state = self.core.state();
            self.posts.retain(|server, _| state.living(*server).is_ok());
        }
    }
}

/// The timer: lets time pass in the core when it is due.
pub(super) async fn tick(hub: Arc<Hub>) {
    loop {
        let due = {
            let mut inner = hub.inner.lock();
            inner.armed = inner.core.next_timeout();
            inner.armed
        };
        match due {
            None => hub.timer.notified().await,
            Some(due) => {
                let sleep = tokio::time::sleep(due.since(clock::now()));
                tokio::select! {
                    () = sleep => hub.input(Coordinator::handle_tick),
                    () = hub.timer.notified() => {}
                }
            }
        }
    }
}
