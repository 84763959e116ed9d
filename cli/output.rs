//! Results on standard output: text for people, or one JSON object a line.

use std::fmt::Display;
use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// Where results go, and in which of the two forms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    /// JSON or text.
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether results are JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Writes one result: `json` as a line, or `text` as one, and makes sure that it is out.
    pub(crate) fn line(self, text: impl Display, json: &Value) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{json}")?;
        } else {
            writeln!(out, "{text}")?;
        }
        out.flush()
    }

    /// Writes bytes as they are, with a line's end after them. For text only.
    pub(crate) fn bytes(self, bytes: &[u8]) -> io::Result<()> {
        debug_assert!(!self.json);
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}

/// Puts bytes into a JSON object: as text under `name`, or under `name_base64` where they are not
/// UTF-8.
pub(crate) fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
}

/// An object as `get --json` and `scan --json` print it.
pub(crate) fn object_json(key: &[u8], value: &[u8], version: u64) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    put_bytes(&mut object, "value", value);
    object.insert("version".to_owned(), version.into());
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_other_bytes_become_base64() {
        let json = object_json("clé".as_bytes(), &[0xff, 0x00], 7);
        assert_eq!(
            json.to_string(),
            r#"{"key":"clé","value_base64":"/wA=","version":7}"#
        );
    }
}
