//! Trying the addresses of a party in turn, and what it proves when it answers at none.

use ramkeep_wire::Party;
use ramkeep_wire::hello::Refusal;

use super::words::WireEnd;
use crate::hello::HelloError;

/// What came of one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// No process listens there, as the system says.
    NobodyListens(String),
    /// One side refused the other.
    Refused(Refusal),
    /// Something else.
    Failed(String),
}

impl From<&HelloError> for Attempt {
    fn from(error: &HelloError) -> Self {
        match error.refusal() {
            Some(refusal) => Self::Refused(refusal.clone()),
            None => Self::Failed(error.to_string()),
        }
    }
}

/// The addresses of a party, the last first: sockets of this machine come last in a list and are the
/// quicker ones.
#[derive(Clone, Debug)]
pub struct Reach {
    to: Party,
    left: Vec<String>,
    /// Each address so far has proved that the party is not there.
    nobody: bool,
    end: WireEnd,
}

impl Reach {
    /// Nothing was tried yet.
    #[must_use]
    pub fn new(addresses: Vec<String>, to: Party) -> Self {
        Self {
            to,
            nobody: !addresses.is_empty(),
            left: addresses,
            end: WireEnd::Unclear("it has no address".to_owned()),
        }
    }

    /// Where to try next; an error: it is at none of them.
    ///
    /// # Errors
    /// With what all attempts together prove.
    pub fn next_address(&mut self) -> Result<String, WireEnd> {
        self.left.pop().ok_or_else(|| {
            // Whoever is there was looked for: what was met says more.
            if self.nobody && self.to != Party::NONE {
                WireEnd::Nobody
            } else {
                self.end.clone()
            }
        })
    }

    /// Takes in what came of the address that was tried last.
    pub fn failed(&mut self, attempt: Attempt) {
        self.nobody &= self.proves_absence(&attempt);
        self.end = match attempt {
            Attempt::Refused(refusal) => WireEnd::Refused(refusal),
            Attempt::NobodyListens(why) | Attempt::Failed(why) => WireEnd::Unclear(why),
        };
    }

    fn proves_absence(&self, attempt: &Attempt) -> bool {
        match attempt {
            Attempt::NobodyListens(_) => true,
            // Another has its address now. One without an id may be about to learn it.
            Attempt::Refused(Refusal::Party(other)) => {
                *other != Party::NONE && *other != self.to && self.to != Party::NONE
            }
            Attempt::Refused(_) | Attempt::Failed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use ramkeep_wire::ServerId;

    use super::*;

    fn reach(attempts: &[Attempt]) -> WireEnd {
        let to = Party::server(ServerId(7));
        let addresses = (0..attempts.len()).map(|at| at.to_string()).collect();
        let mut reach = Reach::new(addresses, to);
        for (count, attempt) in attempts.iter().enumerate() {
            let address = reach.next_address().unwrap();
            assert_eq!(address, (attempts.len() - 1 - count).to_string());
            reach.failed(attempt.clone());
        }
        reach.next_address().unwrap_err()
    }

    fn nobody() -> Attempt {
        Attempt::NobodyListens("connection refused".to_owned())
    }

    fn party(id: u64) -> Attempt {
        Attempt::Refused(Refusal::Party(Party::server(ServerId(id))))
    }

    #[test]
    fn absence_is_proved_only_if_every_address_proves_it() {
        assert_eq!(reach(&[nobody(), party(8)]), WireEnd::Nobody);
        let failed = Attempt::Failed("slow".to_owned());
        assert!(matches!(reach(&[nobody(), failed]), WireEnd::Unclear(_)));
        let nameless = Attempt::Refused(Refusal::Party(Party::NONE));
        assert!(matches!(reach(&[nameless]), WireEnd::Refused(_)));
        assert!(matches!(reach(&[party(7)]), WireEnd::Refused(_)));
        assert!(matches!(reach(&[]), WireEnd::Unclear(_)));
    }
}
