//! Asking one coordinator, whether or not it leads.

use std::time::Duration;

use ramkeep_rpc::{Address, Caller, Identity, Link, PollMode};
use ramkeep_wire::coordinator::{Request, Response};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{Party, postcards};

/// How long a coordinator may take to be connected to, and to answer.
const PATIENCE: Duration = Duration::from_millis(500);

/// A connection to one coordinator, made anew when it breaks. Clones of one that has asked share it.
#[derive(Clone, Debug)]
pub struct Direct {
    address: Address,
    identity: Identity,
    mode: PollMode,
    patience: Duration,
    caller: Option<Caller>,
}

/// It gave no answer. It may have acted on the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("coordinator {address} does not answer: {why}")]
pub struct NoAnswer {
    address: Address,
    why: String,
}

impl Direct {
    /// To the process at this address. Connects when it is first asked.
    #[must_use]
    pub fn new(address: Address, identity: Identity) -> Self {
        Self {
            address,
            identity,
            mode: PollMode::Never,
            patience: PATIENCE,
            caller: None,
        }
    }

    /// Waits for answers like this, and for so long.
    #[must_use]
    pub fn waiting(self, mode: PollMode, patience: Duration) -> Self {
        Self {
            mode,
            patience,
            ..self
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its answer.
    ///
    /// # Errors
    /// If it gives none in time.
    pub async fn ask(&mut self, request: &Request) -> Result<Response, NoAnswer> {
        let answer = self.call(request).await;
        answer.map_err(|why| {
            self.caller = None;
            let address = self.address.clone();
            NoAnswer { address, why }
        })
    }

    async fn call(&mut self, request: &Request) -> Result<Response, String> {
        let caller = match &self.caller {
            Some(caller) => caller,
            None => self.caller.insert(self.connect().await?),
        };
        let payload = postcards::encode(request);
        let answer = caller.call(Kind::CoordinatorRequest, &payload, self.patience);
        let answer = answer.await.map_err(|error| error.to_string())?;
        postcards::decode(&answer).map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<Caller, String> {
        let link = Link::connect(&self.address, &self.identity, Party::NONE, self.mode);
        match tokio::time::timeout(self.patience, link).await {
            Ok(Ok(link)) => Ok(Caller::new(link)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_late) => Err("no connection in time".to_owned()),
        }
    }
}
