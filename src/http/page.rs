//! The pages: one row a cluster, what goes on, what is wrong; and a page for each cluster ([`cluster`]). Made on the server, without a script and without anything from
//! elsewhere; every text from outside goes through [`escaped`].

mod chart;
mod cluster;

use jiff::{SignedDuration, Timestamp};

use crate::cluster::PgMajor;
use crate::policy::freshness::Level;
use crate::status::board::{Role, Running, Snapshot};
use crate::status::{ClusterStatus, KindStatus, ProofStatus, UncoveredServer, verdicts};

pub(super) use cluster::cluster_page;

/// The stylesheet. Colours are never alone: each level is a word too.
pub(super) const STYLE: &str = include_str!("style.css");
/// What browsers show beside the title.
pub(super) const ICON: &str = include_str!("icon.svg");

fn concat(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().concat()
}

/// A part of a page with a heading; `content` is HTML already.
fn section(id: &str, title: &str, content: &str) -> String {
    format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n{content}</section>\n")
}

/// A table; every cell is HTML already.
fn table(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let head = concat(heads.iter().map(|head| format!("<th scope=\"col\">{head}</th>")));
    let rows = rows.map(|cells| {
        let mut cells = cells.iter().zip(heads);
        let first = cells.next().map_or_else(String::new, |(cell, _)| format!("<th scope=\"row\">{cell}</th>"));
        let rest = concat(cells.map(|(cell, head)| format!("<td data-head=\"{head}\">{cell}</td>")));
        format!("<tr>{first}{rest}</tr>\n")
    });
    let rows = concat(rows);
    format!("<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n")
}

/// Text as HTML shows it, in an element or an attribute.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

/// The whole page.
pub(super) fn page(snapshot: &Snapshot, now: Timestamp) -> String {
    let clusters: Vec<ClusterStatus> = snapshot.clusters.iter().map(|cluster| cluster.at(now)).collect();
    let worst = clusters.iter().map(level).max();
    let bad = clusters.iter().filter(|cluster| level(cluster) > Level::Ok).count();
    let headline = match (worst, snapshot.looked_at) {
        (_, None) => "The daemon has just begun and has not looked yet.".to_owned(),
        (None, _) => "No cluster has a policy yet.".to_owned(),
        (Some(Level::Ok), _) => format!("All {} clusters are within their policies.", clusters.len()),
        (Some(_), _) => format!("{bad} of {} clusters need attention.", clusters.len()),
    };
    let heading = format!(
        "<h1>pglife on {}</h1>\n<p class=\"headline {}\">{}</p>\n",
        escaped(&snapshot.instance),
        worst.map_or("warn", Level::as_str),
        escaped(&headline),
    );
    let mut body = String::new();
    if !snapshot.flags.is_empty() {
        let flags = snapshot
            .flags
            .iter()
            .map(|(subject, text)| format!("<li><strong>{}</strong>: {}</li>\n", escaped(subject), escaped(text)));
        let list = format!("<ul class=\"flags\">\n{}</ul>\n", concat(flags));
        body.push_str(&section("flags", "The daemon itself", &list));
    }
    body.push_str(&running(snapshot.running.iter(), now));
    body.push_str(&overview(&clusters, now));
    body.push_str(&reasons(&clusters, snapshot.uncovered.as_deref().unwrap_or_default()));
    let refresh = if snapshot.running.is_empty() { 10 } else { 5 };
    document(snapshot, worst.map_or("starting", Level::as_str), &heading, refresh, &body)
}

/// A whole document; `heading` and `body` are HTML already. `refresh` is in seconds.
fn document(snapshot: &Snapshot, title: &str, heading: &str, refresh: u32, body: &str) -> String {
    let role = match snapshot.role {
        Role::Alone => "works alone",
        Role::Leader => "leads",
        Role::Standby => "stands by: another daemon starts what is scheduled",
    };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"refresh\" content=\"{refresh}\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>pglife on {}: {}</title>\n\
         <link rel=\"stylesheet\" href=\"/style.css\">\n<link rel=\"icon\" href=\"/icon.svg\">\n</head>\n<body>\n<header>\n\
         {heading}</header>\n<main>\n{body}</main>\n<footer>\n<p>Version {}, {role}, running since {}. {}</p>\n\
         <p><a href=\"/api/v1/status\">JSON</a> <a href=\"/metrics\">metrics</a> <a href=\"/readyz\">readiness</a></p>\n\
         </footer>\n</body>\n</html>\n",
        escaped(&snapshot.instance),
        escaped(title),
        escaped(snapshot.version),
        moment(snapshot.started_at),
        snapshot.looked_at.map_or_else(String::new, |at| format!("Last look {}.", moment(at))),
    )
}

