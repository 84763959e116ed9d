//! Spare frames: free ones whose memory is there before they are taken, so that opening a replica
//! costs microseconds. Getting 8 MiB from the system costs milliseconds; that is done elsewhere,
//! on a frame lent out for it.

use crate::core::Backup;
use crate::frames::Frames;
use crate::mapped::{MappedStore, Spare};

/// Frames kept prepared at any price. Masters open heads one at a time each, seldom together.
pub(crate) const SPARES: usize = 2;
/// One in so many frames is kept prepared as far as the machine has nothing better to do: when a
/// server dies, others replay what it had and copy what it held for them, and the memory for that is
/// best there already.
const STOCK_SHARE: usize = 8;

impl Frames<MappedStore> {
    /// Lends out a free frame to prepare, if there are fewer than `wanted`. The last free frame stays.
    fn lend_spare(&mut self, wanted: usize) -> Option<Spare> {
        let prepared = |index: &u32| self.store().is_prepared(*index);
        // Frames that are prepared lie on top: they were given back, or freed, last.
        let ready = self.free.iter().rev().take(wanted).filter(|i| prepared(i));
        if ready.count() == wanted || self.free.len() < 2 {
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
    /// Lends out a free frame to [`Spare::prepare`], if fewer than `wanted` are prepared.
    pub fn lend_spare(&mut self, wanted: usize) -> Option<Spare> {
        self.frames.lend_spare(wanted)
    }

    /// How many frames are kept prepared when there is time.
    #[must_use]
    pub fn stock(&self) -> usize {
        let frames = self.frames.geometry().frames() as usize;
        (frames / STOCK_SHARE).max(SPARES)
    }

    /// Takes back what was lent out; it is the next to be taken.
    pub fn give_back(&mut self, spare: Spare) {
        self.frames.give_back(spare);
    }
}
