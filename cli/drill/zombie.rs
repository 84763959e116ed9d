//! A client whose map is old: it goes on to ask a server that was decided crashed, and counts what
//! that one still answers as the owner that it was.

use std::time::Duration;

use ramkeep_client::TableId;
use ramkeep_rpc::{Address, Caller, Identity};
use ramkeep_wire::bytes::Reader;
use ramkeep_wire::data::{Item, Op, RejectRules, ResponseItem, Status, begin_request, set_count};
use ramkeep_wire::envelope::Kind;
use ramkeep_wire::{ClientId, Party, RpcId, ServerId};
use tokio::task::JoinSet;

use crate::connect::link_to_server;
use crate::failure::Failure;

/// How long an answer may take; a stopped process takes as long as it is stopped.
const PATIENCE: Duration = Duration::from_secs(120);

/// The client. It knows one key of the server's.
#[derive(Debug)]
pub(super) struct OldMap {
    address: Address,
    server: ServerId,
    table: TableId,
    key: String,
    /// Made while the server was in service.
    caller: Caller,
    asked: JoinSet<bool>,
}

impl OldMap {
    /// Connects to a server that owns `key`, and sees it answer.
    pub(super) async fn connect(
        address: &str,
        server: ServerId,
        (table, key): (TableId, &str),
    ) -> Result<Self, Failure> {
        let address: Address = address.parse().map_err(Failure::new)?;
        let link = open(&address, server).await;
        let caller = link.ok_or_else(|| Failure::new("a server takes no connection"))?;
        let client = Self {
            address,
            server,
            table,
            key: key.to_owned(),
            caller,
            asked: JoinSet::new(),
        };
        for op in [Op::Write, Op::Read] {
            let request = client.request(op);
            if !serves(&client.caller, &request, PATIENCE).await {
                return Err(Failure::new(
                    "a server does not answer for a key of its own",
                ));
            }
        }
        Ok(client)
    }

    /// Sends a read and a write, and does not wait for the answers.
    pub(super) fn ask(&mut self) {
        for op in [Op::Read, Op::Write] {
            let (caller, request) = (self.caller.clone(), self.request(op));
            self.asked
                .spawn(async move { serves(&caller, &request, PATIENCE).await });
        }
    }

    /// The same on a new connection to whoever listens there now.
    pub(super) fn ask_anew(&mut self) {
        let (address, server) = (self.address.clone(), self.server);
        let requests = [Op::Read, Op::Write].map(|op| self.request(op));
        self.asked.spawn(async move {
            let Some(caller) = open(&address, server).await else {
                return false;
            };
            let mut served = false;
            for request in requests {
                served |= serves(&caller, &request, Duration::from_secs(1)).await;
            }
            served
        });
    }

    /// How many of the questions were answered as by an owner, of those that come to an end within
    /// `patience`.
    pub(super) async fn served(&mut self, patience: Duration) -> u64 {
        let mut served = 0;
        let until = tokio::time::Instant::now() + patience;
        while let Ok(Some(ended)) = tokio::time::timeout_at(until, self.asked.join_next()).await {
            served += u64::from(ended.unwrap_or(false));
        }
        served
    }

    fn request(&self, op: Op) -> Vec<u8> {
        let mut request = Vec::new();
        let start = begin_request(&mut request, ClientId(0), RpcId(0));
        let item = Item {
            op,
            id: 1,
            table: self.table,
            rpc: RpcId(0),
            rules: RejectRules::default(),
            key: self.key.as_bytes(),
            value: if op == Op::Write {
                b"by an old map"
            } else {
                b""
            },
        };
        item.write(&mut request);
        set_count(&mut request, start, 1);
        request
    }
}

async fn open(address: &Address, server: ServerId) -> Option<Caller> {
    let identity = Identity::new(None);
    let to = Party::server(server);
    let link = link_to_server(address, &identity, to).await;
    link.ok().map(Caller::new)
}

/// Whether the answer is one that only the key's owner may give.
async fn serves(caller: &Caller, request: &[u8], patience: Duration) -> bool {
    let Ok(answer) = caller.call(Kind::DataRequest, request, patience).await else {
        return false;
    };
    match ResponseItem::read(&mut Reader(&answer)) {
        Ok(Some(item)) => matches!(item.status, Status::Ok | Status::Absent | Status::Rejected),
        _ => false,
    }
}
