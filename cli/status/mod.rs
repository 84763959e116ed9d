//! `ramkeep status`: how the cluster is.

mod json;
mod prometheus;
mod server;
mod text;

pub(crate) use text::recoveries;

use clap::Args;
use ramkeep_rpc::{Address, Identity};
use ramkeep_wire::coordinator::{Answer, MasterStats, Request};

use crate::connect::{ConnectArgs, shared_key};
use crate::coordinators::Coordinators;
use crate::failure::Failure;
use crate::output::Output;
use crate::runtime;

/// Flags of `status`.
#[derive(Clone, Debug, Args)]
pub(crate) struct StatusArgs {
    /// Ask this server itself, not the coordinator
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) server: Option<Address>,
    /// As text for Prometheus
    #[arg(long, conflicts_with = "server")]
    pub(crate) prometheus: bool,
    #[command(flatten)]
    pub(crate) connect: ConnectArgs,
}

/// Asks the coordinator, or one server, and prints the answer.
pub(crate) fn run(args: &StatusArgs, output: Output) -> Result<(), Failure> {
    if args.prometheus && output.is_json() {
        return Err(Failure::usage(
            "--prometheus is a format of its own: leave --json out",
        ));
    }
    if let Some(address) = &args.server {
        let identity = Identity::new(shared_key(args.connect.key_file.as_deref())?);
        let asked = server::ask(address, &identity, args.connect.deadline);
        let status = runtime::current_thread()?.block_on(asked)?;
        return Ok(output.line(server::text(&status), &server::json(&status))?);
    }
    let coordinators = Coordinators::of(&args.connect)?;
    let response = runtime::current_thread()?.block_on(coordinators.ask(&Request::Status))?;
    let Answer::Status(status) = &response.answer else {
        return Err(Failure::new(
            "the coordinator's answer to a status request makes no sense",
        ));
    };
    if args.prometheus {
        let text = prometheus::status(status, response.ballot).map_err(Failure::new)?;
        return Ok(output.line(text.trim_end(), &serde_json::Value::Null)?);
    }
    let text = text::status(status, response.ballot);
    Ok(output.line(text.trim_end(), &json::status(status, response.ballot))?)
}

/// Bytes per object above its key and value, the index included.
fn overhead_per_object(stats: &MasterStats) -> Option<f64> {
    let above = (stats.live + stats.index).saturating_sub(stats.payload);
    (stats.objects > 0).then(|| above as f64 / stats.objects as f64)
}

/// The sum over all masters.
fn total(all: impl Iterator<Item = MasterStats>) -> MasterStats {
    all.fold(MasterStats::default(), |sum, stats| MasterStats {
        memory: sum.memory + stats.memory,
        used: sum.used + stats.used,
        live: sum.live + stats.live,
        reserved: sum.reserved + stats.reserved,
        index: sum.index + stats.index,
        objects: sum.objects + stats.objects,
        payload: sum.payload + stats.payload,
        segments: sum.segments + stats.segments,
        under_replicated: sum.under_replicated + stats.under_replicated,
        room: sum.room + stats.room,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_what_is_neither_key_nor_value() {
        let one = MasterStats {
            live: 1_500,
            index: 100,
            payload: 1_200,
            objects: 10,
            ..<_>::default()
        };
        assert_eq!(overhead_per_object(&one), Some(40.0));
        assert_eq!(
            overhead_per_object(&total([one, one].into_iter())),
            Some(40.0)
        );
        assert_eq!(overhead_per_object(&MasterStats::default()), None);
    }
}
