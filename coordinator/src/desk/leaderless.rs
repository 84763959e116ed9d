//! Why nobody leads, for people: said once when it lasts, and with every answer that names no leader.

use std::time::Duration;

use ramkeep_wire::{Micros, PeerId};

use super::Desk;

/// Longer than elections take.
const TELL_AFTER: Duration = Duration::from_secs(2);

impl Desk {
    /// What keeps the group from having a leader and what leads out, unless it may just be about to have one.
    pub(super) fn why_nobody_leads(&self) -> Option<String> {
        let node = self.core.node();
        let setup = node.setup();
        let Some(group) = node.group() else {
            let others = setup.peers.iter().filter(|(id, _)| *id != setup.me);
            let others: Vec<&str> = others.map(|(_, at)| at.as_str()).collect();
            return Some(match (setup.founds, others.is_empty()) {
                (false, true) => "its directory is empty, and it knows no other coordinators: start it \
                                  with its own directory, with the --peers of a group to join, or with \
                                  --new-cluster to make a new cluster"
                    .to_owned(),
                (false, false) => format!(
                    "its directory is empty, and it waits for the group of {} to take it in: start \
                     those with their directories. To make a new cluster, start all of them with \
                     --new-cluster",
                    others.join(", ")
                ),
                (true, _) => format!(
                    "it makes a new cluster as soon as all of {} are there with empty directories",
                    others.join(", ")
                ),
            });
        };
        if !node.is_member() {
            return Some("it is no member of the group yet".to_owned());
        }
        let away = group.members.iter().filter(|member| member.id != setup.me);
        let away = away.filter_map(|member| {
            let (id, at) = (member.id, &member.address);
            if node.has_called(id) {
                Some(format!("coordinator {id} at {at} has lost its directory"))
            } else if !self.peers.is_up(PeerId(id.0)) {
                Some(format!("coordinator {id} at {at} does not answer"))
            } else {
                None
            }
        });
        let away: Vec<String> = away.collect();
        let (all, majority) = (group.members.len(), group.majority());
        if all - away.len() >= majority {
            return None;
        }
        Some(format!(
            "{majority} of the {all} coordinators have to be there: {}. Start one of them with its directory; \
             if those directories are lost for good, stop this one and go on from what it has with \
             `ramkeep coordinator rescue`",
            away.join(", ")
        ))
    }

    /// Says so in the log, once as long as it lasts.
    pub(super) fn tell_why(&mut self, now: Micros) {
        if self.core.leads() || self.core.node().leader().is_some() {
            self.leaderless = None;
            return;
        }
        let (since, told) = *self.leaderless.get_or_insert((now, false));
        if told || now.since(since) < TELL_AFTER {
            return;
        }
        if let Some(why) = self.why_nobody_leads() {
            tracing::warn!(%why, "nobody leads");
            self.leaderless = Some((since, true));
        }
    }
}
