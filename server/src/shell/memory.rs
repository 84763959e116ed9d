//! The memory of this process: what the system says of it, and having it backed before it is needed.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use ramkeep_rpc::Link;

use crate::core::DataPlane;

/// Between two looks for memory that will be needed next.
const POPULATE: Duration = Duration::from_millis(25);

/// Has the system back memory before it is needed, on a thread of its own: it may take milliseconds
/// that no worker should lose. The thread ends with the server.
pub(super) fn populate_ahead(plane: &Arc<DataPlane<Link>>, all: bool) {
    let weak = Arc::downgrade(plane);
    let work = move || {
        if let Some(plane) = weak.upgrade().filter(|_| all) {
            plane.master().store().populate();
        }
        while let Some(plane) = weak.upgrade() {
            plane.master().store().populate_ahead();
            drop(plane);
            std::thread::sleep(POPULATE);
        }
    };
    let spawned = std::thread::Builder::new()
        .name("populate".into())
        .spawn(work);
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread to prepare memory; growing will cost page faults");
    }
}

/// Bytes of this process in RAM; 0 where the system doesn't say.
pub(super) fn resident() -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|text| parse(&text))
        .unwrap_or(0)
}

fn parse(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(parse("VmPeak:\t 9 kB\nVmRSS:\t  2048 kB\n"), Some(2 << 20));
        assert_eq!(parse("VmPeak:\t 9 kB\n"), None);
        assert!(resident() > 0);
    }
}
