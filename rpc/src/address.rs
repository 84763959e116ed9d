//! Where a process listens: `host:port`, or `unix:/path`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ramkeep_wire::limits::MAX_ADDRESS;

/// A place to listen at or to connect to. Never an identity: see `ServerId` for that.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A host name or IP address (IPv6 without brackets) and a port.
    Tcp {
        /// Name or IP address.
        host: String,
        /// Port; 0 to listen on any free one.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Longer than any address may be.
    #[error("an address has at most {MAX_ADDRESS} bytes, this one has {0}")]
    TooLong(usize),
    /// Neither form.
    #[error("`{0}` is no address: use host:port, or unix:/path")]
    Malformed(String),
}

const UNIX_PREFIX: &str = "unix:";

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.len() > MAX_ADDRESS {
            return Err(AddressError::TooLong(text.len()));
        }
        let malformed = || AddressError::Malformed(text.to_owned());
        if let Some(path) = text.strip_prefix(UNIX_PREFIX) {
            if path.is_empty() || path.contains('\0') {
                return Err(malformed());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().map_err(|_| malformed())?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(malformed)?,
            None if host.contains(':') => return Err(malformed()),
            None => host,
        };
        if host.is_empty() || host.contains(char::is_whitespace) {
            return Err(malformed());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{UNIX_PREFIX}{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl Address {
    /// The IP address and port, when no name needs to be looked up.
    #[must_use]
    pub fn as_ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { host, port } => Some(SocketAddr::new(host.parse::<IpAddr>().ok()?, *port)),
            Self::Unix(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_printing() {
        for text in [
            "127.0.0.1:7100",
            "localhost:1",
            "[::1]:7100",
            "unix:/tmp/r.sock",
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        assert_eq!(
            "[::1]:5".parse::<Address>().expect("valid").as_ip(),
            Some("[::1]:5".parse().expect("valid"))
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "host",
            "host:",
            ":80",
            "host:70000",
            "::1:80",
            "[::1:80",
            "unix:",
            "a b:1",
        ] {
            assert!(
                matches!(text.parse::<Address>(), Err(AddressError::Malformed(_))),
                "{text}"
            );
        }
        let long = format!("{}:1", "h".repeat(MAX_ADDRESS));
        assert_eq!(
            long.parse::<Address>(),
            Err(AddressError::TooLong(MAX_ADDRESS + 2))
        );
    }
}
