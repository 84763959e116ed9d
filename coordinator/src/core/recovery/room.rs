//! What living servers have room for: memory of masters, and frames on enough backups; and what the cluster
//! lacks, or would lack should a server die.

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{BackupStats, MasterStats, Shortage, ShortageKind};

use super::View;

/// Room that is not known counts as this much.
const PLENTY: u64 = 1 << 40;

/// So many segments can have `copies` copies each, on as many backups, with these frames free.
fn placeable(free: &[u64], copies: u64) -> u64 {
    let fit = |segments: u64| {
        let taken: u64 = free.iter().map(|free| *free.min(&segments)).sum();
        taken >= segments * copies
    };
    let (mut fits, mut over) = (0, free.iter().sum::<u64>() + 1);
    while over - fits > 1 {
        let middle = fits + (over - fits) / 2;
        if fit(middle) {
            fits = middle;
        } else {
            over = middle;
        }
    }
    fits
}

impl View<'_> {
    /// What a master has room for, as it reported last.
    pub(super) fn room(&self, server: ServerId) -> Option<u64> {
        Some(self.master_stats(server)?.room)
    }

    fn master_stats(&self, server: ServerId) -> Option<MasterStats> {
        self.watches.get(&server)?.heartbeat.as_ref()?.master
    }

    fn backup_stats(&self, server: ServerId) -> Option<BackupStats> {
        self.watches.get(&server)?.heartbeat.as_ref()?.backup
    }

    /// Frames that are free on each living backup but these.
    fn free_frames_but(&self, except: &[ServerId]) -> Vec<u64> {
        let others = self
            .backups
            .keys()
            .filter(|server| !except.contains(server));
        let free = |stats: BackupStats| u64::from(stats.frames.saturating_sub(stats.used));
        others
            .map(|server| self.backup_stats(*server).map_or(PLENTY, free))
            .collect()
    }

    /// Frames that are free, as far as is known.
    pub(super) fn free_frames(&self) -> u64 {
        self.free_frames_but(&[]).iter().sum()
    }

    /// Bytes of a segment, and copies of each.
    fn shape(&self) -> (u64, u64) {
        let settings = self.state.constants().map(|constants| &constants.settings);
        settings.map_or((1, 0), |settings| {
            (
                u64::from(settings.segment_size).max(1),
                u64::from(settings.replicas),
            )
        })
    }

    /// Frames that copies of so many bytes take, replayed by so many masters.
    pub(super) fn frames_for(&self, bytes: u64, masters: usize) -> u64 {
        let (segment, copies) = self.shape();
        (bytes.div_ceil(segment) + masters as u64) * copies
    }

    /// Bytes of its log that a master can have copied by the other backups.
    pub(super) fn placeable_bytes(&self, master: ServerId) -> u64 {
        let (segment, copies) = self.shape();
        match copies {
            0 => u64::MAX,
            copies => placeable(&self.free_frames_but(&[master]), copies).saturating_mul(segment),
        }
    }

    /// What keeps a master's own log from going on, if that is backups.
    pub(super) fn lacks_backups(&self, by: ServerId) -> Option<Shortage> {
        let (_, copies) = self.shape();
        let others = self.free_frames_but(&[by]);
        let with_frames = others.iter().filter(|free| **free > 0).count() as u64;
        let there = others.len() as u64;
        let (kind, text) = if there < copies {
            let text = format!(
                "{by:?} needs {copies} other servers with backups for its log, and there are {there}: \
                 start {} more",
                copies - there
            );
            (ShortageKind::Backups, text)
        } else if with_frames < copies {
            let text = format!(
                "{by:?} needs free frames on {copies} other servers, and {with_frames} have some: \
                 start another server, or one again with more frames"
            );
            (ShortageKind::Frames, text)
        } else {
            return None;
        };
        Some(Shortage {
            kind,
            server: by,
            is_now: true,
            text,
        })
    }

    /// What masters lack now; and what would be lacking should the one with most data die.
    pub(super) fn shortages(&self) -> Vec<Shortage> {
        if self.shape().1 == 0 {
            return Vec::new();
        }
        let servers = self.state.servers().iter();
        let living = servers.filter(|(_, one)| one.roles.master && !one.is_crashed());
        let masters: Vec<ServerId> = living.map(|(id, _)| id).collect();
        let mut all: Vec<_> = masters
            .iter()
            .filter_map(|by| self.lacks_backups(*by))
            .collect();
        let largest = masters
            .iter()
            .filter_map(|id| Some((*id, self.master_stats(*id)?)))
            .max_by_key(|(id, stats)| (stats.takes(), *id));
        if let Some((master, stats)) = largest {
            all.extend(self.should_it_die(master, stats, &masters));
        }
        all
    }

    fn should_it_die(
        &self,
        master: ServerId,
        stats: MasterStats,
        masters: &[ServerId],
    ) -> Vec<Shortage> {
        let (segment, copies) = self.shape();
        let heirs = || masters.iter().filter(|heir| **heir != master);
        let mut all = Vec::new();
        let mut lack = |kind, text| {
            all.push(Shortage {
                kind,
                server: master,
                is_now: false,
                text,
            });
        };
        let room: u64 = heirs().map(|heir| self.room(*heir).unwrap_or(PLENTY)).sum();
        let takes = stats.takes() + stats.takes() / 16;
        if takes > room {
            lack(
                ShortageKind::Memory,
                format!(
                    "should {master:?} die, its data takes {takes} bytes of memory, and the others have \
                     room for {room}: start another server, or remove objects"
                ),
            );
        }
        let others = |heir: &ServerId| self.free_frames_but(&[master, *heir]);
        let most = heirs()
            .map(|heir| others(heir).len() as u64)
            .max()
            .unwrap_or(0);
        if most < copies {
            lack(
                ShortageKind::Backups,
                format!(
                    "should {master:?} die, who replays its data needs {copies} other servers with \
                     backups, and {most} are left: start {} more",
                    copies - most
                ),
            );
        }
        let free = self.free_frames_but(&[master]);
        let segments = stats.live.div_ceil(segment) + 1;
        let lost = self
            .backup_stats(master)
            .map_or(0, |stats| u64::from(stats.used));
        let needed = segments * copies + lost;
        if most >= copies
            && (placeable(&free, copies) < segments || free.iter().sum::<u64>() < needed)
        {
            lack(
                ShortageKind::Frames,
                format!(
                    "should {master:?} die, {needed} frames are needed for what it holds, and free are \
                     {free:?}: start another server, or one again with more frames"
                ),
            );
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_counts_only_where_there_are_others_for_the_other_copies() {
        assert_eq!(placeable(&[7, 0, 24], 2), 7);
        assert_eq!(placeable(&[24, 0, 0], 2), 0);
        assert_eq!(placeable(&[5, 5, 5], 2), 7);
        assert_eq!(placeable(&[5, 5, 5], 3), 5);
        assert_eq!(placeable(&[], 1), 0);
        assert_eq!(placeable(&[PLENTY, 3], 1), PLENTY + 3);
        // By counting all ways for small ones.
        for free in (0..5_u64).flat_map(|a| (0..5).map(move |b| [a, b, 3])) {
            for copies in 1..4 {
                let found = placeable(&free, copies);
                assert_eq!(found, place_greedily(free, copies), "{free:?} {copies}");
            }
        }
    }

    /// Each segment to those that have most.
    fn place_greedily(mut free: [u64; 3], copies: u64) -> u64 {
        for placed in 0.. {
            free.sort_unstable_by(|a, b| b.cmp(a));
            if free[copies as usize - 1] == 0 {
                return placed;
            }
            free[..copies as usize]
                .iter_mut()
                .for_each(|free| *free -= 1);
        }
        unreachable!()
    }
}
