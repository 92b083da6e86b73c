//! Clusters: making the two containers, taking over a container that somebody else made, and removing them.
//!
//! ```text
//! create:  images ─▶ volumes ─▶ data container ─▶ secrets into /secret ─▶ database container ─▶ start ─▶ a worker logs in
//! ```
//!
//! Everything is recorded before it is made, so a run that fails or dies leaves nothing half-made. `remove` keeps the
//! volumes unless it is told twice.

pub mod adopt;
pub mod kept;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::backup_set::ServerProfile;
use crate::cluster::{ClusterName, ContainerName, DatabaseName, HostName, PgMajor, RoleName, VolumeName};
use crate::control::{
    ControlPlane, OperationError, Progress, Run, Tick, ask_server, close_worker, failed, start_worker,
};
use crate::docker::body::{ContainerCreateBody, HostConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum};
use crate::docker::label::{self, Purpose};
use crate::docker::worker::{WorkerNetwork, WorkerPlan};
use crate::docker::{Container, Engine, Image, Limits, SmallFile};
use crate::exit::Exit;
use crate::policy::{Layout, Login, Managed, Policy};
use crate::state::{Operation, Thing};
use crate::worker::session::Session;

/// The image of data containers.
pub const DATA_IMAGE: &str = "pglife/data";
/// How long a new server may take until it answers: initdb on a slow disk.
pub const FIRST_START_SECONDS: u64 = 180;
/// How long a server may take until it has replayed the WAL of a backup.
pub const RECOVERY_SECONDS: u64 = 1800;
/// Settings of a throwaway server: it archives, replicates and listens nowhere, and writes nothing by itself.
pub const REACHES_NOTHING: &str =
    "archive_mode = off\nautovacuum = off\nlisten_addresses = ''\nmax_logical_replication_workers = 0\n";
/// Settings of the cluster that a restore may need, or that decide how long it takes.
pub const SETTINGS_OF_RESTORES: [&str; 11] = [
    "shared_preload_libraries",
    "max_locks_per_transaction",
    "max_prepared_transactions",
    "max_connections",
    "max_worker_processes",
    "max_parallel_workers",
    "max_parallel_maintenance_workers",
    "shared_buffers",
    "maintenance_work_mem",
    "work_mem",
    "max_wal_size",
];
/// The file in `/config` for settings of a plan: the last one that the server reads.
const SETTINGS_FILE: &str = "zzzz-pglife.conf";
/// What lives for a drill may be swept after this long, whoever made it.
const THROWAWAY_LIFETIME: jiff::SignedDuration = jiff::SignedDuration::from_hours(48);
/// How long a server may take to shut down before it is killed.
pub const STOP_PATIENCE: Duration = Duration::from_secs(120);

/// The volumes of a data container: what follows the cluster's name in theirs, and where they are mounted.
const VOLUMES: [(&str, &str); 4] = [("data", "/data"), ("config", "/config"), ("secret", "/secret"), ("log", "/log")];

/// Everything about the containers of a cluster that is about to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterPlan {
    /// The cluster.
    pub cluster: ClusterName,
    /// The host.
    pub host: HostName,
    /// The image of the database container, by name.
    pub image: String,
    /// The major in it.
    pub major: PgMajor,
    /// The database container.
    pub container: ContainerName,
    /// The data container.
    pub data_container: ContainerName,
    /// The network to join.
    pub network: Option<String>,
    /// The host's address for the server's port.
    pub publish: Option<SocketAddr>,
    /// The role that initdb makes.
    pub bootstrap_role: RoleName,
    /// Size of a WAL segment in bytes, where it is not the usual one.
    pub wal_segment_bytes: Option<u64>,
    /// The admin role; None makes none.
    pub admin: Option<Admin>,
    /// How long it lives.
    pub life: Life,
    /// Settings that win over all others, for a file in `/config`.
    pub settings: Option<String>,
    /// What the database container may use.
    pub limits: Limits,
}

