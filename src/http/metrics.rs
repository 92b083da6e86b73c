//! The board for Prometheus (text format 0.0.4). Instants are exported, never ages: `time() - x` is the monitor's.
//!
//! Labels are names of clusters, kinds, repositories, hosts, results and levels; never an id, so that series do not multiply.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::status::board::{Role, Snapshot};
use crate::status::{KindStatus, ProofStatus};

/// Series in the making, family by family.
struct Page(String);

impl Page {
    /// A family: what `rows` gives, each with its labels. A family without rows is left out.
    fn family<'a>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, f64)>,
    ) {
        let mut rows = rows.into_iter().peekable();
        if rows.peek().is_none() {
            return;
        }
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, value) in rows {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            self.write(format_args!("{name}{labels} {value}\n"));
        }
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a String takes everything");
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[expect(clippy::cast_precision_loss, reason = "bytes and seconds below 2^53 are exact")]
fn number(value: u64) -> f64 {
    value as f64
}

fn instant(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64().round()
}

fn flag(on: bool) -> f64 {
    if on { 1.0 } else { 0.0 }
}

/// Everything the board has.
pub(super) fn metrics(snapshot: &Snapshot) -> String {
    let mut page = Page(String::new());
    page.family("pglife_build_info", "gauge", "The version that runs.", [(vec![("version", snapshot.version)], 1.0)]);
    page.family(
        "pglife_leader",
        "gauge",
        "1 where this daemon starts scheduled runs.",
        [(vec![], flag(snapshot.role != Role::Standby))],
    );
    let consul = snapshot.consul_up.map(|up| (vec![], flag(up)));
    page.family("pglife_consul_up", "gauge", "1 where Consul answers.", consul);
    let docker = snapshot.docker_up.iter().map(|(host, up)| (vec![("host", host.as_str())], flag(*up)));
    page.family("pglife_docker_up", "gauge", "1 where the Docker engine answers.", docker);
    page.family(
        "pglife_flags",
        "gauge",
        "What an operator should know about the daemon itself.",
        [(vec![], number(snapshot.flags.len() as u64))],
    );
    let uncovered = snapshot.uncovered.as_ref().map(|servers| (vec![], number(servers.len() as u64)));
    page.family(
        "pglife_uncovered_servers",
        "gauge",
        "PostgreSQL servers that run and that no policy covers.",
        uncovered,
    );
    of_clusters(&mut page, snapshot);
    of_kinds(&mut page, snapshot);
    of_drills(&mut page, snapshot);
    of_runs(&mut page, snapshot);
    page.0
}

fn of_clusters(page: &mut Page, snapshot: &Snapshot) {
    let clusters = &snapshot.clusters;
    let up = clusters.iter().map(|it| {
        let up = matches!(it.server.as_str(), "healthy" | "running");
        (vec![("cluster", it.cluster.as_str())], flag(up))
    });
    page.family("pglife_cluster_up", "gauge", "1 where the database container runs and is not unhealthy.", up);
    let info = clusters.iter().map(|it| {
        let labels =
            vec![("cluster", it.cluster.as_str()), ("host", it.host.as_str()), ("pg_major", it.major.as_str())];
        (labels, 1.0)
    });
    page.family("pglife_cluster_info", "gauge", "What the cluster is.", info);
    let down = clusters.iter().map(|it| {
        let down = it.dependents.iter().filter(|dependent| dependent.down_since.is_some()).count();
        (vec![("cluster", it.cluster.as_str())], number(down as u64))
    });
    page.family("pglife_dependents_down", "gauge", "Dependents that pglife took down and has not brought back.", down);
    let dependents =
        clusters.iter().map(|it| (vec![("cluster", it.cluster.as_str())], number(it.dependents.len() as u64)));
    page.family("pglife_dependents", "gauge", "Containers that depend on the cluster.", dependents);
    let uncovered = clusters.iter().filter_map(|it| {
        let coverage = it.coverage.as_ref()?;
        Some((vec![("cluster", it.cluster.as_str())], number(coverage.uncovered.len() as u64)))
    });
    page.family(
        "pglife_uncovered_databases",
        "gauge",
        "Databases that are in no backup and not left out by name.",
        uncovered,
    );
    let repositories = || {
        clusters.iter().flat_map(|it| {
            it.repositories.iter().map(move |repository| {
                (vec![("cluster", it.cluster.as_str()), ("repo", repository.name.as_str())], repository)
            })
        })
    };
    let up = repositories().map(|(labels, repository)| (labels, flag(repository.problem.is_none())));
    page.family("pglife_repo_up", "gauge", "1 where the repository can be read.", up);
    let free = repositories().filter_map(|(labels, repository)| Some((labels, number(repository.free_bytes?))));
    page.family("pglife_repo_free_bytes", "gauge", "Free space where the repository is a folder.", free);
}

