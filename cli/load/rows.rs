//! The rows of a file, one after another, with the line each began on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ramkeep_wire::limits::{MAX_KEY, MAX_VALUE};
use serde_json::{Map, Value};

use super::Format;
use crate::failure::Failure;

/// One row: what becomes an object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    pub(super) line: u64,
}

/// Reads rows.
pub(super) struct Rows {
    source: Source,
    read: Arc<AtomicU64>,
    total: Option<u64>,
}

enum Source {
    Csv {
        reader: csv::Reader<Counted>,
        header: csv::StringRecord,
        key: usize,
    },
    Lines {
        reader: BufReader<Counted>,
        line: u64,
        field: Option<String>,
    },
}

/// Counts the bytes read, for progress.
struct Counted {
    inner: Box<dyn Read>,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

impl Rows {
    /// Opens a file; `-` is standard input.
    pub(super) fn open(path: &Path, format: Format, key: Option<&str>) -> Result<Self, Failure> {
        let cannot = |error| Failure::new(format_args!("cannot read {}: {error}", path.display()));
        if path.as_os_str() == "-" {
            return Self::new(Box::new(io::stdin()), None, format, key);
        }
        let file = File::open(path).map_err(cannot)?;
        let total = file.metadata().map_err(cannot)?.len();
        Self::new(Box::new(file), Some(total), format, key)
    }

    fn new(
        inner: Box<dyn Read>,
        total: Option<u64>,
        format: Format,
        key: Option<&str>,
    ) -> Result<Self, Failure> {
        let read = Arc::new(AtomicU64::new(0));
        let counted = Counted {
            inner,
            read: read.clone(),
        };
        let source = match format {
            Format::Csv => Source::csv(counted, key)?,
            Format::Jsonl => Source::lines(counted, key),
            Format::Lines if key.is_some() => {
                return Err(Failure::usage(
                    "plain lines have no columns: leave out --key",
                ));
            }
            Format::Lines => Source::lines(counted, None),
        };
        Ok(Self {
            source,
            read,
            total,
        })
    }

    /// Bytes of the file, if known.
    pub(super) fn total_bytes(&self) -> Option<u64> {
        self.total
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The next row, `None` at the end. A row that can't be stored is an error that names its line.
    pub(super) fn next_row(&mut self) -> Result<Option<Row>, Failure> {
        let Some(row) = self.source.next_row()? else {
            return Ok(None);
        };
        if row.key.is_empty() || row.key.len() > MAX_KEY || row.value.len() > MAX_VALUE {
            return Err(Failure::new(format_args!(
                "line {}: a key has 1 to {MAX_KEY} bytes and a value at most {MAX_VALUE}",
                row.line
            )));
        }
        Ok(Some(row))
    }
}

impl Source {
    fn csv(counted: Counted, key: Option<&str>) -> Result<Self, Failure> {
        let mut reader = csv::Reader::from_reader(counted);
        let header = reader
            .headers()
            .map_err(|error| csv_failure(&error))?
            .clone();
        let index = match key {
            None => 0,
            Some(name) => header
                .iter()
                .position(|column| column == name)
                .ok_or_else(|| {
                    let columns = header.iter().collect::<Vec<_>>().join(", ");
                    Failure::new(format_args!("no column `{name}`; the file has {columns}"))
                })?,
        };
        Ok(Self::Csv {
            reader,
            header,
            key: index,
        })
    }

    fn lines(counted: Counted, field: Option<&str>) -> Self {
        Self::Lines {
            reader: BufReader::new(counted),
            line: 0,
            field: field.map(str::to_owned),
        }
    }

