//! A rescue on directories: looked at first, written only when it is confirmed.
//!
//! # Invariants
//! 1. The directories of others are complete before the survivor's own is changed, which is changed last:
//!    a rescue that ends half-way may be begun again, with other new directories.

use std::path::{Path, PathBuf};

use paxos::Record;
use ramkeep_wire::{PeerId, postcards};

use super::files::{self, Files, FilesError};
use super::{ShellError, random, stored};
use crate::journal::Owner;
use crate::rescue::{Place, Rescue, RescueError, rescue};

/// Why a directory is not gone on from.
#[derive(Debug, thiserror::Error)]
pub enum RescueFailure {
    /// A directory can't be used.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// There is nothing to go on from.
    #[error("{directory}: {error}")]
    Rescue {
        /// The survivor's directory.
        directory: PathBuf,
        /// Why.
        error: RescueError,
    },
    /// A directory that is to be made has something.
    #[error("{0} is not empty: name a directory that is not there yet")]
    NotEmpty(PathBuf),
    /// The system refuses.
    #[error(transparent)]
    Shell(#[from] ShellError),
}

/// A coordinator that the new group gets beside the survivor.
#[derive(Clone, Debug)]
pub struct NewMember {
    /// Its number.
    pub peer: PeerId,
    /// Where it will be.
    pub address: String,
    /// The directory that is made for it; it may be moved to its machine before it is started.
    pub directory: PathBuf,
}

/// A rescue that is thought through and not carried out. Holds the survivor's directory.
#[derive(Debug)]
pub struct Prepared {
    /// What it comes to.
    pub rescue: Rescue,
    /// The survivor.
    pub survivor: PeerId,
    files: Files,
    others: Vec<(Owner, PathBuf)>,
}

/// Looks at a survivor's directory, which nobody else has open.
///
/// # Errors
/// When it is not one, or those to be made are there already.
pub fn prepare(
    directory: &Path,
    address: Option<String>,
    others: &[NewMember],
) -> Result<Prepared, RescueFailure> {
    let failed = |error| RescueFailure::Rescue {
        directory: directory.to_owned(),
        error,
    };
    let owner = files::owner(directory)?.ok_or(failed(RescueError::Nothing))?;
    let (files, recovered) = Files::open(directory, owner.peer, owner.incarnation)?;
    let stored = stored(&recovered).map_err(|error| failed(error.into()))?;
    let place = |owner, address| Place { owner, address };
    // Where it was, unless it is said where it will be.
    let survivor = place(owner, address.unwrap_or_default());
    let mut places = vec![survivor];
    let mut directories = Vec::new();
    for other in others {
        if !files::is_blank(&other.directory)? {
            return Err(RescueFailure::NotEmpty(other.directory.clone()));
        }
        let incarnation = random().map_err(ShellError::from)?;
        let owner = Owner {
            peer: other.peer,
            incarnation,
        };
        places.push(place(owner, other.address.clone()));
        directories.push((owner, other.directory.clone()));
    }
    let mut rescued = rescue(&places, stored).map_err(failed)?;
    let me = paxos::PeerId(owner.peer.0);
    let was = rescued.was.member(me).map(|member| member.address.clone());
    for member in &mut rescued.snapshot.group.members {
        if member.id == me && member.address.is_empty() {
            member.address = was.clone().unwrap_or_default();
        }
    }
    Ok(Prepared {
        rescue: rescued,
        survivor: owner.peer,
        files,
        others: directories,
    })
}

impl Prepared {
    /// Writes the directories: from then on the new group is the cluster's.
    ///
    /// # Errors
    /// When one can't be written. The survivor's is as it was then, unless it is the one.
    pub fn carry_out(mut self) -> Result<(), FilesError> {
        let snapshot = postcards::encode(&self.rescue.snapshot);
        let records = self.rescue.records.iter();
        let records = records.map(|record: &Record| postcards::encode(&[record].as_slice()));
        let records: Vec<Vec<u8>> = records.collect();
        for (owner, directory) in &self.others {
            let (mut files, _) = Files::open(directory, owner.peer, owner.incarnation)?;
            files.snapshot(&snapshot, &records)?;
        }
        self.files.snapshot(&snapshot, &records)
    }
}