/// How long the containers of a plan live. What does not stay is swept when its time is up, nobody takes it for the database, and
/// others come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Until somebody removes them.
    Stays,
    /// For one run: the server of a drill, or one that is only asked for a dump.
    Drill,
    /// After a drill, until then: for somebody who wants to look.
    Kept(jiff::Timestamp),
}

/// The admin role of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Its name.
    pub user: RoleName,
    /// Its first password.
    pub password: crate::postgres::Password,
    /// A database of its own.
    pub database: Option<DatabaseName>,
}

impl ClusterPlan {
    /// The plan for `policy`'s own containers, if pglife lays them out.
    pub fn of_policy(policy: &Policy, managed: &Managed) -> Self {
        Self {
            cluster: policy.name.clone(),
            host: policy.host.clone(),
            image: managed.image.as_str().to_owned(),
            major: policy.major,
            container: policy.container.clone(),
            data_container: managed.data_container.clone(),
            network: managed.network.as_ref().map(|network| network.as_str().to_owned()),
            publish: managed.publish,
            bootstrap_role: match &policy.login {
                Login::Socket { user } => user.clone(),
                Login::Tcp { .. } => RoleName::new("postgres").expect("a role's name"),
            },
            wal_segment_bytes: None,
            admin: None,
            life: Life::Stays,
            settings: None,
            limits: Limits::default(),
        }
    }

    /// The volumes, and where they are mounted.
    pub fn volumes(&self) -> impl Iterator<Item = (VolumeName, &'static str)> + '_ {
        VOLUMES.iter().map(|(suffix, destination)| {
            let name = format!("pglife-{}-{suffix}", self.cluster);
            (VolumeName::new(name).expect("a cluster's name fits into a volume's"), *destination)
        })
    }
}

/// A cluster that was made.
#[derive(Debug)]
pub struct Created {
    /// The server, as a worker found it.
    pub server: ServerProfile,
    /// Where the admin's generated password lies, on the control plane's machine.
    pub password_file: Option<std::path::PathBuf>,
}

/// Makes the containers of `policy`.
pub async fn create(
    control: &ControlPlane,
    policy: &Policy,
    progress: Progress<'_>,
) -> Result<Created, OperationError> {
    let what = format!("cluster \"{}\" was not created", policy.name);
    let Layout::Managed(managed) = &policy.layout else {
        return Err(OperationError::new(
            Exit::Refused,
            format!("{what}: its policy has `pgdata`, so it is somebody else's"),
        )
        .next("remove `pgdata` from the policy if pglife shall make the containers"));
    };
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Create, &policy.name, &engine).await?;
    let created = async {
        let (password, password_file) = first_password(control, policy, managed)?;
        let mut plan = ClusterPlan::of_policy(policy, managed);
        plan.admin =
            Some(Admin { user: managed.admin_user.clone(), password, database: managed.admin_database.clone() });
        let image = check_free(&engine, &plan, &what).await?;
        let container = make(&run, &engine, &plan, &what, progress).await?;
        let (session, server) = await_server(
            control,
            &run,
            policy,
            &engine,
            &container,
            &image,
            vec![],
            &what,
            FIRST_START_SECONDS,
            Some(policy.major),
        )
        .await?;
        close_worker(session).await;
        run.keep_made()?;
        Ok(Created { server, password_file })
    }
    .await
    .map_err(|error: OperationError| {
        error.safe("what was made for it so far was removed again; nothing else was touched")
    });
    run.end(created, |created| (Exit::Ok, format!("PostgreSQL {}", created.server.version), None)).await
}

