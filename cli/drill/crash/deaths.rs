//! Deaths that are recovered together: the kills, and the watch until all is served again.

use std::path::Path;
use std::time::{Duration, Instant};

use ramkeep_client::Table;
use ramkeep_wire::coordinator::{ClusterStatus, ServerReport, ServerState};
use tokio::task::{JoinHandle, JoinSet};

use super::healing::{Healing, lacking, newest_list};
use super::steps::{Steps, Took};
use crate::drill::asking::{ASK_EVERY, Led, first_led};
use crate::drill::cluster::{Cluster, PATIENCE};
use crate::drill::counts::ms;
use crate::drill::down::Down;
use crate::drill::timeline::Timeline;
use crate::drill::workload::{TABLE, Workload, connect};
use crate::failure::Failure;

/// How long tablets must have been said to stay down before they are believed to.
const STUCK_FOR: Duration = Duration::from_secs(5);

/// What came of one death.
#[derive(Clone, Debug)]
pub(in crate::drill) struct Recovered {
    /// Who died.
    pub(in crate::drill) id: u64,
    /// When.
    pub(in crate::drill) killed: Instant,
    /// Until it was decided crashed.
    pub(in crate::drill) detect: Duration,
    /// Until anything of it was served again.
    pub(in crate::drill) first_read: Duration,
    /// Until all of it had new owners, or new copies.
    pub(in crate::drill) recover: Duration,
    /// Until every tablet was served by somebody, as the leader knows it.
    pub(in crate::drill) served: Duration,
    /// Until all of it was read again, and every tablet served.
    pub(in crate::drill) unavailable: Duration,
    /// Some of it was not served then: no more was waited for.
    pub(in crate::drill) given_up: bool,
    /// What that consists of.
    pub(in crate::drill) parts: Vec<(&'static str, Duration)>,
    /// How its copies were made anew, if that was waited for.
    pub(in crate::drill) healing: Option<Healing>,
}

/// When keys of a dead server were served again: any of them, and all of them.
type Reads = JoinHandle<Result<(Instant, Instant), Failure>>;

struct Death {
    id: u64,
    killed: Instant,
    steps: Steps,
    reads: Option<Reads>,
}

/// Deaths, and what is still to come of them.
pub(in crate::drill) struct Deaths<'a> {
    cluster: &'a mut Cluster,
    workload: &'a Workload,
    timeline: Timeline,
    start: Instant,
    dead: Vec<Death>,
    /// Still to be killed while others are recovered.
    pub(in crate::drill) next: Vec<usize>,
    /// The leading coordinator is to be killed while others are recovered.
    pub(in crate::drill) kill_leader: bool,
    /// One of the victims that is started again at once, with frames as they were before.
    pub(in crate::drill) revival: Option<Revival>,
    /// Wait until every segment has all its copies again.
    pub(in crate::drill) heal: bool,
    /// What to do about tablets that nobody serves again.
    pub(in crate::drill) unserved: Unserved,
    /// Since when all tablets that are down are said to be so for good.
    stuck: Option<Instant>,
    leader: Option<u32>,
}

/// What to do about tablets that nobody serves again in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::drill) enum Unserved {
    /// The drill ends there.
    Fail,
    /// It goes on with what is served.
    GoOn,
    /// They may stay down: it also goes on when `status` says that they do, and why.
    Expect,
}

/// A victim's place, and what is done to its directory before it is started again.
pub(in crate::drill) type Revival = (usize, Box<dyn FnOnce(&Path) -> Result<(), Failure>>);

impl<'a> Deaths<'a> {
    /// Nobody is dead.
    pub(in crate::drill) fn new(
        cluster: &'a mut Cluster,
        workload: &'a Workload,
        timeline: Timeline,
    ) -> Self {
        timeline.begin_picture();
        Self {
            cluster,
            workload,
            timeline,
            start: Instant::now(),
            dead: Vec::new(),
            next: Vec::new(),
            kill_leader: false,
            revival: None,
            heal: false,
            unserved: Unserved::Fail,
            stuck: None,
            leader: None,
        }
    }

