//! `drill cut`: links between processes are cut, and heal again; nobody may take long to go on.

mod network;
mod report;
mod sides;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::Common;
use super::cluster::{Cluster, PATIENCE};
use super::counts::{Tally, ms};
use super::down::Down;
use super::timeline::Timeline;
use super::workload::{DEFAULT_DEADLINE, Data, Reach, Workload, read_back_but};
use crate::args::Global;
use crate::coordinators::Coordinators;
use crate::failure::Failure;
use crate::units;
use crate::up::place::Place;
use network::{Direction, Network};
use report::{Healed, WentOn, table};
use sides::{Commands, Member, Side, status};

/// Between two looks at what goes on, and two packets.
const LOOK: Duration = Duration::from_millis(5);
/// From when everything goes on until the next cut.
const CALM: Duration = Duration::from_secs(2);
/// For loading, for each cut beside its length, and for the end: masters get memory for it.
const SECONDS: u64 = 60;

/// Which link is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Link {
    /// Between the clients and one server
    Client,
    /// Between two servers
    Server,
    /// Between the leading coordinator and everybody else
    Coordinator,
}

/// In which direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Nothing gets through
    Both,
    /// Only what the client, the first server or the coordinator sends is dropped
    Out,
    /// Only what is sent to it is dropped
    In,
}

/// Flags of `drill cut`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("servers", |arg| arg.default_value("3")))]
#[command(mut_arg("size", |arg| arg.default_value("16MiB")))]
#[command(after_help = "\
Needs root and iproute2: each process runs in a network namespace that the drill makes, and nothing of \
that is left behind. Where it may not make any the drill does nothing, says why (JSON: skipped) and exits \
with 0. With as many servers as a write needs, the default, what two servers can't say to each other \
holds up both; more are not held up for so long. JSON: cuts (of each: first_packet_ms after it healed; \
sides, each with first_ms and all_ms from that packet until one operation and one of every task was \
answered; failed_meanwhile), goes_on_ms (the longest all_ms), sides_stuck (did not go on in a minute), \
sides_late (later than --within).")]
pub(crate) struct CutArgs {
    /// Which links are cut, one after the other
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "LINKS",
        default_value = "client,server,coordinator"
    )]
    link: Vec<Link>,
    /// In which direction each is cut
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "WAYS",
        default_value = "both,out,in"
    )]
    way: Vec<Way>,
    /// For how long
    #[arg(long = "for", value_delimiter = ',', value_name = "TIMES", default_value = "3s,40s",
          value_parser = units::duration)]
    times: Vec<Duration>,
    /// Fail if anybody goes on later than so long after the first packet that gets through; without
    /// it that time is only shown
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    within: Option<Duration>,
    #[command(flatten)]
    common: Common,
}

/// The cluster, and what the drill needs to know of it.
struct Scene {
    network: Network,
    cluster: Cluster,
    workload: Workload,
    /// Of clients.
    reach: Reach,
    key_file: PathBuf,
    /// Keeps the key.
    _place: Place,
}

/// One cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    link: Link,
    way: Way,
    time: Duration,
}

