//! A process with its disk and its clock.

use std::collections::BTreeMap;

use paxos::{Incarnation, Node, PeerId, Record, Slot, Time};

use crate::dice::Dice;
use crate::disk::Disk;
use crate::machine::Machine;
use crate::plan::Micros;

/// Fastest clock beside a true one, parts in a million: two differ by less than one part in 100.
pub(crate) const FASTEST: u64 = 9_900;

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) incarnation: Incarnation,
    pub(crate) named: Vec<(PeerId, String)>,
    pub(crate) life: u32,
    pub(crate) node: Option<Node>,
    pub(crate) disk: Disk,
    pub(crate) machine: Machine,
    /// Digest of every entry applied in this life.
    pub(crate) snapshot_at: u64,
    rate: u64,
    offset: Micros,
    pub(crate) paused_until: Micros,
    pub(crate) tick_at: Option<Micros>,
    pub(crate) disk_busy: bool,
    pub(crate) slow_disk_until: Micros,
    /// Dies after so many more actions.
    pub(crate) dies_after: Option<usize>,
    /// Will never run again.
    pub(crate) gone: bool,
    /// Of the first member it was, if it came to replace one.
    pub(crate) replaces: Option<PeerId>,
    /// Proposals of this life: who waits for it.
    pub(crate) proposals: BTreeMap<u64, (u32, u64)>,
    /// Of the records handed out, for the rule of promises.
    pub(crate) written: paxos::Ballot,
}

impl Peer {
    pub(crate) fn new(id: PeerId, named: Vec<(PeerId, String)>, dice: &mut Dice) -> Self {
        Self {
            id,
            incarnation: Incarnation(dice.bytes()),
            named,
            life: 0,
            node: None,
            disk: Disk::default(),
            machine: Machine::default(),
            snapshot_at: 0,
            rate: 1_000_000 + dice.between(0, FASTEST),
            offset: 0,
            paused_until: 0,
            tick_at: None,
            disk_busy: false,
            slow_disk_until: 0,
            dies_after: None,
            gone: false,
            replaces: None,
            proposals: BTreeMap::new(),
            written: paxos::Ballot::default(),
        }
    }

    /// Every life's clock begins somewhere.
    pub(crate) fn new_clock(&mut self, dice: &mut Dice) {
        self.offset = dice.between(0, 1 << 40);
    }

    pub(crate) fn clock(&self, now: Micros) -> Time {
        Time(self.offset + (u128::from(now) * u128::from(self.rate) / 1_000_000) as u64)
    }

    /// When its clock shows `time`.
    pub(crate) fn when(&self, time: Time) -> Micros {
        let passed = u128::from(time.0.saturating_sub(self.offset));
        (passed * 1_000_000).div_ceil(u128::from(self.rate)) as u64
    }

    pub(crate) fn is_up(&self) -> bool {
        self.node.is_some()
    }

    pub(crate) fn leads(&self) -> bool {
        self.node
            .as_ref()
            .is_some_and(|node| node.leads().is_some())
    }

    pub(crate) fn holds_lease(&self, now: Micros) -> bool {
        let until = self.node.as_ref().and_then(Node::lease_until);
        until.is_some_and(|until| self.clock(now) < until)
    }

    /// The address of a peer of this number.
    pub(crate) fn address(id: PeerId) -> String {
        format!("peer-{id}")
    }

    /// Whether records keep the rule: nothing is accepted below what was promised, unless it is
    /// decided.
    pub(crate) fn write_keeps_promise(
        &mut self,
        records: &[Record],
        decided: impl Fn(Slot) -> bool,
    ) -> bool {
        let mut kept = true;
        for record in records {
            match record {
                Record::Promised(ballot) => {
                    kept &= *ballot >= self.written;
                    self.written = *ballot;
                }
                Record::Accepted { slot, ballot, .. } if *ballot < self.written => {
                    kept &= decided(*slot);
                }
                _ => {}
            }
        }
        kept
    }
}