    /// Kills `victims`, and watches until all tablets are served again.
    pub(in crate::drill) async fn run(
        mut self,
        victims: &[usize],
    ) -> Result<Vec<Recovered>, Failure> {
        let known = newest_list(&self.led().await?.status);
        self.start = Instant::now();
        for at in victims {
            self.kill(*at).await?;
        }
        self.revive().await?;
        let (led, down) = loop {
            let asked = Instant::now();
            let led = self.led().await?;
            self.follow(&led)?;
            let recovering = !led.status.recoveries.is_empty();
            if recovering && std::mem::take(&mut self.kill_leader) {
                self.kill_leader(led.status.leader.0).await?;
            } else if recovering && let Some(at) = self.next.pop() {
                self.kill(at).await?;
            }
            let down = Down::of(&led.status, &self.cluster.gone);
            if down.is_empty() || self.gives_up(&down) {
                break (led, down);
            }
            self.patience(&led.status)?;
            // A status of many tablets is work for the leader, which has others to do.
            tokio::time::sleep(ASK_EVERY.max(asked.elapsed())).await;
        };
        self.tell_served(&led, &down)?;
        if !self.next.is_empty() || self.kill_leader {
            let what = "the recovery was over before it could be disturbed; use a larger --size";
            return Err(Failure::new(what));
        }
        let mut recovered = Vec::new();
        for mut death in std::mem::take(&mut self.dead) {
            death.steps.close(led.at);
            recovered.push(self.end(death, led.at, !down.is_empty()).await?);
        }
        self.draw_parts(&recovered);
        if self.heal {
            // From when clients had everything again.
            let from = recovered
                .iter()
                .map(|(one, _)| one.killed + one.unavailable);
            let from = from.max().unwrap_or(led.at).max(led.at);
            let to = self.healed(known).await?;
            for (one, _) in &mut recovered {
                one.healing = Some(Healing {
                    from,
                    to: to.max(from),
                });
            }
        }
        if self.leader.is_some() {
            self.cluster.restart_dead_coordinators().await?;
        }
        Ok(recovered.into_iter().map(|(death, _)| death).collect())
    }

    /// Kills processes that run only a backup, and watches until every segment has all its copies.
    pub(in crate::drill) async fn run_backups(
        mut self,
        victims: &[usize],
    ) -> Result<Vec<Recovered>, Failure> {
        let known = newest_list(&self.led().await?.status);
        self.start = Instant::now();
        for at in victims {
            self.kill(*at).await?;
        }
        let detected = self.detected().await?;
        let healed = self.healed(known).await?;
        self.timeline.part("detect", self.start, detected);
        self.timeline.part("copy", detected, healed);
        let healing = Healing {
            from: detected,
            to: healed,
        };
        let recovered = self.dead.iter().map(|death| {
            let detect = detected.duration_since(death.killed);
            let recover = healed.duration_since(death.killed);
            Recovered {
                id: death.id,
                killed: death.killed,
                detect,
                first_read: Duration::ZERO,
                recover,
                served: Duration::ZERO,
                unavailable: Duration::ZERO,
                given_up: false,
                parts: vec![("detect", detect), ("copy", recover - detect)],
                healing: Some(healing),
            }
        });
        Ok(recovered.collect())
    }

