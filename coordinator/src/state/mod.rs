//! The replicated state: who is in the cluster, who owns what, and how far each log is proved.
//!
//! # Invariants
//! 1. [`State::apply`] is a function of the state and the command alone: the same commands in the
//!    same order give the same bytes on every peer.
//! 2. Ids of servers, tables and clients grow and are never used twice.
//! 3. The tablets of a table cover all hashes, each once.
//! 4. Nothing changes on behalf of a server decided crashed (SAFETY 4).
//! 5. Whatever the server list shows grows its version; so do tables and tablets with theirs.
//! 6. A refused command changes nothing, but for the result that is kept of it.

mod clients;
mod losses;
mod recoveries;
mod servers;
mod tables;

use paxos::sessions::{Admission, Sessions};
use ramkeep_wire::coordinator::{Once, Refused, ServerList, Settings, TabletMap};
use ramkeep_wire::mutants::{self, Mutant};
use ramkeep_wire::{Ballot, ClientId, ClusterId, ListVersion, MapVersion, ServerId, TableId};
use serde::{Deserialize, Serialize};

use crate::command::{Applied, Command, Outcome};
pub use clients::Clients;
pub use losses::Losses;
pub(crate) use losses::check_loss;
pub use recoveries::{Partition, Recoveries, RecoveryRecord};
pub(crate) use servers::check_enlist;
pub use servers::{RecordedEpoch, Server, Servers};
pub(crate) use tables::grant;
pub use tables::{TableRecord, Tables};

/// What never changes in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constants {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Its constants.
    pub settings: Settings,
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    constants: Option<Constants>,
    ballot: Ballot,
    list_version: ListVersion,
    map_version: MapVersion,
    servers: Servers,
    tables: Tables,
    clients: Clients,
    /// What came of the requests that clients may repeat.
    results: Sessions<ClientId, Outcome>,
    recoveries: Recoveries,
    losses: Losses,
}