/// What the server is, how it is, and until when its major is mended.
fn server(cluster: &ClusterStatus, now: Timestamp) -> String {
    let end = cluster.major.parse().ok().and_then(PgMajor::end_of_life);
    let life = end.map_or_else(String::new, |end| {
        if now.to_zoned(jiff::tz::TimeZone::UTC).date() > end {
            format!("; <span class=\"warn\">no fixes since {end}</span>")
        } else {
            format!("; fixes until {end}")
        }
    });
    format!("{} on {}, {}{life}", escaped(&cluster.major), escaped(&cluster.host), escaped(&cluster.server))
}

fn level(cluster: &ClusterStatus) -> Level {
    let worst = verdicts(cluster).into_iter().map(|verdict| verdict.level).max().unwrap_or(Level::Critical);
    let server = matches!(cluster.server.as_str(), "healthy" | "running" | "starting");
    if server && cluster.problems.is_empty() { worst } else { worst.max(Level::Warn) }
}

fn running<'r>(runs: impl Iterator<Item = &'r Running>, now: Timestamp) -> String {
    let rows = concat(runs.map(|run| {
        format!(
            "<li>{} of <strong>{}</strong>, {}: {} {}</li>\n",
            run.task,
            escaped(run.cluster.as_str()),
            length(now.duration_since(run.started_at)),
            escaped(&run.step),
            progress(run),
        )
    }));
    if rows.is_empty() { rows } else { section("running", "Running now", &format!("<ul>\n{rows}</ul>\n")) }
}

fn progress(run: &Running) -> String {
    match run.expected_bytes.filter(|expected| *expected > 0) {
        Some(expected) => {
            let done = run.plain_bytes.min(expected);
            let label = format!("{} of about {}", bytes(done), bytes(expected));
            format!("<progress max=\"{expected}\" value=\"{done}\" aria-label=\"{label}\"></progress> {label}")
        }
        None if run.plain_bytes > 0 => bytes(run.plain_bytes),
        None => String::new(),
    }
}

fn overview(clusters: &[ClusterStatus], now: Timestamp) -> String {
    if clusters.is_empty() {
        return String::new();
    }
    let heads = [
        "Cluster",
        "State",
        "PostgreSQL",
        "Last dump",
        "Last volume backup",
        "Proven",
        "Next run",
        "Failures since",
        "Repositories",
        "Dependents",
    ];
    let rows = clusters.iter().map(|cluster| {
        let level = level(cluster).as_str();
        let scheduled = [cluster.dump.next_run_at, cluster.volume.next_run_at, cluster.proof.next_run_at];
        let next = scheduled.into_iter().flatten().min();
        let failures = cluster.dump.failures_since_success
            + cluster.volume.failures_since_success
            + cluster.proof.failures_since_success;
        let name = escaped(cluster.cluster.as_str());
        vec![
            format!("<a href=\"/clusters/{name}\">{name}</a>"),
            format!("<span class=\"badge {level}\">{level}</span>"),
            server(cluster, now),
            last(&cluster.dump, now),
            last(&cluster.volume, now),
            proven(&cluster.proof, now),
            next.map_or_else(|| "by hand".to_owned(), moment),
            failures.to_string(),
            repositories(cluster),
            dependents(cluster),
        ]
    });
    section("clusters", "Clusters", &table(&heads, rows))
}

fn last(kind: &KindStatus, now: Timestamp) -> String {
    match (&kind.last_backup, kind.last_known_at) {
        (Some(last), _) => {
            let age = length(now.duration_since(last.completed_at));
            format!("{} ({age} ago), {}", moment(last.completed_at), bytes(last.stored_bytes))
        }
        (None, Some(at)) => format!("{} (from the record of runs)", moment(at)),
        (None, None) => "never".to_owned(),
    }
}

