//! The two systems, started and measured alike.

use std::path::Path;

use ramkeep_rpc::PollMode;
use serde::Serialize;

use crate::Outcome;
use crate::engine::{Length, Run, drive};
use crate::etcd::Etcd;
use crate::ramkeep::Coordinators;

/// A system in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum System {
    /// A group of coordinators.
    Ramkeep,
    /// A group of etcd members.
    Etcd,
}

impl System {
    /// The name in tables and messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ramkeep => "ramkeep",
            Self::Etcd => "etcd",
        }
    }
}

/// What a leader's log has cost since it started, by its own count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Syncs {
    /// Syncs of the log.
    pub(crate) count: u64,
    /// Seconds spent in them.
    pub(crate) seconds: f64,
}

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Of this system.
    pub(crate) system: System,
    /// Commands outstanding.
    pub(crate) outstanding: usize,
    /// What came of it.
    pub(crate) run: Run,
    /// Syncs of the leader's log meanwhile, if the system counts them.
    pub(crate) syncs: Option<Syncs>,
}

/// A system that is up.
pub(crate) enum Running {
    /// Coordinators.
    Ramkeep(Coordinators),
    /// Members.
    Etcd(Etcd),
}

/// What every start needs to know.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    /// Processes of each system.
    pub(crate) members: usize,
    /// Where their data go.
    pub(crate) data: &'a Path,
    /// How the Ramkeep client waits.
    pub(crate) poll: PollMode,
}

impl Running {
    /// Starts a system and waits until it has a leader.
    pub(crate) async fn start(system: System, setting: Setting<'_>) -> Outcome<Self> {
        let data = setting.data.join(system.name());
        std::fs::create_dir(&data)?;
        Ok(match system {
            System::Ramkeep => {
                let started = Coordinators::start(setting.members, &data, setting.poll);
                Self::Ramkeep(started.await?)
            }
            System::Etcd => Self::Etcd(Etcd::start(setting.members, &data).await?),
        })
    }

    /// Which it is.
    pub(crate) fn system(&self) -> System {
        match self {
            Self::Ramkeep(_) => System::Ramkeep,
            Self::Etcd(_) => System::Etcd,
        }
    }

    /// Measures it with so many commands outstanding, over connections of this measurement's own.
    pub(crate) async fn measure(
        &self,
        outstanding: usize,
        connections: usize,
        length: Length,
    ) -> Outcome<Sample> {
        let (run, syncs) = match self {
            Self::Ramkeep(group) => {
                let workers = group.workers(outstanding, connections).await?;
                drive(workers, length, &group.pids(), || Ok(None)).await?
            }
            Self::Etcd(group) => {
                let workers = group.workers(outstanding, connections).await?;
                let syncs = || group.syncs().map(Some);
                drive(workers, length, &group.pids(), syncs).await?
            }
        };
        Ok(Sample {
            system: self.system(),
            outstanding,
            run,
            syncs: between(syncs),
        })
    }
}

fn between([first, last]: [Option<Syncs>; 2]) -> Option<Syncs> {
    let (first, last) = (first?, last?);
    Some(Syncs {
        count: last.count.saturating_sub(first.count),
        seconds: last.seconds - first.seconds,
    })
}
