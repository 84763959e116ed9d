//! What the master tells and asks the coordinator, and what it makes of the answers.

use std::time::Duration;

use ramkeep_wire::Micros;
use ramkeep_wire::coordinator::{Answer, Heartbeat, MasterStats, Refused, Request, Response};
use ramkeep_wire::limits::MAX_DAMAGED_REPORTED;

use super::{Control, Master};

/// How long after a coordinator could not be asked it is asked again.
const RETRY_REQUEST: Duration = Duration::from_millis(20);

impl Master {
    /// Requests to the coordinator that are due. Each is answered by
    /// [`Master::handle_answer`], also when the coordinator could not be reached.
    pub fn poll_request(&self) -> Option<Request> {
        let mut control = self.control.lock();
        if control.requests.is_empty() {
            None
        } else {
            Some(control.requests.remove(0))
        }
    }

    /// What the coordinator answered to `asked`, which was sent at `sent`; `None`: it could not be
    /// reached.
    pub fn handle_answer(
        &self,
        now: Micros,
        sent: Micros,
        asked: &Request,
        response: Option<&Response>,
    ) {
        let mut control = self.control.lock();
        let heard = response.map(|_| sent);
        control.replication.coordinator_answered(heard);
        if let Some(response) = response {
            control.ballot = control.ballot.max(response.ballot);
            if response.answer == Answer::Refused(Refused::Crashed) {
                self.fence();
            }
        }
        let answer = response.map(|response| &response.answer);
        match (asked, answer) {
            (Request::RecordEpoch { segment, epoch, .. }, Some(Answer::EpochRecorded)) => {
                control.replication.epoch_recorded(*segment, *epoch);
            }
            (Request::RecordEpoch { segment, epoch, .. }, refused) => {
                let too_low = refused == Some(&Answer::Refused(Refused::Epoch));
                control
                    .failed_records
                    .push((now + RETRY_REQUEST, *segment, *epoch, too_low));
            }
            (
                _,
                Some(Answer::Heard {
                    list,
                    lease_us,
                    ended,
                    over,
                }),
            ) => {
                self.store.clients_ended(ended);
                control.clients.took(ended);
                self.recoveries().end_over(&self.store, over);
                if *lease_us > 0 {
                    let until = sent + Duration::from_micros((*lease_us).into());
                    control.granted = control.granted.max(until);
                    if self.config.settings.replicas == 0 {
                        self.publish(now, control.granted);
                    }
                }
                if let Some(list) = list {
                    self.take_list(&mut control, list.clone());
                }
            }
            _ => {}
        }
    }

    /// The report to send now.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        let (mut damaged, tries) = {
            let recoveries = self.recoveries();
            (recoveries.bad_replicas(), recoveries.held())
        };
        let control = self.control.lock();
        // Neither hides the other.
        let own = control.scrub.found.len().min(MAX_DAMAGED_REPORTED / 2);
        damaged.truncate(MAX_DAMAGED_REPORTED - own);
        let left = MAX_DAMAGED_REPORTED - damaged.len();
        damaged.extend(control.scrub.found.iter().take(left));
        Heartbeat {
            list: control.list.version,
            ready: control.replication.ready(),
            floor: control.replication.floor(),
            master: Some(self.stats_with(&control)),
            damaged,
            clients: Some(control.clients.wants()),
            tries,
            ..Heartbeat::of(self.config.me)
        }
    }

    /// What the master uses its memory for.
    #[must_use]
    pub fn stats(&self) -> MasterStats {
        self.stats_with(&self.control.lock())
    }

    fn stats_with(&self, control: &Control) -> MasterStats {
        let under_replicated =
            u32::try_from(control.replication.under_replicated()).unwrap_or(u32::MAX);
        MasterStats {
            under_replicated,
            ..self.store.stats()
        }
    }
}
