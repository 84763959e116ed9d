//! `ramkeep scan`: every object of a table, once.

use std::io::{self, BufWriter, Write};

use clap::Args;

use crate::connect::{ConnectArgs, operation_failed};
use crate::failure::Failure;
use crate::output::{Output, object_json};
use crate::runtime;

/// Arguments of `scan`.
#[derive(Clone, Debug, Args)]
pub(crate) struct ScanArgs {
    /// The table's name
    table: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Prints every object: `key<TAB>value` a line, or as JSON.
pub(crate) fn scan(args: &ScanArgs, output: Output) -> Result<(), Failure> {
    runtime::current_thread()?.block_on(async {
        let table = args.connect.table(&args.table).await?;
        let mut out = BufWriter::new(io::stdout().lock());
        let mut objects = table.scan();
        while let Some(next) = objects.next().await {
            let (key, object) = next.map_err(|error| operation_failed(&args.table, &error))?;
            if output.is_json() {
                writeln!(
                    out,
                    "{}",
                    object_json(&key, &object.value, object.version.0)
                )?;
            } else {
                out.write_all(&key)?;
                out.write_all(b"\t")?;
                out.write_all(&object.value)?;
                out.write_all(b"\n")?;
            }
        }
        Ok(out.flush()?)
    })
}
