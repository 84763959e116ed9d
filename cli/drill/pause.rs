//! `drill pause`: a server is stopped for longer than its lease, decided crashed, and woken. It
//! must not answer as the owner that it was.

use std::time::{Duration, Instant};

use clap::Args;
use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{Answer, ClusterStatus, Request, ServerState, TabletState};
use rustix::process::Signal;
use serde_json::Value;

use super::Common;
use super::asking::ASK_EVERY;
use super::cluster::{Cluster, PATIENCE};
use super::counts::{Tally, ms};
use super::timeline::Timeline;
use super::workload::{Group, Workload, read_back};
use super::zombie::OldMap;
use crate::args::Global;
use crate::coordinators::Coordinators;
use crate::failure::Failure;

/// For which masters get memory.
const SECONDS: u64 = 120;
/// Questions to the stopped server, which find it when it wakes.
const QUESTIONS: u32 = 20;
/// For how long the woken server is asked.
const ASKED_FOR: Duration = Duration::from_secs(2);
/// Between two questions to it.
const ASKED_EVERY: Duration = Duration::from_millis(10);

/// Flags of `drill pause`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PauseArgs {
    /// How long the server stays stopped after it is fenced
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(..=86_400))]
    seconds: u64,
    #[command(flatten)]
    common: Common,
}

impl PauseArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let mut shape = self.common.shape(0, SECONDS + self.seconds)?;
        // Others take over what the stopped server had.
        if self.common.memory.is_none() {
            shape.memory.0 += self.common.size.0;
        }
        let mut cluster = Cluster::start(shape, global).await?;
        let workload = Workload::start_patient(&cluster.addresses, self.common.size.0).await?;
        timeline.tell(format_args!("{} loaded, workload runs", self.common.size))?;
        let victim = ServerId(cluster.servers[0].announcement.id);
        let elsewhere = |group: &Group| group.owner != victim;
        let mut old = old_map(&cluster, &workload, victim).await?;

        let stopped = Instant::now();
        cluster.servers[0].signal(Signal::STOP)?;
        timeline.mark(stopped, "stopped");
        timeline.tell(format_args!("server {victim} stopped"))?;
        cluster
            .until("the stopped server is decided crashed", |status| {
                state(status, victim) == Some(ServerState::Crashed)
            })
            .await?;
        let detected = stopped.elapsed();
        let told = format_args!("decided crashed after {} ms", ms(detected));
        timeline.tell_mark("decided crashed", told)?;
        fenced(&cluster).await?;
        timeline.tell(format_args!(
            "every backup refuses it, and its leases have run out, {} ms after it stopped",
            ms(stopped.elapsed())
        ))?;
        (0..QUESTIONS).for_each(|_| old.ask());
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        workload.goes_on(elsewhere).await?;

        cluster.servers[0].signal(Signal::CONT)?;
        timeline.mark(Instant::now(), "woken");
        timeline.tell(format_args!(
            "server {victim} woken; {} questions of an old map wait for it",
            2 * QUESTIONS
        ))?;
        let answers = ask_on(&mut old).await;
        timeline.tell(format_args!("{answers} of them and of later ones served"))?;
        let back = come_back(&mut cluster, victim, timeline).await?;
        let status = cluster
            .until("others have its tablets", |status| {
                down(status, victim) == 0
            })
            .await?;
        let down = down(&status, victim);
        timeline.tell(format_args!("others serve what server {victim} served"))?;
        workload.goes_on(|_| true).await?;

        let shared = workload.finish().await?;
        let tally = read_back(&cluster.addresses, &shared, |_| true).await?;
        let title = "A server is stopped, fenced, and woken";
        let svg = self.common.svg.as_deref();
        timeline.draw(svg, title, &shared, |group| !elsewhere(group))?;
        let others = shared.tally(elsewhere);
        let of_victim = shared.tally(|group| !elsewhere(group));
        // A write that the stopped server held may or may not have been applied.
        let all = Tally {
            failed: tally.failed - of_victim.uncertain,
            uncertain: tally.uncertain - of_victim.uncertain,
            ..tally
        };
        let unavailable = others.slowest_read.max(others.slowest_write);
        let text = format!(
            "server {victim} stopped, decided crashed after {} ms; woken, it answered {answers} \
             questions as the owner that it was\n{}\n{} operations on its tablets were cut off as it stopped; \
             the slowest on others took {} ms",
            ms(detected),
            all.text(),
            of_victim.failed,
            ms(unavailable),
        );
        let mut fields = all.json();
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("detect_ms", ms(detected).into());
        field("unavailable_ms", ms(unavailable).into());
        field("answers_after_fence", answers.into());
        field("failed_on_its_tablets", of_victim.failed.into());
        field("tablets_down", down.into());
        field("server", victim.0.into());
        field("came_back_as", back.0.into());
        field("objects", shared.objects().into());
        field("bytes", self.common.size.0.into());
        timeline.end("pause", &text, fields)
    }
}