impl CutArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        let hosts = 1 + self.common.coordinators + self.common.servers;
        let network = match Network::make(hosts as usize) {
            Ok(network) => network,
            Err(Failure::Failed(why)) => return timeline.skip("cut", &why),
            Err(failure) => return Err(failure),
        };
        let mut scene = self.begin(network, global, timeline).await?;
        let mut healed = Vec::new();
        let mut excused = Tally::default();
        for cut in self.cuts() {
            let one = scene.cut(cut, timeline).await?;
            excused = excused.and(one.excused);
            healed.push(one);
            tokio::time::sleep(CALM).await;
        }
        let shared = scene.workload.finish().await?;
        let reach = Reach {
            namespace: None,
            ..scene.reach
        };
        let (tally, objects) = read_back_but(&reach, &shared, &Down::default()).await?;
        timeline.tell(format_args!("{objects} objects read back"))?;
        let svg = self.common.svg.as_deref();
        timeline.draw(svg, "Links are cut, and heal", &shared, |_| false)?;
        let tally = Tally {
            failed: tally.failed - excused.failed,
            uncertain: tally.uncertain - excused.uncertain,
            ..tally
        };
        let text = format!(
            "{}\n{} operations failed while a link was cut\n{}",
            table(&healed).to_string().trim_end(),
            excused.failed,
            tally.text()
        );
        let mut fields = tally.json();
        fields.extend(self.json(&healed));
        fields.insert("objects".into(), shared.objects().into());
        fields.insert("bytes".into(), self.common.size.0.into());
        timeline.end("cut", &text, fields)
    }

    /// Every link in every direction for every length.
    fn cuts(&self) -> Vec<Cut> {
        let mut cuts = Vec::new();
        for &time in &self.times {
            for &link in &self.link {
                cuts.extend(self.way.iter().map(|&way| Cut { link, way, time }));
            }
        }
        cuts
    }

    async fn begin(
        &self,
        network: Network,
        global: &Global,
        timeline: Timeline,
    ) -> Result<Scene, Failure> {
        let cuts = self.cuts();
        let lengths: u64 = cuts.iter().map(|cut| cut.time.as_secs()).sum();
        let shape = self
            .common
            .shape(0, lengths + SECONDS * (1 + cuts.len() as u64))?;
        let place = Place::open(None, 0)?;
        let key_file = place.directory("key")?.join("key");
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(Failure::new)?;
        std::fs::write(&key_file, key)?;
        let (client, others) = network
            .hosts
            .split_first()
            .ok_or_else(|| Failure::new("there are no hosts"))?;
        let cluster = Cluster::start_on(shape, global, others, Some(&key_file)).await?;
        let reach = Reach {
            addresses: cluster.addresses.clone(),
            key_file: Some(key_file.clone()),
            namespace: client.namespace.clone(),
        };
        let data = Data::of(self.common.size.0);
        let workload = Workload::start_with(&reach, &data, DEFAULT_DEADLINE).await?;
        timeline.tell(format_args!(
            "{} loaded, workload runs; {} processes in network namespaces of their own",
            self.common.size,
            network.hosts.len()
        ))?;
        Ok(Scene {
            network,
            cluster,
            workload,
            reach,
            key_file,
            _place: place,
        })
    }

    fn json(&self, healed: &[Healed]) -> Map<String, Value> {
        let sides = || healed.iter().flat_map(|one| &one.sides);
        let late = |one: &&WentOn| {
            let within = self.within.unwrap_or(Duration::MAX);
            one.all.is_some_and(|all| all > within)
        };
        let longest = sides().filter_map(|one| one.all).max();
        let commands: u64 = healed.iter().map(|one| one.commands_failed).sum();
        let fields = [
            ("cuts", healed.iter().map(Healed::json).collect()),
            ("goes_on_ms", longest.map(ms).into()),
            (
                "sides_stuck",
                sides().filter(|one| one.all.is_none()).count().into(),
            ),
            ("sides_late", sides().filter(late).count().into()),
            ("metadata_failed", commands.into()),
        ];
        let fields = fields.map(|(name, value): (_, Value)| (name.to_owned(), value));
        fields.into_iter().collect()
    }
}

