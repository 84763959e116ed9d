//! Sizes and durations as people write them: `64MiB`, `200ms`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (number, unit) = UNITS
            .iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
            .unwrap_or((text, 1));
        let number: u64 = number
            .trim()
            .parse()
            .map_err(|_| "write a size as 64MiB, 1GiB or a number of bytes".to_owned())?;
        number
            .checked_mul(unit)
            .map(Self)
            .ok_or_else(|| "size is too large".to_owned())
    }
}

/// Bytes in the largest binary unit that leaves one digit before the point or more.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary = UNITS[..4].iter().rev().find(|(_, unit)| self.0 >= *unit);
        let text = match binary {
            Some((name, unit)) if self.0.is_multiple_of(*unit) => {
                format!("{}{name}", self.0 / unit)
            }
            Some((name, unit)) => format!("{:.1}{name}", self.0 as f64 / *unit as f64),
            None => format!("{}B", self.0),
        };
        f.pad(&text)
    }
}

/// Parses a duration, for clap.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("write a duration as 200ms, 10s or 5min ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        assert_eq!("64MiB".parse(), Ok(Size(64 << 20)));
        assert_eq!("1 GB".parse(), Ok(Size(1_000_000_000)));
        assert_eq!("17".parse(), Ok(Size(17)));
        assert!("64 MiBs".parse::<Size>().is_err());
        assert!("-1MiB".parse::<Size>().is_err());
        assert!("99999999999TiB".parse::<Size>().is_err());
    }

    #[test]
    fn sizes_are_written_as_they_are_read() {
        for text in ["64MiB", "3GiB", "17B"] {
            assert_eq!(
                text.parse::<Size>().map(|size| size.to_string()),
                Ok(text.to_owned())
            );
        }
        assert_eq!(Size(1536).to_string(), "1.5KiB");
    }
}
