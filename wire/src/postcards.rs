//! Control messages as payloads: postcard, bounded, and refused unless every byte is used.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A control message could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed control message: {0}")]
pub struct Malformed(pub String);

/// The message's bytes.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_stdvec(message).expect("control messages have no type that postcard refuses")
}

/// The message in `bytes`, all of them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    let (message, rest) =
        postcard::take_from_bytes(bytes).map_err(|error| Malformed(error.to_string()))?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(Malformed(format!("{} bytes left over", rest.len())))
    }
}