/// The newest proven backup, and how long its restore took.
fn proven(proof: &ProofStatus, now: Timestamp) -> String {
    let Some(proven) = &proof.last_proven else { return "never".to_owned() };
    let age = length(now.duration_since(proven.completed_at));
    let seconds = i64::try_from(proven.rto_seconds).unwrap_or(i64::MAX);
    let took = length(SignedDuration::from_secs(seconds));
    format!("{} ({age} old), restored in {took}", moment(proven.completed_at))
}

fn repositories(cluster: &ClusterStatus) -> String {
    let each = cluster.repositories.iter().map(|repository| {
        let state = match (&repository.problem, repository.free_bytes) {
            (Some(_), _) => "does not answer".to_owned(),
            (None, Some(free)) => format!("{} free", bytes(free)),
            (None, None) => "there".to_owned(),
        };
        format!("{}: {} backups, {state}", escaped(repository.name.as_str()), repository.backups)
    });
    each.collect::<Vec<_>>().join("<br>")
}

/// Who depends on it, and how they are; one that pglife took down is told as that.
fn dependents(cluster: &ClusterStatus) -> String {
    let each = cluster.dependents.iter().map(|dependent| {
        let state = if dependent.down_since.is_some() { "taken down" } else { dependent.state.as_str() };
        format!("{}: {}", escaped(&dependent.container), escaped(state))
    });
    let each: Vec<String> = each.collect();
    if each.is_empty() { "none".to_owned() } else { each.join("<br>") }
}

/// Why a cluster is not well, and what its last runs said; and servers without a policy.
fn reasons(clusters: &[ClusterStatus], uncovered: &[UncoveredServer]) -> String {
    let mut items = concat(uncovered.iter().map(|server| {
        format!(
            "<li><strong>{}</strong> on {}: a PostgreSQL server ({}) that no policy covers</li>\n",
            escaped(&server.container),
            escaped(server.host.as_str()),
            escaped(&server.image)
        )
    }));
    for cluster in clusters {
        let mut say = |text: &str| {
            items.push_str(&format!(
                "<li><strong>{}</strong>: {}</li>\n",
                escaped(cluster.cluster.as_str()),
                escaped(text)
            ));
        };
        for verdict in verdicts(cluster).iter().filter(|verdict| verdict.level > Level::Ok) {
            say(&format!("{} is {}: {}", verdict.check, verdict.level.as_str(), verdict.text));
        }
        cluster.problems.iter().for_each(|problem| say(problem));
        for (what, kind) in [("dump", &cluster.dump), ("volume backup", &cluster.volume)] {
            if let Some("failed" | "warnings") = kind.last_attempt {
                say(&format!(
                    "the last {what} ended with {}: {}",
                    kind.last_attempt.unwrap_or_default(),
                    kind.last_message
                ));
            }
        }
        if let Some(drill) = cluster.proof.last_drill.as_ref().filter(|it| matches!(it.result, "bad" | "unjudged")) {
            say(&format!("the last drill ended with {}: {}", drill.result, drill.message));
        }
        for (what, run) in
            [("pruning", &cluster.prune), ("verification", &cluster.verify), ("rehearsal", &cluster.rehearsal)]
        {
            if let Some(run) = run.as_ref().filter(|run| matches!(run.result, "failed" | "warnings")) {
                say(&format!("the last {what} ended with {}: {}", run.result, run.message));
            }
        }
    }
    if items.is_empty() {
        return String::new();
    }
    section("reasons", "What is wrong", &format!("<ul>\n{items}</ul>\n"))
}

fn moment(at: Timestamp) -> String {
    let shown = at.strftime("%Y-%m-%d %H:%M:%SZ");
    format!("<time datetime=\"{shown}\">{shown}</time>").replacen(' ', "\u{20}", 1)
}

