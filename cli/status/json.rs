//! `status` for programs.

use ramkeep_wire::Ballot;
use ramkeep_wire::coordinator::{
    BackupStats, ClusterStatus, DamagedReplica, MasterStats, RecoveryReport, Roles, ServerReport,
    ServerState, Shortage, ShortageKind, Table, Tablet, TabletState,
};
use serde_json::{Value, json};

use super::{overhead_per_object, total};
use crate::recovery::{losses, recovery};

/// The whole answer. `ballot` is the ballot's round; with `leader` beside it, it is the ballot.
pub(super) fn status(status: &ClusterStatus, ballot: Ballot) -> Value {
    let masters = status
        .servers
        .iter()
        .filter_map(|report| report.heartbeat.as_ref()?.master);
    json!({
        "cluster": status.cluster.to_string(),
        "leader": status.leader.0,
        "ballot": ballot.round,
        "decided": status.decided,
        "replicas": status.settings.replicas,
        "coordinators": status.coordinators.iter().map(|coordinator| json!({
            "id": coordinator.peer.0,
            "address": coordinator.address,
            "leader": coordinator.peer == status.leader,
            "member": coordinator.member,
            "decided": coordinator.decided,
            "silent_ms": coordinator.silent_us.map(|us| us / 1_000),
        })).collect::<Vec<_>>(),
        "servers": status.servers.iter()
            .map(|report| server(report, &status.damaged)).collect::<Vec<_>>(),
        "memory": memory(&total(masters)),
        "tables": status.tables.iter().map(table).collect::<Vec<_>>(),
        "tablets": status.tables.iter()
            .flat_map(|table| table.tablets.iter().map(|one| tablet(&table.name, one, &status.recoveries)))
            .collect::<Vec<_>>(),
        "shortages": status.shortages.iter().map(shortage).collect::<Vec<_>>(),
        "recoveries": status.recoveries.iter().map(recovery).collect::<Vec<_>>(),
        "losses": losses(status),
        "damaged_replicas": status.damaged.iter().map(|replica| json!({
            "backup": replica.backup.0,
            "master": replica.master.0,
            "segment": replica.segment.0,
        })).collect::<Vec<_>>(),
    })
}

fn table(table: &Table) -> Value {
    json!({ "id": table.table.0, "name": table.name, "tablets": table.tablets.len() })
}

/// Roles by name.
pub(super) fn roles(roles: Roles) -> Vec<&'static str> {
    [(roles.master, "master"), (roles.backup, "backup")]
        .into_iter()
        .filter_map(|(has, name)| has.then_some(name))
        .collect()
}

/// A server's state by name.
pub(super) fn server_state(state: ServerState) -> &'static str {
    match state {
        ServerState::Joining => "joining",
        ServerState::Up => "up",
        ServerState::Crashed => "crashed",
    }
}

/// A tablet's state by name.
pub(super) fn tablet_state(state: TabletState) -> &'static str {
    match state {
        TabletState::Assigning => "assigning",
        TabletState::Normal => "normal",
        TabletState::Down => "down",
        TabletState::Dropping => "dropping",
        TabletState::Recovering => "recovering",
    }
}

/// Why a tablet is not served, if its owner crashed, and how its recovery is.
pub(super) fn reason(tablet: &Tablet, recoveries: &[RecoveryReport]) -> Option<String> {
    if !matches!(tablet.state, TabletState::Down | TabletState::Recovering) {
        return None;
    }
    let crashed = format!("{} was decided crashed", tablet.owner);
    let mut own = recoveries
        .iter()
        .filter(|report| report.master == tablet.owner);
    Some(match own.next() {
        Some(report) => format!("{crashed}: {}", report.phase),
        None => crashed,
    })
}

fn server(report: &ServerReport, damaged: &[DamagedReplica]) -> Value {
    let heartbeat = report.heartbeat.as_ref();
    let own = damaged.iter();
    let own = own.filter(|replica| replica.backup == report.entry.server);
    json!({
        "id": report.entry.server.0,
        "roles": roles(report.entry.roles),
        "state": server_state(report.entry.state),
        "address": report.entry.addresses.first(),
        "addresses": report.entry.addresses,
        "replaces": report.entry.replaces.map(|server| server.0),
        "recovered": report.entry.recovered,
        "resident": heartbeat.map(|heartbeat| heartbeat.resident),
        "memory": heartbeat.and_then(|heartbeat| heartbeat.master.as_ref()).map(memory),
        "frames": heartbeat.and_then(|heartbeat| heartbeat.backup.as_ref()).map(frames),
        "suspected": {
            "reports": report.suspected.reports,
            "suspicions": report.suspected.suspicions,
            "probes": report.suspected.probes,
        },
        "damaged_replicas": own.count(),
    })
}

fn memory(stats: &MasterStats) -> Value {
    json!({
        "limit": stats.memory,
        "used": stats.used,
        "live": stats.live,
        "reserved": stats.reserved,
        "room": stats.room,
        "index": stats.index,
        "objects": stats.objects,
        "payload": stats.payload,
        "overhead_per_object": overhead_per_object(stats),
        "segments": stats.segments,
        "under_replicated": stats.under_replicated,
    })
}

fn frames(stats: &BackupStats) -> Value {
    json!({ "total": stats.frames, "used": stats.used, "inherited": stats.inherited, "damaged": stats.damaged, "kept": stats.kept })
}

/// Hashes are hexadecimal text: they go past what a JSON number holds exactly.
fn shortage(shortage: &Shortage) -> Value {
    json!({
        "kind": shortage_kind(shortage.kind),
        "server": shortage.server.0,
        "now": shortage.is_now,
        "text": shortage.text,
    })
}

pub(super) fn shortage_kind(kind: ShortageKind) -> &'static str {
    match kind {
        ShortageKind::Memory => "memory",
        ShortageKind::Frames => "frames",
        ShortageKind::Backups => "backups",
    }
}

fn tablet(name: &str, tablet: &Tablet, recoveries: &[RecoveryReport]) -> Value {
    json!({
        "table": tablet.table.0,
        "name": name,
        "first": format!("{:016x}", tablet.first.0),
        "last": format!("{:016x}", tablet.last.0),
        "owner": tablet.owner.0,
        "state": tablet_state(tablet.state),
        "reason": reason(tablet, recoveries),
    })
}
