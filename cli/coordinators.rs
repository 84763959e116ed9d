//! Asking the coordinators on a person's behalf.

use std::path::Path;

use ramkeep_control::shell::Coordinators as Group;
use ramkeep_rpc::{Address, Identity};
use ramkeep_wire::coordinator::{Answer, Request, Response};

use crate::connect::{CONNECT_PATIENCE, ConnectArgs, no_answer, shared_key};
use crate::failure::Failure;

/// The coordinators of a cluster.
#[derive(Debug)]
pub(crate) struct Coordinators {
    group: Group,
    addresses: String,
}

impl Coordinators {
    /// At these addresses, with the key in `key_file`.
    pub(crate) fn new(addresses: &[String], key_file: Option<&Path>) -> Result<Self, Failure> {
        let identity = Identity::new(shared_key(key_file)?);
        let group = Group::new(&parse(addresses)?, identity);
        Ok(Self {
            group,
            addresses: addresses.join(","),
        })
    }

    /// As a command's flags say.
    pub(crate) fn of(args: &ConnectArgs) -> Result<Self, Failure> {
        Self::new(&args.addresses(), args.key_file.as_deref())
    }

    /// The leader's answer, waited for over an election. A refusal is a failure.
    pub(crate) async fn ask(&self, request: &Request) -> Result<Response, Failure> {
        let answered = self.group.call_within(request, CONNECT_PATIENCE).await;
        let response = answered.map_err(|error| no_answer(&self.addresses, error.0))?;
        match response.answer {
            Answer::Refused(refused) => Err(Failure::new(format_args!(
                "the coordinator refuses: {refused}"
            ))),
            _ => Ok(response),
        }
    }
}

/// A failure with what the cluster lacks, if it failed since it took too long and that may be why.
pub(crate) async fn with_shortage(args: &ConnectArgs, failure: Failure) -> Failure {
    let Ok(coordinators) = Coordinators::of(args) else {
        return failure;
    };
    let Ok(response) = coordinators.ask(&Request::Status).await else {
        return failure;
    };
    let Answer::Status(status) = response.answer else {
        return failure;
    };
    match status.shortages.iter().find(|short| short.is_now) {
        Some(short) => failure.because(&short.text),
        None => failure,
    }
}

/// Addresses as flags give them.
pub(crate) fn parse(addresses: &[String]) -> Result<Vec<Address>, Failure> {
    let parsed: Result<Vec<Address>, _> = addresses.iter().map(|text| text.parse()).collect();
    match parsed {
        Ok(addresses) if !addresses.is_empty() => Ok(addresses),
        Ok(_) => Err(Failure::usage("--coordinators names no address")),
        Err(error) => Err(Failure::usage(error)),
    }
}
