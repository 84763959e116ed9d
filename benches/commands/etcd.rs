//! etcd: three members on loopback, as the distribution's package has it, and a `Put` to the leader.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::engine::Worker;
use crate::grpc::{Channel, Value, append_bytes, fields};
use crate::nonce::Nonces;
use crate::process::{Child, Cores, find, free_port, loopback};
use crate::systems::Syncs;
use crate::{Failure, Outcome};

const PUT: &str = "/etcdserverpb.KV/Put";
const STATUS: &str = "/etcdserverpb.Maintenance/Status";
/// How long a group may take to elect its first leader.
const ELECTION: Duration = Duration::from_secs(20);
/// Between two questions for the leader.
const ASK_AGAIN: Duration = Duration::from_millis(50);
/// How long the metrics page may take.
const METRICS_WITHIN: Duration = Duration::from_secs(5);

/// A running group.
pub(crate) struct Etcd {
    members: Vec<Child>,
    leader: SocketAddr,
}

struct Place {
    name: String,
    clients: u16,
    peers: u16,
}

impl Etcd {
    /// Starts the members with their data in `data`, and waits until one leads.
    pub(crate) async fn start(members: usize, data: &Path) -> Outcome<Self> {
        let program = find("etcd").ok_or_else(|| {
            Failure::new(
                "etcd is not on PATH: install it (`apt-get update && apt-get install etcd-server`), \
                 or measure Ramkeep alone with --only ramkeep",
            )
        })?;
        let mut places = Vec::new();
        for number in 1..=members {
            places.push(Place {
                name: format!("m{number}"),
                clients: free_port()?,
                peers: free_port()?,
            });
        }
        let cluster: Vec<String> = (places.iter())
            .map(|place| format!("{}=http://127.0.0.1:{}", place.name, place.peers))
            .collect();
        let mut children = Vec::new();
        for place in &places {
            let args = args(place, &cluster.join(","), data);
            children.push(Child::start(Cores::choose(false)?, &program, &args)?);
        }
        let addresses: Vec<_> = places.iter().map(|p| loopback(p.clients)).collect();
        let leader = tokio::time::timeout(ELECTION, find_leader(&addresses))
            .await
            .map_err(|_| Failure::new(format!("no member leads after {ELECTION:?}")))?;
        Ok(Self {
            members: children,
            leader,
        })
    }

    /// The members' process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.members.iter().map(Child::pid).collect()
    }

    /// As many workers, over so many connections to the leader.
    pub(crate) async fn workers(&self, count: usize, connections: usize) -> Outcome<Vec<Putter>> {
        let mut channels = Vec::new();
        for _ in 0..connections.min(count) {
            channels.push(Channel::connect(self.leader).await?);
        }
        let shared = channels.iter().cycle().take(count).cloned();
        Ok(shared.map(Putter::new).collect())
    }

    /// What the leader's write-ahead log has cost so far.
    pub(crate) fn syncs(&self) -> Outcome<Syncs> {
        let page = metrics(self.leader)?;
        let number = |name: &str| {
            let line = (page.lines()).find_map(|line| line.strip_prefix(name));
            line.and_then(|text| text.trim().parse::<f64>().ok())
                .ok_or_else(|| Failure::new(format!("etcd's metrics lack {name}")))
        };
        Ok(Syncs {
            count: number("etcd_disk_wal_fsync_duration_seconds_count")? as u64,
            seconds: number("etcd_disk_wal_fsync_duration_seconds_sum")?,
        })
    }
}

/// Flags of one member: addresses and names, everything else as the defaults are.
fn args(place: &Place, cluster: &str, data: &Path) -> Vec<OsString> {
    let clients = format!("http://127.0.0.1:{}", place.clients);
    let peers = format!("http://127.0.0.1:{}", place.peers);
    let log = data.join(format!("{}.log", place.name));
    let mut args: Vec<OsString> = [
        ("--name", place.name.as_str()),
        ("--listen-client-urls", &clients),
        ("--advertise-client-urls", &clients),
        ("--listen-peer-urls", &peers),
        ("--initial-advertise-peer-urls", &peers),
        ("--initial-cluster", cluster),
        ("--initial-cluster-state", "new"),
        ("--logger", "zap"),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.into(), value.into()])
    .collect();
    args.extend(["--log-outputs".into(), log.into()]);
    args.extend(["--data-dir".into(), data.join(&place.name).into()]);
    args
}

/// Asks the members until one of them says that it leads.
async fn find_leader(addresses: &[SocketAddr]) -> SocketAddr {
    loop {
        for &address in addresses {
            let Ok(mut channel) = Channel::connect(address).await else {
                continue;
            };
            if let Ok(status) = channel.call(STATUS, &[]).await
                && leads(&status)
            {
                return address;
            }
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Whether a `StatusResponse` comes from the leader: its header's member is the leader.
fn leads(status: &[u8]) -> bool {
    let number = |message, wanted| {
        fields(message).find_map(|(field, value)| match value {
            Value::Number(number) if field == wanted => Some(number),
            _ => None,
        })
    };
    let member = header(status).and_then(|header| number(header, 2));
    member.is_some() && member == number(status, 4)
}

/// The header that begins every answer.
fn header(message: &[u8]) -> Option<&[u8]> {
    fields(message).find_map(|(field, value)| match value {
        Value::Bytes(header) if field == 1 => Some(header),
        _ => None,
    })
}

/// The revision in the header of a `PutResponse`.
fn revision(put: &[u8]) -> Option<u64> {
    fields(header(put)?).find_map(|(field, value)| match value {
        Value::Number(revision) if field == 3 => Some(revision),
        _ => None,
    })
}

fn metrics(address: SocketAddr) -> Outcome<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(METRICS_WITHIN))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// Puts one value after the other under a key of its own.
pub(crate) struct Putter {
    channel: Channel,
    nonces: Nonces,
    key: [u8; 16],
    message: Vec<u8>,
    revision: u64,
}

impl Putter {
    fn new(channel: Channel) -> Self {
        let mut nonces = Nonces::new();
        Self {
            channel,
            key: nonces.draw(),
            nonces,
            message: Vec::new(),
            revision: 0,
        }
    }
}

impl Worker for Putter {
    async fn command(&mut self) -> Outcome<()> {
        self.message.clear();
        append_bytes(&mut self.message, 1, &self.key);
        append_bytes(&mut self.message, 2, &self.nonces.draw());
        let answer = self.channel.call(PUT, &self.message).await?;
        let revision = revision(&answer)
            .ok_or_else(|| Failure::new("etcd: an answer to a put without a revision"))?;
        if revision <= self.revision {
            return Err(Failure::new("etcd: a put whose revision is not new"));
        }
        self.revision = revision;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// cluster 1, member 2, revision 300, term 4.
    const HEADER: [u8; 9] = [0x08, 1, 0x10, 2, 0x18, 0xac, 0x02, 0x20, 4];

    #[test]
    fn the_leader_is_the_member_that_names_itself() {
        let status = |leader| {
            let mut message = vec![0x0a, HEADER.len() as u8];
            message.extend_from_slice(&HEADER);
            message.extend_from_slice(&[0x12, 1, b'3', 0x20, leader]);
            message
        };
        assert!(leads(&status(2)));
        assert!(!leads(&status(3)));
        assert!(!leads(&[]));
    }

    #[test]
    fn a_put_is_answered_with_its_revision() {
        let mut message = vec![0x0a, HEADER.len() as u8];
        message.extend_from_slice(&HEADER);
        assert_eq!(revision(&message), Some(300));
        assert_eq!(revision(&[]), None);
    }
}
