//! The workloads: what share of operations is what, on which keys.

use std::str::FromStr;

use super::keys::{Distribution, Random};

/// What one operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Action {
    /// Read a key.
    Read,
    /// Write a key that exists.
    Update,
    /// Write a new key.
    Insert,
    /// A page of objects from a key's place on.
    Scan,
    /// Read a key, then write it.
    ReadModifyWrite,
}

impl Action {
    /// Under which name its latency is reported.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Update | Self::Insert => "write",
            Self::Scan => "scan",
            Self::ReadModifyWrite => "read_modify_write",
        }
    }
}

/// A named mix of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Workload {
    /// Its name on the command line.
    pub(super) name: &'static str,
    pub(super) distribution: Distribution,
    /// Per cent of each.
    shares: [(Action, u8); 2],
}

const fn mix(
    name: &'static str,
    distribution: Distribution,
    first: (Action, u8),
    second: (Action, u8),
) -> Workload {
    Workload {
        name,
        distribution,
        shares: [first, second],
    }
}

const WORKLOADS: [Workload; 9] = {
    use Action::{Insert, Read, ReadModifyWrite, Scan, Update};
    use Distribution::{Latest, Uniform, Zipfian};
    [
        mix("a", Zipfian, (Read, 50), (Update, 50)),
        mix("b", Zipfian, (Read, 95), (Update, 5)),
        mix("c", Zipfian, (Read, 100), (Update, 0)),
        mix("d", Latest, (Read, 95), (Insert, 5)),
        mix("e", Zipfian, (Scan, 95), (Insert, 5)),
        mix("f", Zipfian, (Read, 50), (ReadModifyWrite, 50)),
        mix("read", Uniform, (Read, 100), (Update, 0)),
        mix("write", Uniform, (Read, 0), (Update, 100)),
        mix("mixed", Uniform, (Read, 50), (Update, 50)),
    ]
};

impl Workload {
    /// The next operation's kind.
    pub(super) fn next(&self, random: &mut Random) -> Action {
        let [(first, share), (second, _)] = self.shares;
        if random.below(100) < u64::from(share) {
            first
        } else {
            second
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        WORKLOADS
            .into_iter()
            .find(|workload| workload.name == text)
            .ok_or_else(|| "workloads are a, b, c, d, e, f, read, write and mixed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_and_are_kept() {
        for workload in WORKLOADS {
            assert_eq!(
                workload.shares.iter().map(|(_, share)| share).sum::<u8>(),
                100
            );
        }
        let workload: Workload = "b".parse().expect("a workload of that name");
        let mut random = Random::new(3);
        let reads = (0..10_000)
            .filter(|_| workload.next(&mut random) == Action::Read)
            .count();
        assert!((9_300..9_700).contains(&reads));
        assert!("g".parse::<Workload>().is_err());
    }
}