    fn next_row(&mut self) -> Result<Option<Row>, Failure> {
        match self {
            Self::Csv {
                reader,
                header,
                key,
            } => next_csv(reader, header, *key),
            Self::Lines {
                reader,
                line,
                field,
            } => next_line(reader, line, field.as_deref()),
        }
    }
}

fn next_csv(
    reader: &mut csv::Reader<Counted>,
    header: &csv::StringRecord,
    key: usize,
) -> Result<Option<Row>, Failure> {
    let mut record = csv::StringRecord::new();
    if !reader
        .read_record(&mut record)
        .map_err(|error| csv_failure(&error))?
    {
        return Ok(None);
    }
    let line = record.position().map_or(0, csv::Position::line);
    let columns: Map<String, Value> = header
        .iter()
        .zip(&record)
        .map(|(name, text)| (name.to_owned(), text.into()))
        .collect();
    let key = record.get(key).unwrap_or_default().as_bytes().to_vec();
    Ok(Some(Row {
        key,
        value: Value::Object(columns).to_string().into_bytes(),
        line,
    }))
}

fn next_line(
    reader: &mut impl BufRead,
    line: &mut u64,
    field: Option<&str>,
) -> Result<Option<Row>, Failure> {
    let mut value = Vec::new();
    loop {
        value.clear();
        // One byte over the limit is enough to see that a line is too long.
        let limit = (MAX_VALUE + 2) as u64;
        let read = reader.by_ref().take(limit).read_until(b'\n', &mut value);
        let read = read.map_err(|error| Failure::new(format_args!("cannot read: {error}")))?;
        if read == 0 {
            return Ok(None);
        }
        *line += 1;
        if value.ends_with(b"\n") {
            value.pop();
        }
        if value.ends_with(b"\r") {
            value.pop();
        }
        if !value.is_empty() {
            break;
        }
    }
    let key = match field {
        None => line.to_string().into_bytes(),
        Some(field) => json_key(&value, field, *line)?,
    };
    Ok(Some(Row {
        key,
        value,
        line: *line,
    }))
}

fn json_key(value: &[u8], field: &str, line: u64) -> Result<Vec<u8>, Failure> {
    let object: Map<String, Value> = serde_json::from_slice(value)
        .map_err(|error| Failure::new(format_args!("line {line} is no JSON object: {error}")))?;
    match object.get(field) {
        Some(Value::String(text)) => Ok(text.clone().into_bytes()),
        Some(Value::Null) | None => Err(Failure::new(format_args!(
            "line {line} has no field `{field}`"
        ))),
        Some(other) => Ok(other.to_string().into_bytes()),
    }
}

fn csv_failure(error: &csv::Error) -> Failure {
    Failure::new(format_args!("not a readable CSV file: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &'static str, format: Format, key: Option<&str>) -> Result<Vec<Row>, Failure> {
        let mut rows = Rows::new(Box::new(text.as_bytes()), None, format, key)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next_row()? {
            all.push(row);
        }
        Ok(all)
    }

    #[test]
    fn a_csv_row_becomes_a_json_object_under_its_key_column() {
        let all = rows("a,b\n1,\"x, y\"\n2,z\n", Format::Csv, Some("b")).expect("a good file");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].key, b"x, y");
        assert_eq!(all[0].value, br#"{"a":"1","b":"x, y"}"#);
        assert_eq!(all[1].line, 3);
    }

    #[test]
    fn an_unknown_column_and_a_missing_field_are_told() {
        assert!(rows("a,b\n1,2\n", Format::Csv, Some("c")).is_err());
        assert!(rows("{\"a\":1}\n", Format::Jsonl, Some("b")).is_err());
        assert!(rows("not json\n", Format::Jsonl, Some("b")).is_err());
    }

    #[test]
    fn lines_are_keyed_by_number_and_json_lines_by_field() {
        let all = rows("one\r\n\ntwo", Format::Lines, None).expect("good lines");
        let seen: Vec<(&[u8], &[u8])> = all
            .iter()
            .map(|row| (row.key.as_slice(), row.value.as_slice()))
            .collect();
        assert_eq!(seen, [(&b"1"[..], &b"one"[..]), (b"3", b"two")]);
        let all = rows("{\"id\":7,\"x\":1}\n", Format::Jsonl, Some("id")).expect("good JSON");
        assert_eq!(all[0].key, b"7");
    }

    #[test]
    fn a_line_over_the_limit_is_told_and_not_stored() {
        let text: &'static str = "x".repeat(MAX_VALUE + 10).leak();
        assert!(rows(text, Format::Lines, None).is_err());
    }
}
