//! `status` for people.

use std::collections::BTreeMap;
use std::fmt::Write;

use ramkeep_wire::coordinator::{ClusterStatus, DamagedReplica, ServerReport, TabletState};
use ramkeep_wire::{Ballot, ServerId};

use super::json::{reason, roles, server_state, tablet_state};
use super::{overhead_per_object, total};
use crate::columns::Columns;
use crate::recovery::notes;
use crate::units::Size;

const NOTHING: &str = "-";

/// The whole answer.
pub(super) fn status(status: &ClusterStatus, ballot: Ballot) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "cluster {}: {} copies of each write; coordinator {} leads, ballot {ballot}\n",
        status.cluster, status.settings.replicas, status.leader
    );
    let _ = writeln!(text, "Coordinators\n{}", coordinators(status));
    let _ = writeln!(text, "Servers\n{}", servers(status));
    if status.tables.is_empty() {
        text.push_str("No tables\n\n");
    } else {
        let _ = writeln!(text, "Tables\n{}", tables(status));
        let _ = writeln!(text, "Tablets\n{}", tablets(status));
    }
    if !status.recoveries.is_empty() {
        let _ = writeln!(text, "Recoveries\n{}", recoveries(status));
    }
    for shortage in &status.shortages {
        let when = if shortage.is_now {
            "LACKING"
        } else {
            "warning"
        };
        let _ = writeln!(text, "{when}: {}", shortage.text);
    }
    if !status.shortages.is_empty() {
        text.push('\n');
    }
    if !status.damaged.is_empty() {
        let _ = writeln!(text, "Replicas found damaged\n{}", damaged(&status.damaged));
    }
    match notes(status) {
        notes if notes.is_empty() => {}
        notes => drop(writeln!(text, "{notes}")),
    }
    let _ = writeln!(text, "{}", summary(status));
    text
}

fn coordinators(status: &ClusterStatus) -> Columns<5> {
    let mut columns = Columns::new([">id", "address", "", ">decided", ">heard"]);
    for coordinator in &status.coordinators {
        let role = match coordinator.member {
            true if coordinator.peer == status.leader => "leads",
            true => "follows",
            false => "learns",
        };
        let decided = coordinator.decided.map(|slot| slot.to_string());
        let heard = coordinator
            .silent_us
            .map(|us| format!("{} ms ago", us / 1_000));
        columns.row([
            coordinator.peer.to_string(),
            coordinator.address.clone(),
            role.to_owned(),
            decided.unwrap_or_else(|| "?".to_owned()),
            heard.unwrap_or_else(|| "never".to_owned()),
        ]);
    }
    columns
}

fn servers(status: &ClusterStatus) -> Columns<10> {
    let mut columns = Columns::new([
        ">id",
        "address",
        "roles",
        "state",
        ">objects",
        ">used",
        ">live",
        ">of",
        ">resident",
        ">frames",
    ]);
    for report in &status.servers {
        columns.row(server(report));
    }
    columns
}

fn server(report: &ServerReport) -> [String; 10] {
    let heartbeat = report.heartbeat.as_ref();
    let master = heartbeat.and_then(|heartbeat| heartbeat.master);
    let backup = heartbeat.and_then(|heartbeat| heartbeat.backup);
    let size = |bytes: Option<u64>| shown(bytes.map(Size));
    [
        report.entry.server.to_string(),
        shown(report.entry.addresses.first()),
        roles(report.entry.roles).join("+"),
        server_state(report.entry.state).to_owned(),
        shown(master.map(|stats| stats.objects)),
        size(master.map(|stats| stats.used)),
        size(master.map(|stats| stats.live)),
        size(master.map(|stats| stats.memory)),
        size(heartbeat.map(|heartbeat| heartbeat.resident)),
        shown(backup.map(|stats| format!("{}/{}", stats.used, stats.frames))),
    ]
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| NOTHING.to_owned(), |value| value.to_string())
}

fn tables(status: &ClusterStatus) -> Columns<4> {
    let mut columns = Columns::new([">id", "name", ">tablets", ">not served"]);
    for table in &status.tables {
        let unserved = table
            .tablets
            .iter()
            .filter(|tablet| tablet.state != TabletState::Normal)
            .count();
        columns.row([
            table.table.to_string(),
            table.name.clone(),
            table.tablets.len().to_string(),
            unserved.to_string(),
        ]);
    }
    columns
}

fn tablets(status: &ClusterStatus) -> Columns<5> {
    let mut columns = Columns::new(["table", "first hash", "last hash", ">owner", "state"]);
    for table in &status.tables {
        for tablet in &table.tablets {
            columns.row([
                table.name.clone(),
                format!("{:016x}", tablet.first.0),
                format!("{:016x}", tablet.last.0),
                tablet.owner.to_string(),
                match reason(tablet, &[]) {
                    None => tablet_state(tablet.state).to_owned(),
                    Some(reason) => format!("{}: {reason}", tablet_state(tablet.state)),
                },
            ]);
        }
    }
    columns
}

/// The recoveries under way.
pub(crate) fn recoveries(status: &ClusterStatus) -> Columns<5> {
    let mut columns = Columns::new([">master", ">tablets", ">for", "", "phase"]);
    for report in &status.recoveries {
        columns.row([
            report.master.to_string(),
            report.tablets.to_string(),
            format!("{} ms", report.since_us / 1_000),
            if report.stuck { "STUCK" } else { "" }.to_owned(),
            report.phase.clone(),
        ]);
    }
    columns
}

/// Who holds replicas that are not what they should be. The last found comes last.
fn damaged(all: &[DamagedReplica]) -> Columns<3> {
    let mut by_backup: BTreeMap<ServerId, Vec<&DamagedReplica>> = BTreeMap::new();
    for replica in all {
        by_backup.entry(replica.backup).or_default().push(replica);
    }
    let mut columns = Columns::new([">on server", ">found", "last"]);
    for (backup, replicas) in by_backup {
        let last = replicas.last();
        let last = last.map(|last| format!("segment {} of server {}", last.segment, last.master));
        columns.row([backup.to_string(), replicas.len().to_string(), shown(last)]);
    }
    columns
}

fn summary(status: &ClusterStatus) -> String {
    let sum = total(
        status
            .servers
            .iter()
            .filter_map(|report| report.heartbeat.as_ref()?.master),
    );
    let mut text = format!(
        "{} objects, {} of keys and values; {} live of {} used of {}",
        sum.objects,
        Size(sum.payload),
        Size(sum.live),
        Size(sum.used),
        Size(sum.memory),
    );
    if let Some(overhead) = overhead_per_object(&sum) {
        let _ = write!(text, "; {overhead:.1} bytes above key and value per object");
    }
    if sum.under_replicated > 0 {
        let _ = write!(text, "; {} segments lack a copy", sum.under_replicated);
    }
    let backups = status.servers.iter();
    let backups = backups.filter_map(|report| report.heartbeat.as_ref()?.backup);
    match backups.map(|stats| stats.damaged).sum::<u32>() {
        0 => {}
        count => drop(write!(
            text,
            "; {count} frames were torn when they were opened"
        )),
    }
    let tablets = status.tables.iter().flat_map(|table| &table.tablets);
    let unserved = tablets.filter(|tablet| tablet.state != TabletState::Normal);
    match unserved.count() {
        0 => {}
        count => drop(write!(text, "; {count} tablets are not served")),
    }
    match status.recoveries.len() {
        0 => text.push_str("; no recoveries under way"),
        1 => text.push_str("; one recovery under way"),
        count => drop(write!(text, "; {count} recoveries under way")),
    }
    text
}
