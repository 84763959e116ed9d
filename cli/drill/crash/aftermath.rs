//! How the cluster is when nothing more is recovered: who serves what, how full memory is, and whether
//! writes work everywhere.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::deaths::Unserved;
use super::puts::Puts;
use crate::drill::cluster::Cluster;
use crate::drill::counts::Tally;
use crate::drill::down::Down;
use crate::drill::fill::Memory;
use crate::drill::timeline::Timeline;
use crate::drill::workload::{Group, Shared};
use crate::failure::Failure;

/// How the cluster is when nothing more is recovered.
#[derive(Debug, Default)]
pub(super) struct Aftermath {
    /// The others have room for what the killed servers had alive.
    fits: bool,
    /// Memory is what the drill is about.
    shown: bool,
    before: Memory,
    after: Memory,
    gone: BTreeSet<u64>,
    pub(super) down: Down,
    puts: Puts,
}

impl Aftermath {
    /// Before anybody is killed: whether what the victims have fits into the rest.
    pub(super) async fn expect(
        cluster: &Cluster,
        victims: &[usize],
        shown: bool,
        timeline: Timeline,
    ) -> Result<Self, Failure> {
        let before = Memory::of(&cluster.led().await?.status);
        let dying = victims.iter();
        let dying = dying.map(|at| cluster.servers[*at].announcement.id);
        let fits = before.holds(&dying.collect::<Vec<_>>());
        if shown {
            let word = if fits { "fits" } else { "does not fit" };
            let told = format_args!("{}; what dies {word} into the rest", before.text());
            timeline.tell(told)?;
        }
        Ok(Self {
            fits,
            shown,
            before,
            ..Self::default()
        })
    }

    /// What to do about tablets that stay down.
    pub(super) fn unserved(&self) -> Unserved {
        match self.fits {
            true => Unserved::GoOn,
            false => Unserved::Expect,
        }
    }

    /// Looks around, and writes everywhere.
    pub(super) async fn look(
        &mut self,
        cluster: &Cluster,
        timeline: Timeline,
    ) -> Result<(), Failure> {
        self.puts = Puts::everywhere(&cluster.addresses).await?;
        let status = cluster.led().await?.status;
        self.after = Memory::of(&status);
        self.gone.clone_from(&cluster.gone);
        self.down = Down::of(&status, &cluster.gone);
        timeline.tell(format_args!(
            "{} of {} writes work afterwards, on {} tablets; {} tablets are down",
            self.puts.wanted - self.puts.failed,
            self.puts.wanted,
            self.puts.tablets,
            self.down.count(),
        ))
    }

    /// Without what failed on tablets that are down for a reason.
    pub(super) fn excuse(&self, tally: Tally, shared: &Shared) -> Tally {
        if self.fits {
            return tally;
        }
        let hurt = shared.tally(|group| self.hurts(group));
        Tally {
            failed: tally.failed - hurt.failed,
            uncertain: tally.uncertain - hurt.uncertain,
            ..tally
        }
    }

    /// Whether a group's keys may be on tablets that are down.
    fn hurts(&self, group: &Group) -> bool {
        !self.down.is_empty() && self.gone.contains(&group.owner.0)
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let Puts {
            tablets,
            wanted,
            failed,
        } = self.puts;
        let worked = wanted - failed;
        let mut text =
            format!("\nafterwards {worked} of {wanted} writes to {tablets} tablets worked");
        if !self.down.is_empty() {
            let (down, reasons) = (self.down.count(), self.down.reasons());
            let fits = if self.fits {
                "would fit"
            } else {
                "does not fit"
            };
            text += &format!("; {down} tablets are down ({fits}), status says {reasons}");
        }
        if self.shown {
            text += &format!("\nmemory: {}", self.after.text());
        }
        text
    }

    /// For programs.
    pub(super) fn json(&self) -> Map<String, Value> {
        let (fitting, other) = match self.fits {
            true => (self.down.count(), 0),
            false => (0, self.down.count()),
        };
        let unexplained = if self.fits {
            0
        } else {
            self.down.unexplained()
        };
        let mut fields = Map::new();
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("puts", self.puts.wanted.into());
        field("puts_failed", self.puts.failed.into());
        field("tablets_unserved", fitting.into());
        field("tablets_down", other.into());
        field("tablets_unexplained", unexplained.into());
        if self.shown {
            field("fits", self.fits.into());
            field("fullest_before", self.before.fullest().into());
            field("fullest_after", self.after.fullest().into());
            field("memory_before", self.before.json());
            field("memory_after", self.after.json());
        }
        fields
    }
}
