//! `status --prometheus`: the cluster's figures as text that Prometheus reads (OpenMetrics).
//!
//! # Invariants
//! 1. Everything is a gauge: the leader's soft state begins anew with each leader, so nothing here
//!    only grows.
//! 2. A figure that nobody has reported is left out, never shown as 0.

use std::fmt;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use ramkeep_wire::Ballot;
use ramkeep_wire::coordinator::{
    BackupStats, ClusterStatus, MasterStats, ServerReport, ServerState, TabletState,
};

use super::json::{server_state, shortage_kind, tablet_state};

const PREFIX: &str = "ramkeep";
/// In the order of a server's and of a tablet's life.
const SERVER_STATES: [ServerState; 3] =
    [ServerState::Joining, ServerState::Up, ServerState::Crashed];
const TABLET_STATES: [TabletState; 5] = [
    TabletState::Assigning,
    TabletState::Normal,
    TabletState::Down,
    TabletState::Recovering,
    TabletState::Dropping,
];

type Labels = Vec<(&'static str, String)>;
type Values = Family<Labels, Gauge<f64, AtomicU64>>;

/// A figure of each master: name, what it is, unit, where it is found.
type OfMaster = (
    &'static str,
    &'static str,
    Option<Unit>,
    fn(&MasterStats) -> f64,
);
/// A figure of each backup.
type OfBackup = (&'static str, &'static str, fn(&BackupStats) -> u32);

const OF_MASTERS: [OfMaster; 10] = [
    (
        "memory_limit",
        "Memory that the master may use",
        Some(Unit::Bytes),
        |one| one.memory as f64,
    ),
    (
        "memory_used",
        "Segments and index in use",
        Some(Unit::Bytes),
        |one| one.used as f64,
    ),
    (
        "memory_live",
        "Entries that count",
        Some(Unit::Bytes),
        |one| one.live as f64,
    ),
    (
        "memory_reserved",
        "Kept free for tombstones",
        Some(Unit::Bytes),
        |one| one.reserved as f64,
    ),
    (
        "memory_room",
        "What a recovery could add to the master's memory",
        Some(Unit::Bytes),
        |one| one.room as f64,
    ),
    ("index", "Memory of the index", Some(Unit::Bytes), |one| {
        one.index as f64
    }),
    (
        "payload",
        "Keys and values of the objects alive",
        Some(Unit::Bytes),
        |one| one.payload as f64,
    ),
    ("objects", "Objects alive", None, |one| one.objects as f64),
    ("segments", "Segments of the log", None, |one| {
        f64::from(one.segments)
    }),
    (
        "segments_under_replicated",
        "Segments that lack a replica",
        None,
        |one| f64::from(one.under_replicated),
    ),
];

const OF_BACKUPS: [OfBackup; 4] = [
    ("frames", "Frames that the backup has", |one| one.frames),
    ("frames_used", "Frames that hold a replica", |one| one.used),
    (
        "frames_inherited",
        "Frames with a replica from before a restart",
        |one| one.inherited,
    ),
    (
        "frames_damaged",
        "Frames found torn or damaged when they were opened",
        |one| one.damaged,
    ),
];

/// The whole answer.
pub(super) fn status(status: &ClusterStatus, ballot: Ballot) -> Result<String, fmt::Error> {
    let mut metrics = Metrics(Registry::with_prefix(PREFIX));
    metrics.coordinators(status, ballot);
    metrics.servers(status);
    metrics.tablets(status);
    metrics.recoveries(status);
    let mut text = String::new();
    encode(&mut text, &metrics.0)?;
    Ok(text)
}

struct Metrics(Registry);

impl Metrics {
    fn put(
        &mut self,
        (name, help, unit): (&str, &str, Option<Unit>),
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let family = Values::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(value);
        }
        match unit {
            Some(unit) => self.0.register_with_unit(name, help, unit, family),
            None => self.0.register(name, help, family),
        }
    }

    fn put_one(&mut self, name: &str, help: &str, value: f64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value);
        self.0.register(name, help, gauge);
    }

    fn coordinators(&mut self, status: &ClusterStatus, ballot: Ballot) {
        let each = || status.coordinators.iter();
        let label = |peer: u32| vec![("coordinator", peer.to_string())];
        self.put(
            ("coordinator_leads", "1 of the coordinator that leads", None),
            each().map(|one| (label(one.peer.0), flag(one.peer == status.leader))),
        );
        self.put(
            ("coordinator_member", "1 of a coordinator that votes", None),
            each().map(|one| (label(one.peer.0), flag(one.member))),
        );
        let silent = "Since the leader heard of the coordinator";
        self.put(
            ("coordinator_silent", silent, Some(Unit::Seconds)),
            each().filter_map(|one| Some((label(one.peer.0), seconds(one.silent_us?)))),
        );
        self.put_one(
            "ballot_round",
            "Grows with each new leader",
            ballot.round as f64,
        );
        self.put_one(
            "decided_slot",
            "Last slot that is decided",
            status.decided as f64,
        );
    }

    fn servers(&mut self, status: &ClusterStatus) {
        let each = || status.servers.iter();
        self.put(
            ("servers", "Servers by state", None),
            SERVER_STATES.map(|state| {
                let count = each().filter(|one| one.entry.state == state).count();
                (
                    vec![("state", server_state(state).to_owned())],
                    count as f64,
                )
            }),
        );
        let living = || each().filter(|one| one.entry.state != ServerState::Crashed);
        self.put(
            (
                "server_up",
                "1 of a server that is in service, 0 of one that joins",
                None,
            ),
            living().map(|one| (label(one), flag(one.entry.state == ServerState::Up))),
        );
        for (name, help, unit, figure) in OF_MASTERS {
            let master = |one: &ServerReport| one.heartbeat.as_ref()?.master;
            self.put(
                (name, help, unit),
                living().filter_map(|one| Some((label(one), figure(&master(one)?)))),
            );
        }
        for (name, help, figure) in OF_BACKUPS {
            let backup = |one: &ServerReport| one.heartbeat.as_ref()?.backup;
            self.put(
                (name, help, None),
                living().filter_map(|one| Some((label(one), f64::from(figure(&backup(one)?))))),
            );
        }
        self.put(
            (
                "resident",
                "Resident memory of the process",
                Some(Unit::Bytes),
            ),
            living().filter_map(|one| Some((label(one), one.heartbeat.as_ref()?.resident as f64))),
        );
        let help = "Replicas on this server that were found damaged since their finders and this leader began, replaced or not";
        self.put(
            ("damaged_replicas", help, None),
            each().filter_map(|one| {
                let own = |replica: &&_| is_on(replica, one);
                let count = status.damaged.iter().filter(own).count();
                let shown = one.entry.state != ServerState::Crashed || count > 0;
                shown.then(|| (label(one), count as f64))
            }),
        );
    }

    fn tablets(&mut self, status: &ClusterStatus) {
        self.put_one("tables", "Tables", status.tables.len() as f64);
        let all = || status.tables.iter().flat_map(|table| &table.tablets);
        self.put(
            ("tablets", "Tablets by state", None),
            TABLET_STATES.map(|state| {
                let count = all().filter(|one| one.state == state).count();
                (
                    vec![("state", tablet_state(state).to_owned())],
                    count as f64,
                )
            }),
        );
    }

    fn recoveries(&mut self, status: &ClusterStatus) {
        let under_way = || status.recoveries.iter();
        let of = |master: u64| vec![("master", master.to_string())];
        self.put_one(
            "recoveries",
            "Recoveries under way",
            under_way().count() as f64,
        );
        self.put_one(
            "recoveries_stuck",
            "Recoveries that can't go on without something that is missing",
            under_way().filter(|one| one.stuck).count() as f64,
        );
        let help = "What is lacking (when=\"now\"), or would be should a server die, by kind";
        let short = status.shortages.iter().map(|short| {
            let when = if short.is_now { "now" } else { "should_it_die" };
            let labels = vec![
                ("kind", shortage_kind(short.kind).to_owned()),
                ("server", short.server.to_string()),
                ("when", when.to_owned()),
            ];
            (labels, 1.0)
        });
        self.put(("shortage", help, None), short);
        self.put(
            ("recovery_under_way", "For how long", Some(Unit::Seconds)),
            under_way().map(|one| (of(one.master.0), seconds(one.since_us))),
        );
        let help = "From the decision that the master crashed to its last tablet's new owner";
        self.put(
            ("recovery_took", help, Some(Unit::Seconds)),
            (status.recovered.iter())
                .filter_map(|one| Some((of(one.master.0), seconds(one.moments.committed_us?)))),
        );
        self.put_one(
            "losses_accepted",
            "Losses that operators have accepted",
            status.losses.len() as f64,
        );
    }
}

fn is_on(replica: &ramkeep_wire::coordinator::DamagedReplica, server: &ServerReport) -> bool {
    replica.backup == server.entry.server
}

fn label(server: &ServerReport) -> Labels {
    vec![("server", server.entry.server.to_string())]
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
