//! `status --server`: how one server is, asked of itself, for when no coordinator answers.

use std::time::Duration;

use ramkeep_rpc::{Address, Caller, Identity};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::order::ServerStatus;
use ramkeep_wire::{Party, postcards};
use serde_json::{Value, json};

use super::overhead_per_object;
use crate::connect::link_to_server;
use crate::failure::Failure;
use crate::units::Size;

/// Asks the server at `address`.
pub(super) async fn ask(
    address: &Address,
    identity: &Identity,
    patience: Duration,
) -> Result<ServerStatus, Failure> {
    let no_answer = |error: &dyn std::fmt::Display| {
        Failure::new(format_args!("no server answers at {address}: {error}"))
    };
    let link = link_to_server(address, identity, Party::NONE)
        .await
        .map_err(|error| no_answer(&error))?;
    let answer = Caller::new(link)
        .call(Kind::StatusRequest, &[], patience)
        .await
        .map_err(|error| no_answer(&error))?;
    postcards::decode(&answer).map_err(|error| no_answer(&error))
}

/// For people.
pub(super) fn text(status: &ServerStatus) -> String {
    let mut text = format!("server {}, {} tablets", status.server, status.tablets.len());
    if let Some(stats) = &status.master {
        text += &format!(
            "; master: {} objects, {} live of {} used of {}, {} segments, {} lack a copy",
            stats.objects,
            Size(stats.live),
            Size(stats.used),
            Size(stats.memory),
            stats.segments,
            stats.under_replicated
        );
        if let Some(overhead) = overhead_per_object(stats) {
            text += &format!(", {overhead:.1} bytes above key and value per object");
        }
    }
    if let Some(stats) = &status.backup {
        text += &format!("; backup: {} of {} frames in use", stats.used, stats.frames);
    }
    text
}

/// For programs.
pub(super) fn json(status: &ServerStatus) -> Value {
    let master = status.master.map(|stats| {
        json!({
            "memory": stats.memory,
            "used": stats.used,
            "live": stats.live,
            "reserved": stats.reserved,
            "index": stats.index,
            "objects": stats.objects,
            "segments": stats.segments,
            "under_replicated": stats.under_replicated,
        })
    });
    let backup = status
        .backup
        .map(|stats| json!({ "frames": stats.frames, "used": stats.used }));
    json!({
        "server": status.server.0,
        "tablets": status.tablets.len(),
        "master": master,
        "backup": backup,
    })
}
