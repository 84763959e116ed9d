//! `ramkeep coordinator rescue`: goes on from the last coordinator's directory when most are lost for good.

use std::path::PathBuf;

use clap::Args;
use ramkeep_coordinator::rescue::lost;
use ramkeep_coordinator::shell::rescue::{NewMember, Prepared, prepare};
use ramkeep_rpc::{Address, Identity, Link, PollMode};
use ramkeep_wire::{ClusterId, Party, PeerId};
use serde_json::json;

use crate::connect::shared_key;
use crate::failure::Failure;
use crate::output::Output;
use crate::runtime;

/// Flags of `coordinator rescue`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RescueArgs {
    /// Directory of the coordinator that is left; its process is stopped
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where it will listen, if that is not where it did
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<Address>,
    /// Further coordinators of the new group (none, 2 or 4), as ID=ADDRESS=DIR,...: the directories are made
    /// here, and may be moved to their machines before they are started
    #[arg(long = "with", value_name = "LIST", value_delimiter = ',', value_parser = new_member)]
    with: Vec<NewMember>,
    /// The cluster's id, which `rescue` prints without this flag: all that is named as lost is given up
    #[arg(long, value_name = "CLUSTER")]
    confirm: Option<String>,
    /// File with the key that all processes and clients share
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

fn new_member(text: &str) -> Result<NewMember, String> {
    let mut parts = text.splitn(3, '=');
    let (Some(id), Some(address), Some(directory)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err("a coordinator is named ID=ADDRESS=DIR".into());
    };
    let id: u32 = id.parse().map_err(|_| format!("`{id}` is no number"))?;
    if id == 0 || directory.is_empty() {
        return Err("coordinators are numbered from 1, and each has a directory".into());
    }
    let address: Address = address.parse().map_err(|error| format!("{error}"))?;
    Ok(NewMember {
        peer: PeerId(id),
        address: address.to_string(),
        directory: directory.into(),
    })
}

impl RescueArgs {
    pub(crate) fn run(&self, output: Output) -> Result<(), Failure> {
        let listen = self.listen.as_ref().map(Address::to_string);
        let prepared = prepare(&self.data, listen, &self.with).map_err(Failure::new)?;
        self.check_lost(&prepared)?;
        let cluster = prepared.rescue.cluster;
        let confirmed = self.confirm.as_deref() == Some(&cluster.to_string());
        let (text, report) = (text(&prepared, confirmed), report(&prepared, confirmed));
        if confirmed {
            prepared.carry_out().map_err(Failure::new)?;
            return Ok(output.line(text, &report)?);
        }
        output.line(text, &report)?;
        Err(Failure::usage(match &self.confirm {
            None => format!("nothing was changed; to go on like this: --confirm {cluster}"),
            Some(other) => format!(
                "nothing was changed: --confirm {other} is another cluster, this one is {cluster}"
            ),
        }))
    }

    /// Those that answer are not lost: with enough of them there is nothing to rescue.
    fn check_lost(&self, prepared: &Prepared) -> Result<(), Failure> {
        let identity = Identity::new(shared_key(self.key_file.as_deref())?);
        let was = &prepared.rescue.was;
        let there = runtime::current_thread()?.block_on(async {
            let mut there = Vec::new();
            for (peer, address) in lost(was, prepared.survivor) {
                if answers(&identity, prepared.rescue.cluster, peer, &address).await {
                    there.push(format!("coordinator {} at {address}", peer.0));
                }
            }
            Ok::<_, Failure>(there)
        })?;
        // One that is alone may be given others.
        if was.members.len() > 1 && 1 + there.len() >= was.majority() {
            return Err(Failure::new(format_args!(
                "{} answers, and with this one that is enough to lead: start this one as it is. Nothing was \
                 changed",
                there.join(", ")
            )));
        }
        Ok(())
    }
}

/// Whether a coordinator of this cluster is there. One with an empty directory knows no cluster.
async fn answers(identity: &Identity, cluster: ClusterId, peer: PeerId, address: &str) -> bool {
    let Ok(address) = address.parse() else {
        return false;
    };
    let to = Party::coordinator(peer);
    let link = Link::connect(&address, identity, to, PollMode::Never).await;
    link.is_ok_and(|link| link.cluster() == cluster)
}

/// What is lost, for people.
fn text(prepared: &Prepared, done: bool) -> String {
    let rescue = &prepared.rescue;
    let group = &rescue.snapshot.group;
    let members = group.members.iter();
    let members: Vec<_> = members
        .map(|m| format!("{} at {}", m.id, m.address))
        .collect();
    let others = lost(&rescue.was, prepared.survivor);
    let others: Vec<_> = others
        .iter()
        .map(|(id, at)| format!("{} at {at}", id.0))
        .collect();
    let mut lines = vec![
        format!(
            "cluster {}: coordinator {} knows slot {}, {} servers and {} tables",
            rescue.cluster,
            prepared.survivor.0,
            rescue.slot,
            rescue.servers,
            rescue.tables.len()
        ),
        format!("given up for good: coordinators {}", others.join(", ")),
        format!(
            "lost is whatever they decided without this one after slot {}: tables made or dropped, servers \
             that joined or were found dead, changes of backups, recoveries. A server that joined since has \
             to join again; if a master dies whose backups changed since, its last writes may be lost",
            rescue.slot
        ),
    ];
    if rescue.taken > 0 {
        lines.push(format!(
            "taken for decided: the last {} slots, which this one had accepted",
            rescue.taken
        ));
    }
    if !rescue.holes.is_empty() {
        let holes: Vec<_> = rescue.holes.iter().map(u64::to_string).collect();
        lines.push(format!(
            "lost with the others: what slots {} held",
            holes.join(", ")
        ));
    }
    lines.push(format!("the group from now on: {}", members.join(", ")));
    if done {
        lines.push(
            "done: start these with their directories, and servers and clients with their addresses; the \
             directories of the others are of no more use"
                .to_owned(),
        );
    }
    lines.join("\n")
}

/// The same for programs.
fn report(prepared: &Prepared, done: bool) -> serde_json::Value {
    let rescue = &prepared.rescue;
    let lost = lost(&rescue.was, prepared.survivor);
    json!({
        "cluster": rescue.cluster.to_string(),
        "coordinator": prepared.survivor.0,
        "slot": rescue.slot,
        "taken_for_decided": rescue.taken,
        "lost_slots": rescue.holes,
        "servers": rescue.servers,
        "tables": rescue.tables,
        "lost_coordinators": lost.iter().map(|(id, address)| json!({ "id": id.0, "address": address }))
            .collect::<Vec<_>>(),
        "group": rescue.snapshot.group.members.iter()
            .map(|member| json!({ "id": member.id.0, "address": member.address }))
            .collect::<Vec<_>>(),
        "done": done,
    })
}