/// The admin's first password: from the policy's file, or a generated one in a file of our own.
fn first_password(
    control: &ControlPlane,
    policy: &Policy,
    managed: &Managed,
) -> Result<(crate::postgres::Password, Option<std::path::PathBuf>), OperationError> {
    let what = format!("cluster \"{}\" was not created", policy.name);
    let io = |action: String| {
        let what = what.clone();
        move |error: std::io::Error| OperationError {
            source: Some(Box::new(error)),
            ..OperationError::new(Exit::Credentials, format!("{what}: {action}"))
        }
    };
    if let Some(file) = &managed.admin_password_file {
        let path = control.configuration.settings.resolve(file);
        let text = std::fs::read_to_string(&path)
            .map_err(io(format!("the password file {} cannot be read", path.display())))?;
        return Ok((crate::postgres::Password::new(text.trim_end_matches(['\n', '\r'])), None));
    }
    let folder = control.configuration.settings.state_dir.join("secrets");
    let path = folder.join(format!("{}.{}", policy.name, managed.admin_user.as_str().replace('/', "_")));
    let keep = || -> std::io::Result<String> {
        use std::io::Write as _;
        use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let mut random = [0_u8; 24];
        getrandom::fill(&mut random).map_err(std::io::Error::other)?;
        let text: String =
            random.iter().map(|byte| char::from(b"abcdefghijkmnpqrstuvwxyz23456789"[usize::from(byte & 31)])).collect();
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        writeln!(file, "{text}")?;
        file.sync_all()?;
        Ok(text)
    };
    let text = keep().map_err(io(format!("the password file {} cannot be written", path.display())))?;
    Ok((crate::postgres::Password::new(text), Some(path)))
}

/// Images are there, names are free: everything that can be known before anything is made. Returns the database image.
pub async fn check_free(engine: &Engine, plan: &ClusterPlan, what: &str) -> Result<Image, OperationError> {
    let image = engine.require_image(&plan.image).await.map_err(failed(what))?;
    engine.require_image(DATA_IMAGE).await.map_err(failed(what))?;
    let mut taken = Vec::new();
    for container in [&plan.container, &plan.data_container] {
        if let Some(found) = engine.container(container.as_str()).await.map_err(failed(what))? {
            taken.push(format!("container \"{container}\" ({})", found.status));
        }
    }
    for (volume, _) in plan.volumes() {
        if engine.volume(&volume).await.map_err(failed(what))?.is_some() {
            taken.push(format!("volume \"{volume}\""));
        }
    }
    if taken.is_empty() {
        return Ok(image);
    }
    Err(OperationError::new(Exit::Refused, format!("{what}: already there on host \"{}\": {}", plan.host, taken.join(", ")))
        .safe("nothing was touched")
        .next(format!(
            "choose another name; or, only if they are no longer needed, remove them: pglife cluster remove {} --volumes --yes",
            plan.cluster
        )))
}

/// Makes volumes and containers and starts the server. The caller has checked that the names are free.
pub async fn make(
    run: &Run<'_>,
    engine: &Engine,
    plan: &ClusterPlan,
    what: &str,
    progress: Progress<'_>,
) -> Result<Container, OperationError> {
    make_data(run, engine, plan, what, progress).await?;
    make_database(run, engine, plan, what, progress).await
}

fn labels(run: &Run<'_>, plan: &ClusterPlan, role: &str) -> HashMap<String, String> {
    let short_lived = |purpose, expires| label::short_lived(purpose, &run.id, &plan.cluster, expires);
    let mut labels = match plan.life {
        Life::Stays => label::of_cluster(Purpose::Cluster, &run.id, &plan.cluster),
        Life::Drill => short_lived(Purpose::Drill, jiff::Timestamp::now() + THROWAWAY_LIFETIME),
        Life::Kept(until) => short_lived(Purpose::Kept, until),
    };
    labels.insert(label::ROLE.to_owned(), role.to_owned());
    labels
}

/// Makes the volumes and the container that holds them.
pub async fn make_data(
    run: &Run<'_>,
    engine: &Engine,
    plan: &ClusterPlan,
    what: &str,
    progress: Progress<'_>,
) -> Result<(), OperationError> {
    progress(Tick::Step(format!("creating the containers \"{}\" and \"{}\"", plan.data_container, plan.container)));
    for (volume, _) in plan.volumes() {
        run.will_make(&plan.host, &Thing::Volume(volume.to_string()))?;
        engine.ensure_volume(&volume, &labels(run, plan, "data")).await.map_err(failed(what))?;
    }
    run.will_make(&plan.host, &Thing::Container(plan.data_container.to_string()))?;
    let data = engine
        .create_container(&plan.data_container, data_body(plan, labels(run, plan, "data")))
        .await
        .map_err(failed(what))?;
    let secrets = secret_files(plan);
    if !secrets.is_empty() {
        engine.put_files(&data, "/secret", &secrets).await.map_err(failed(what))?;
    }
    Ok(())
}

