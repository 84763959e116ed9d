//! `drill corrupt`: copies of a server's segments are not what they should be when it is killed. One
//! honest copy of each is enough, and whoever holds one that is not is named.
//!
//! # Invariants
//! 1. Of each segment one copy at least is left as it is.
//! 2. What is damaged is damaged before the kill, and nothing is written over it by the drill after.
//! 3. Who is to leave one copy of each segment is stopped first: which copies count stays as it is.

mod frames;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use ramkeep_wire::coordinator::{ClusterStatus, DamagedReplica};
use ramkeep_wire::{SegmentId, ServerId};
use rustix::process::Signal;
use serde_json::{Map, Value};

use super::Common;
use super::cluster::{Cluster, Shape};
use super::counts::ms;
use super::crash::deaths::{Deaths, Revival};
use super::crash::healing::lacking;
use super::crash::summary::Outcome;
use super::down::Down;
use super::rounds;
use super::timeline::Timeline;
use super::values::Random;
use super::workload::Data;
use crate::args::Global;
use crate::failure::Failure;
use crate::units::Size;
use frames::{FrameFile, Held, Saved};

/// For which masters get memory.
const SECONDS: u64 = 120;
/// Of so many damaged replicas one at least is met: each is what recovery reads of its segment with a
/// chance of one half or so.
const MANY: usize = 12;
/// How much older a stale copy is than the kill.
const AGE: Duration = Duration::from_millis(500);

/// Longest wait until a living master has read back all its replicas: so long in any case, and a second
/// more for as many bytes of copies. It reads twice as many.
const HEALING: Duration = Duration::from_secs(60);
const READ_BACK: u64 = 2 << 20;
/// Between two looks at that.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Which copies are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Copies {
    /// All that one backup has of the victim
    One,
    /// Of each of the victim's segments, all but one
    AllButOne,
    /// All closed ones that one backup has, while the victim lives: it must find them and replicate anew
    /// before it is killed together with who holds most of the honest copies
    Healed,
    /// None is damaged: one backup dies with the victim and is back with frames that are a little older,
    /// each of them whole and under its certificate
    Stale,
}

/// Flags of `drill corrupt`.
#[derive(Clone, Debug, Args)]
#[command(mut_arg("servers", |arg| arg.default_value("5")))]
#[command(mut_arg("size", |arg| arg.default_value("128MiB").help("Data of each master")))]
pub(crate) struct CorruptArgs {
    /// Which copies are not what they should be
    #[arg(long, value_enum, default_value_t = Copies::One)]
    copies: Copies,
    /// How many drills in a row, each in a fresh cluster
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rounds: u32,
    /// Repeats the choice of victims and copies; round N has this seed and N - 1 [default: random]
    #[arg(long)]
    seed: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// A backup's replicas of the victim.
struct Holder {
    /// Its place in the cluster.
    at: usize,
    id: ServerId,
    file: FrameFile,
    held: Vec<Held>,
}

impl CorruptArgs {
    /// The drill.
    pub(super) async fn run(&self, global: &Global, timeline: Timeline) -> Result<(), Failure> {
        self.check()?;
        let round = async |seed, longest| self.round(seed, longest, global, timeline).await;
        rounds::run("corrupt", self.rounds, self.seed, timeline, round).await
    }

