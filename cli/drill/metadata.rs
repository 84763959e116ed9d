//! Metadata commands, all the while: tables are made, found, dropped and made anew, client leases
//! taken. Half of the tasks use the client library; the others speak for themselves, and send
//! commands again that were answered long ago.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use ramkeep_client::{Client, TableId};
use ramkeep_control::shell::Coordinators;
use ramkeep_rpc::Identity;
use ramkeep_wire::ClientId;
use ramkeep_wire::coordinator::{Answer, ClusterStatus, Once, Refused, Request};
use tokio::task::JoinSet;

use super::background::{Background, Stop};
use super::cluster::PATIENCE;
use super::ledger::{Ledger, PREFIX};
use super::workload::connect;
use crate::coordinators::parse;
use crate::failure::Failure;

/// Commands that show that the load goes on.
const SOME: u64 = 20;
/// Tasks of each kind.
const TASKS: usize = 2;
/// Tables that a task leaves standing.
const STANDING: usize = 6;
/// How long a command may take with all its retries.
const DEADLINE: Duration = Duration::from_secs(45);
/// Between two commands of a task.
const PACE: Duration = Duration::from_millis(15);
/// Between two attempts at a command.
const RETRY: Duration = Duration::from_millis(5);
/// Between two renewals of a client lease.
const RENEW: Duration = Duration::from_secs(10);

/// The running load.
#[derive(Debug)]
pub(super) struct Metadata {
    addresses: Vec<String>,
    first: TableId,
    answered: Arc<AtomicU64>,
    background: Background<Ledger>,
}

impl Metadata {
    /// Begins.
    pub(super) async fn start(addresses: &[String]) -> Result<Self, Failure> {
        let addresses = addresses.to_vec();
        let client = connect(&addresses).await?;
        let first = client.create_table("before metadata").await;
        let first = first.map_err(Failure::new)?.id();
        let answered = Arc::new(AtomicU64::new(0));
        let (to, count) = (addresses.clone(), answered.clone());
        let background = Background::start(move |stop| run(to, count, stop));
        Ok(Self {
            addresses,
            first,
            answered,
            background,
        })
    }