impl State {
    /// Applies a decided command.
    pub fn apply(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Bootstrap { cluster, settings } => self.bootstrap(*cluster, settings),
            Command::Lead { ballot } => self.lead(*ballot),
            _ if self.constants.is_none() => {
                Err(Refused::Invalid("there is no cluster yet".into()))
            }
            Command::Enlist { request, key } => self.enlist(request, *key),
            Command::DeclareCrashed { server } => self.declare_crashed(*server),
            Command::Fenced { server } => self.fenced(*server),
            Command::ServerReady { server } => self.server_ready(*server),
            Command::CreateTable { name, once } => {
                // Refused for now, and tried again by the leader once the name is free.
                let kept = !self.tables.is_dropping(name);
                self.run_once(*once, kept, |state| state.create_table(name))
            }
            Command::TabletsTaken { owner, taken } => self.tablets_taken(*owner, taken),
            Command::DropTable { name, once } => {
                self.run_once(*once, true, |state| state.drop_table(name))
            }
            Command::TableDropped { table, owner } => self.tables_dropped(*owner, &[*table]),
            Command::RecordEpoch {
                master,
                segment,
                epoch,
                backups,
            } => self.record_epoch(*master, *segment, *epoch, backups),
            Command::RaiseFloor {
                master,
                segment,
                epoch,
            } => self.raise_floor(*master, *segment, *epoch),
            Command::OpenClientLease { nonce } => self.clients.open(*nonce).map(Applied::Client),
            Command::ExpireClientLease { client } => {
                self.clients.expire(*client);
                self.results.expire(client);
                Ok(Applied::Done)
            }
            Command::PlanRecovery { master, end, parts } => self.plan_recovery(*master, end, parts),
            Command::AssignRecovery {
                master,
                attempt,
                by,
            } => self.assign_recovery(*master, *attempt, *by),
            Command::PartitionRecovered {
                master,
                attempt,
                by,
                taken,
            } => self.partition_recovered(*master, *attempt, *by, taken),
            Command::AcceptLoss(accepted) => self.accept_loss(accepted),
            Command::GiveUpPlan { master, end } => self.replace_plan(*master, end),
            Command::GiveBackPartition { master, attempt } => {
                self.give_back_partition(*master, *attempt)
            }
            Command::TablesDropped { owner, tables } => self.tables_dropped(*owner, tables),
        }
    }

    /// Runs a client's request unless it ran before; then what came of it comes again, if that was
    /// to be `kept`. Without a master it is refused for now: who asks goes on asking.
    fn run_once(
        &mut self,
        once: Option<Once>,
        kept: bool,
        run: impl FnOnce(&mut Self) -> Outcome,
    ) -> Outcome {
        let once = once.filter(|_| !mutants::active(Mutant::ForgetOnce));
        let Some(once) = once else { return run(self) };
        if !self.clients.holds(once.client) {
            return Err(Refused::Unknown);
        }
        match self.results.admit(once.client, once.sequence, once.acked) {
            Admission::Run => {
                let outcome = run(self);
                if kept && outcome != Err(Refused::NoMaster) {
                    let result = outcome.clone();
                    self.results.finish(&once.client, once.sequence, result);
                }
                outcome
            }
            Admission::Replay(outcome) => outcome,
            Admission::Stale => Err(Refused::Invalid("its result was received before".into())),
            Admission::Full => Err(Refused::Limit("results that were not acknowledged".into())),
        }
    }

    fn bootstrap(&mut self, cluster: ClusterId, settings: &Settings) -> Outcome {
        if self.constants.is_some() {
            return Err(Refused::Invalid("the cluster exists already".into()));
        }
        check_settings(settings)?;
        self.constants = Some(Constants {
            cluster,
            settings: settings.clone(),
        });
        // One who knows version 0 knows nothing.
        self.list_version = ListVersion(1);
        self.map_version = MapVersion(1);
        Ok(Applied::Done)
    }

    fn lead(&mut self, ballot: Ballot) -> Outcome {
        if ballot <= self.ballot {
            return Err(Refused::Invalid(format!(
                "ballot {ballot} is not above {}",
                self.ballot
            )));
        }
        self.ballot = ballot;
        Ok(Applied::Done)
    }

    fn list_changed(&mut self) {
        self.list_version.0 += 1;
    }

    fn map_changed(&mut self) {
        self.map_version.0 += 1;
    }

    /// Cluster and settings, once there is a cluster.
    #[must_use]
    pub fn constants(&self) -> Option<&Constants> {
        self.constants.as_ref()
    }

    /// The highest ballot that led.
    #[must_use]
    pub fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// Version of the server list.
    #[must_use]
    pub fn list_version(&self) -> ListVersion {
        self.list_version
    }

    /// Version of tables and tablets.
    #[must_use]
    pub fn map_version(&self) -> MapVersion {
        self.map_version
    }

    /// The servers.
    #[must_use]
    pub fn servers(&self) -> &Servers {
        &self.servers
    }

    /// The tables.
    #[must_use]
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// The client leases.
    #[must_use]
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// The recoveries that are planned.
    #[must_use]
    pub fn recoveries(&self) -> &Recoveries {
        &self.recoveries
    }

    /// The losses that operators have accepted.
    #[must_use]
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// A server in service or joining; otherwise why not.
    pub fn living(&self, server: ServerId) -> Result<&Server, Refused> {
        self.servers.living(server)
    }

    /// A table by its id.
    #[must_use]
    pub fn table(&self, table: TableId) -> Option<&TableRecord> {
        self.tables.by_id(table)
    }

    /// The server list as servers see it.
    #[must_use]
    pub fn server_list(&self) -> ServerList {
        ServerList {
            version: self.list_version,
            servers: self.servers.entries().collect(),
        }
    }

    /// Tables and tablets as clients see them.
    #[must_use]
    pub fn tablet_map(&self) -> TabletMap {
        let owners = self.tables.owners();
        TabletMap {
            version: self.map_version,
            tables: self.tables.iter().map(|t| t.table.clone()).collect(),
            servers: owners
                .into_iter()
                .filter_map(|id| {
                    let server = self.servers.living(id).ok()?;
                    Some((id, server.addresses.clone()))
                })
                .collect(),
        }
    }
}

/// Segments are whole pages, as frames are.
const SEGMENT_UNIT: usize = 4096;

fn check_settings(settings: &Settings) -> Result<(), Refused> {
    let refuse = |why: &str| Err(Refused::Invalid(why.into()));
    if usize::from(settings.replicas) > ramkeep_wire::limits::MAX_REPLICAS {
        return refuse("more replicas than a segment may have");
    }
    let size = settings.segment_size as usize;
    if !size.is_multiple_of(SEGMENT_UNIT)
        || !(1..=ramkeep_wire::limits::SEGMENT_SIZE).contains(&size)
    {
        return refuse("a segment is whole pages, and no longer than any may be");
    }
    if settings.lease_us == 0 || settings.heartbeat_us == 0 {
        return refuse("lease and heartbeat must be longer than nothing");
    }
    if settings.suspect_us <= settings.heartbeat_us {
        return refuse("a server is suspected only after it missed a heartbeat");
    }
    Ok(())
}
