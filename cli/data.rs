//! `put`, `get`, `rm` and `incr`: one object, one operation.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::Args;
use ramkeep_client::{Reject, Version};
use ramkeep_wire::limits::MAX_VALUE;
use serde_json::{Map, Value};

use crate::connect::{ConnectArgs, operation_failed};
use crate::failure::Failure;
use crate::output::{Output, object_json, put_bytes};
use crate::runtime;

/// Stands for standard input in place of a value.
const STANDARD_INPUT: &str = "-";

/// Which object.
#[derive(Clone, Debug, Args)]
pub(crate) struct Place {
    /// The table's name
    table: String,
    /// The key
    key: OsString,
}

impl Place {
    fn key(&self) -> &[u8] {
        self.key.as_bytes()
    }

    fn absent(&self) -> Failure {
        Failure::new(format_args!(
            "table {} has no key {}",
            self.table,
            self.key.display()
        ))
    }

    fn json(&self) -> Map<String, Value> {
        let mut object = Map::new();
        put_bytes(&mut object, "key", self.key());
        object
    }
}

/// Arguments of `put`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PutArgs {
    #[command(flatten)]
    place: Place,
    /// The value; - reads it from standard input
    #[arg(allow_hyphen_values = true)]
    value: OsString,
    /// Only if the object has just this version
    #[arg(long, value_name = "VERSION", conflicts_with_all = ["if_absent", "if_exists"])]
    if_version: Option<u64>,
    /// Only if there is no such object
    #[arg(long, conflicts_with = "if_exists")]
    if_absent: bool,
    /// Only if there is such an object
    #[arg(long)]
    if_exists: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Arguments of `get`.
#[derive(Clone, Debug, Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Arguments of `rm`.
#[derive(Clone, Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    place: Place,
    /// Only if the object has just this version
    #[arg(long, value_name = "VERSION", conflicts_with = "if_exists")]
    if_version: Option<u64>,
    /// Only if there is such an object; a missing one is a failure in any case
    #[arg(long)]
    if_exists: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Arguments of `incr`.
#[derive(Clone, Debug, Args)]
pub(crate) struct IncrArgs {
    #[command(flatten)]
    place: Place,
    /// What to add
    #[arg(default_value_t = 1, allow_negative_numbers = true)]
    n: i64,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Sets a value and shows the new version.
pub(crate) fn put(args: &PutArgs, output: Output) -> Result<(), Failure> {
    let value = value(&args.value)?;
    let reject = match (args.if_version, args.if_absent, args.if_exists) {
        (Some(version), ..) => Reject::unless_version(Version(version)),
        (None, true, _) => Reject::exists(),
        (None, false, true) => Reject::absent(),
        (None, false, false) => Reject::never(),
    };
    let Place { table, .. } = &args.place;
    let version = runtime::current_thread()?.block_on(async {
        let opened = args.connect.table(table).await?;
        let written = opened.write_with(args.place.key(), &value, reject).await;
        written.map_err(|error| operation_failed(table, &error))
    })?;
    let mut json = args.place.json();
    json.insert("version".to_owned(), version.0.into());
    Ok(output.line(format_args!("version {version}"), &Value::Object(json))?)
}

/// Shows a value: as it is, with a line's end after it.
pub(crate) fn get(args: &GetArgs, output: Output) -> Result<(), Failure> {
    let Place { table, .. } = &args.place;
    let found = runtime::current_thread()?.block_on(async {
        let opened = args.connect.table(table).await?;
        let read = opened.read(args.place.key()).await;
        read.map_err(|error| operation_failed(table, &error))
    })?;
    let Some(object) = found else {
        return Err(args.place.absent());
    };
    if output.is_json() {
        let json = object_json(args.place.key(), &object.value, object.version.0);
        Ok(output.line("", &json)?)
    } else {
        Ok(output.bytes(&object.value)?)
    }
}

/// Removes an object and shows the version that it had.
pub(crate) fn rm(args: &RmArgs, output: Output) -> Result<(), Failure> {
    let reject = match (args.if_version, args.if_exists) {
        (Some(version), _) => Reject::unless_version(Version(version)),
        (None, true) => Reject::absent(),
        (None, false) => Reject::never(),
    };
    let Place { table, .. } = &args.place;
    let removed = runtime::current_thread()?.block_on(async {
        let opened = args.connect.table(table).await?;
        let removed = opened.remove_with(args.place.key(), reject).await;
        removed.map_err(|error| operation_failed(table, &error))
    })?;
    let Some(version) = removed else {
        return Err(args.place.absent());
    };
    let mut json = args.place.json();
    json.insert("version".to_owned(), version.0.into());
    Ok(output.line(
        format_args!("removed version {version}"),
        &Value::Object(json),
    )?)
}

/// Adds to a counter and shows its new value.
pub(crate) fn incr(args: &IncrArgs, output: Output) -> Result<(), Failure> {
    let Place { table, .. } = &args.place;
    let value = runtime::current_thread()?.block_on(async {
        let opened = args.connect.table(table).await?;
        let added = opened.increment(args.place.key(), args.n).await;
        added.map_err(|error| operation_failed(table, &error))
    })?;
    let mut json = args.place.json();
    json.insert("value".to_owned(), value.into());
    Ok(output.line(value, &Value::Object(json))?)
}

fn value(argument: &OsString) -> Result<Vec<u8>, Failure> {
    if argument != STANDARD_INPUT {
        return Ok(argument.clone().into_vec());
    }
    let mut value = Vec::new();
    // One byte more than is allowed, so that the client sees and refuses what is too long.
    std::io::stdin()
        .take(MAX_VALUE as u64 + 1)
        .read_to_end(&mut value)
        .map_err(|error| Failure::new(format_args!("cannot read standard input: {error}")))?;
    Ok(value)
}
