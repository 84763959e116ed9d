//! What the backups say they hold of a crashed master.
//!
//! # Invariants
//! 1. A backup is settled when it has answered its whole inventory, or has failed to answer
//!    anything for [`PATIENCE`]. Only when all are, a segment can be called missing. Those that have come
//!    since the try began are waited for no longer than that, however many there are.
//! 2. What is taken from a backup is bounded, whatever it says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ramkeep_wire::backup::ReplicaInfo;
use ramkeep_wire::coordinator::{ServerList, ServerState};
use ramkeep_wire::limits::{MAX_INVENTORY, MAX_SEGMENTS_PER_LOG};
use ramkeep_wire::{Micros, SegmentId, ServerId};

/// A backup that has failed for so long is taken as not there.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// Between a failure and the next request to the same backup.
pub(super) const RETRY: Duration = Duration::from_millis(50);
/// Requests in flight to one backup.
pub(super) const MAX_ASKS_PER_BACKUP: usize = 3;

/// A backup as this recovery knows it.
#[derive(Debug, Default)]
pub(super) struct Backup {
    /// The last segment of the inventory so far.
    pub(super) after: Option<SegmentId>,
    pub(super) complete: bool,
    /// An inventory request is out.
    pub(super) asked: bool,
    pub(super) in_flight: usize,
    /// Requests for bytes so far: spreads them.
    pub(super) fetches: u64,
    retry_at: Micros,
    failing_since: Option<Micros>,
    lost: bool,
    /// It has come since the try began.
    is_new: bool,
    replicas: usize,
}

impl Backup {
    pub(super) fn may_ask(&self, now: Micros) -> bool {
        !self.lost && self.retry_at <= now && self.in_flight < MAX_ASKS_PER_BACKUP
    }

    pub(super) fn is_settled(&self) -> bool {
        self.complete || self.lost
    }

    pub(super) fn answered(&mut self) {
        self.failing_since = None;
        self.lost = false;
    }

    pub(super) fn wait_until(&mut self, due: Micros) {
        self.retry_at = due;
    }

    pub(super) fn failed(&mut self, now: Micros) {
        self.retry_at = now + RETRY;
        let since = *self.failing_since.get_or_insert(now);
        self.lost = since + PATIENCE <= now;
    }
}

/// The living backups, and what they hold.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub(super) backups: BTreeMap<ServerId, Backup>,
    holders: BTreeMap<SegmentId, Vec<(ServerId, ReplicaInfo)>>,
    /// Copies that turned out not to be what they should be.
    aside: BTreeSet<(ServerId, SegmentId)>,
    has_list: bool,
    /// Since when only those that have come since are waited for.
    waits_for_new: Option<Micros>,
}

impl Inventory {
    pub(super) fn take_list(&mut self, list: &ServerList, master: ServerId) {
        let is_there = |server: &ServerId| {
            let mut entries = list.servers.iter();
            entries.any(|entry| {
                entry.server == *server
                    && entry.roles.backup
                    && entry.state != ServerState::Crashed
                    && entry.server != master
            })
        };
        self.backups.retain(|server, _| is_there(server));
        for holders in self.holders.values_mut() {
            holders.retain(|(server, _)| is_there(server));
        }
        let living = list
            .servers
            .iter()
            .map(|entry| entry.server)
            .filter(is_there);
        for server in living {
            self.backups.entry(server).or_insert(Backup {
                is_new: self.has_list,
                ..Backup::default()
            });
        }
        self.has_list = true;
    }

    /// Takes in a page. False if it makes no sense.
    pub(super) fn take_page(
        &mut self,
        from: ServerId,
        master: ServerId,
        page: &[ReplicaInfo],
    ) -> bool {
        let Some(backup) = self.backups.get_mut(&from) else {
            return true;
        };
        let mut last = backup.after.unwrap_or(SegmentId(0));
        for info in page {
            if info.master != master || info.segment <= last {
                return false;
            }
            last = info.segment;
        }
        backup.replicas += page.len();
        if page.len() > MAX_INVENTORY || backup.replicas > 2 * MAX_SEGMENTS_PER_LOG {
            return false;
        }
        backup.after = Some(last);
        backup.complete = page.len() < MAX_INVENTORY;
        for info in page {
            self.holders
                .entry(info.segment)
                .or_default()
                .push((from, *info));
        }
        true
    }

    /// The copies of a segment that were not set aside.
    pub(super) fn copies(
        &self,
        segment: SegmentId,
    ) -> impl Iterator<Item = (ServerId, &ReplicaInfo)> {
        let held = self.holders.get(&segment).into_iter().flatten();
        held.map(|(server, info)| (*server, info))
            .filter(move |(server, _)| !self.aside.contains(&(*server, segment)))
    }

    /// The copies that were set aside.
    pub(super) fn set_aside(&self, segment: SegmentId) -> impl Iterator<Item = ServerId> + '_ {
        let of_segment = move |(_, one): &&(ServerId, SegmentId)| *one == segment;
        self.aside
            .iter()
            .filter(of_segment)
            .map(|(server, _)| *server)
    }

    pub(super) fn put_aside(&mut self, segment: SegmentId, from: ServerId) {
        self.aside.insert((from, segment));
    }

    /// Whether no more copies are waited for.
    pub(super) fn is_settled(&mut self, now: Micros) -> bool {
        let open = |is_new: bool| {
            let mut backups = self.backups.values();
            backups.any(|one| !one.is_settled() && one.is_new == is_new)
        };
        let (old, new) = (open(false), open(true));
        if old || !new {
            self.waits_for_new = None;
            return !old;
        }
        *self.waits_for_new.get_or_insert(now) + PATIENCE <= now
    }

    pub(super) fn is_lost(&self, server: ServerId) -> bool {
        self.backups.get(&server).is_none_or(|backup| backup.lost)
    }
}