/// Makes the database container on volumes that are there, and starts the server.
pub async fn make_database(
    run: &Run<'_>,
    engine: &Engine,
    plan: &ClusterPlan,
    what: &str,
    progress: Progress<'_>,
) -> Result<Container, OperationError> {
    if let Some(settings) = &plan.settings {
        let file = SmallFile { name: SETTINGS_FILE.to_owned(), content: settings.clone().into_bytes(), mode: 0o644 };
        engine.put_files(plan.data_container.as_str(), "/config", &[file]).await.map_err(failed(what))?;
    }
    run.will_make(&plan.host, &Thing::Container(plan.container.to_string()))?;
    let database = engine
        .create_container(&plan.container, database_body(plan, labels(run, plan, "database")))
        .await
        .map_err(failed(what))?;
    progress(Tick::Step("starting the server".to_owned()));
    engine.start(&database).await.map_err(failed(what))?;
    engine.require_container(&plan.container).await.map_err(failed(what))
}

/// Removes the containers and volumes of a plan that the run needs no more; what cannot be removed now is left to the next command.
pub async fn give_up(run: &Run<'_>, plan: &ClusterPlan) {
    let containers = [&plan.container, &plan.data_container].map(|name| Thing::Container(name.to_string()));
    let volumes = plan.volumes().map(|(volume, _)| Thing::Volume(volume.to_string()));
    for thing in containers.into_iter().chain(volumes) {
        run.give_up(&plan.host, &thing).await;
    }
}

fn secret_files(plan: &ClusterPlan) -> Vec<SmallFile> {
    let Some(admin) = &plan.admin else { return vec![] };
    let file = |name: &str, content: &str| SmallFile {
        name: name.to_owned(),
        content: content.as_bytes().to_vec(),
        mode: 0o600,
    };
    let mut files = vec![file("adminuser", admin.user.as_str()), file("adminpass", admin.password.reveal())];
    files.extend(admin.database.as_ref().map(|database| file("admindb", database.as_str())));
    files
}

fn data_body(plan: &ClusterPlan, labels: HashMap<String, String>) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(DATA_IMAGE.to_owned()),
        labels: Some(labels),
        network_disabled: Some(true),
        host_config: Some(HostConfig {
            binds: Some(plan.volumes().map(|(volume, destination)| format!("{volume}:{destination}")).collect()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn database_body(plan: &ClusterPlan, labels: HashMap<String, String>) -> ContainerCreateBody {
    let mut environment = vec![format!("POSTGRES_USER={}", plan.bootstrap_role)];
    if let Some(bytes) = plan.wal_segment_bytes {
        environment.push(format!("POSTGRES_INITDB_ARGS=--wal-segsize={}", bytes >> 20));
    }
    let publish = plan.publish.map(|address| {
        let binding =
            PortBinding { host_ip: Some(address.ip().to_string()), host_port: Some(address.port().to_string()) };
        HashMap::from([("5432/tcp".to_owned(), Some(vec![binding]))])
    });
    ContainerCreateBody {
        image: Some(plan.image.clone()),
        env: Some(environment),
        labels: Some(labels),
        host_config: Some(HostConfig {
            volumes_from: Some(vec![plan.data_container.to_string()]),
            network_mode: plan.network.clone(),
            port_bindings: publish,
            restart_policy: (plan.life == Life::Stays).then_some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::UNLESS_STOPPED),
                maximum_retry_count: None,
            }),
            // A throwaway server gets what others leave; where cores are idle this costs nothing.
            memory: plan.limits.memory_bytes,
            nano_cpus: plan.limits.nano_cpus,
            cpu_shares: (plan.life != Life::Stays).then_some(128),
            // PostgreSQL uses /dev/shm for parallel queries; Docker's 64 MB are too few for them.
            shm_size: Some(256 << 20),
            ..Default::default()
        }),
        stop_timeout: Some(i64::try_from(STOP_PATIENCE.as_secs()).unwrap_or(120)),
        ..Default::default()
    }
}

