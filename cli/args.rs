//! The commands, and the flags that all of them have. A command's own flags stand beside it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::coordinator::CoordinatorArgs;
use crate::data::{GetArgs, IncrArgs, PutArgs, RmArgs};
use crate::drill::DrillArgs;
use crate::load::LoadArgs;
use crate::recovery::RecoveryArgs;
use crate::scan::ScanArgs;
use crate::server::ServerArgs;
use crate::status::StatusArgs;
use crate::table::TableArgs;
use crate::up::UpArgs;

/// Keeps all data in RAM and does not lose it.
///
/// Every flag can also be set by a RAMKEEP_* variable (--key-file: RAMKEEP_KEY_FILE) or under its
/// own name in the TOML file given by --config; the command line wins, then variables, then the
/// file. Sizes are written 64MiB, durations 200ms.
#[derive(Debug, Parser)]
#[command(
    name = "ramkeep",
    version,
    max_term_width = 100,
    infer_long_args = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Default, Args)]
pub(crate) struct Global {
    /// JSON on standard output, one object a line, and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// TOML file with flags under their own names
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Say more on standard error
    #[arg(long, short, global = true)]
    pub(crate) verbose: bool,
    /// What to say on standard error, as in info,ramkeep_master=debug
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) trace: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a whole cluster on this machine and stay in the foreground
    Up(UpArgs),
    /// Run one coordinator
    Coordinator(CoordinatorArgs),
    /// Run one server: a master and a backup, or one of them
    Server(ServerArgs),
    /// Show how the cluster is: servers, memory, tables, tablets
    Status(StatusArgs),
    /// Show recoveries, or give up what can't be recovered
    #[command(subcommand)]
    Recovery(RecoveryArgs),
    /// Make, drop or list tables
    #[command(subcommand)]
    Table(TableArgs),
    /// Set the value of a key
    Put(PutArgs),
    /// Show the value of a key
    Get(GetArgs),
    /// Remove a key
    Rm(RmArgs),
    /// Add to a counter and show it
    Incr(IncrArgs),
    /// Show every object of a table
    Scan(ScanArgs),
    /// Load a file's rows into a table
    Load(LoadArgs),
    /// Put load on a cluster and measure it
    Bench(BenchArgs),
    /// Break a cluster of its own on purpose and check that it keeps its promises
    #[command(subcommand)]
    Drill(DrillArgs),
}
