//! `pglife events`: what the daemon did and saw.

use std::time::Duration;

use super::{Context, Failure, output};
use crate::control::failed;
use crate::exit::Exit;
use crate::state::EventRecord;

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many of the newest
    #[arg(short = 'n', long = "count", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Go on with those that come, until interrupted
    #[arg(short, long)]
    follow: bool,
}

/// How often `--follow` looks again.
const FOLLOW: Duration = Duration::from_secs(1);

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let read = |after: i64, count: u32| {
        control.state.events(after, count).map_err(failed("the events cannot be read")).map_err(Failure::from)
    };
    let mut events = read(0, args.count)?;
    if !args.follow {
        context.output.items("EventList", &events, |_| {
            let mut table = output::table(&["AT", "CLUSTER", "EVENT", "TEXT"]);
            for event in &events {
                let cluster = event.cluster.as_ref().map_or("-", |cluster| cluster.as_str());
                table.add_row([&event.at.to_string(), cluster, &event.kind, &event.text]);
            }
            table
        })?;
        return Ok(Exit::Ok);
    }
    let mut last = 0;
    loop {
        for event in &events {
            context.output.data(&line(event, context.output.format().is_for_programs()))?;
            last = event.id;
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW) => {}
            () = context.cancel.cancelled() => return Ok(Exit::Ok),
        }
        events = read(last, 1000)?;
    }
}

/// A line each: what comes without an end is no document.
fn line(event: &EventRecord, for_programs: bool) -> String {
    if for_programs {
        return serde_json::to_string(event).unwrap_or_default() + "\n";
    }
    let cluster = event.cluster.as_ref().map_or("-", |cluster| cluster.as_str());
    format!("{}  {cluster}  {}  {}\n", event.at, event.kind, event.text)
}
