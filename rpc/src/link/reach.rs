//! A link to a server, wherever of its addresses it answers.

use std::io;

use ramkeep_wire::hello::Refusal;
use ramkeep_wire::{Party, ServerId};

use super::{ConnectError, Link};
use crate::address::Address;
use crate::identity::Identity;
use crate::polling::PollMode;

/// Why a server can't be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreached {
    /// No process of this identity is at any of its addresses.
    Nobody,
    /// Nothing is proved by what went wrong.
    Unclear,
}

impl Link {
    /// Connects to a server. The last of its addresses is tried first: sockets of this machine come
    /// last in a list and are the quicker ones.
    ///
    /// # Errors
    /// When it answers at none of them, with what that says about it.
    pub async fn reach(
        server: ServerId,
        addresses: &[String],
        identity: &Identity,
        mode: PollMode,
    ) -> Result<Self, Unreached> {
        let mut nobody = true;
        for text in addresses.iter().rev() {
            let Ok(address) = text.parse::<Address>() else {
                tracing::warn!(%server, %text, "a server's address makes no sense");
                continue;
            };
            match Self::connect(&address, identity, Party::server(server), mode).await {
                Ok(link) => return Ok(link),
                Err(error) => {
                    tracing::debug!(%server, %address, %error, "can't connect to a server");
                    nobody &= is_nobody(&error, server);
                }
            }
        }
        Err(if nobody {
            Unreached::Nobody
        } else {
            Unreached::Unclear
        })
    }
}

/// Whether the error proves that this server does not listen there.
fn is_nobody(error: &ConnectError, server: ServerId) -> bool {
    if let Some(Refusal::Party(other)) = error.refusal() {
        // Another server has its address now. One without an id may be about to learn it.
        return other.as_server().is_some_and(|other| other != server);
    }
    let ConnectError::Io { error, .. } = error else {
        return false;
    };
    use io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), ConnectionRefused | NotFound)
}