impl Scene {
    /// Cuts, waits, heals, and watches everybody go on.
    async fn cut(&mut self, cut: Cut, timeline: Timeline) -> Result<Healed, Failure> {
        let coordinators = Coordinators::new(&self.reach.addresses, Some(&self.key_file))?;
        let leader = status(&coordinators).await?.leader;
        let shared = self.workload.shared.clone();
        let id = |at: usize| self.cluster.servers[at].announcement.id;
        let tasks = |at| Side::tasks(format!("work on server {}", id(at)), &shared, id(at));
        let first_server = 1 + self.cluster.coordinators.len();
        let others = |host: usize| (0..self.network.hosts.len()).filter(move |one| *one != host);
        let (mut commands, mut member) = (None, None);
        let (host, peers, mut sides) = match cut.link {
            Link::Client => (0, vec![first_server], vec![tasks(0)?]),
            Link::Server => (
                first_server,
                vec![first_server + 1],
                vec![tasks(0)?, tasks(1)?],
            ),
            Link::Coordinator => {
                let host = 1 + self.place_of(leader.0)?;
                let running = Commands::start(self.reach.clone());
                let addresses = self.reach.addresses.clone();
                let watched = Member::watch(addresses, self.key_file.clone(), leader);
                let sides = vec![
                    Side::count("commands".to_owned(), &running.done),
                    Side::count(format!("coordinator {leader}"), &watched.there),
                ];
                commands = Some(running);
                member = Some(watched);
                (host, others(host).collect(), sides)
            }
        };
        let hurt: Vec<u64> = match cut.link {
            Link::Client => vec![id(0)],
            Link::Server => vec![id(0), id(1)],
            Link::Coordinator => Vec::new(),
        };
        let tally = || shared.tally(|group| hurt.contains(&group.owner.0));
        let before = tally();
        let directions = cut.directions(host, &peers);
        let pinger = self.network.pinger(directions[0])?;
        ping_until(&pinger, PATIENCE).await?;

        timeline.tell_mark(
            &format!("cut: {}", cut.name()),
            format_args!("cut: {}", cut.name()),
        )?;
        self.network.cut(&directions)?;
        let until = Instant::now() + cut.time;
        // What was on its way has come by then.
        tokio::time::sleep(LOOK).await;
        pinger.ping();
        tokio::time::sleep(LOOK).await;
        while Instant::now() < until {
            if pinger.ping() {
                return Err(Failure::new("a packet gets through a link that is cut"));
            }
            tokio::time::sleep(LOOK).await;
        }
        sides.iter_mut().for_each(Side::begin);
        let healed = Instant::now();
        self.network.heal()?;
        timeline.mark(healed, "healed");
        let passed = ping_until(&pinger, PATIENCE).await?;
        while passed.elapsed() < PATIENCE && sides.iter().any(|side| side.all.is_none()) {
            sides.iter_mut().for_each(Side::look);
            tokio::time::sleep(LOOK).await;
        }
        let after = tally();
        let mut commands_failed = 0;
        if let (Some(commands), Some(member)) = (commands, member) {
            commands_failed = commands.finish().await?;
            member.finish().await?;
        }
        let sides = sides.into_iter().map(|side| WentOn::since(passed, side));
        let one = Healed {
            cut,
            first_packet: passed.duration_since(healed),
            sides: sides.collect(),
            excused: Tally {
                failed: after.failed - before.failed,
                uncertain: after.uncertain - before.uncertain,
                ..Tally::default()
            },
            commands_failed,
        };
        timeline.tell(format_args!("healed, goes on: {}", one.text()))?;
        Ok(one)
    }

    /// A coordinator's place among them.
    fn place_of(&self, id: u32) -> Result<usize, Failure> {
        let mut members = self.cluster.coordinators.iter();
        let found = members.position(|one| one.announcement.id == u64::from(id));
        found.ok_or_else(|| Failure::new(format_args!("coordinator {id} is none of this drill's")))
    }
}

/// Waits for a packet.
async fn ping_until(pinger: &network::Pinger, patience: Duration) -> Result<Instant, Failure> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if pinger.ping() {
            return Ok(Instant::now());
        }
        tokio::time::sleep(LOOK).await;
    }
    Err(Failure::new("no packet gets through a link that is whole"))
}

impl Cut {
    fn directions(self, host: usize, peers: &[usize]) -> Vec<Direction> {
        let mut directions = Vec::new();
        for &peer in peers {
            match self.way {
                Way::Both => directions.extend([[host, peer], [peer, host]]),
                Way::Out => directions.push([host, peer]),
                Way::In => directions.push([peer, host]),
            }
        }
        directions
    }

    fn name(self) -> String {
        let link = match self.link {
            Link::Client => "clients from a server",
            Link::Server => "a server from another",
            Link::Coordinator => "the leader from all",
        };
        let time = humantime::format_duration(self.time);
        format!("{link}, {}, {time}", self.way())
    }

    fn way(self) -> &'static str {
        match self.way {
            Way::Both => "both ways",
            Way::Out => "what it sends",
            Way::In => "what it is sent",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_one_way_cut_drops_one_direction_of_each_link() {
        let cut = |way| Cut {
            link: Link::Server,
            way,
            time: Duration::from_secs(3),
        };
        let directions = |way| cut(way).directions(1, &[2, 3]);
        assert_eq!(directions(Way::Out), [[1, 2], [1, 3]]);
        assert_eq!(directions(Way::In), [[2, 1], [3, 1]]);
        assert_eq!(directions(Way::Both).len(), 4);
    }
}
