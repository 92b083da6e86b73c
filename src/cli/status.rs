//! `pglife status`: one row a cluster.

use std::io::IsTerminal as _;
use std::time::Duration;

use jiff::Timestamp;

use super::{Context, Failure, human, output};
use crate::cluster::ClusterName;
use crate::exit::Exit;
use crate::status::{self, ClusterStatus, KindStatus, LastBackup, ProofStatus};

/// The command line.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The cluster; without it, all of them
    cluster: Option<ClusterName>,
    /// Show it again every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

/// How often `--watch` looks again.
const WATCH: Duration = Duration::from_secs(2);

pub(super) async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    loop {
        let control = context.control().await?;
        let rows = status::look(&control, args.cluster.as_ref(), Timestamp::now()).await?;
        if args.watch && std::io::stdout().is_terminal() {
            // Home, and clear what is below.
            context.output.data("\u{1b}[H\u{1b}[J")?;
        }
        show(&rows, context)?;
        for row in &rows {
            if let Some(kept) = &row.kept {
                context.output.note(&format!(
                    "note: cluster \"{}\": the server of a drill, container \"{}\", is kept until {}; look at it, or pglife drill remove {}",
                    row.cluster, kept.container, kept.until, row.cluster
                ));
            }
        }
        let scheduled = rows.iter().any(|row| {
            row.dump.next_run_at.is_some() || row.volume.next_run_at.is_some() || row.proof.next_run_at.is_some()
        });
        if scheduled && !control.state.has_daemon() {
            let where_to = "start it: pglife daemon; or see that one works elsewhere";
            context
                .output
                .note(&format!("warning: no daemon works here, so nothing starts what is scheduled; {where_to}"));
        }
        if !args.watch {
            let unknown = rows.iter().any(|row| !row.problems.is_empty());
            return Ok(if unknown { Exit::Warnings } else { Exit::Ok });
        }
        tokio::select! {
            () = tokio::time::sleep(WATCH) => {}
            () = context.cancel.cancelled() => return Ok(Exit::Ok),
        }
    }
}

fn show(rows: &[ClusterStatus], context: &Context) -> Result<(), Failure> {
    let now = Timestamp::now();
    context.output.items("Status", rows, |wide| {
        let mut heads =
            vec!["CLUSTER", "PG", "SERVER", "LAST DUMP", "SIZE", "FRESH", "LAST RUN", "FAILURES", "SCHEDULED"];
        // One column where nobody asked for volume backups would be one too many.
        let volumes = wide || rows.iter().any(|row| is_concerned(&row.volume));
        if volumes {
            heads.extend(["LAST VOLUME", "FRESH", "LAST RUN"]);
        }
        // Nor one for drills where there are none.
        let drills = wide || rows.iter().any(|row| drilled(&row.proof));
        if drills {
            heads.extend(["PROVEN", "FRESH", "LAST DRILL", "RESTORE TAKES"]);
        }
        if wide {
            heads.extend(["HOST", "BACKUPS", "DUMP", "VOLUME BACKUP", "MESSAGE"]);
        }
        let mut table = output::table(&heads);
        for row in rows {
            let last = row.dump.last_backup.as_ref();
            let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
            let age = |last: Option<&LastBackup>| {
                last.map_or_else(|| "never".to_owned(), |last| human::age(last.completed_at, now))
            };
            let fresh = |kind: &KindStatus| kind.freshness.clone().unwrap_or_else(|| "no limit".to_owned());
            let mut cells = vec![
                row.cluster.to_string(),
                row.major.clone(),
                row.server.clone(),
                age(last),
                or_dash(last.map(|last| human::bytes(last.stored_bytes))),
                fresh(&row.dump),
                or_dash(row.dump.last_attempt.map(str::to_owned)),
                row.dump.failures_since_success.to_string(),
                row.dump.next_run_at.map_or_else(|| "by hand".to_owned(), |at| human::age(at, now)),
            ];
            let last_volume = row.volume.last_backup.as_ref();
            if volumes {
                cells.extend([
                    age(last_volume),
                    fresh(&row.volume),
                    or_dash(row.volume.last_attempt.map(str::to_owned)),
                ]);
            }
            if drills {
                let proven = row.proof.last_proven.as_ref();
                cells.extend([
                    proven.map_or_else(|| "never".to_owned(), |proven| human::age(proven.completed_at, now)),
                    row.proof.freshness.clone().unwrap_or_else(|| "no limit".to_owned()),
                    or_dash(row.proof.last_drill.as_ref().map(|drill| drill.result.to_owned())),
                    human::list(row.proof.recovery.iter().map(human::recovery)),
                ]);
            }
            if wide {
                cells.extend([
                    row.host.clone(),
                    (row.dump.backups + row.volume.backups).to_string(),
                    or_dash(last.map(|last| last.set.clone())),
                    or_dash(last_volume.map(|last| last.set.clone())),
                    row.dump.last_message.clone(),
                ]);
            }
            table.add_row(cells);
        }
        table
    })?;
    for row in rows {
        for problem in &row.problems {
            context.output.note(&format!("warning: cluster \"{}\": {problem}", row.cluster));
        }
        for (kind, what) in [(&row.dump, "backup"), (&row.volume, "volume backup")] {
            if kind.last_attempt == Some("failed") {
                let (cluster, said) = (&row.cluster, &kind.last_message);
                context.output.note(&format!("warning: cluster \"{cluster}\": the last {what} failed: {said}"));
            }
        }
        let (cluster, proof) = (&row.cluster, &row.proof);
        if let Some(bad) = &proof.bad {
            context.output.note(&format!(
                "warning: cluster \"{cluster}\": the drill of {} found backup {} bad; see pglife explain {cluster} drill",
                bad.found_at, bad.set
            ));
        } else if let Some(drill) = proof.last_drill.as_ref().filter(|drill| drill.result == "unjudged") {
            context
                .output
                .note(&format!("warning: cluster \"{cluster}\": the last drill came to no verdict: {}", drill.message));
        }
    }
    Ok(())
}

/// True where there is something to say of drills.
fn drilled(proof: &ProofStatus) -> bool {
    proof.proven > 0 || proof.freshness.is_some() || proof.last_drill.is_some() || proof.next_run_at.is_some()
}

/// True where there is something to say of a kind of backup.
fn is_concerned(kind: &KindStatus) -> bool {
    kind.backups > 0 || kind.freshness.is_some() || kind.last_attempt.is_some() || kind.next_run_at.is_some()
}
