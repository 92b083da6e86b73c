//! `pglife doctor`: try everything a backup needs, and say what to mend.

use serde::Serialize;

use super::{Context, Failure, output};
use crate::backup;
use crate::control::{ControlPlane, OperationError, failed, sweep};
use crate::docker::binary;
use crate::exit::Exit;
use crate::policy::{Layout, Policy};
use crate::provision;

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    ok: bool,
    found: String,
    next: Option<String>,
    #[serde(skip)]
    exit: Exit,
}

struct Doctor<'a> {
    control: &'a ControlPlane,
    findings: Vec<Finding>,
}

pub(super) async fn run(context: &Context) -> Result<Exit, Failure> {
    let control = context.control().await?;
    let mut doctor = Doctor { control: &control, findings: Vec::new() };
    doctor.good(
        "configuration",
        format!("{}, {} clusters", control.configuration.file.display(), control.configuration.policies.len()),
    );
    doctor.good("state directory", control.configuration.settings.state_dir.display().to_string());
    doctor.hosts().await;
    doctor.repositories();
    doctor.encryption();
    for policy in control.configuration.policies.values() {
        doctor.cluster(policy).await;
    }
    let findings = doctor.findings;
    context.output.items("FindingList", &findings, |_| {
        let mut table = output::table(&["", "WHAT", "FOUND"]);
        for finding in &findings {
            table.add_row([
                if finding.ok { "ok" } else { "BAD" }.to_owned(),
                finding.what.clone(),
                finding.found.clone(),
            ]);
        }
        table
    })?;
    for finding in &findings {
        if let Some(next) = &finding.next {
            context.output.note(&format!("{}: {next}", finding.what));
        }
    }
    Ok(findings.iter().find(|finding| !finding.ok).map_or(Exit::Ok, |finding| finding.exit))
}

impl Doctor<'_> {
    fn good(&mut self, what: impl Into<String>, found: impl Into<String>) {
        self.findings.push(Finding { what: what.into(), ok: true, found: found.into(), next: None, exit: Exit::Ok });
    }

    fn bad(&mut self, what: impl Into<String>, error: OperationError) {
        let found = error.chain();
        self.findings.push(Finding { what: what.into(), ok: false, found, next: error.next, exit: error.exit });
    }

    fn judge(&mut self, what: impl Into<String>, result: Result<String, OperationError>) {
        match result {
            Ok(found) => self.good(what, found),
            Err(error) => self.bad(what, error),
        }
    }

    async fn hosts(&mut self) {
        if let Err(error) = self.control.bury_dead_runs().await {
            self.bad("runs that died", error);
        }
        for host in self.control.configuration.settings.hosts.keys() {
            let what = format!("Docker host {host}");
            let looked = async {
                let engine = self.control.engine(host).await.map_err(failed("it cannot be used"))?;
                let mut swept = sweep(&engine, &self.control.state).await.map_err(failed("orphans cannot be swept"))?;
                swept.extend(binary::sweep(&engine).await.map_err(failed("old executables cannot be swept"))?);
                let version = engine.version();
                Ok(if swept.is_empty() {
                    format!("Docker {version}")
                } else {
                    format!("Docker {version}; swept {}", swept.join(", "))
                })
            };
            let looked = looked.await;
            self.judge(what, looked);
        }
    }

    fn repositories(&mut self) {
        for name in self.control.configuration.settings.repositories.keys() {
            let looked = self.control.repository(name).and_then(|repository| {
                repository.store().check_writable().map_err(failed("it cannot be written"))?;
                let free = repository.store().free_bytes().map_err(failed("its free space cannot be read"))?;
                let place = repository.store().place(None);
                Ok(free.map_or(place.to_string(), |free| format!("{place}, {} free", super::human::bytes(free))))
            });
            self.judge(format!("repository {name}"), looked);
        }
    }

    fn encryption(&mut self) {
        let Some(encryption) = &self.control.configuration.settings.encryption else { return };
        let what = "encryption";
        // A key that is not here is well: backups need none.
        let keys = match self.control.keys(None) {
            Ok(keys) => keys,
            Err(error) => return self.bad(what, error),
        };
        let recipients = &encryption.recipients;
        let theirs = |recipient| keys.as_ref().is_some_and(|keys| keys.recipients().contains(recipient));
        let key = match &keys {
            None => "no key is here, and none is needed for backups",
            Some(_) if recipients.all().any(theirs) => "the key that is here opens what is backed up now",
            Some(_) => "the key that is here does not open what is backed up now",
        };
        let (everyday, escrow) = (recipients.everyday().len(), recipients.escrow().len());
        self.good(what, format!("{everyday} recipients and {escrow} for escrow; {key}"));
        if escrow == 0
            && let Some(finding) = self.findings.last_mut()
        {
            finding.next = Some(
                "there is no escrow recipient: make another key (pglife key generate), lock it away, and add it as `escrow`"
                    .to_owned(),
            );
        }
    }

    async fn cluster(&mut self, policy: &Policy) {
        let what = format!("cluster {}", policy.name);
        let looked = async {
            let engine = self.control.engine(&policy.host).await.map_err(failed("its host cannot be used"))?;
            if let Layout::Managed(managed) = &policy.layout {
                for image in [managed.image.as_str(), provision::DATA_IMAGE] {
                    engine.require_image(image).await.map_err(failed("an image is missing"))?;
                }
            }
            if engine.container(policy.container.as_str()).await.map_err(failed("it cannot be looked at"))?.is_none()
                && matches!(policy.layout, Layout::Managed(_))
            {
                return Ok(format!("not created yet; pglife cluster create {}", policy.name));
            }
            let plan = match backup::dry_run(self.control, policy, None).await {
                // A cluster that is being backed up is well.
                Err(busy) if busy.exit == Exit::LockBusy => return Ok(format!("not looked at: {}", busy.chain())),
                planned => planned?,
            };
            Ok(format!(
                "PostgreSQL {}; a worker runs beside it and logs in; {} databases to back up",
                plan.server.version,
                plan.databases.len()
            ))
        };
        let looked = looked.await;
        self.judge(what, looked);
    }
}