    /// Waits until all that were killed are decided crashed.
    async fn detected(&self) -> Result<Instant, Failure> {
        loop {
            let led = self.led().await?;
            let servers = &led.status.servers;
            let crashed = |id| {
                let is = |one: &&ServerReport| one.entry.server.0 == id;
                let report = servers.iter().find(is);
                report.is_some_and(|one| one.entry.state == ServerState::Crashed)
            };
            if self.dead.iter().all(|death| crashed(death.id)) {
                self.timeline.mark(led.at, "detected");
                self.tell(led.at, "detected: decided crashed")?;
                return Ok(led.at);
            }
            self.patience(&led.status)?;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Waits until every segment has all its copies, as masters see it that know a newer list than
    /// `known`.
    async fn healed(&self, known: u64) -> Result<Instant, Failure> {
        let mut progress = (u32::MAX, Instant::now());
        loop {
            let led = self.led().await?;
            let lacking = lacking(&led.status, known).unwrap_or(u32::MAX);
            if lacking == 0 {
                self.timeline.mark(led.at, "replicated anew");
                self.tell(led.at, "every segment has all its copies again")?;
                return Ok(led.at);
            }
            if lacking < progress.0 {
                progress = (lacking, led.at);
            } else if progress.1.elapsed() > PATIENCE {
                let what =
                    format_args!("{lacking} segments lack a copy, as many as {PATIENCE:?} ago");
                return Err(Failure::new(what));
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    async fn led(&self) -> Result<Led, Failure> {
        let led = first_led(&self.cluster.addresses, PATIENCE).await?;
        led.ok_or_else(|| Failure::new("no coordinator leads"))
    }

    fn patience(&self, status: &ClusterStatus) -> Result<(), Failure> {
        if self.start.elapsed() <= PATIENCE {
            return Ok(());
        }
        Err(Failure::new(format_args!(
            "not recovered in {PATIENCE:?}: {:?}",
            status.recoveries
        )))
    }

    /// Whether what is down is waited for no longer.
    fn gives_up(&mut self, down: &Down) -> bool {
        let settled = match (down.unexplained(), self.stuck) {
            (0, Some(since)) => since.elapsed() > STUCK_FOR,
            (0, None) => {
                self.stuck = Some(Instant::now());
                false
            }
            _ => {
                self.stuck = None;
                false
            }
        };
        match self.unserved {
            Unserved::Fail => false,
            Unserved::GoOn => self.start.elapsed() > PATIENCE,
            Unserved::Expect => settled || self.start.elapsed() > PATIENCE,
        }
    }

    fn tell_served(&self, led: &Led, down: &Down) -> Result<(), Failure> {
        let tables = led.status.tables.iter();
        let tablets: usize = tables.map(|table| table.tablets.len()).sum();
        if down.is_empty() {
            return self.tell(led.at, &format!("all {tablets} tablets are served"));
        }
        let (count, reasons) = (down.count(), down.reasons());
        let what = format!("{count} of {tablets} tablets are not served; status says {reasons}");
        self.tell(led.at, &what)
    }

    async fn kill_leader(&mut self, leader: u32) -> Result<(), Failure> {
        self.cluster.coordinator(leader)?.kill().await?;
        self.leader = Some(leader);
        let now = Instant::now();
        self.timeline
            .mark(now, format_args!("leader {leader} killed"));
        self.tell(now, &format!("coordinator {leader} killed, which led"))
    }

    async fn kill(&mut self, at: usize) -> Result<(), Failure> {
        let killed = Instant::now();
        let id = self.cluster.kill_server(at).await?;
        self.timeline.mark(killed, format_args!("{id} killed"));
        self.tell(killed, &format!("server {id} killed"))?;
        let reads = self.workload.shared.of(id).map(|group| {
            let (addresses, probes) = (self.cluster.addresses.clone(), group.probes.clone());
            let told = (self.timeline, self.start, id);
            tokio::spawn(read_again(addresses, probes, told))
        });
        self.dead.push(Death {
            id,
            killed,
            steps: Steps::default(),
            reads,
        });
        Ok(())
    }

    async fn revive(&mut self) -> Result<(), Failure> {
        let Some((at, prepare)) = self.revival.take() else {
            return Ok(());
        };
        let addresses = self.cluster.addresses.clone();
        let member = &mut self.cluster.servers[at];
        let old = member.announcement.id;
        prepare(&member.directory()?)?;
        member.restart(&addresses).await?;
        let (now, new) = (Instant::now(), member.announcement.id);
        self.timeline.mark(now, format_args!("{old} back as {new}"));
        self.tell(now, &format!("server {old} is back as server {new}"))
    }

    /// Tells what is new.
    fn follow(&mut self, led: &Led) -> Result<(), Failure> {
        let reports = || led.status.recovered.iter().chain(&led.status.recoveries);
        for death in &mut self.dead {
            for report in reports().filter(|report| report.master.0 == death.id) {
                for step in death.steps.follow(led.at, report) {
                    let id = death.id;
                    self.timeline
                        .mark(step.at, format_args!("{id} {}", step.mark));
                    let what = format!("server {id} {}", step.text);
                    tell(self.timeline, self.start, step.at, &what)?;
                }
            }
        }
        Ok(())
    }

    fn tell(&self, at: Instant, what: &str) -> Result<(), Failure> {
        tell(self.timeline, self.start, at, what)
    }

    /// What came of a death. `served`: when all tablets were, or when that was `given_up`.
    async fn end(
        &self,
        death: Death,
        served: Instant,
        given_up: bool,
    ) -> Result<(Recovered, Vec<Took>), Failure> {
        let committed = death.steps.committed().unwrap_or(death.killed);
        let (first, last) = match death.reads {
            Some(reads) if given_up => {
                reads.abort();
                (served, served)
            }
            Some(reads) => reads.await.map_err(Failure::new)??,
            // It owned no key.
            None => (committed, committed),
        };
        let last = last.max(served);
        let after = |at: Instant| at.duration_since(death.killed);
        let parts = death.steps.parts(death.killed, last);
        let recovered = Recovered {
            id: death.id,
            killed: death.killed,
            detect: death.steps.detected().map_or(Duration::ZERO, after),
            first_read: after(first),
            recover: after(committed),
            served: after(served),
            unavailable: after(last),
            given_up,
            parts: parts
                .iter()
                .map(|part| (part.name, part.duration()))
                .collect(),
            healing: None,
        };
        Ok((recovered, parts))
    }

    /// The parts of the longest outage go into the picture.
    fn draw_parts(&self, recovered: &[(Recovered, Vec<Took>)]) {
        let longest = recovered.iter().max_by_key(|(one, _)| one.unavailable);
        for part in longest.into_iter().flat_map(|(_, parts)| parts) {
            self.timeline.part(part.name, part.from, part.to);
        }
    }
}

fn tell(timeline: Timeline, start: Instant, at: Instant, what: &str) -> Result<(), Failure> {
    let after = at.checked_duration_since(start).unwrap_or_default();
    timeline.tell(format_args!("{:8.1} ms  {what}", ms(after)))
}

/// Reads keys of a dead server until each is served again.
async fn read_again(
    addresses: Vec<String>,
    probes: Vec<String>,
    (timeline, start, id): (Timeline, Instant, u64),
) -> Result<(Instant, Instant), Failure> {
    let client = connect(&addresses).await?.with_deadline(PATIENCE);
    let table = client.table(TABLE).await.map_err(Failure::new)?;
    let mut reads = JoinSet::new();
    for probe in probes {
        reads.spawn(read(table.clone(), probe));
    }
    let mut first = None;
    let mut last = Instant::now();
    while let Some(read) = reads.join_next().await {
        last = read.map_err(Failure::new)??;
        if first.is_none() {
            first = Some(last);
            timeline.mark(last, format_args!("{id} first read"));
            tell(
                timeline,
                start,
                last,
                &format!("server {id} first read served"),
            )?;
        }
    }
    tell(
        timeline,
        start,
        last,
        &format!("server {id} reads served all over its tablets"),
    )?;
    Ok((first.unwrap_or(last), last))
}

async fn read(table: Table, probe: String) -> Result<Instant, Failure> {
    table.read(&probe).await.map_err(Failure::new)?;
    Ok(Instant::now())
}
