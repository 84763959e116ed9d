//! What the system says of this process's memory.

use std::fs;

/// Bytes of this process in RAM; 0 where the system doesn't say.
pub(super) fn bytes() -> u64 {
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
        assert!(bytes() > 0);
    }
}
