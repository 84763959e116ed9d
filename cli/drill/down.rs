//! Tablets that nobody serves: what of them is to be expected, and what is not.

use std::collections::BTreeSet;

use ramkeep_client::TableId;
use ramkeep_wire::coordinator::{ClusterStatus, RecoveryReport, Tablet, TabletState};
use ramkeep_wire::key_hash;

/// Tablets that are down at one moment, and why.
#[derive(Clone, Debug, Default)]
pub(super) struct Down {
    tablets: Vec<Tablet>,
    /// What `status` says of their recoveries.
    recoveries: Vec<RecoveryReport>,
}

impl Down {
    /// Tablets that no living server serves. `gone`: who was killed.
    pub(super) fn of(status: &ClusterStatus, gone: &BTreeSet<u64>) -> Self {
        let tablets = status.tables.iter().flat_map(|table| &table.tablets);
        let down = tablets
            .filter(|one| one.state != TabletState::Normal || gone.contains(&one.owner.0))
            .copied();
        Self {
            tablets: down.collect(),
            recoveries: status.recoveries.clone(),
        }
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.tablets.len()
    }

    /// Whether all is served.
    pub(super) fn is_empty(&self) -> bool {
        self.tablets.is_empty()
    }

    /// Whether one of them would have this key.
    pub(super) fn has(&self, table: TableId, key: &str) -> bool {
        let hash = key_hash(table, key.as_bytes());
        let mut tablets = self.tablets.iter();
        tablets.any(|one| one.table == table && (one.first..=one.last).contains(&hash))
    }

    /// Those of which `status` does not say that their recovery can't go on, and why.
    pub(super) fn unexplained(&self) -> usize {
        let explained = |tablet: &&Tablet| {
            let mut own = self.recoveries.iter();
            own.any(|one| one.master == tablet.owner && one.stuck && !one.phase.is_empty())
        };
        self.tablets.len() - self.tablets.iter().filter(explained).count()
    }

    /// What `status` says, for people.
    pub(super) fn reasons(&self) -> String {
        let reasons = self.recoveries.iter().map(|one| {
            let stuck = if one.stuck { "stuck: " } else { "" };
            format!("server {}: {stuck}{}", one.master, one.phase)
        });
        match reasons.collect::<Vec<_>>() {
            reasons if reasons.is_empty() => "nothing".to_owned(),
            reasons => reasons.join("; "),
        }
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::coordinator::RecoveryMoments;
    use ramkeep_wire::{KeyHash, LogPosition, ServerId};

    use super::*;

    fn down(stuck: bool) -> Down {
        let tablet = Tablet {
            table: TableId(1),
            first: KeyHash(0),
            last: KeyHash(u64::MAX),
            owner: ServerId(4),
            takeover: LogPosition(0),
            state: TabletState::Down,
        };
        let report = RecoveryReport {
            master: ServerId(4),
            phase: "no room".to_owned(),
            stuck,
            tablets: 1,
            since_us: 0,
            missing: None,
            moments: RecoveryMoments::default(),
        };
        Down {
            tablets: vec![tablet],
            recoveries: vec![report],
        }
    }

    #[test]
    fn a_tablet_may_be_down_only_while_its_recovery_is_said_to_be_stuck() {
        assert_eq!(down(true).unexplained(), 0);
        assert_eq!(down(false).unexplained(), 1);
        assert!(down(true).reasons().contains("stuck: no room"));
        assert!(down(true).has(TableId(1), "any") && !down(true).has(TableId(2), "any"));
        assert!(Down::default().is_empty() && Down::default().unexplained() == 0);
    }
}