    async fn round(
        &self,
        seed: u64,
        longest: Duration,
        global: &Global,
        timeline: Timeline,
    ) -> Result<Outcome, Failure> {
        let mut random = Random(seed);
        let bytes = self.common.size.0 * u64::from(self.common.servers);
        let start = (self.shape()?, global);
        let (mut cluster, workload) = rounds::begin(start, &Data::of(bytes), timeline).await?;
        let addresses = cluster.addresses.clone();

        let victim = (random.next() % cluster.servers.len() as u64) as usize;
        let dead = cluster.servers[victim].announcement.id;
        if matches!(self.copies, Copies::One | Copies::AllButOne) {
            // From here to its death it changes no backups: the copy that is left would not count.
            cluster.servers[victim].signal(Signal::STOP)?;
        }
        let holders = holders(&cluster, ServerId(dead))?;
        let (mut victims, mut revival, mut damaged) = (vec![victim], None, BTreeSet::new());
        match self.copies {
            Copies::One => {
                let liar = pick_liar(&holders, &mut random)?;
                damaged = damage(liar, |_| true, ServerId(dead), &mut random)?;
            }
            Copies::AllButOne => {
                damaged = self.damage_all_but_one(&holders, ServerId(dead), &mut random)?;
            }
            Copies::Healed => {
                let liar = pick_liar(&holders, &mut random)?;
                damaged = damage(liar, |held| held.is_closed(), ServerId(dead), &mut random)?;
                victims.push(honest(&holders, liar, &damaged));
                self.until_healed(&cluster, &damaged, timeline).await?;
            }
            Copies::Stale => {
                let (at, stale) = save_head(&holders, &mut random)?;
                victims.push(at);
                tokio::time::sleep(AGE).await;
                revival = Some(revive(at, stale, timeline));
            }
        }
        if self.copies != Copies::Stale && damaged.is_empty() {
            return Err(Failure::new(
                "there was nothing to damage; use a larger --size",
            ));
        }
        if self.copies != Copies::Healed {
            tell_damage(&damaged, timeline)?;
        }
        let mut deaths = Deaths::new(&mut cluster, &workload, timeline);
        deaths.revival = revival;
        let recovered = deaths.run(&victims).await?;
        workload.goes_on(|_| true).await?;
        let named = named(&cluster.led().await?.status);
        let svg = self.common.svg.as_deref();
        let all = (&addresses[..], &Down::default());
        let (shared, tally) = rounds::conclude(workload, all, svg, timeline).await?;
        let (note, fields) = judge(&damaged, &named);
        let outcome = Outcome {
            seed,
            recovered,
            tally,
            objects: shared.objects(),
            bytes,
            lost_memory: self.common.size.0 * victims.len() as u64,
            fields,
            note,
        };
        if outcome.unavailable() > longest {
            let title = format!("kill -9 of server {dead}, with copies that are not to be trusted");
            let gone = &cluster.gone;
            let hurt = |group: &super::workload::Group| gone.contains(&group.owner.0);
            timeline.draw(svg, &title, &shared, hurt)?;
        }
        Ok(outcome)
    }

    /// Damages every copy of each segment but one. Segments whose backups are just being changed are
    /// left alone: which of their copies count is not seen from here.
    fn damage_all_but_one(
        &self,
        holders: &[Holder],
        master: ServerId,
        random: &mut Random,
    ) -> Result<BTreeSet<DamagedReplica>, Failure> {
        let mut copies: BTreeMap<SegmentId, Vec<(&Holder, &Held)>> = BTreeMap::new();
        let all = holders
            .iter()
            .flat_map(|holder| holder.held.iter().map(move |held| (holder, held)));
        for (holder, held) in all {
            copies
                .entry(held.segment())
                .or_default()
                .push((holder, held));
        }
        let mut damaged = BTreeSet::new();
        for (segment, mut all) in copies {
            let epochs: BTreeSet<_> = all.iter().map(|(_, held)| held.epoch()).collect();
            if all.len() != usize::from(self.common.replicas) || epochs.len() != 1 {
                continue;
            }
            let honest = random.next() % all.len() as u64;
            all.swap_remove(honest as usize);
            for (holder, held) in all {
                holder.file.damage(held, random)?;
                damaged.insert(DamagedReplica {
                    backup: holder.id,
                    master,
                    segment,
                });
            }
        }
        Ok(damaged)
    }