fn of_kinds(page: &mut Page, snapshot: &Snapshot) {
    type Value = fn(&KindStatus) -> Option<f64>;
    let families: [(&str, &str, Value); 7] = [
        ("last_success_timestamp_seconds", "When the newest backup was complete.", |it| it.last_known_at.map(instant)),
        ("last_attempt_timestamp_seconds", "When the last run began.", |it| it.last_attempt_at.map(instant)),
        ("last_size_bytes", "Size of the newest backup before compression.", |it| {
            it.last_backup.as_ref().map(|last| number(last.plain_bytes))
        }),
        ("last_stored_bytes", "Size of the newest backup in one repository.", |it| {
            it.last_backup.as_ref().map(|last| number(last.stored_bytes))
        }),
        ("failures_since_success", "Runs that failed since the last one that did not.", |it| {
            Some(number(it.failures_since_success as u64))
        }),
        ("next_run_timestamp_seconds", "When the next scheduled run starts.", |it| it.next_run_at.map(instant)),
        ("count", "Committed backups.", |it| Some(number(it.backups as u64))),
    ];
    let kinds = || {
        snapshot.clusters.iter().flat_map(|it| {
            [("dump", &it.dump), ("volume", &it.volume)]
                .map(|(kind, status)| (vec![("cluster", it.cluster.as_str()), ("kind", kind)], status))
        })
    };
    for (name, help, value) in families {
        let rows = kinds().filter_map(|(labels, status)| Some((labels, value(status)?)));
        page.family(&format!("pglife_backup_{name}"), "gauge", help, rows);
    }
    let limits = kinds().flat_map(|(labels, status)| {
        let limits = status.limits.map(|limits| [("warn", limits.warn_seconds), ("critical", limits.critical_seconds)]);
        limits.into_iter().flatten().map(move |(level, seconds)| {
            let mut labels = labels.clone();
            labels.push(("level", level));
            (labels, number(seconds))
        })
    });
    page.family("pglife_backup_freshness_limit_seconds", "gauge", "The age that the policy allows.", limits);
}

