//! The page of one cluster: its checks, what goes on, charts, backups and what drills found of them, runs, its last upgrade, who
//! depends on it.

use jiff::{SignedDuration, Timestamp};

use super::chart::{Series, chart};
use super::{bytes, concat, document, escaped, length, level, moment, running, section, server, table};
use crate::backup_set::Kind;
use crate::cluster::RepoName;
use crate::state::Operation;
use crate::status::board::Snapshot;
use crate::status::{ClusterStatus, History, PastRun, verdicts};

/// So many of the newest backups and runs are listed; the charts show more.
const LISTED: usize = 50;

/// The page of the cluster called `name`; None where there is no such cluster.
pub(in crate::http) fn cluster_page(snapshot: &Snapshot, name: &str, now: Timestamp) -> Option<String> {
    let cluster = snapshot.clusters.iter().find(|cluster| cluster.cluster.as_str() == name)?.at(now);
    let runs_now = || snapshot.running.iter().filter(|run| run.cluster == cluster.cluster);
    let body = [
        "<nav><a href=\"/\">All clusters</a></nav>\n".to_owned(),
        checks(&cluster),
        running(runs_now(), now),
        charts(&cluster.history),
        backups(&cluster.history),
        runs(&cluster.history),
        upgrade(&cluster),
        dependents(&cluster),
    ];
    let word = level(&cluster).as_str();
    let title = format!("{name}: {word}");
    let refresh = if runs_now().next().is_none() { 30 } else { 5 };
    let heading = format!(
        "<h1>{} <span class=\"badge {word}\">{word}</span></h1>\n<p>PostgreSQL {}</p>\n",
        escaped(name),
        server(&cluster, now),
    );
    Some(document(snapshot, &title, &heading, refresh, &body.concat()))
}

fn checks(cluster: &ClusterStatus) -> String {
    let rows = verdicts(cluster).into_iter().map(|verdict| {
        let (check, level) = (verdict.check.to_string(), verdict.level.as_str());
        vec![escaped(&check), format!("<span class=\"badge {level}\">{level}</span>"), escaped(&verdict.text)]
    });
    let mut content = table(&["Check", "State", "Why"], rows);
    if !cluster.problems.is_empty() {
        let problems = concat(cluster.problems.iter().map(|problem| format!("<li>{}</li>\n", escaped(problem))));
        content.push_str(&format!("<ul>\n{problems}</ul>\n"));
    }
    content.push_str(&format!(
        "<p>More about one, and what to do: <code>pglife explain {} CHECK</code></p>\n",
        escaped(cluster.cluster.as_str())
    ));
    section("checks", "Checks", &content)
}

#[expect(clippy::cast_precision_loss, reason = "a chart shows three digits")]
fn charts(history: &History) -> String {
    let sizes = [(Kind::Dump, "dump"), (Kind::Volume, "volume backup")].map(|(kind, name)| Series {
        name,
        points: history
            .sets
            .iter()
            .filter(|set| set.kind == kind)
            .map(|set| (set.completed_at, set.stored_bytes as f64))
            .collect(),
    });
    let operations = [(Operation::Dump, "dump"), (Operation::Volume, "volume backup"), (Operation::Drill, "drill")];
    let durations = operations.map(|(operation, name)| Series {
        name,
        points: history
            .runs
            .iter()
            .rev()
            .filter(|run| run.operation == operation && matches!(run.result, "ok" | "warnings" | "proven"))
            .filter_map(|run| Some((run.started_at, run.seconds?)))
            .collect(),
    });
    let drawn: String = [
        chart("chart-sizes", "Stored size", &sizes, shown_bytes),
        chart("chart-durations", "Duration of runs that went well", &durations, shown_seconds),
    ]
    .into_iter()
    .flatten()
    .collect();
    if drawn.is_empty() {
        return String::new();
    }
    section("charts", "Sizes and durations", &format!("<div class=\"charts\">\n{drawn}</div>\n"))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a size")]
fn shown_bytes(value: f64) -> String {
    bytes(value.max(0.0) as u64)
}

fn shown_seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1} s") } else { length(SignedDuration::from_secs_f64(seconds)) }
}

