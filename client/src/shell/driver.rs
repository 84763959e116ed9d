//! The driver: the task that connects, watches the time, and sleeps on the sockets when no caller
//! polls them.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ramkeep_rpc::{Address, Link, clock};
use ramkeep_wire::Micros;

use super::lane::Lane;
use crate::session::Connect;

/// While callers poll, the driver looks after them at this distance: it ends what is over its
/// deadline, and replaces a leader that nobody polls any more.
const ROUND: Duration = Duration::from_millis(10);

/// What the driver does until its next turn.
#[derive(Default)]
struct Plan {
    connect: Vec<Connect>,
    /// Sleep on these.
    links: Vec<Link>,
    wake_at: Option<Micros>,
}

/// What the driver remembers between turns.
#[derive(Default)]
struct Memory {
    turns: u64,
    begun: u64,
}

/// Ends all that is under way when the driver is dropped with its runtime.
struct Stop(Arc<Lane>);

impl Drop for Stop {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.session.stop(clock::now());
        self.0.release(state);
    }
}

/// Starts a lane's driver on the runtime that this is called on. It ends when the lane is shut.
pub(crate) fn drive(lane: Arc<Lane>) {
    tokio::spawn(run(Stop(lane)));
}

async fn run(stop: Stop) {
    let lane = &stop.0;
    let mut memory = Memory::default();
    while let Some(plan) = lane.turn(&mut memory) {
        for wish in plan.connect {
            tokio::spawn(connect(lane.clone(), wish));
        }
        wait(lane, plan.wake_at, &plan.links).await;
    }
}

async fn wait(lane: &Lane, wake_at: Option<Micros>, links: &[Link]) {
    let mut woken = pin!(lane.driver.notified());
    let mut late = pin!(async {
        match wake_at {
            Some(at) => tokio::time::sleep(at.since(clock::now())).await,
            None => std::future::pending().await,
        }
    });
    let mut ready: Vec<Pin<Box<_>>> = links.iter().map(|link| Box::pin(link.ready())).collect();
    poll_fn(|cx| {
        let woken = woken.as_mut().poll(cx).is_ready() || late.as_mut().poll(cx).is_ready();
        if woken
            || ready
                .iter_mut()
                .any(|link| link.as_mut().poll(cx).is_ready())
        {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

impl Lane {
    /// Lets time pass, receives when no caller does, and says what to wait for. `None`: no user is
    /// left.
    fn turn(&self, memory: &mut Memory) -> Option<Plan> {
        let led = self.tick(memory)?;
        self.pump();
        if !led {
            self.receive_all();
            self.pump();
        }
        let mut state = self.lock();
        let mut plan = Plan::default();
        let session = &mut state.session;
        plan.connect
            .extend(std::iter::from_fn(|| session.poll_connect()));
        let busy = session.begun() != memory.begun;
        memory.begun = session.begun();
        plan.wake_at = session.next_timeout();
        let idle = session.waiting() == 0;
        if state.leader.is_some() || (busy && idle) {
            let round = clock::now() + ROUND;
            plan.wake_at = Some(plan.wake_at.map_or(round, |at| at.min(round)));
        } else {
            let connections = state.session.connections();
            plan.links
                .extend(connections.map(|(_, up)| up.link.clone()));
            state.dozing = idle;
        }
        // What was found here is seen to in this plan.
        state.session.take_attention();
        self.release(state);
        Some(plan)
    }

    /// Returns whether a caller leads.
    fn tick(&self, memory: &mut Memory) -> Option<bool> {
        let now = clock::now();
        let mut state = self.lock();
        if state.stopping {
            return None;
        }
        if state.session.next_timeout().is_some_and(|at| at <= now) {
            state.session.handle_tick(now);
        }
        if state.leader.is_some() && state.turns == memory.turns {
            state.leader = None;
        }
        memory.turns = state.turns;
        state.dozing = false;
        let led = state.leader.is_some();
        self.release(state);
        Some(led)
    }

    /// Receives on all links, also where no answer is owed: their ends are noticed.
    fn receive_all(&self) {
        let connections: Vec<_> = (self.lock().session.connections())
            .map(|(target, connection)| (target, connection.clone()))
            .collect();
        for (target, connection) in connections {
            while self.receive_from(target, &connection) > 0 && !connection.link.is_closed() {}
        }
    }
}

/// Opens a connection to the first of a target's addresses that answers.
async fn connect(lane: Arc<Lane>, wish: Connect) {
    let party = wish.party();
    let mut reason = "it has no address".to_owned();
    let mut refused = None;
    for address in &wish.addresses {
        let address: Address = match address.parse() {
            Ok(address) => address,
            Err(error) => {
                reason = error.to_string();
                continue;
            }
        };
        match Link::connect(&address, &lane.identity, party, lane.mode).await {
            Ok(link) => {
                let mut state = lane.lock();
                let cluster = link.cluster();
                let session = &mut state.session;
                session.connected(wish.target, wish.number, link, cluster);
                lane.release(state);
                return lane.driver.notify_one();
            }
            Err(error) => {
                reason = error.to_string();
                refused = error.refusal().cloned();
            }
        }
    }
    let (now, mut state) = (clock::now(), lane.lock());
    let (target, number) = (wish.target, wish.number);
    let session = &mut state.session;
    match refused {
        None => session.lost(now, target, number, &reason),
        Some(refusal) => session.refused(now, target, number, &refusal, &reason),
    }
    lane.release(state);
    lane.driver.notify_one();
}
