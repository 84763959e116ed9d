//! The right to answer (SAFETY 1), judged by one who knows the true time and sees everybody.
//!
//! # Invariants
//! 1. When a reply leaves that appended nothing, nobody can have the right to serve the same data:
//!    no backup would show a recovery a head of that master that counts as the log's end, and the
//!    coordinators have not taken the master for fenced.

use ramkeep_backup::{Backup, MemoryStore};
use ramkeep_coordinator::State;
use ramkeep_wire::backup::{BackupRequest, BackupResponse, ReplicaInfo};
use ramkeep_wire::{BootId, Micros, Party, SegmentKind, ServerId};

use crate::check::log_end::MasterRecord;
use crate::inspect;
use crate::network::ProcessId;
use crate::node::Node;
use crate::world::World;

impl World {
    /// Notes it if a process has just done what it must not, or told a client of something that it had no
    /// right to tell.
    pub(crate) fn judge_answers(&mut self, process: ProcessId) {
        let seen = self.with_node(process, |node| match node {
            Node::Server(node) => {
                let (told, wrongs) = (node.watch.take_told(), node.watch.take_wrongs());
                (told, node.server(), wrongs)
            }
            _ => (false, ServerId(0), Vec::new()),
        });
        let Some((told, master, wrongs)) = seen else {
            return;
        };
        self.wrongs.extend(wrongs);
        if !told {
            return;
        }
        if let Some(why) = self.no_right(master) {
            let now = self.events.now().0 as f64 / 1000.0;
            self.wrongs.push(format!(
                "{master:?} told what it looked up: {why} (at {now:.3} ms)"
            ));
        }
    }

    /// Why this master must not answer now, if so.
    fn no_right(&mut self, master: ServerId) -> Option<String> {
        let state = inspect::recorded(self)?;
        let found = state.servers().by_id(master);
        if found.is_none_or(|server| server.fenced) && !self.has_zombie_backups(&state) {
            return Some("the coordinators have taken it for fenced".into());
        }
        let machines: Vec<usize> = self.server_machines().collect();
        let mut record = None;
        for machine in machines {
            let now = self.shown(machine);
            let boot = self.boot(machine);
            let Some(process) = self.machines[machine].process else {
                continue;
            };
            let shown = self.with_node(process, |node| match node {
                Node::Server(node) => match node.backup() {
                    Some(mut backup) if backup.has_fenced(master) => {
                        shown(&mut backup, now, master)
                    }
                    _ => Vec::new(),
                },
                _ => Vec::new(),
            });
            let shown = shown.unwrap_or_default();
            if shown.is_empty() {
                continue;
            }
            let record = record.get_or_insert_with(|| inspect::master_record(&state, master));
            let record = record.as_ref()?;
            if let Some(head) = shown.iter().find(|info| counts(record, boot, info)) {
                return Some(format!(
                    "machine {machine} would show {:?} of {:?} as a head",
                    head.segment, head.epoch
                ));
            }
        }
        None
    }

    /// Whether a backup that was decided crashed lives on and doesn't know: it grants what the
    /// coordinators can't know of. Who recovers asks the backups themselves; the coordinators by
    /// themselves go by what the living know.
    fn has_zombie_backups(&self, state: &State) -> bool {
        let servers = state.servers();
        self.server_machines().any(|machine| {
            self.server(machine).is_some_and(|node| {
                let found = servers.by_id(node.server());
                node.backup().is_some() && !node.stopped() && found.is_none_or(|s| s.is_crashed())
            })
        })
    }
}

/// What a recovery that asks now would be shown.
fn shown(backup: &mut Backup<MemoryStore>, now: Micros, master: ServerId) -> Vec<ReplicaInfo> {
    let after = None;
    let request = BackupRequest::Inventory { master, after };
    match backup.handle_request(now, Party::NONE, request).response {
        BackupResponse::Inventory(page) => page,
        _ => Vec::new(),
    }
}

/// Whether recovery may take a replica for the log's end.
fn counts(record: &MasterRecord, boot: BootId, info: &ReplicaInfo) -> bool {
    let epoch = record
        .epochs
        .get(&info.segment)
        .copied()
        .unwrap_or_default();
    let low = record
        .floor
        .is_some_and(|floor| (info.segment, info.epoch) < floor);
    info.kind == SegmentKind::Head
        && !info.closed
        && info.boot == boot
        && info.epoch >= epoch
        && !low
}