fn backups(history: &History) -> String {
    if history.sets.is_empty() {
        return section("backups", "Backups", "<p>There are none.</p>\n");
    }
    let rows = history.sets.iter().rev().take(LISTED).map(|set| {
        let drill = set.drill.as_ref().map_or_else(
            || "not yet".to_owned(),
            |drill| {
                let took = shown_seconds(drill.rto_seconds);
                let red =
                    if drill.red.is_empty() { String::new() } else { format!(": {}", escaped(&drill.red.join(", "))) };
                let class = if drill.red.is_empty() { "ok" } else { "critical" };
                format!(
                    "<span class=\"{class}\">{}</span>{red} {}, restored in {took}",
                    drill.verdict,
                    moment(drill.at)
                )
            },
        );
        let repositories: Vec<&str> = set.repositories.iter().map(RepoName::as_str).collect();
        vec![
            escaped(&set.set),
            format!("<span class=\"word\">{}</span>", set.kind),
            moment(set.completed_at),
            format!("{} ({} before compression)", bytes(set.stored_bytes), bytes(set.plain_bytes)),
            escaped(&repositories.join(", ")),
            drill,
        ]
    });
    let mut content = table(&["Backup", "Kind", "Complete", "Stored", "Where", "Drill"], rows);
    content.push_str(&more(history.sets.len(), "pglife backups list"));
    section("backups", "Backups", &content)
}

/// What is said where a list is cut short.
fn more(count: usize, command: &str) -> String {
    if count > LISTED {
        format!("<p>The newest {LISTED} of {count}; all of them: <code>{command}</code></p>\n")
    } else {
        String::new()
    }
}

fn runs(history: &History) -> String {
    if history.runs.is_empty() {
        return section("runs", "Runs", "<p>There was none.</p>\n");
    }
    let rows = history.runs.iter().take(LISTED).map(|run| {
        vec![
            moment(run.started_at),
            run.operation.as_str().to_owned(),
            run.seconds.map_or_else(|| "-".to_owned(), shown_seconds),
            result(run),
            escaped(&run.message),
        ]
    });
    section("runs", "Runs", &table(&["Began", "What", "Took", "Result", "It said"], rows))
}

fn result(run: &PastRun) -> String {
    let class = match run.result {
        "ok" | "proven" => "ok",
        "failed" | "bad" => "critical",
        "running" => return "running".to_owned(),
        _ => "warn",
    };
    format!("<span class=\"{class}\">{}</span>", run.result)
}

fn upgrade(cluster: &ClusterStatus) -> String {
    let Some(upgrade) = &cluster.history.upgrade else { return String::new() };
    let told = &upgrade.told;
    let majors = if told.from == told.to {
        String::new()
    } else {
        format!("PostgreSQL {} to {} by ", escaped(&told.from), escaped(&told.to))
    };
    let mut content = format!(
        "<p>{majors}{}: {}, at the step {}. It began {}, the journal was last written {}.</p>\n",
        escaped(&told.method),
        escaped(&upgrade.phase),
        escaped(&upgrade.step),
        moment(upgrade.started_at),
        moment(upgrade.updated_at),
    );
    if let Some(failure) = &upgrade.told.failure {
        content.push_str(&format!("<p>It was undone because: {}</p>\n", escaped(failure)));
    }
    if !upgrade.told.left_to_do.is_empty() {
        let left = concat(upgrade.told.left_to_do.iter().map(|left| format!("<li>{}</li>\n", escaped(left))));
        content.push_str(&format!("<p>Left for you to do:</p>\n<ul>\n{left}</ul>\n"));
    }
    if !upgrade.told.steps.is_empty() {
        let rows = upgrade.told.steps.iter().map(|(step, seconds)| vec![escaped(step), shown_seconds(*seconds)]);
        content.push_str(&table(&["Step", "Took"], rows));
    }
    content.push_str(&format!(
        "<p>The plan and the whole report: <code>pglife upgrade status {}</code></p>\n",
        escaped(cluster.cluster.as_str())
    ));
    section("upgrade", "The last upgrade", &content)
}

fn dependents(cluster: &ClusterStatus) -> String {
    if cluster.dependents.is_empty() {
        return String::new();
    }
    let rows = cluster.dependents.iter().map(|dependent| {
        let down = dependent.down_since.map(|since| {
            format!("taken down {}: {}", moment(since), escaped(dependent.reason.as_deref().unwrap_or_default()))
        });
        vec![
            escaped(&dependent.container),
            format!("<span class=\"word\">{}</span>", escaped(&dependent.state)),
            format!("{} / {}", dependent.on_down, dependent.on_up),
            down.or_else(|| dependent.problem.as_deref().map(escaped)).unwrap_or_default(),
        ]
    });
    let content = table(&["Container", "State", "When it goes down / is back", "Note"], rows);
    section("dependents", "Dependents, in the order in which they come back", &content)
}
