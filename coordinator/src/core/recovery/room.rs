//! What living servers have room for: memory of masters, and frames on enough backups; and what the cluster
//! lacks, or would lack should a server die.

use std::cmp::Reverse;

use ramkeep_wire::ServerId;
use ramkeep_wire::coordinator::{BackupStats, MasterStats, Shortage, ShortageKind};

use super::View;
use super::report::size;

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

/// How bad it would be should this master of these die, and what would be lacking.
type Death<'v> = fn(&View<'v>, ServerId, MasterStats, &[ServerId]) -> Option<(u64, String)>;

impl<'v> View<'v> {
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
        self.frames_but(except, |stats| stats.frames.saturating_sub(stats.used))
    }

    /// How many frames each living backup but these has, if it told.
    fn frames_but(&self, except: &[ServerId], of: impl Fn(BackupStats) -> u32) -> Vec<u64> {
        let others = self
            .backups
            .keys()
            .filter(|server| !except.contains(server));
        let frames = |server| self.backup_stats(server).map(|stats| u64::from(of(stats)));
        others
            .map(|server| frames(*server).unwrap_or(PLENTY))
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
        // Those that are kept for recoveries are free for replays only.
        let others = self.frames_but(&[by], |stats| {
            stats.frames.saturating_sub(stats.used + stats.kept)
        });
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
                "{by:?} needs free frames on {copies} other servers, and {with_frames} have some \
                 beside those that are kept for recoveries: start another server, or one again with more --frames"
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

    /// What masters lack now; and what would be lacking should one die: of each kind the worst.
    pub(super) fn shortages(&self) -> Vec<Shortage> {
        if self.shape().1 == 0 {
            return Vec::new();
        }
        let servers = self.state.servers().iter();
        let living = servers.filter(|(_, one)| one.roles.master && !one.is_crashed());
        let masters: Vec<ServerId> = living.map(|(id, _)| id).collect();
        let mut all: Vec<_> = (masters.iter())
            .filter_map(|by| self.lacks_backups(*by))
            .collect();
        let known = |id: &ServerId| Some((*id, self.master_stats(*id)?));
        let deaths: Vec<_> = masters.iter().filter_map(known).collect();
        let kinds: [(ShortageKind, Death<'v>); 3] = [
            (ShortageKind::Memory, Self::memory_should_it_die),
            (ShortageKind::Backups, Self::backups_should_it_die),
            (ShortageKind::Frames, Self::frames_should_it_die),
        ];
        for (kind, lacks) in kinds {
            let lacking = deaths.iter().filter_map(|(id, stats)| {
                let (how_much, text) = lacks(self, *id, *stats, &masters)?;
                Some((how_much, *id, text))
            });
            let lacking: Vec<_> = lacking.collect();
            let count = lacking.len();
            let worst = lacking
                .into_iter()
                .max_by_key(|(how_much, id, _)| (*how_much, Reverse(*id)));
            all.extend(worst.map(|(_, server, text)| {
                let who = match count {
                    1 => format!("{server:?}"),
                    many if many == masters.len() => "any server".into(),
                    many => format!("{server:?}, or one of {} others,", many - 1),
                };
                let text = format!("should {who} die, {text}");
                let is_now = false;
                Shortage {
                    kind,
                    server,
                    is_now,
                    text,
                }
            }));
        }
        all
    }

    /// How much is lacking, and what of, if it is memory.
    fn memory_should_it_die(
        &self,
        master: ServerId,
        stats: MasterStats,
        masters: &[ServerId],
    ) -> Option<(u64, String)> {
        let heirs = masters.iter().filter(|heir| **heir != master);
        let room: u64 = heirs.map(|heir| self.room(*heir).unwrap_or(PLENTY)).sum();
        let takes = stats.takes() + stats.takes() / 16;
        (takes > room).then(|| {
            let (lacking, takes, room) = (takes - room, size(takes), size(room));
            let text =
                format!("its data takes {takes} of memory, and the others have room for {room}");
            (lacking, text + ": start another server")
        })
    }

    /// Backups that are left for whoever replays its data.
    fn backups_left(&self, master: ServerId, masters: &[ServerId]) -> u64 {
        let heirs = masters.iter().filter(|heir| **heir != master);
        let left = heirs.map(|heir| self.free_frames_but(&[master, *heir]).len() as u64);
        left.max().unwrap_or(0)
    }

    fn backups_should_it_die(
        &self,
        master: ServerId,
        _: MasterStats,
        masters: &[ServerId],
    ) -> Option<(u64, String)> {
        let (_, copies) = self.shape();
        let left = self.backups_left(master, masters);
        let lacking = copies.checked_sub(left).filter(|lacking| *lacking > 0)?;
        let text = format!(
            "who replays its data needs {copies} other servers with backups, and would have {left}: \
             start {lacking} more"
        );
        Some((lacking, text))
    }

    fn frames_should_it_die(
        &self,
        master: ServerId,
        stats: MasterStats,
        masters: &[ServerId],
    ) -> Option<(u64, String)> {
        let (segment, copies) = self.shape();
        let free = self.free_frames_but(&[master]);
        let segments = stats.live.div_ceil(segment) + 1;
        let held = self
            .backup_stats(master)
            .map_or(0, |stats| u64::from(stats.used));
        let needed = segments * copies + held;
        let fits = placeable(&free, copies) >= segments && free.iter().sum::<u64>() >= needed;
        if fits || self.backups_left(master, masters) < copies {
            return None;
        }
        let text = format!(
            "{needed} frames are needed for what it holds, and free on the others are {free:?}: \
             start another server, or one again with more --frames"
        );
        Some((needed, text))
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
