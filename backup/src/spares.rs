//! Spare frames: free ones whose memory is there before they are taken, so that opening a replica
//! costs microseconds. Getting 8 MiB from the system costs milliseconds; that is done elsewhere,
//! on a frame lent out for it.

use crate::core::Backup;
use crate::frames::Frames;
use crate::mapped::{MappedStore, Spare};

/// Frames kept prepared. Masters open heads one at a time each, seldom together.
const SPARES: usize = 2;

impl Frames<MappedStore> {
    /// Lends out a free frame to prepare, if more spares are wanted. The last free frame stays.
    fn lend_spare(&mut self) -> Option<Spare> {
        let prepared = |index: &u32| self.store().is_prepared(*index);
        // Frames that are prepared lie on top: they were given back, or freed, last.
        let ready = self.free.iter().rev().take(SPARES).filter(|i| prepared(i));
        if ready.count() == SPARES || self.free.len() < 2 {
            return None;
        }
        let at = self.free.iter().rposition(|index| !prepared(index))?;
        let index = self.free.remove(at);
        self.store_mut().lend(index)
    }

    fn give_back(&mut self, spare: Spare) {
        self.free.push(spare.index);
        self.store_mut().take_back(spare);
    }
}

impl Backup<MappedStore> {
    /// Lends out a free frame to [`Spare::prepare`], if one more spare is wanted.
    pub fn lend_spare(&mut self) -> Option<Spare> {
        self.frames.lend_spare()
    }

    /// Takes back what was lent out; it is the next to be taken.
    pub fn give_back(&mut self, spare: Spare) {
        self.frames.give_back(spare);
    }
}
