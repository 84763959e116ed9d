//! The systems side by side: how each is started, and how a connection to it is opened.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use crate::echo::{Echo, Sizes};
use crate::engine::{Session, Wait};
use crate::memcache::Memcache;
use crate::process::{Child, Cores, connect, eventually, find, free_port, loopback};
use crate::ramkeep::Cluster;
use crate::resp::Resp;
use crate::{Failure, Outcome};

/// A system in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum System {
    /// The bare echo, both sides spinning.
    Echo,
    /// The bare echo, both sides giving the core away between polls.
    #[value(skip)]
    EchoYield,
    /// Ramkeep.
    Ramkeep,
    /// Redis, without persistence.
    Redis,
    /// Memcached, one worker thread.
    Memcached,
}

impl System {
    /// The name in tables and in JSON.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::EchoYield => "echo, yielding",
            Self::Ramkeep => "ramkeep",
            Self::Redis => "redis",
            Self::Memcached => "memcached",
        }
    }
}

/// A system that is up, and what it runs as.
pub(crate) struct Running {
    /// Which it is.
    pub(crate) system: System,
    kind: Kind,
}

enum Kind {
    Echo {
        child: Child,
        address: SocketAddr,
        sizes: Sizes,
    },
    Redis {
        primary: Redis,
        replicas: Vec<Redis>,
    },
    Memcached {
        child: Child,
        address: SocketAddr,
    },
    Ramkeep(Cluster),
}

/// What every start needs to know.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    /// Where processes run.
    pub(crate) cores: Cores,
    /// The echo's sizes.
    pub(crate) sizes: Sizes,
    /// Copies beside the server's own.
    pub(crate) replicas: usize,
}

impl Running {
    /// Starts a system and waits until it answers.
    pub(crate) fn start(system: System, setting: Setting) -> Outcome<Self> {
        let kind = match system {
            System::Echo => start_echo(setting, Wait::Spin)?,
            System::EchoYield => start_echo(setting, Wait::Yield)?,
            System::Redis => start_redis(setting)?,
            System::Memcached => start_memcached(setting.cores)?,
            System::Ramkeep => Kind::Ramkeep(Cluster::start(setting.cores, setting.replicas)?),
        };
        Ok(Self { system, kind })
    }

    /// Opens a connection that is ready for requests.
    pub(crate) fn open(&self, wait: Wait) -> Outcome<Session> {
        match &self.kind {
            Kind::Echo { address, sizes, .. } => {
                let wait = if self.system == System::Echo {
                    Wait::Spin
                } else {
                    Wait::Yield
                };
                Session::new(connect(*address)?, Box::new(Echo(*sizes)), wait)
            }
            Kind::Redis { primary, .. } => {
                Session::new(connect(primary.address)?, Box::new(Resp::default()), wait)
            }
            Kind::Memcached { address, .. } => {
                Session::new(connect(*address)?, Box::new(Memcache::default()), wait)
            }
            Kind::Ramkeep(cluster) => cluster.open(wait),
        }
    }

    /// The processes whose processor time counts as the servers'.
    pub(crate) fn pids(&self) -> Vec<u32> {
        match &self.kind {
            Kind::Echo { child, .. } | Kind::Memcached { child, .. } => vec![child.pid()],
            Kind::Redis { primary, replicas } => std::iter::once(primary)
                .chain(replicas)
                .map(|redis| redis.child.pid())
                .collect(),
            Kind::Ramkeep(cluster) => cluster.pids().to_vec(),
        }
    }
}

fn start_echo(setting: Setting, wait: Wait) -> Outcome<Kind> {
    let Sizes { request, response } = setting.sizes;
    let wait = if wait == Wait::Spin { "spin" } else { "yield" };
    let args = format!("echo-server {wait} --echo-request {request} --echo-response {response}");
    let mut child = Child::start(setting.cores, &std::env::current_exe()?, &words(&args))?;
    let port = child.line()?.trim().parse()?;
    Ok(Kind::Echo {
        child,
        address: loopback(port),
        sizes: setting.sizes,
    })
}

/// One redis process.
struct Redis {
    child: Child,
    address: SocketAddr,
}

impl Redis {
    fn start(cores: Cores, primary: Option<SocketAddr>) -> Outcome<Self> {
        let program = installed("redis-server")?;
        let port = free_port()?;
        // Diskless both ways, so that redis never has a file to leave behind.
        let mut args = words(&format!(
            "--port {port} --bind 127.0.0.1 --appendonly no --dir / --loglevel warning \
             --repl-diskless-sync yes --repl-diskless-sync-delay 0 \
             --repl-diskless-load on-empty-db"
        ));
        args.extend(["--save".into(), OsString::new()]);
        if let Some(primary) = primary {
            args.extend(words(&format!("--replicaof 127.0.0.1 {}", primary.port())));
        }
        let child = Child::start(cores, &program, &args)?;
        let redis = Self {
            child,
            address: loopback(port),
        };
        eventually("redis to answer", || {
            redis.ask("PING\r\n").filter(|a| a == "+PONG\r\n")
        })?;
        Ok(redis)
    }

    /// What redis says to a short command.
    fn ask(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.write_all(command.as_bytes()).ok()?;
        let mut answer = vec![0; 4096];
        let n = stream.read(&mut answer).ok()?;
        answer.truncate(n);
        String::from_utf8(answer).ok()
    }
}

fn start_redis(setting: Setting) -> Outcome<Kind> {
    let primary = Redis::start(setting.cores, None)?;
    let mut replicas = Vec::new();
    for _ in 0..setting.replicas {
        replicas.push(Redis::start(setting.cores, Some(primary.address))?);
    }
    for replica in &replicas {
        eventually("a redis replica to be in step", || {
            replica
                .ask("INFO replication\r\n")
                .filter(|a| a.contains("master_link_status:up"))
        })?;
    }
    let online = |answer: &String| answer.matches("state=online").count() == replicas.len();
    eventually("redis to have its replicas", || {
        primary.ask("INFO replication\r\n").filter(online)
    })?;
    Ok(Kind::Redis { primary, replicas })
}

fn start_memcached(cores: Cores) -> Outcome<Kind> {
    let program = installed("memcached")?;
    let port = free_port()?;
    // -R: a worker may answer a whole batch before it looks at other connections; the default of
    // 20 would only cost it here. -u: memcached refuses root unless told so, and a change of user
    // would undo that it ends with this process; others than root may not change anyway.
    let args = format!("-l 127.0.0.1 -p {port} -U 0 -t 1 -m 256 -R 1000 -u root");
    let child = Child::start(cores, &program, &words(&args))?;
    drop(connect(loopback(port))?);
    Ok(Kind::Memcached {
        child,
        address: loopback(port),
    })
}

fn installed(program: &str) -> Outcome<PathBuf> {
    find(program).ok_or_else(|| {
        Failure::new(format!(
            "{program} is not on PATH: install it (`apt-get install redis-server memcached`), \
             or name the systems to run with --only"
        ))
    })
}

fn words(line: &str) -> Vec<OsString> {
    line.split_whitespace().map(OsString::from).collect()
}
