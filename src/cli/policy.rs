//! `pglife policy`: check policies, show them with their defaults, and tell when they next run.

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use super::{Context, Failure, human, output};
use crate::cluster::ClusterName;
use crate::configuration::ConfigurationError;
use crate::document::Problem;
use crate::exit::Exit;
use crate::kv::KvError;
use crate::policy::form::{self, PolicyFile};
use crate::policy::{Layout, Policy};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check pglife.toml and every policy; all problems are told at once
    Validate,
    /// Show a policy with every default filled in
    Show {
        /// The cluster; not needed when there is only one
        cluster: Option<ClusterName>,
    },
    /// Print the JSON Schema of policy files, for editors
    Schema,
    /// Tell when the next runs start
    Next {
        /// The cluster; without it, all of them
        cluster: Option<ClusterName>,
        /// How many runs of each cluster
        #[arg(short = 'n', long = "count", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
        count: u16,
    },
}

pub(super) async fn run(args: Args, context: &Context) -> Result<Exit, Failure> {
    match args.command {
        Command::Validate => validate(context).await,
        Command::Show { cluster } => show(cluster.as_ref(), context).await,
        Command::Schema => schema(context),
        Command::Next { cluster, count } => next(cluster.as_ref(), count, Timestamp::now(), context).await,
    }
}

#[derive(Serialize)]
pub(super) struct ProblemItem<'a> {
    file: String,
    line: Option<usize>,
    column: Option<usize>,
    key: &'a str,
    message: &'a str,
    help: Option<&'a str>,
}

impl<'a> From<&'a Problem> for ProblemItem<'a> {
    fn from(problem: &'a Problem) -> Self {
        Self {
            file: problem.file.display().to_string(),
            line: problem.position.map(|position| position.line),
            column: problem.position.map(|position| position.column),
            key: &problem.key,
            message: &problem.message,
            help: problem.help.as_deref(),
        }
    }
}

#[derive(Serialize)]
struct ValidPolicy<'a> {
    cluster: &'a ClusterName,
    host: String,
    major: String,
    layout: &'static str,
    container: String,
    schedule: Option<String>,
    file: String,
}

async fn validate(context: &Context) -> Result<Exit, Failure> {
    let configuration = match context.load().await {
        Ok(configuration) => configuration,
        Err(error) => {
            // Programs get the problems as data; people read them in the failure.
            if let KvError::Configuration(ConfigurationError::Invalid { problems }) = &error
                && context.output.format().is_for_programs()
            {
                let items: Vec<ProblemItem<'_>> = problems.iter().map(ProblemItem::from).collect();
                context.output.items("ProblemList", &items, |_| output::table(&[]))?;
            }
            return Err(error.into());
        }
    };
    let item = |(cluster, policy)| {
        let policy: &Policy = policy;
        ValidPolicy {
            cluster,
            host: policy.host.to_string(),
            major: policy.major.to_string(),
            layout: layout(policy),
            container: policy.container.to_string(),
            schedule: policy
                .dump
                .schedule
                .as_ref()
                .map(|schedule| format!("{} ({})", schedule.cron, schedule.timezone)),
            file: configuration.policy_place(&policy.name).display().to_string(),
        }
    };
    let items: Vec<ValidPolicy<'_>> = configuration.policies.iter().map(item).collect();
    context.output.items("ValidPolicyList", &items, |_| {
        let mut table = output::table(&["CLUSTER", "HOST", "MAJOR", "LAYOUT", "CONTAINER", "DUMP", "FILE"]);
        for item in &items {
            let schedule = item.schedule.as_deref().unwrap_or("by hand");
            let row =
                [item.cluster.as_str(), &item.host, &item.major, item.layout, &item.container, schedule, &item.file];
            table.add_row(row);
        }
        table
    })?;
    context.output.note(&format!("valid: {}; policies: {}", configuration.file.display(), items.len()));
    Ok(Exit::Ok)
}

fn layout(policy: &Policy) -> &'static str {
    match policy.layout {
        Layout::Managed(_) => "managed",
        Layout::Adopted(_) => "adopted",
    }
}

async fn show(cluster: Option<&ClusterName>, context: &Context) -> Result<Exit, Failure> {
    let configuration = context.configuration().await?;
    let policy = configuration.select(cluster)?;
    let file = PolicyFile::from(policy);
    if context.output.format().is_for_programs() {
        context.output.items("Policy", &[file], |_| output::table(&[]))?;
    } else {
        let text = toml::to_string(&file).map_err(|error| Failure::new(Exit::Failed, error))?;
        let path = configuration.policy_place(&policy.name);
        context.output.data(&format!("# {}, with every default filled in\n{text}", path.display()))?;
    }
    if policy.retention.is_some() {
        context.output.note("what [retention] keeps and deletes is shown by: pglife prune; a backup deletes nothing");
    }
    Ok(Exit::Ok)
}

fn schema(context: &Context) -> Result<Exit, Failure> {
    let schema = serde_json::to_string_pretty(&form::schema()).map_err(|error| Failure::new(Exit::Failed, error))?;
    context.output.data(&(schema + "\n"))?;
    Ok(Exit::Ok)
}

#[derive(Serialize)]
struct NextRun<'a> {
    cluster: &'a ClusterName,
    kind: &'static str,
    start: Timestamp,
    timezone: &'a str,
    local: String,
}

async fn next(cluster: Option<&ClusterName>, count: u16, now: Timestamp, context: &Context) -> Result<Exit, Failure> {
    let configuration = context.configuration().await?;
    let mut runs = Vec::new();
    for policy in configuration.select_all(cluster)? {
        if policy.dump.schedule.is_none() {
            context.output.note(&format!("{}: no schedule, dumps are made by hand", policy.name));
        }
        for (task, schedule) in policy.schedules() {
            runs.extend(schedule.upcoming(now).take(count.into()).map(|slot| NextRun {
                cluster: &policy.name,
                kind: task.as_str(),
                start: slot.start,
                timezone: schedule.timezone.as_str(),
                local: schedule.timezone.show(slot.start).strftime("%a %Y-%m-%d %H:%M:%S %:z").to_string(),
            }));
        }
    }
    runs.sort_by_key(|run| run.start);
    context.output.items("NextRunList", &runs, |_| {
        let mut table = output::table(&["CLUSTER", "KIND", "START", "ZONE", "WHEN"]);
        for run in &runs {
            let when = human::age(run.start, now);
            table.add_row([run.cluster.as_str(), run.kind, &run.local, run.timezone, &when]);
        }
        table
    })?;
    Ok(Exit::Ok)
}