fn of_drills(page: &mut Page, snapshot: &Snapshot) {
    type Value = fn(&ProofStatus) -> Option<f64>;
    let families: [(&str, &str, Value); 6] = [
        ("last_success_timestamp_seconds", "When a drill proved the newest backup that is proven.", |it| {
            it.last_proven.as_ref().map(|proven| instant(proven.proven_at))
        }),
        ("proven_backup_timestamp_seconds", "When the newest proven backup was complete.", |it| {
            it.last_proven.as_ref().map(|proven| instant(proven.completed_at))
        }),
        ("last_attempt_timestamp_seconds", "When the last drill began.", |it| {
            it.last_drill.as_ref().map(|drill| instant(drill.at))
        }),
        ("failures_since_success", "Drills since the last proof that came to none.", |it| {
            Some(number(it.failures_since_success as u64))
        }),
        ("bad", "1 where a drill found a backup bad and no newer one is proven.", |it| Some(flag(it.bad.is_some()))),
        ("next_run_timestamp_seconds", "When the next scheduled drill starts.", |it| it.next_run_at.map(instant)),
    ];
    let clusters = || snapshot.clusters.iter().map(|it| (vec![("cluster", it.cluster.as_str())], &it.proof));
    for (name, help, value) in families {
        let rows = clusters().filter_map(|(labels, proof)| Some((labels, value(proof)?)));
        page.family(&format!("pglife_drill_{name}"), "gauge", help, rows);
    }
    let restores = || {
        clusters().flat_map(|(labels, proof)| {
            proof.recovery.iter().map(move |recovery| {
                let mut labels = labels.clone();
                labels.push(("kind", recovery.kind.as_str()));
                (labels, recovery)
            })
        })
    };
    let last = restores().map(|(labels, recovery)| (labels, recovery.seconds));
    page.family(
        "pglife_drill_last_duration_seconds",
        "gauge",
        "How long the last restore took: the measured RTO.",
        last,
    );
    let median = restores().map(|(labels, recovery)| (labels, recovery.median_seconds));
    page.family(
        "pglife_drill_median_duration_seconds",
        "gauge",
        "How long the last restores took, up to five.",
        median,
    );
    let budget = restores().filter_map(|(labels, recovery)| Some((labels, recovery.budget_seconds?)));
    page.family("pglife_drill_rto_budget_seconds", "gauge", "How long the policy allows a restore to take.", budget);
    let limits = clusters().flat_map(|(labels, proof)| {
        let limits = proof.limits.map(|limits| [("warn", limits.warn_seconds), ("critical", limits.critical_seconds)]);
        limits.into_iter().flatten().map(move |(level, seconds)| {
            let mut labels = labels.clone();
            labels.push(("level", level));
            (labels, number(seconds))
        })
    });
    page.family("pglife_drill_freshness_limit_seconds", "gauge", "The age that the policy allows.", limits);
    let ended =
        snapshot.ended.iter().filter(|((_, task, _), _)| *task == "drill").map(|((cluster, _, result), count)| {
            (vec![("cluster", cluster.as_str()), ("result", *result)], number(*count))
        });
    page.family("pglife_drill_runs_total", "counter", "Scheduled drills since the daemon began.", ended);
    let in_progress = snapshot.clusters.iter().map(|it| {
        let going = snapshot.running.iter().any(|run| run.task == "drill" && run.cluster == it.cluster);
        (vec![("cluster", it.cluster.as_str())], flag(going))
    });
    page.family("pglife_drill_in_progress", "gauge", "1 while a scheduled drill goes on.", in_progress);
}

