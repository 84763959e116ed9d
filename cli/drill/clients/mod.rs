//! `drill clients`: very many clients stay connected. Meanwhile a server joins, another is killed and
//! its tablets are recovered, and whoever asks for the status gets it.

mod crowd;

use std::time::{Duration, Instant};

use clap::Args;
use ramkeep_wire::coordinator::Request;
use serde_json::Value;

use super::Common;
use super::background::{Background, Stop};
use super::cluster::Cluster;
use super::counts::ms;
use super::crash::deaths::{Deaths, Recovered, Unserved};
use super::timeline::Timeline;
use super::workload::{Workload, read_back};
use crate::args::Global;
use crate::coordinators::Coordinators;
use crate::failure::Failure;
use crowd::{Crowd, make_room};

/// For which masters get memory.
const SECONDS: u64 = 240;
/// Between two questions for the status.
const ASKED_EVERY: Duration = Duration::from_millis(100);

/// Flags of `drill clients`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("servers", |arg| arg.default_value("5")))]
#[command(mut_arg("size", |arg| arg.default_value("16MiB")))]
#[command(after_help = "\
The drill raises its own limit of open files as far as it may, and holds fewer clients if that is not \
enough. JSON: clients (held), clients_refused (could not connect), clients_failed (could not write in \
the end), connect_ms, status_asked, status_failed, status_slowest_ms, join_ms, joins_failed, detect_ms, \
recover_ms, unavailable_ms, recoveries_failed.")]
pub(crate) struct ClientsArgs {
    /// How many are connected, each by itself: connections and lease of its own
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    clients: u64,
    #[command(flatten)]
    common: Common,
}

impl ClientsArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let clients = make_room(self.clients)?;
        if clients < self.clients {
            timeline.tell(format_args!(
                "this process may not open files enough: {clients} clients instead of {}; raise its \
                 hard limit (ulimit -Hn)",
                self.clients
            ))?;
        }
        let mut shape = self.common.shape(0, SECONDS)?;
        if self.common.memory.is_none() {
            // Others take over what the killed server had.
            shape.memory.0 += self.common.size.0;
        }
        let mut cluster = Cluster::start(shape, global).await?;
        cluster.set_aside_last().await?;
        let workload = Workload::start_patient(&cluster.addresses, self.common.size.0).await?;
        timeline.tell(format_args!(
            "{} loaded, workload runs, one server is set aside",
            self.common.size
        ))?;
        let began = Instant::now();
        let crowd = Crowd::start(&cluster.addresses, clients);
        let (held, refused) = crowd.complete().await;
        let connected = began.elapsed();
        timeline.tell(format_args!(
            "{held} clients are connected after {:.1} s, {refused} could not",
            connected.as_secs_f64()
        ))?;

        let asker = Asker::start(&cluster.addresses);
        let joined = kept(join(&mut cluster).await, "join", timeline)?;
        let recovered = kill_one(&mut cluster, &workload, timeline).await;
        let recovered = kept(recovered, "recovery", timeline)?;
        let asked = asker.finish().await?;
        let written = crowd.finish().await?;
        timeline.tell("every client has written once more, and is gone")?;
        let shared = workload.finish().await?;
        let tally = read_back(&cluster.addresses, &shared, |_| true).await?;
        timeline.tell(format_args!("{} objects read back", shared.objects()))?;
        let svg = self.common.svg.as_deref();
        timeline.draw(svg, "Very many clients", &shared, |_| false)?;

        let shown = |time: Option<Duration>| {
            time.map_or_else(
                || "never".to_owned(),
                |time| format!("after {} ms", ms(time)),
            )
        };
        let text = format!(
            "{held} clients held, {refused} could not connect; a server joined {}; a killed one was \
             recovered {}; {} of {} questions for the status failed, the slowest took {} ms; {} clients \
             could not write in the end, the slowest write took {} ms\n{}",
            shown(joined),
            shown(recovered.as_ref().map(|one| one.recover)),
            asked.failed,
            asked.asked,
            ms(asked.slowest),
            written.failed,
            ms(written.slowest),
            tally.text(),
        );
        let mut fields = tally.json();
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("clients", held.into());
        field("clients_refused", refused.into());
        field("clients_failed", written.failed.into());
        field("connect_ms", ms(connected).into());
        field("status_asked", asked.asked.into());
        field("status_failed", asked.failed.into());
        field("status_slowest_ms", ms(asked.slowest).into());
        field("joins_failed", u64::from(joined.is_none()).into());
        field("join_ms", joined.map(ms).into());
        field("recoveries_failed", u64::from(recovered.is_none()).into());
        if let Some(one) = recovered {
            field("detect_ms", ms(one.detect).into());
            field("recover_ms", ms(one.recover).into());
            field("unavailable_ms", ms(one.unavailable).into());
        }
        field("objects", shared.objects().into());
        field("bytes", self.common.size.0.into());
        timeline.end("clients", &text, fields)
    }
}

/// What one step came to. A step that fails is counted, and the drill goes on.
fn kept<T>(done: Result<T, Failure>, step: &str, timeline: Timeline) -> Result<Option<T>, Failure> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(failure) => {
            timeline.tell(format_args!("the {step} failed: {failure}"))?;
            Ok(None)
        }
    }
}

/// Starts the server that was set aside. How long until it is in service.
async fn join(cluster: &mut Cluster) -> Result<Duration, Failure> {
    let began = Instant::now();
    let addresses = cluster.addresses.clone();
    if let Some(mut spare) = cluster.spare.take() {
        spare.restart(&addresses).await?;
        cluster.servers.push(spare);
    }
    Ok(began.elapsed())
}

/// Kills the first server, and sees its tablets served by others.
async fn kill_one(
    cluster: &mut Cluster,
    workload: &Workload,
    timeline: Timeline,
) -> Result<Recovered, Failure> {
    let mut deaths = Deaths::new(cluster, workload, timeline);
    deaths.unserved = Unserved::Fail;
    let recovered = deaths.run(&[0]).await?;
    workload.goes_on(|_| true).await?;
    let mut recovered = recovered.into_iter();
    recovered.next().ok_or_else(|| Failure::new("nobody died"))
}

/// Asks for the status again and again, each time on a new connection as the command does.
struct Asker(Background<Asked>);

#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    asked: u64,
    failed: u64,
    slowest: Duration,
}

impl Asker {
    fn start(addresses: &[String]) -> Self {
        let addresses = addresses.to_vec();
        Self(Background::start(move |stop: Stop| async move {
            let mut asked = Asked::default();
            while !stop.is_set() {
                let began = Instant::now();
                let coordinators = Coordinators::new(&addresses, None)?;
                let answer = coordinators.ask(&Request::Status).await;
                asked.asked += 1;
                if let Err(failure) = answer {
                    tracing::warn!(%failure, "a question for the status");
                    asked.failed += 1;
                }
                asked.slowest = asked.slowest.max(began.elapsed());
                tokio::time::sleep(ASKED_EVERY).await;
            }
            Ok(asked)
        }))
    }

    async fn finish(self) -> Result<Asked, Failure> {
        self.0.finish().await
    }
}
