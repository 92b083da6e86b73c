//! `pglife notify test`: whether those who are to be told can be.

use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, output};
use crate::control::failed;
use crate::exit::Exit;
use crate::notify::{Parcel, Stage, deliver, trial};
use crate::settings::notify::{Channel, ChannelKind};

/// The command line.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Tell each of [[notify]], or one, that this is a test
    Test {
        /// The one called so [default: all]
        name: Option<String>,
    },
}

/// A row of the answer.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    r#type: &'static str,
    told: bool,
}

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let Command::Test { name } = &args.command;
    let configuration = context.configuration().await?;
    let channels = &configuration.settings.notify;
    let chosen: Vec<&Channel> =
        channels.iter().filter(|channel| name.as_ref().is_none_or(|name| *name == channel.name)).collect();
    if chosen.is_empty() {
        let known = channels.iter().map(|channel| channel.name.as_str()).collect::<Vec<_>>().join(", ");
        let what = match name {
            Some(name) => format!("there is no [[notify]] called {name:?} in pglife.toml; there are: {known}"),
            None => "there is no [[notify]] in pglife.toml".to_owned(),
        };
        return Err(Failure::message(Exit::NotFound, what).next("docs/notifications.md shows how to write one"));
    }
    let (mut rows, mut exit) = (Vec::new(), Exit::Ok);
    for channel in chosen {
        let notice = trial("pglife notify test", Timestamp::now());
        let parcel = match channel.kind {
            // A run that ended well: it is what the watcher waits for.
            ChannelKind::Healthchecks => {
                Parcel::Ping { stage: Stage::Success, run: TEST_RUN.to_owned(), text: notice.text }
            }
            ChannelKind::Webhook | ChannelKind::Slack => Parcel::Notice(notice),
        };
        let told = deliver(channel, &parcel).await;
        rows.push(Row { name: channel.name.clone(), r#type: channel.kind.as_str(), told: told.is_ok() });
        if let Err(error) = told {
            exit = error.exit();
            let what = format!("[[notify]] \"{}\" was not told", channel.name);
            context.output.failure(&Failure::from(failed(what)(error)));
        }
    }
    context.output.items("NotifyTestList", &rows, |_| {
        let mut table = output::table(&["", "NAME", "TYPE"]);
        for row in &rows {
            table.add_row([if row.told { "ok" } else { "BAD" }, &row.name, row.r#type]);
        }
        table
    })?;
    Ok(exit)
}

const TEST_RUN: &str = "00000000-0000-4000-8000-000000000000";