/// Starts a worker beside a server that is starting, and waits until it can log in. Leaves the session open. The server must
/// be of `major`, where one is given.
#[expect(clippy::too_many_arguments, reason = "two callers, each with all of it at hand")]
pub async fn await_server(
    control: &ControlPlane,
    run: &Run<'_>,
    policy: &Policy,
    engine: &Engine,
    container: &Container,
    image: &Image,
    mounts: Vec<crate::docker::worker::WorkerMount>,
    what: &str,
    patience_seconds: u64,
    major: Option<PgMajor>,
) -> Result<(Session, ServerProfile), OperationError> {
    let (login, way_in) = control.login(policy, container)?;
    let way_in = way_in.into_iter().filter(|mount| !mounts.iter().any(|other| other.destination == mount.destination));
    let plan = WorkerPlan {
        run: run.id.clone(),
        cluster: policy.name.clone(),
        image_id: image.id.clone(),
        mounts: mounts.iter().cloned().chain(way_in).collect(),
        network: WorkerNetwork::Of(container.id.clone()),
        serves: false,
    };
    let died = || async {
        // What the server said is the reason; that nobody could log in is only how we noticed.
        let now = engine.container(&container.id).await.ok().flatten();
        let log = engine.last_log_lines(&container.id, 15).await.unwrap_or_default();
        (now.is_none_or(|now| !now.running || now.status == "restarting"), log)
    };
    let session = match start_worker(engine, &plan).await {
        Ok(session) => session,
        Err(error) => {
            let (ended, log) = died().await;
            let error = failed(what)(error);
            return Err(if ended {
                OperationError { what: format!("{what}: the server ended at once; its log:\n{log}"), ..error }
            } else {
                error
            });
        }
    };
    let patience = control.cancel.child_token();
    let asked = {
        let mut asking = std::pin::pin!(ask_server(session, login, patience_seconds, &patience));
        tokio::select! {
            asked = &mut asking => asked,
            () = end_of(engine, &container.id) => {
                patience.cancel();
                asking.await
            }
        }
    };
    match asked {
        Ok((session, server)) if major.is_some_and(|major| major != server.major) => {
            close_worker(session).await;
            Err(OperationError::new(
                Exit::Usage,
                format!(
                    "{what}: the policy says PostgreSQL {}, the image {} has {}",
                    policy.major, image.reference, server.major
                ),
            )
            .next("correct `major` or `image` in the policy"))
        }
        Ok(asked) => Ok(asked),
        // It does answer, and says what it wants; or nobody waits for it any more.
        Err(error) if error.exit() == Exit::Credentials || control.cancel.is_cancelled() => Err(failed(what)(error)),
        Err(_) if patience.is_cancelled() => {
            let (_, log) = died().await;
            Err(OperationError::new(Exit::Postgres, format!("{what}: the server ended; its log ends with:\n{log}"))
                .next("mend what its log says, then run the same command again"))
        }
        Err(error) => {
            let (_, log) = died().await;
            let error = failed(what)(error);
            Err(OperationError {
                what: format!("{what}: the server does not answer; its log ends with:\n{log}"),
                ..error
            })
        }
    }
}

/// A server that ended this often while somebody waited for it does not stay up, however often Docker starts it again.
const MOST_RESTARTS: u32 = 3;

/// Waits until the container has ended for good, or ends again and again.
async fn end_of(engine: &Engine, id: &str) {
    let (mut last, mut restarts) = (None, 0);
    loop {
        // Most servers answer before the first look.
        tokio::time::sleep(Duration::from_secs(2)).await;
        match engine.container(id).await {
            Ok(Some(found)) if found.running || found.status == "restarting" => {
                restarts += u32::from(last.as_ref().is_some_and(|last| *last != found.started_at));
                last = Some(found.started_at);
                if restarts >= MOST_RESTARTS {
                    return;
                }
            }
            Ok(_) => return,
            Err(error) => tracing::debug!("{error}"),
        }
    }
}