    /// Waits until all that is damaged is named, and no segment lacks a copy.
    async fn until_healed(
        &self,
        cluster: &Cluster,
        damaged: &BTreeSet<DamagedReplica>,
        timeline: Timeline,
    ) -> Result<(), Failure> {
        tell_damage(damaged, timeline)?;
        let began = Instant::now();
        let copies = self.common.size.0 * u64::from(self.common.replicas);
        let longest = HEALING + Duration::from_secs(copies / READ_BACK);
        loop {
            let status = cluster.led().await?.status;
            let found = damaged.intersection(&named(&status)).count();
            if found == damaged.len() && lacking(&status, 0) == Some(0) {
                return timeline.tell(format_args!(
                    "all of them are named and replicated anew, {} ms later",
                    ms(began.elapsed())
                ));
            }
            if began.elapsed() > longest {
                return Err(Failure::new(format_args!(
                    "{found} of {} damaged replicas found in {longest:?}",
                    damaged.len()
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn shape(&self) -> Result<Shape, Failure> {
        let mut shape = self.common.shape(0, SECONDS)?;
        let servers = u64::from(self.common.servers);
        // Room for what survivors take over, and for entries that are dead by then.
        let after = self.common.size.0 * servers / (servers - self.deaths());
        let usual = shape.memory.0 + after + after / 2;
        shape.memory = self.common.memory.unwrap_or(Size(usual));
        Ok(shape)
    }

    fn deaths(&self) -> u64 {
        match self.copies {
            Copies::One | Copies::AllButOne => 1,
            Copies::Healed | Copies::Stale => 2,
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let replicas = u32::from(self.common.replicas);
        if replicas < 2 {
            return Err(Failure::usage(
                "--replicas: with fewer than 2 no honest copy would be left",
            ));
        }
        let needed = match self.copies {
            Copies::Healed => replicas + 3,
            Copies::One | Copies::AllButOne | Copies::Stale => replicas + 2,
        };
        if self.common.servers < needed {
            return Err(Failure::usage(format_args!(
                "--servers: with {replicas} replicas this drill needs {needed} or more"
            )));
        }
        Ok(())
    }
}

/// Who has replicas of the victim, and which.
fn holders(cluster: &Cluster, victim: ServerId) -> Result<Vec<Holder>, Failure> {
    let mut holders = Vec::new();
    for (at, member) in cluster.servers.iter().enumerate() {
        let file = FrameFile::open(&member.directory()?)?;
        let held = file.replicas_of(victim)?;
        if !held.is_empty() {
            let id = ServerId(member.announcement.id);
            holders.push(Holder { at, id, file, held });
        }
    }
    if holders.len() < 2 {
        let what = format_args!(
            "server {victim} has copies on {} backups only",
            holders.len()
        );
        return Err(Failure::new(what));
    }
    Ok(holders)
}

/// One of those that have closed replicas.
fn pick_liar<'a>(holders: &'a [Holder], random: &mut Random) -> Result<&'a Holder, Failure> {
    let closed = |holder: &&Holder| holder.held.iter().any(Held::is_closed);
    let with_closed: Vec<&Holder> = holders.iter().filter(closed).collect();
    if with_closed.is_empty() {
        let what = "no backup has a closed copy of the victim's; use a larger --size";
        return Err(Failure::new(what));
    }
    Ok(*random.pick(&with_closed))
}

/// Damages what one of them has, of that what is `wanted`.
fn damage(
    liar: &Holder,
    wanted: impl Fn(&Held) -> bool,
    master: ServerId,
    random: &mut Random,
) -> Result<BTreeSet<DamagedReplica>, Failure> {
    let mut damaged = BTreeSet::new();
    for held in liar.held.iter().filter(|held| wanted(held)) {
        liar.file.damage(held, random)?;
        damaged.insert(DamagedReplica {
            backup: liar.id,
            master,
            segment: held.segment(),
        });
    }
    Ok(damaged)
}

/// The place of who holds most of the honest copies of what is damaged.
fn honest(holders: &[Holder], liar: &Holder, damaged: &BTreeSet<DamagedReplica>) -> usize {
    let others = holders.iter().filter(|holder| holder.id != liar.id);
    let is_damaged = |held: &&Held| damaged.iter().any(|one| one.segment == held.segment());
    let most = others.max_by_key(|holder| holder.held.iter().filter(is_damaged).count());
    most.map_or(liar.at, |holder| holder.at)
}

fn tell_damage(damaged: &BTreeSet<DamagedReplica>, timeline: Timeline) -> Result<(), Failure> {
    let Some(DamagedReplica { master, .. }) = damaged.first() else {
        return Ok(());
    };
    let by: BTreeSet<u64> = damaged.iter().map(|one| one.backup.0).collect();
    let count = damaged.len();
    timeline.tell(format_args!(
        "{count} replicas of server {master} damaged, on backups {by:?}"
    ))
}

/// Copies the frames of one that has an open head of the victim. Its place, and the frames.
fn save_head(holders: &[Holder], random: &mut Random) -> Result<(usize, Vec<Saved>), Failure> {
    let mut with_head = holders.iter().collect::<Vec<_>>();
    with_head.retain(|holder| holder.held.iter().any(|held| !held.is_closed()));
    if with_head.is_empty() {
        return Err(Failure::new("no backup has an open head of the victim"));
    }
    let holder = *random.pick(&with_head);
    let open = holder.held.iter().filter(|held| !held.is_closed());
    let saved = open.map(|held| holder.file.save(held));
    Ok((holder.at, saved.collect::<Result<_, _>>()?))
}

/// Starts a backup again with those of its frames as they were.
fn revive(at: usize, stale: Vec<Saved>, timeline: Timeline) -> Revival {
    let prepare = move |directory: &Path| {
        let file = FrameFile::open(directory)?;
        for saved in &stale {
            file.bring_back(saved)?;
            timeline.tell(format_args!(
                "its copy of {} is as it was {} ms ago: whole, {} bytes long",
                saved.segment,
                AGE.as_millis(),
                saved.length
            ))?;
        }
        Ok(())
    };
    (at, Box::new(prepare))
}

/// What status names.
fn named(status: &ClusterStatus) -> BTreeSet<DamagedReplica> {
    status.damaged.iter().copied().collect()
}

/// What was damaged, and what was named, in words and numbers. Not all that is damaged is ever looked
/// at; but if nothing is named of many, or anything that is whole, something is wrong.
fn judge(
    damaged: &BTreeSet<DamagedReplica>,
    named: &BTreeSet<DamagedReplica>,
) -> (String, Map<String, Value>) {
    let found = damaged.intersection(named).count();
    let wrongly = named.difference(damaged).count();
    let unnoticed = match found {
        0 if damaged.len() >= MANY => damaged.len(),
        _ => 0,
    };
    let liars: BTreeSet<u64> = named.iter().map(|one| one.backup.0).collect();
    let note = format!(
        "\n{} replicas damaged; status names {found} of them, on servers {liars:?}, and {wrongly} that \
         are not",
        damaged.len()
    );
    let fields = [
        ("replicas_damaged", damaged.len()),
        ("replicas_named", found),
        ("damage_unnoticed", unnoticed),
        ("accused_wrongly", wrongly),
    ];
    let fields = fields.map(|(name, count)| (name.to_owned(), count.into()));
    (note, fields.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(segment: u64) -> DamagedReplica {
        DamagedReplica {
            backup: ServerId(2),
            master: ServerId(1),
            segment: SegmentId(segment),
        }
    }

    #[test]
    fn damage_that_nobody_names_and_blame_of_the_innocent_spoil_a_drill() {
        let set = |all: &[u64]| all.iter().map(|one| replica(*one)).collect();
        let counts = |damaged: &[u64], named: &[u64]| {
            let (_, fields) = judge(&set(damaged), &set(named));
            ["replicas_named", "damage_unnoticed", "accused_wrongly"]
                .map(|name| fields[name].as_u64().unwrap())
        };
        assert_eq!(counts(&[], &[]), [0, 0, 0]);
        let many: Vec<u64> = (1..=MANY as u64).collect();
        assert_eq!(counts(&many, &[2]), [1, 0, 0]);
        assert_eq!(counts(&many, &[]), [0, MANY as u64, 0]);
        assert_eq!(counts(&many[1..], &[]), [0, 0, 0]);
        assert_eq!(counts(&[1], &[1, 2]), [1, 0, 1]);
        assert_eq!(counts(&[], &[2]), [0, 0, 1]);
    }
}
