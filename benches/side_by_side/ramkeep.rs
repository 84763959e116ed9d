//! Ramkeep's side.
use crate::engine::{Session, Wait};
use crate::process::Cores;
use crate::{Failure, Outcome};
pub(crate) struct Cluster;
impl Cluster {
    pub(crate) fn start(_: Cores, _: usize) -> Outcome<Self> {
        Err(Failure::new("later"))
    }
    pub(crate) fn open(&self, _: Wait) -> Outcome<Session> {
        Err(Failure::new("later"))
    }
    pub(crate) fn pids(&self) -> &[u32] {
        &[]
    }
}