    /// Waits until some more commands were answered.
    pub(super) async fn goes_on(&self) -> Result<(), Failure> {
        let enough = self.answered.load(Relaxed) + SOME;
        let patience = Instant::now() + PATIENCE;
        while self.answered.load(Relaxed) < enough {
            if Instant::now() > patience {
                let what = format_args!("no {SOME} metadata commands in {PATIENCE:?}");
                return Err(Failure::new(what));
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    /// Ends it and compares with what is there.
    pub(super) async fn finish(self) -> Result<Ledger, Failure> {
        let mut ledger = self.background.finish().await?;
        let client = connect(&self.addresses).await?;
        let last = client.create_table("after metadata").await;
        let last = last.map_err(Failure::new)?.id();
        let status: ClusterStatus = client.status().await.map_err(Failure::new)?;
        ledger.close(&status.tables, self.first, last);
        Ok(ledger)
    }
}

async fn run(
    addresses: Vec<String>,
    answered: Arc<AtomicU64>,
    stop: Stop,
) -> Result<Ledger, Failure> {
    let mut tasks = JoinSet::new();
    for number in 0..TASKS {
        let library = Library::new(&addresses).await?;
        let own = OwnWords::new(&addresses).await?;
        let (one, other) = (format!("{PREFIX}{number}"), format!("{PREFIX}own {number}"));
        tasks.spawn(issue(one, library, answered.clone(), stop.clone()));
        tasks.spawn(issue(other, own, answered.clone(), stop.clone()));
    }
    let mut all = Ledger::default();
    while let Some(ended) = tasks.join_next().await {
        all.add(ended.map_err(|error| Failure::new(format_args!("a task of the drill: {error}")))?);
    }
    Ok(all)
}

/// One way to issue commands.
trait Commands: Send {
    /// Makes a table or finds it.
    fn create(&mut self, name: &str) -> impl Future<Output = Result<TableId, String>> + Send;
    /// Drops a table; `false`: there was none.
    fn drop_table(&mut self, name: &str) -> impl Future<Output = Result<bool, String>> + Send;
    /// Comes as a new client and goes; what must not be is entered.
    fn visit(&mut self, ledger: &mut Ledger) -> impl Future<Output = ()> + Send;
}

/// The commands of one task, each on a name of its own.
async fn issue(
    prefix: String,
    mut by: impl Commands,
    answered: Arc<AtomicU64>,
    stop: Stop,
) -> Ledger {
    let mut ledger = Ledger::default();
    let mut standing = VecDeque::new();
    let mut number = 0u64;
    let mut told = 0;
    while !stop.is_set() {
        answered.fetch_add(ledger.commands - told, Relaxed);
        told = ledger.commands;
        number += 1;
        let name = format!("{prefix} {number}");
        create(&mut by, &mut ledger, &name).await;
        if number.is_multiple_of(3) {
            create(&mut by, &mut ledger, &name).await;
        }
        if number.is_multiple_of(4) {
            drop_table(&mut by, &mut ledger, &name).await;
            create(&mut by, &mut ledger, &name).await;
        }
        if number.is_multiple_of(5) {
            by.visit(&mut ledger).await;
        }
        standing.push_back(name);
        if standing.len() > STANDING
            && let Some(oldest) = standing.pop_front()
        {
            drop_table(&mut by, &mut ledger, &oldest).await;
        }
    }
    ledger
}

async fn create(by: &mut impl Commands, ledger: &mut Ledger, name: &str) {
    if ledger.is_unknown(name) {
        return;
    }
    match by.create(name).await {
        Ok(id) => ledger.created(name, id),
        Err(why) => ledger.unanswered(name, why),
    }
    tokio::time::sleep(PACE).await;
}

async fn drop_table(by: &mut impl Commands, ledger: &mut Ledger, name: &str) {
    if ledger.is_unknown(name) {
        return;
    }
    match by.drop_table(name).await {
        Ok(true) => ledger.dropped(name),
        Ok(false) => ledger.missed(name),
        Err(why) => ledger.unanswered(name, why),
    }
    tokio::time::sleep(PACE).await;
}

/// Commands through the client library.
struct Library {
    addresses: Vec<String>,
    client: Client,
}

impl Library {
    async fn new(addresses: &[String]) -> Result<Self, Failure> {
        Ok(Self {
            addresses: addresses.to_vec(),
            client: connect(addresses).await?.with_deadline(DEADLINE),
        })
    }
}

impl Commands for Library {
    async fn create(&mut self, name: &str) -> Result<TableId, String> {
        let table = self.client.create_table(name).await;
        table
            .map(|table| table.id())
            .map_err(|error| error.to_string())
    }

    async fn drop_table(&mut self, name: &str) -> Result<bool, String> {
        match self.client.drop_table(name).await {
            Ok(()) => Ok(true),
            Err(ramkeep_client::Error::TableNotFound) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A new client sees every table.
    async fn visit(&mut self, ledger: &mut Ledger) {
        let builder = Client::builder().coordinators(self.addresses.clone());
        let visitor = builder.deadline(DEADLINE).connect().await;
        let listed = match visitor {
            Ok(visitor) => visitor.tables().await,
            Err(error) => Err(error),
        };
        match listed {
            Ok(tables) => {
                let missed: Vec<String> = (ledger.live())
                    .filter(|(name, id)| {
                        !tables
                            .iter()
                            .any(|one| one.name == **name && one.id == **id)
                    })
                    .map(|(name, _)| name.clone())
                    .collect();
                ledger.answered();
                missed.iter().for_each(|name| ledger.missed(name));
            }
            Err(error) => ledger.failed(format_args!("a new client: {error}")),
        }
    }
}

/// Commands in their own words, each of which is sent again after it was answered.
struct OwnWords {
    coordinators: Coordinators,
    client: ClientId,
    renewed: Instant,
    sequence: u64,
    /// A command that has run, to be sent again.
    old: Option<Request>,
}

impl OwnWords {
    async fn new(addresses: &[String]) -> Result<Self, Failure> {
        let mut own = Self {
            coordinators: Coordinators::new(&parse(addresses)?, Identity::new(None)),
            client: ClientId(0),
            renewed: Instant::now(),
            sequence: 0,
            old: None,
        };
        own.client = own.lease(nonce()?).await.map_err(Failure::new)?;
        Ok(own)
    }

    /// Asks until the leader gives an answer that is final.
    async fn ask(&mut self, request: &Request) -> Result<Answer, String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let response = self.coordinators.call_within(request, left).await;
            match response.map_err(|error| error.to_string())?.answer {
                Answer::Refused(Refused::Limit(why)) if left.is_zero() => return Err(why),
                Answer::Refused(Refused::Limit(_)) => tokio::time::sleep(RETRY).await,
                answer => return Ok(answer),
            }
        }
    }

    async fn lease(&mut self, nonce: [u8; 16]) -> Result<ClientId, String> {
        match self.ask(&Request::OpenClientLease { nonce }).await? {
            Answer::ClientLease { client, .. } => Ok(client),
            other => Err(format!("to a client lease: {other:?}")),
        }
    }

    /// The next command's number. Results of the last few are not acknowledged yet.
    async fn once(&mut self) -> Result<Option<Once>, String> {
        if self.renewed.elapsed() > RENEW {
            let client = self.client;
            self.ask(&Request::RenewClientLease { client }).await?;
            self.renewed = Instant::now();
        }
        self.sequence += 1;
        Ok(Some(Once {
            client: self.client,
            sequence: self.sequence,
            acked: self.sequence.saturating_sub(3),
        }))
    }

    /// Issues a command, and after it an older one again.
    async fn issue(&mut self, request: Request) -> Result<Answer, String> {
        let answer = self.ask(&request).await?;
        if let Some(old) = self.old.replace(request) {
            // It says what it said then, or that its result was received; it does nothing.
            self.ask(&old).await?;
        }
        Ok(answer)
    }
}

impl Commands for OwnWords {
    async fn create(&mut self, name: &str) -> Result<TableId, String> {
        let (name, once) = (name.to_owned(), self.once().await?);
        match self.issue(Request::CreateTable { name, once }).await? {
            Answer::Table(table) => Ok(table.table),
            other => Err(format!("to a creation: {other:?}")),
        }
    }

    async fn drop_table(&mut self, name: &str) -> Result<bool, String> {
        let (name, once) = (name.to_owned(), self.once().await?);
        match self.issue(Request::DropTable { name, once }).await? {
            Answer::Dropped => Ok(true),
            Answer::Refused(Refused::NoSuchTable) => Ok(false),
            other => Err(format!("to a drop: {other:?}")),
        }
    }

    /// A lease taken twice with one nonce is one lease; it is given back.
    async fn visit(&mut self, ledger: &mut Ledger) {
        let Ok(nonce) = nonce() else { return };
        match (self.lease(nonce).await, self.lease(nonce).await) {
            (Ok(first), Ok(again)) => {
                ledger.answered();
                if first != again {
                    ledger.find_twice(format_args!("one lease is {first:?} and {again:?}"));
                }
                let _ = self.ask(&Request::CloseClientLease { client: first }).await;
            }
            (Err(why), _) | (_, Err(why)) => ledger.failed(format_args!("a client lease: {why}")),
        }
    }
}

fn nonce() -> Result<[u8; 16], Failure> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(Failure::new)?;
    Ok(nonce)
}
