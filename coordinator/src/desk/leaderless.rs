//! Why nobody leads, for people: said once when it lasts, and with every answer that names no leader.

use std::time::Duration;

use ramkeep_wire::{Micros, PeerId};

use super::Desk;

/// Longer than elections take.
const TELL_AFTER: Duration = Duration::from_secs(2);

fn lost_its_directory(id: paxos::PeerId, at: &str) -> String {
    format!("coordinator {id} at {at} has lost its directory")
}

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
        if let (Some(at), Some(was)) = (node.has_moved_to(), group.member(setup.me)) {
            let (me, was) = (setup.me, &was.address);
            return Some(format!(
                "the group has coordinator {me} at {was}, and its own --peers have it at {at}: if it was moved, \
                 start another one again with {me}={at} in its --peers, so that all find it"
            ));
        }
        let mut moved = Vec::new();
        let away = group.members.iter().filter(|member| member.id != setup.me);
        let away = away.filter_map(|member| {
            let (id, at) = (member.id, &member.address);
            if self.peers.is_up(PeerId(id.0)) {
                return (node.has_called(id)).then(|| lost_its_directory(id, at));
            }
            if let Some(calls) = node.calls_from(id) {
                moved.push(format!("{id}={calls}"));
                return Some(format!(
                    "coordinator {id} calls from {calls}, and does not answer at {at}"
                ));
            }
            Some(match node.has_called(id) {
                true => lost_its_directory(id, at),
                false => format!("coordinator {id} at {at} does not answer"),
            })
        });
        let away: Vec<String> = away.collect();
        let (all, majority) = (group.members.len(), group.majority());
        if all - away.len() >= majority {
            return None;
        }
        let away = away.join(", ");
        let missing = format!("{majority} of the {all} coordinators have to be there: {away}.");
        if !moved.is_empty() {
            let (me, moved) = (setup.me, moved.join(","));
            return Some(format!(
                "{missing} If it was moved there, and nothing runs where it was, start this one (coordinator \
                 {me}) again with {moved} in its --peers"
            ));
        }
        Some(format!(
            "{missing} Start one of them with its directory; if those directories are lost for good, stop this \
             one and go on from what it has with `ramkeep coordinator rescue`"
        ))
    }

    /// Says in the log, once for each address, that a member calls from where it is not called.
    pub(super) fn tell_moves(&mut self) {
        let node = self.core.node();
        for member in node.group().iter().flat_map(|group| &group.members) {
            let (id, is_at) = (member.id, &member.address);
            let Some(calls_from) = node.calls_from(id) else {
                continue;
            };
            let told = self.told_moves.insert(id, calls_from.to_owned());
            if told.as_deref() != Some(calls_from) {
                tracing::warn!(
                    %id, calls_from, is_at,
                    "a coordinator calls from elsewhere than the group has it: if it was moved, start this one \
                     again with its new address in --peers"
                );
            }
        }
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
