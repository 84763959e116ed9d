//! `ramkeep load`: puts the rows of a file into a table.

mod rows;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use ramkeep_client::Table;
use serde_json::json;

use crate::connect::ConnectArgs;
use crate::failure::Failure;
use crate::output::Output;
use rows::{Row, Rows};

/// Rows in one batch.
const BATCH_ROWS: usize = 512;
/// Bytes after which a batch is full.
const BATCH_BYTES: usize = 1 << 20;

/// Load a file's rows into a table.
///
/// A CSV row becomes an object whose value is JSON (column name to text); a JSON line or a plain
/// line is stored as it is.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The file to load; - is standard input
    file: PathBuf,
    /// The table, made if it isn't there
    #[arg(long, short)]
    table: String,
    /// How the file is written [default: by its ending: .csv, .jsonl or .ndjson, else lines]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// The column or field that is the key [default: a CSV's first column; the line's number]
    #[arg(long, value_name = "COLUMN")]
    key: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Comma-separated values with a heading
    Csv,
    /// One JSON object a line
    Jsonl,
    /// Plain lines
    Lines,
}

impl Format {
    fn of(path: &std::path::Path) -> Self {
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => Self::Csv,
            Some("jsonl" | "ndjson") => Self::Jsonl,
            _ => Self::Lines,
        }
    }
}

#[derive(Default)]
struct Loaded {
    rows: u64,
    bytes: u64,
}

impl LoadArgs {
    /// Loads the file.
    pub(crate) fn run(self, output: Output) -> Result<(), Failure> {
        let format = self.format.unwrap_or_else(|| Format::of(&self.file));
        let rows = Rows::open(&self.file, format, self.key.as_deref())?;
        let bar = progress(rows.total_bytes());
        crate::runtime::current_thread()?.block_on(async {
            let client = self.connect.client().await?;
            let table = client
                .create_table(&self.table)
                .await
                .map_err(Failure::new)?;
            let start = Instant::now();
            let loaded = load(&table, rows, &bar).await;
            bar.finish_and_clear();
            report(output, &self.table, &loaded?, start.elapsed())
        })
    }
}

fn progress(total: Option<u64>) -> ProgressBar {
    let bar = match total {
        Some(bytes) => ProgressBar::new(bytes),
        None => ProgressBar::new_spinner(),
    };
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {msg} {eta}");
    bar.with_style(style.expect("a constant template"))
}

async fn load(table: &Table, mut rows: Rows, bar: &ProgressBar) -> Result<Loaded, Failure> {
    let mut loaded = Loaded::default();
    let mut batch: Vec<Row> = Vec::with_capacity(BATCH_ROWS);
    loop {
        batch.clear();
        let mut bytes = 0;
        while batch.len() < BATCH_ROWS && bytes < BATCH_BYTES {
            let Some(row) = rows.next_row()? else { break };
            bytes += row.key.len() + row.value.len();
            batch.push(row);
        }
        if batch.is_empty() {
            return Ok(loaded);
        }
        write(table, &batch).await?;
        loaded.rows += batch.len() as u64;
        loaded.bytes += bytes as u64;
        bar.set_position(rows.position());
        bar.set_message(format!("{} rows", loaded.rows));
    }
}

async fn write(table: &Table, batch: &[Row]) -> Result<(), Failure> {
    let items: Vec<(&[u8], &[u8])> = batch
        .iter()
        .map(|row| (row.key.as_slice(), row.value.as_slice()))
        .collect();
    let results = table.multi_write(&items).await;
    for (row, result) in batch.iter().zip(results) {
        result.map_err(|error| {
            let key = String::from_utf8_lossy(&row.key);
            Failure::new(format_args!("line {}, key {key:?}: {error}", row.line))
        })?;
    }
    Ok(())
}

fn report(output: Output, table: &str, loaded: &Loaded, elapsed: Duration) -> Result<(), Failure> {
    let rate = loaded.rows as f64 / elapsed.as_secs_f64().max(1e-9);
    let text = format!(
        "{} rows, {} bytes into {table} in {:.2} s: {rate:.0} rows/s",
        loaded.rows,
        loaded.bytes,
        elapsed.as_secs_f64()
    );
    let json = json!({
        "table": table,
        "rows": loaded.rows,
        "bytes": loaded.bytes,
        "seconds": elapsed.as_secs_f64(),
        "rows_per_s": (rate * 10.0).round() / 10.0,
    });
    Ok(output.line(text, &json)?)
}