/// Which containers and volumes there are of a cluster, for `show` and `remove`.
#[derive(Debug)]
pub struct Inventory {
    /// The database container.
    pub database: Option<Container>,
    /// The data container.
    pub data: Option<Container>,
    /// Volumes that carry the cluster's label.
    pub volumes: Vec<VolumeName>,
}

/// Looks at what is there of a cluster.
pub async fn inventory(engine: &Engine, policy: &Policy) -> Result<Inventory, OperationError> {
    let what = format!("cluster \"{}\" cannot be looked at", policy.name);
    let database = engine.container(policy.container.as_str()).await.map_err(failed(&what))?;
    let data = match &policy.layout {
        Layout::Managed(managed) => engine.container(managed.data_container.as_str()).await.map_err(failed(&what))?,
        Layout::Adopted(_) => None,
    };
    let of_cluster = format!("{}={}", label::CLUSTER, policy.name);
    let purpose = format!("{}={}", label::PURPOSE, Purpose::Cluster.as_str());
    let volumes = engine.volumes_labelled(&[&of_cluster, &purpose]).await.map_err(failed(&what))?;
    Ok(Inventory { database, data, volumes: volumes.into_iter().map(|(name, _)| name).collect() })
}

/// What `remove` did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Containers that are gone.
    pub containers: Vec<String>,
    /// Volumes that are gone.
    pub volumes: Vec<VolumeName>,
    /// Volumes that stay.
    pub kept: Vec<VolumeName>,
}

/// Stops and removes the containers of a cluster that pglife made; its volumes only where `volumes` says so.
pub async fn remove(
    control: &ControlPlane,
    policy: &Policy,
    volumes: bool,
    progress: Progress<'_>,
) -> Result<Removed, OperationError> {
    let what = format!("cluster \"{}\" was not removed", policy.name);
    if matches!(policy.layout, Layout::Adopted(_)) {
        return Err(OperationError::new(
            Exit::Refused,
            format!("{what}: it is adopted, so its containers are not pglife's"),
        )
        .safe("nothing was touched")
        .next(format!(
            "delete its policy to let go of it: {}",
            control.configuration.policy_place(&policy.name).display()
        )));
    }
    let engine = control.engine(&policy.host).await.map_err(failed(&what))?;
    let run = control.begin(Operation::Remove, &policy.name, &engine).await?;
    let removed = async {
        let found = inventory(&engine, policy).await?;
        if found.database.is_none() && found.data.is_none() && found.volumes.is_empty() {
            return Err(OperationError::new(
                Exit::NotFound,
                format!("{what}: nothing of it is on host \"{}\"", policy.host),
            ));
        }
        for container in [&found.database, &found.data].into_iter().flatten() {
            if container.labels.get(label::CLUSTER).map(String::as_str) != Some(policy.name.as_str()) {
                return Err(OperationError::new(
                    Exit::Refused,
                    format!(
                        "{what}: container \"{}\" does not carry the cluster's label, so it is not pglife's",
                        container.name
                    ),
                )
                .safe("nothing was touched")
                .next(format!(
                    "look at what it is: docker inspect {}; or correct `container` in the policy",
                    container.name
                )));
            }
        }
        let mut containers = Vec::new();
        if let Some(database) = &found.database {
            progress(Tick::Step("stopping the server".to_owned()));
            engine.stop(&database.id, STOP_PATIENCE).await.map_err(failed(&what))?;
        }
        for container in [found.database, found.data].into_iter().flatten() {
            engine.remove_container(&container.id).await.map_err(failed(&what))?;
            containers.push(container.name);
        }
        let (gone, kept) = if volumes { (found.volumes, vec![]) } else { (vec![], found.volumes) };
        for volume in &gone {
            engine.remove_volume(volume).await.map_err(failed(&what))?;
        }
        Ok(Removed { containers, volumes: gone, kept })
    }
    .await;
    run.end(removed, |removed| (Exit::Ok, format!("removed {}", removed.containers.join(", ")), None)).await
}
