//! `ramkeep recovery`: recoveries under way, and an operator's word on what can't be recovered.
//!
//! # Invariants
//! 1. What is given up is named by who gives it up, all of it: the coordinator refuses anything else
//!    (SAFETY 19).

use clap::{Args, Subcommand};
use ramkeep_wire::coordinator::{
    AcceptedLoss, Answer, ClusterStatus, Loss, RecoveryReport, Request,
};
use ramkeep_wire::{SegmentId, ServerId};
use serde_json::{Value, json};

use crate::connect::ConnectArgs;
use crate::coordinators::Coordinators;
use crate::failure::Failure;
use crate::output::Output;
use crate::runtime;
use crate::status::recoveries;

/// What to do with recoveries.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum RecoveryArgs {
    /// Show the recoveries under way, and the losses that were accepted
    List(List),
    /// Give up what is missing of a crashed server's log, so that the rest is served
    ///
    /// What is given up is lost for good. `recovery list` and `status` show what is missing and the
    /// command that gives it up; anything but all of it is refused. Servers named by --dead are those
    /// whose frames have not come back: make sure first that none of them runs, and that none of
    /// their frames can be had. One that still ran could go on acknowledging writes that are lost.
    AcceptLoss(AcceptLoss),
}

/// Arguments of `recovery list`.
#[derive(Clone, Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Arguments of `recovery accept-loss`.
#[derive(Clone, Debug, Args)]
pub(crate) struct AcceptLoss {
    /// The crashed server whose log lacks something
    server: u64,
    /// The servers that are dead, with their frames
    #[arg(long, value_name = "SERVERS", value_delimiter = ',')]
    dead: Vec<u64>,
    /// The segments that are given up
    #[arg(long, value_name = "SEGMENTS", value_delimiter = ',')]
    segments: Vec<u64>,
    /// Give up what was written last: nobody knows where the log ended
    #[arg(long)]
    tail: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs one of them.
pub(crate) fn run(args: &RecoveryArgs, output: Output) -> Result<(), Failure> {
    match args {
        RecoveryArgs::List(list) => list.run(output),
        RecoveryArgs::AcceptLoss(accept) => accept.run(output),
    }
}

impl List {
    fn run(&self, output: Output) -> Result<(), Failure> {
        let coordinators = Coordinators::of(&self.connect)?;
        let asked = runtime::current_thread()?.block_on(coordinators.ask(&Request::Status))?;
        let Answer::Status(status) = asked.answer else {
            return Err(Failure::new("the coordinator's answer makes no sense"));
        };
        let json = json!({
            "recoveries": status.recoveries.iter().map(recovery).collect::<Vec<_>>(),
            "losses": losses(&status),
        });
        let mut text = match status.recoveries.len() {
            0 => "no recoveries under way\n".to_owned(),
            _ => recoveries(&status).to_string(),
        };
        text += &notes(&status);
        Ok(output.line(text.trim_end(), &json)?)
    }
}

impl AcceptLoss {
    fn run(&self, output: Output) -> Result<(), Failure> {
        let mut loss = Loss {
            dead: self.dead.iter().copied().map(ServerId).collect(),
            segments: self.segments.iter().copied().map(SegmentId).collect(),
            tail: self.tail,
        };
        loss.dead.sort_unstable();
        loss.segments.sort_unstable();
        let accepted = AcceptedLoss {
            master: ServerId(self.server),
            loss,
        };
        let coordinators = Coordinators::of(&self.connect)?;
        let request = Request::AcceptLoss(accepted.clone());
        let asked = runtime::current_thread()?.block_on(coordinators.ask(&request))?;
        if asked.answer != Answer::Noted {
            return Err(Failure::new("the coordinator's answer makes no sense"));
        }
        let what = describe(&accepted.loss);
        let text = format!("{what} of server {}'s log is given up", self.server);
        Ok(output.line(text, &accepted_json(&accepted))?)
    }
}

/// What is lost, for people.
fn describe(loss: &Loss) -> String {
    let mut parts = Vec::new();
    match loss.segments.len() {
        0 => {}
        1 => parts.push("one segment".to_owned()),
        count => parts.push(format!("{count} segments")),
    }
    if loss.tail {
        parts.push("the tail".to_owned());
    }
    parts.join(" and ")
}

/// The command that gives up what is missing.
pub(crate) fn command(master: ServerId, loss: &Loss) -> String {
    let mut text = format!("ramkeep recovery accept-loss {master}");
    let mut list = |flag: &str, ids: Vec<String>| {
        if !ids.is_empty() {
            text += &format!(" {flag} {}", ids.join(","));
        }
    };
    list(
        "--dead",
        loss.dead.iter().map(ToString::to_string).collect(),
    );
    let segments = loss.segments.iter().map(ToString::to_string);
    list("--segments", segments.collect());
    if loss.tail {
        text += " --tail";
    }
    text
}

/// What can be given up, and what was, for people; nothing if there is nothing.
pub(crate) fn notes(status: &ClusterStatus) -> String {
    let missing = status.recoveries.iter().filter_map(|report| {
        let command = command(report.master, report.missing.as_ref()?);
        let master = report.master;
        Some(format!(
            "What is missing of server {master}'s log comes back with its backups. To give it up \
             for good: {command}\n"
        ))
    });
    let lost = status.losses.iter().map(|accepted| {
        let what = describe(&accepted.loss);
        format!("Of server {}'s log was given up: {what}\n", accepted.master)
    });
    missing.chain(lost).collect()
}

/// A recovery, for programs.
pub(crate) fn recovery(report: &RecoveryReport) -> Value {
    let missing = report.missing.as_ref().map(|loss| {
        let mut json = loss_json(loss);
        json["accept"] = command(report.master, loss).into();
        json
    });
    json!({
        "master": report.master.0,
        "phase": report.phase,
        "stuck": report.stuck,
        "tablets": report.tablets,
        "since_ms": report.since_us / 1_000,
        "missing": missing,
    })
}

/// The accepted losses, for programs.
pub(crate) fn losses(status: &ClusterStatus) -> Vec<Value> {
    status.losses.iter().map(accepted_json).collect()
}

fn accepted_json(accepted: &AcceptedLoss) -> Value {
    let mut json = loss_json(&accepted.loss);
    json["master"] = accepted.master.0.into();
    json
}

fn loss_json(loss: &Loss) -> Value {
    json!({
        "dead": loss.dead.iter().map(|server| server.0).collect::<Vec<_>>(),
        "segments": loss.segments.iter().map(|segment| segment.0).collect::<Vec<_>>(),
        "tail": loss.tail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_all_that_is_missing_and_nothing_else() {
        let mut loss = Loss {
            dead: vec![ServerId(2), ServerId(3)],
            segments: vec![SegmentId(5)],
            tail: true,
        };
        assert_eq!(
            command(ServerId(1), &loss),
            "ramkeep recovery accept-loss 1 --dead 2,3 --segments 5 --tail"
        );
        loss = Loss {
            segments: vec![SegmentId(7), SegmentId(9)],
            ..Loss::default()
        };
        let wanted = "ramkeep recovery accept-loss 1 --segments 7,9";
        assert_eq!(command(ServerId(1), &loss), wanted);
    }
}