fn length(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (count, 0);
    let mut tenth = 0;
    while value >= 1000 && unit + 1 < UNITS.len() {
        tenth = value % 1000 / 100;
        value /= 1000;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{value}.{tenth} {}", UNITS[unit]) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::backup_set::{Kind, RecoveryTime};
    use crate::status::board::Board;
    use crate::status::{Disproven, LastBackup, LimitsStatus, RepositoryStatus, RunStatus};

    fn at(text: &str) -> Timestamp {
        text.parse().expect("an instant")
    }

    /// A cluster that is stale, with somebody's script in every text that can come from outside.
    pub(in crate::http) fn example() -> Snapshot {
        let evil = "<script>alert('x')</script>\"&";
        let completed_at = at("2026-01-01T00:00:00Z");
        let dump = KindStatus {
            last_backup: Some(LastBackup {
                set: "s".to_owned(),
                completed_at,
                plain_bytes: 12_345_678,
                stored_bytes: 1_234_567,
                damaged_pages: 0,
            }),
            last_attempt: Some("failed"),
            last_message: evil.to_owned(),
            failures_since_success: 2,
            next_run_at: Some(at("2026-01-05T02:30:00Z")),
            limits: Some(LimitsStatus { warn_seconds: 93_600, critical_seconds: 180_000 }),
            last_known_at: Some(completed_at),
            backups: 1,
            ..KindStatus::default()
        };
        let cluster = ClusterStatus {
            host: evil.to_owned(),
            major: evil.to_owned(),
            server: evil.to_owned(),
            dump,
            repositories: vec![RepositoryStatus {
                name: "local".parse().expect("a name"),
                problem: Some(evil.to_owned()),
                free_bytes: None,
                backups: 1,
            }],
            proof: ProofStatus {
                bad: Some(Disproven { set: evil.to_owned(), completed_at, found_at: completed_at }),
                last_drill: Some(RunStatus { at: completed_at, result: "bad", message: evil.to_owned() }),
                recovery: vec![RecoveryTime {
                    kind: Kind::Dump,
                    seconds: 12.5,
                    measured_at: completed_at,
                    median_seconds: 12.5,
                    measurements: 1,
                    change_percent: None,
                    budget_seconds: None,
                    within_budget: None,
                }],
                ..ProofStatus::default()
            },
            problems: vec![evil.to_owned()],
            ..ClusterStatus::example()
        };
        let board = Board::new(evil.to_owned(), completed_at);
        board.flag("configuration", Some(evil.to_owned()));
        board.change(|snapshot| {
            snapshot.looked_at = Some(completed_at);
            snapshot.running.push(Running {
                cluster: cluster.cluster.clone(),
                task: "dump",
                started_at: completed_at,
                step: evil.to_owned(),
                plain_bytes: 500,
                stored_bytes: 100,
                expected_bytes: Some(1000),
            });
            snapshot.clusters.push(cluster);
        });
        board.read()
    }

    #[test]
    fn a_stale_cluster_is_red_with_its_reason_and_nothing_from_outside_is_markup() {
        let html = page(&example(), at("2026-01-04T00:00:00Z"));
        assert!(!html.contains("<script") && !html.contains("alert('"), "{html}");
        assert!(html.contains("1 of 1 clusters need attention."));
        assert!(html.contains("<span class=\"badge critical\">critical</span>"));
        assert!(html.contains("critical since 2026-01-03T02:00:00Z"), "{html}");
        assert!(html.contains("<progress max=\"1000\" value=\"500\""));
        // No quote ends an attribute early: what is between tags has none.
        assert!(html.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&quot;&amp;"));
        assert!(!html.contains("http://") && !html.contains("https://"), "nothing comes from elsewhere");
    }

    #[test]
    fn a_daemon_that_has_not_looked_says_so() {
        let html = page(&Board::new("one".to_owned(), at("2026-01-01T00:00:00Z")).read(), at("2026-01-01T00:00:01Z"));
        assert!(html.contains("has not looked yet"));
    }

    #[test]
    fn sizes_and_lengths_are_short() {
        assert_eq!(
            [bytes(999), bytes(1000), bytes(1_234_567), bytes(u64::MAX)].join(" "),
            "999 B 1.0 kB 1.2 MB 18446744.0 TB"
        );
        assert_eq!(length(SignedDuration::from_secs(90)), "90 s");
        assert_eq!(length(SignedDuration::from_hours(50)), "2 d");
    }
}