fn of_runs(page: &mut Page, snapshot: &Snapshot) {
    let ended = || {
        snapshot.ended.iter().map(|((cluster, task, result), count)| {
            (*task, vec![("cluster", cluster.as_str()), ("kind", *task), ("result", *result)], number(*count))
        })
    };
    let is_backup = |task: &str| task == "dump" || task == "volume";
    let backups = ended().filter(|(task, _, _)| is_backup(task)).map(|(_, labels, count)| (labels, count));
    page.family("pglife_backup_runs_total", "counter", "Scheduled backups since the daemon began.", backups);
    for (task, help) in [
        ("verify", "Scheduled verifications since the daemon began."),
        ("rehearsal", "Scheduled rehearsals of upgrades since the daemon began."),
        ("upgrade", "What the daemon did about upgrades by itself since it began."),
    ] {
        let ended = ended().filter(|(ended, _, _)| *ended == task).map(|(_, mut labels, count)| {
            labels.retain(|(key, _)| *key != "kind");
            (labels, count)
        });
        page.family(&format!("pglife_{task}_runs_total"), "counter", help, ended);
    }
    let open = snapshot.clusters.iter().map(|it| {
        let is_open = it.history.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_open);
        (vec![("cluster", it.cluster.as_str())], flag(is_open))
    });
    page.family("pglife_upgrade_in_progress", "gauge", "1 while an upgrade is open.", open);
    let durations = snapshot.durations.iter().filter(|((_, task), _)| is_backup(task));
    let durations =
        durations.map(|((cluster, task), seconds)| (vec![("cluster", cluster.as_str()), ("kind", *task)], *seconds));
    page.family("pglife_backup_last_duration_seconds", "gauge", "How long the last scheduled backup took.", durations);
    let going = |task: &'static str, cluster: &str| {
        snapshot.running.iter().find(|running| running.task == task && running.cluster.as_str() == cluster)
    };
    let all = || snapshot.clusters.iter().flat_map(|it| ["dump", "volume"].map(|task| (it.cluster.as_str(), task)));
    let in_progress =
        all().map(|(cluster, task)| (vec![("cluster", cluster), ("kind", task)], flag(going(task, cluster).is_some())));
    page.family("pglife_backup_in_progress", "gauge", "1 while a scheduled backup goes on.", in_progress);
    let progress = all().filter_map(|(cluster, task)| {
        Some((vec![("cluster", cluster), ("kind", task)], number(going(task, cluster)?.plain_bytes)))
    });
    page.family("pglife_backup_progress_bytes", "gauge", "Bytes read by the step that goes on.", progress);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::page::tests::example;

    #[test]
    fn series_have_names_labels_and_values_and_nothing_breaks_a_line() {
        let text = metrics(&example());
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').expect("a value");
            assert!(series.starts_with("pglife_"), "{line}");
            value.parse::<f64>().expect("a number");
        }
        assert!(
            text.contains("pglife_backup_last_success_timestamp_seconds{cluster=\"chado\",kind=\"dump\"} 1767225600\n"),
            "{text}"
        );
        assert!(text.contains(
            "pglife_backup_freshness_limit_seconds{cluster=\"chado\",kind=\"dump\",level=\"critical\"} 180000\n"
        ));
        assert!(text.contains("pglife_drill_bad{cluster=\"chado\"} 1\n"), "{text}");
        assert!(text.contains("pglife_drill_last_duration_seconds{cluster=\"chado\",kind=\"dump\"} 12.5\n"));
        assert!(text.contains("pglife_repo_up{cluster=\"chado\",repo=\"local\"} 0\n"));
        assert!(text.contains("pglife_backup_in_progress{cluster=\"chado\",kind=\"dump\"} 1\n"));
        // Each family is told once.
        let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let unique: std::collections::BTreeSet<&&str> = families.iter().collect();
        assert_eq!(families.len(), unique.len());
    }

    /// Alerts and the dashboard ask for nothing that is never there.
    #[test]
    fn what_the_documents_ask_for_is_exported() {
        let mut snapshot = example();
        let cluster = &mut snapshot.clusters[0];
        let name = cluster.cluster.clone();
        cluster.proof.recovery[0].budget_seconds = Some(1.0);
        cluster.proof.next_run_at = cluster.dump.next_run_at;
        cluster.proof.limits = cluster.dump.limits;
        let at = cluster.dump.last_known_at.expect("there is one");
        cluster.proof.last_proven =
            Some(crate::status::Proven { set: String::new(), completed_at: at, proven_at: at, rto_seconds: 1 });
        cluster.coverage = Some(crate::status::CoverageStatus { seen_at: at, uncovered: vec![] });
        cluster.repositories[0].free_bytes = Some(1);
        snapshot.uncovered = Some(vec![]);
        snapshot.consul_up = Some(true);
        snapshot.docker_up.insert("local".parse().expect("a name"), true);
        for task in ["dump", "drill"] {
            snapshot.ended.insert((name.clone(), task, "ok"), 1);
            snapshot.durations.insert((name.clone(), task), 1.0);
        }
        let text = metrics(&snapshot);
        let exported: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let documents = [include_str!("../../docs/daemon.md"), include_str!("../../docs/grafana-dashboard.json")];
        let mut asked = 0;
        for document in documents {
            for part in document.split("pglife_").skip(1) {
                let rest: String = part.chars().take_while(|it| it.is_ascii_lowercase() || *it == '_').collect();
                let name = format!("pglife_{rest}");
                assert!(exported.contains(&name.as_str()), "{name} is asked for and not exported: {exported:?}");
                asked += 1;
            }
        }
        assert!(asked > 40, "{asked}");
        let dashboard: serde_json::Value = serde_json::from_str(documents[1]).expect("JSON");
        assert!(dashboard["panels"].as_array().is_some_and(|panels| panels.len() > 10));
    }

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escaped("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