async fn old_map(
    cluster: &Cluster,
    workload: &Workload,
    victim: ServerId,
) -> Result<OldMap, Failure> {
    let mut groups = workload.shared.groups.iter();
    let own = groups.find(|group| group.owner == victim);
    let own = own.ok_or_else(|| Failure::new("the server owns no key; load more with --size"))?;
    let address = cluster.servers[0].address();
    let probe = own.probes.first().map_or("", String::as_str);
    OldMap::connect(&address, victim, (workload.shared.table(), probe)).await
}

fn state(status: &ClusterStatus, server: ServerId) -> Option<ServerState> {
    let mut servers = status.servers.iter();
    servers
        .find(|one| one.entry.server == server)
        .map(|one| one.entry.state)
}

/// Waits until every living server has the list in which the crash is decided, and one lease more.
async fn fenced(cluster: &Cluster) -> Result<(), Failure> {
    let request = Request::Servers {
        known: ramkeep_wire::ListVersion(0),
    };
    let asked = Coordinators::new(&cluster.addresses, None)?;
    let Answer::Servers(Some(list)) = asked.ask(&request).await?.answer else {
        return Err(Failure::new("the coordinator gives no server list"));
    };
    let status = cluster
        .until("every living server knows of the crash", |status| {
            let living = status.servers.iter();
            let mut living = living.filter(|one| one.entry.state != ServerState::Crashed);
            living.all(|one| {
                let report = one.heartbeat.as_ref();
                report.is_some_and(|report| report.list >= list.version)
            })
        })
        .await?;
    tokio::time::sleep(Duration::from_micros(status.settings.lease_us.into())).await;
    Ok(())
}

/// Asks the woken server again and again. How often it answered as an owner, from the first
/// question on.
async fn ask_on(old: &mut OldMap) -> u64 {
    let until = Instant::now() + ASKED_FOR;
    while Instant::now() < until {
        old.ask();
        old.ask_anew();
        tokio::time::sleep(ASKED_EVERY).await;
    }
    old.served(ASKED_FOR).await
}

/// The new server that the woken process became.
async fn come_back(
    cluster: &mut Cluster,
    victim: ServerId,
    timeline: Timeline,
) -> Result<ServerId, Failure> {
    let patience = Instant::now() + PATIENCE;
    let address = cluster.servers[0].address();
    while Instant::now() < patience {
        let status = cluster.led().await?.status;
        let found = status.servers.iter().map(|one| &one.entry).find(|entry| {
            entry.server != victim
                && entry.state == ServerState::Up
                && entry.addresses.first() == Some(&address)
        });
        if let Some(found) = found {
            let new = found.server;
            timeline.tell(format_args!("server {victim} is back as server {new}"))?;
            return Ok(new);
        }
        if let Some(end) = cluster.servers[0].ended() {
            return Err(Failure::new(format_args!(
                "server {victim} has ended ({end}), and did not come back as another"
            )));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Err(Failure::new(format_args!(
        "server {victim} neither ends nor comes back as another"
    )))
}

/// Tablets that the server still has, or that nobody serves.
fn down(status: &ClusterStatus, owner: ServerId) -> usize {
    let tablets = status.tables.iter().flat_map(|table| &table.tablets);
    let down = tablets.filter(|one| one.owner == owner || one.state != TabletState::Normal);
    down.count()
}
