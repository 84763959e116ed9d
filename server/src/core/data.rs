//! One connection's data operations on the master: what is read in one go, and the replies that wait.
//!
//! # Invariants
//! 1. What comes in one go runs under one writer's lock; what was changed leaves for the backups before
//!    the batch is over.
//! 2. The lease is judged by a clock that is read after everything was looked up (SAFETY 1).
//! 3. While replies are held, this connection is among those to be woken, or asks for another turn.

use std::sync::Arc;

use ramkeep_master::core::Master;
use ramkeep_master::store::{DataSession, MasterLease};
use ramkeep_rpc::{Batch, Wake};
use ramkeep_wire::Micros;
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::hello::Refusal;
use ramkeep_wire::limits::MAX_UNSENT;

use super::links::LinkCarrier;
use super::plane::DataPlane;

/// The data operations of one connection.
#[derive(Debug)]
pub struct DataLine<C> {
    plane: Arc<DataPlane<C>>,
    data: DataSession,
    wake: Wake,
    /// The wake is among those to be woken when more is durable, as long as the plane still counts
    /// this many wakes.
    registered: Option<u64>,
    wants_a_turn: bool,
}

impl<C: LinkCarrier> DataLine<C> {
    /// A new connection; `wake` has it released.
    pub(super) fn new(plane: Arc<DataPlane<C>>, wake: Wake) -> Self {
        Self {
            plane,
            data: DataSession::new(),
            wake,
            registered: None,
            wants_a_turn: false,
        }
    }

    /// Runs the data requests at the front of a batch, as many as there is room for, and appends what
    /// may be told to `out`.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn handle(
        &mut self,
        batch: &mut Batch<'_>,
        out: &mut Vec<u8>,
        clock: &impl Fn() -> Micros,
    ) -> Result<(), Refusal> {
        let (mut mutated, mut ended) = (false, Micros(0));
        while !self.data.full()
            && out.len() <= MAX_UNSENT
            && batch.peek() == Some(Kind::DataRequest)
        {
            let run = run(self.plane.master(), &mut self.data, batch, out, clock)?;
            mutated |= run.mutated;
            ended = run.ended;
        }
        if mutated {
            self.plane.pump(ended);
        }
        if self.data.holds() {
            self.release(out, clock);
        }
        Ok(())
    }

    /// Whether replies are held: [`DataLine::release`] is to be called again.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.data.holds()
    }

    /// Whether it goes on by itself: a scan does, and nothing else may ever wake it.
    #[must_use]
    pub fn wants_a_turn(&self) -> bool {
        self.wants_a_turn
    }

    /// Releases what is durable and may be told; says whether that was something. What is still held
    /// then has this connection woken when more is.
    pub fn release(&mut self, out: &mut Vec<u8>, clock: &impl Fn() -> Micros) -> bool {
        self.wants_a_turn = false;
        let (plane, data) = (&self.plane, &mut self.data);
        let (master, store) = (plane.master(), plane.master().store());
        let lease = || master.lease(clock());
        let mut released = data.release(store, lease, out);
        if !data.holds() {
            return released;
        }
        if self.registered != Some(plane.wakes()) {
            self.registered = Some(plane.hold(&self.wake));
            // It may have become durable between the two.
            released |= data.release(store, lease, out);
        }
        if lease() != MasterLease::Held {
            plane.wait_for_lease();
            // It may be here again, or given up, by the time that others know of the wait.
            released |= data.release(store, lease, out);
        } else {
            self.wants_a_turn = data.works() && out.len() <= MAX_UNSENT;
        }
        released
    }
}

/// What came of a run of data envelopes.
struct Run {
    /// Something was changed.
    mutated: bool,
    /// When the last of them was done, by a clock read after that.
    ended: Micros,
}

/// Runs the data envelopes at the front of a batch under one writer's lock.
fn run(
    master: &Master,
    data: &mut DataSession,
    batch: &mut Batch<'_>,
    out: &mut Vec<u8>,
    clock: &impl Fn() -> Micros,
) -> Result<Run, Refusal> {
    let mut session = data.begin(master.store(), out);
    let mut outcome = Ok(());
    while outcome.is_ok() && !session.full() && batch.peek() == Some(Kind::DataRequest) {
        let Some(envelope) = batch.next() else { break };
        outcome = session
            .envelope(&envelope.header, envelope.payload)
            .map_err(|error| Refusal::Malformed(error.to_string()));
    }
    let mutated = session.writer().is_some();
    let mut ended = Micros(0);
    session.end(|| {
        ended = clock();
        master.lease(ended)
    });
    outcome.map(|()| Run { mutated, ended })
}
