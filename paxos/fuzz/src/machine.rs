//! The state machine on top: registers that count their writes, and who has written what.
//!
//! # Invariants
//! 1. The state is a function of the entries applied.
//! 2. A client has one command under way: of its effects each must be the next.

use bytes::Bytes;
use paxos::sessions::{Admission, Sessions};
use paxos::{Entry, Snapshot};
use serde::{Deserialize, Serialize};

/// Registers.
pub(crate) const KEYS: usize = 3;

/// One attempt of a client to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) client: u32,
    pub(crate) key: u32,
    pub(crate) sequence: u64,
    /// Which attempt: no two proposals share one.
    pub(crate) attempt: u64,
}

impl Command {
    pub(crate) fn encode(&self, padding: usize) -> Bytes {
        let mut bytes = Vec::with_capacity(24 + padding);
        bytes.extend_from_slice(&self.client.to_le_bytes());
        bytes.extend_from_slice(&self.key.to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.attempt.to_le_bytes());
        bytes.resize(24 + padding, 0);
        bytes.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        Some(Self {
            client: u32_at(0)?,
            key: u32_at(4)?,
            sequence: u64_at(8)?,
            attempt: u64_at(16)?,
        })
    }
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It ran, now or before, and this was its number among the writes of its register.
    Version(u64),
    /// Its client has the result.
    Stale,
    /// It ran although it, or a later one, had run: what a check looks for.
    Again,
}

/// The replicated state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// The last slot applied.
    pub(crate) slot: u64,
    /// Of all entries applied, in order.
    pub(crate) history: u64,
    pub(crate) versions: [u64; KEYS],
    /// By client: the last sequence that took effect.
    pub(crate) last: Vec<u64>,
    sessions: Sessions<u32, u64>,
}

impl Machine {
    /// Applies a slot; what became of each of its commands.
    pub(crate) fn apply(
        &mut self,
        slot: u64,
        entry: &Entry,
        digest: u64,
    ) -> Vec<(Command, Outcome)> {
        self.slot = slot;
        self.history = mix(self.history, digest);
        let Entry::Commands(commands) = entry else {
            return Vec::new();
        };
        let commands = commands.iter().filter_map(|bytes| Command::decode(bytes));
        commands
            .map(|command| (command, self.run(command)))
            .collect()
    }

    fn run(&mut self, command: Command) -> Outcome {
        let Command {
            client, sequence, ..
        } = command;
        match self.sessions.admit(client, sequence, sequence) {
            Admission::Replay(version) => return Outcome::Version(version),
            Admission::Stale | Admission::Full => return Outcome::Stale,
            Admission::Run => {}
        }
        let at = client as usize;
        if self.last.len() <= at {
            self.last.resize(at + 1, 0);
        }
        if sequence != self.last[at] + 1 {
            return Outcome::Again;
        }
        self.last[at] = sequence;
        let version = &mut self.versions[command.key as usize % KEYS];
        *version += 1;
        let version = *version;
        self.sessions.finish(&client, sequence, version);
        Outcome::Version(version)
    }

    pub(crate) fn save(&self, padding: usize) -> Bytes {
        let mut bytes = postcard::to_stdvec(self).unwrap_or_default();
        bytes.resize(bytes.len() + padding, 0);
        bytes.into()
    }

    pub(crate) fn load(snapshot: &Snapshot) -> Option<Self> {
        let (machine, _) = postcard::take_from_bytes(&snapshot.state).ok()?;
        Some(machine)
    }
}

pub(crate) fn mix(state: u64, value: u64) -> u64 {
    let mut z = (state.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z ^= z >> 32;
    z.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Of an entry's contents.
pub(crate) fn digest(entry: &Entry) -> u64 {
    let fold = |seed: u64, bytes: &[u8]| {
        bytes
            .chunks(8)
            .fold(mix(seed, bytes.len() as u64), |seed, chunk| {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                mix(seed, u64::from_le_bytes(word))
            })
    };
    match entry {
        Entry::Noop => 1,
        // Behind its first 24 bytes a command has padding.
        Entry::Commands(commands) => commands.iter().fold(2, |seed, command| {
            fold(seed, &command[..command.len().min(24)])
        }),
        Entry::Reconfigure(group) => {
            let seed = mix(3, u64::from(group.generation));
            group.members.iter().fold(seed, |seed, member| {
                fold(mix(seed, u64::from(member.id.0)), &member.incarnation.0)
            })
        }
    }
}
