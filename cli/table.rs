//! `ramkeep table`: make, drop and list tables.

use clap::{Args, Subcommand};
use ramkeep_client::{Error, TableInfo};
use serde_json::{Value, json};

use crate::columns::Columns;
use crate::connect::ConnectArgs;
use crate::coordinators::with_shortage;
use crate::failure::Failure;
use crate::output::Output;
use crate::runtime;

/// What to do with tables.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TableArgs {
    /// Make a table, unless it is there
    Create(Named),
    /// Drop a table with all that is in it
    Drop(Named),
    /// Show all tables
    List(List),
}

/// Arguments that name a table.
#[derive(Clone, Debug, Args)]
pub(crate) struct Named {
    /// The table's name
    name: String,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Arguments of `table list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs one of them.
pub(crate) fn run(args: &TableArgs, output: Output) -> Result<(), Failure> {
    match args {
        TableArgs::Create(named) => create(named, output),
        TableArgs::Drop(named) => drop_table(named, output),
        TableArgs::List(list) => show(list, output),
    }
}

fn create(named: &Named, output: Output) -> Result<(), Failure> {
    let Named { name, connect } = named;
    let table = runtime::current_thread()?.block_on(async {
        let client = connect.client().await?;
        match client.create_table(name).await {
            Ok(table) => Ok(table),
            Err(error) => Err(explained(connect, name, &error).await),
        }
    })?;
    let text = format!("table {name} is there");
    Ok(output.line(text, &json!({ "id": table.id().0, "name": name }))?)
}

/// Making or dropping a table waits for masters, and they for backups.
async fn explained(connect: &ConnectArgs, name: &str, error: &Error) -> Failure {
    let failure = connect.failure(name, error);
    match error {
        Error::Timeout { .. } => with_shortage(connect, failure).await,
        _ => failure,
    }
}

fn drop_table(named: &Named, output: Output) -> Result<(), Failure> {
    let Named { name, connect } = named;
    runtime::current_thread()?.block_on(async {
        let client = connect.client().await?;
        match client.drop_table(name).await {
            Ok(()) => Ok(()),
            Err(error) => Err(explained(connect, name, &error).await),
        }
    })?;
    let text = format!("table {name} is dropped");
    Ok(output.line(text, &json!({ "name": name, "dropped": true }))?)
}

fn show(list: &List, output: Output) -> Result<(), Failure> {
    let tables = runtime::current_thread()?.block_on(async {
        let client = list.connect.client().await?;
        client
            .tables()
            .await
            .map_err(|error| list.connect.failure("", &error))
    })?;
    let mut columns = Columns::new([">id", "name", ">tablets"]);
    for TableInfo { id, name, tablets } in &tables {
        columns.row([id.to_string(), name.clone(), tablets.to_string()]);
    }
    let json =
        |one: &TableInfo| json!({ "id": one.id.0, "name": one.name, "tablets": one.tablets });
    let json: Vec<Value> = tables.iter().map(json).collect();
    let text = if tables.is_empty() {
        "no tables".to_owned()
    } else {
        columns.to_string()
    };
    Ok(output.line(text.trim_end(), &json!({ "tables": json }))?)
}
