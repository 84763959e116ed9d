//! Enlistment: asking the coordinator for an identity until it gives one.

use std::time::Duration;

use ramkeep_backup::shell::boot_id;
use ramkeep_control::shell::Coordinators;
use ramkeep_wire::certificate::CertificateKey;
use ramkeep_wire::coordinator::{Answer, Enlist, Request, Roles, ServerList, Settings};
use ramkeep_wire::{ClusterId, ServerId};

use crate::failure::Failure;

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(100);

/// Who wants to join.
#[derive(Debug)]
pub(super) struct Joining {
    /// What it will do.
    pub(super) roles: Roles,
    /// Where it listens.
    pub(super) addresses: Vec<String>,
    /// Frames it offers.
    pub(super) frames: u32,
    /// Whose frames those were.
    pub(super) replaces: Option<ServerId>,
    /// Bytes it has for log and index.
    pub(super) memory: u64,
}

/// What the cluster made of it.
#[derive(Debug)]
pub(super) struct Enlisted {
    /// The new identity.
    pub(super) server: ServerId,
    /// The cluster.
    pub(super) cluster: ClusterId,
    /// Certifies the new master's replicas.
    pub(super) key: CertificateKey,
    /// The cluster's constants.
    pub(super) settings: Settings,
    /// The server list.
    pub(super) list: ServerList,
}

/// Asks until a coordinator answers. Says on standard error why it waits, once for each reason.
pub(super) async fn enlist(
    coordinators: &Coordinators,
    joining: &Joining,
) -> Result<Enlisted, Failure> {
    let boot = boot_id()
        .map_err(|error| Failure::new(format_args!("this machine has no boot id: {error}")))?;
    let request = Request::Enlist(Enlist {
        nonce: random()?,
        roles: joining.roles,
        addresses: joining.addresses.clone(),
        replaces: joining.replaces,
        boot,
        frames: joining.frames,
        memory: joining.memory,
    });
    let mut told = String::new();
    loop {
        match coordinators.call(&request).await {
            Ok(response) => return accept(response.answer),
            Err(error) => {
                let reason = error.to_string();
                if reason != told {
                    tracing::warn!(%reason, "waiting for a coordinator");
                    told = reason;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn accept(answer: Answer) -> Result<Enlisted, Failure> {
    match answer {
        Answer::Enlisted {
            server,
            cluster,
            key,
            settings,
            list,
        } => Ok(Enlisted {
            server,
            cluster,
            key,
            settings,
            list,
        }),
        Answer::Refused(refused) => Err(Failure::new(format_args!(
            "the coordinator refuses this server: {refused}"
        ))),
        _ => Err(Failure::new(
            "the coordinator's answer to an enlistment makes no sense",
        )),
    }
}

/// A seed for choices that need not be secret.
pub(super) fn seed() -> Result<u64, Failure> {
    random().map(u64::from_le_bytes)
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(format_args!("no random bytes: {error}")))?;
    Ok(bytes)
}
