//! The one container of an adopted cluster: what stands in the way of another in its place, and what that one is made of. Pure.
//!
//! The new container has everything of the old one but its image and the volume with the data. That is mounted where the old one was,
//! and the data directory stays the same path, said by `PGDATA`: newer official images have another of their own.

use std::num::NonZeroU16;

use super::carried::tls_files;
use super::plan::Single;
use super::preflight::Finding;
use crate::backup_set::ServerProfile;
use crate::cluster::{PgMajor, RoleName};
use crate::docker::body::{ContainerCreateBody, HostConfig};
use crate::docker::container::is_below;
use crate::docker::worker::WorkerMount;
use crate::docker::{Container, Image, Mount, SmallFile};
use crate::policy::{Layout, Policy};
use crate::postgres::survey::Survey;
use crate::provision::SETTINGS_OF_RESTORES;
use crate::worker::BESIDE;

/// Where images of the official layout look for what they shall run in a new data directory.
const FIRST_START: &str = "/docker-entrypoint-initdb.d";

/// The access rules of the server into which the data go: workers alone reach it.
const RULES: (&str, &str) = ("/etc", "pglife-hba.conf");

/// The image of major `to` that has the name of `image` but for the major: `postgres:17.6-alpine` becomes `postgres:18-alpine`. None
/// where its name does not tell its major.
pub(super) fn successor(image: &str, from: PgMajor, to: PgMajor) -> Option<String> {
    let name = image.split('@').next().unwrap_or_default();
    let (repository, tag) = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'))?;
    let rest = tag.strip_prefix(from.to_string().as_str())?;
    let (minor, variant) = rest.find('-').map_or((rest, ""), |at| rest.split_at(at));
    let is_minor = minor.is_empty()
        || minor.strip_prefix('.').is_some_and(|numbers| {
            numbers.split('.').all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        });
    is_minor.then(|| format!("{repository}:{to}{variant}"))
}

/// Why `image` cannot stand for a newer major of a container with the official layout.
pub(super) fn unfit(image: &Image) -> Option<&'static str> {
    if image.is_ours() {
        return Some("has the layout of pglife's own images");
    }
    let has_pgdata = image.environment.iter().any(|variable| variable.starts_with("PGDATA="));
    (!has_pgdata).then_some("has no PGDATA: it is not in the layout of the official image")
}

/// What is known of the one container `old`, whose data directory is `pgdata`. A new folder of the host has `suffix` behind its name.
pub(super) fn single(old: &Container, pgdata: &str, profile: &ServerProfile, suffix: &str) -> Single {
    let pgdata = pgdata.trim_end_matches('/');
    let folder = old.mount_of(pgdata).filter(|mount| mount.kind == "bind");
    // One that came of an upgrade has a suffix already.
    let mark = format!("-pg{}-", profile.major);
    let plain = |folder: &str| {
        let stamped = folder.rsplit_once(&mark).filter(|(_, stamp)| stamp.len() == 16 && stamp.ends_with('Z'));
        stamped.map_or(folder, |(plain, _)| plain).to_owned()
    };
    let value = |name: &str| Some((name.to_owned(), profile.settings.get(name)?.clone()));
    Single {
        data_mount: old.mount_of(pgdata).map_or(pgdata, |mount| mount.destination.trim_end_matches('/')).to_owned(),
        pgdata: pgdata.to_owned(),
        restore_settings: SETTINGS_OF_RESTORES.into_iter().filter_map(value).collect(),
        new_folder: folder.map(|mount| plain(mount.source.trim_end_matches('/')) + suffix),
    }
}

/// What a worker mounts to see how much room the disk with the data has; of pglife's own containers it sees that by the socket's volume.
pub(super) fn data_seen_by_a_survey(policy: &Policy, container: &Container) -> Vec<WorkerMount> {
    let Layout::Adopted(layout) = &policy.layout else { return vec![] };
    let found = container.mount_of(&layout.pgdata.to_string_lossy());
    let Some(mount) = found.filter(|mount| ["volume", "bind"].contains(&mount.kind.as_str())) else { return vec![] };
    let own = WorkerMount { source: mount.source.clone(), destination: mount.destination.clone(), writable: false };
    let above = (mount.kind == "bind").then(|| beside(&mount.source, false).0);
    [own].into_iter().chain(above).collect()
}

/// The folder of the host above `folder`, as a worker mounts it, and where it sees `folder` then.
pub(super) fn beside(folder: &str, writable: bool) -> (WorkerMount, String) {
    let (above, name) = folder.trim_end_matches('/').rsplit_once('/').unwrap_or_default();
    let source = if above.is_empty() { "/" } else { above };
    let mount = WorkerMount { source: source.to_owned(), destination: BESIDE.to_owned(), writable };
    (mount, format!("{BESIDE}/{name}"))
}

/// The old volume and the new one, as a worker mounts them that makes this one like that one, and where it sees the new one and the old one.
pub(super) fn both(old: &str, new: &str) -> ([WorkerMount; 2], String, String) {
    let seen = |name: &str| format!("{BESIDE}/{name}");
    let mount = |source: &str, name: &str, writable| WorkerMount {
        source: source.to_owned(),
        destination: seen(name),
        writable,
    };
    ([mount(new, "new", true), mount(old, "old", false)], seen("new"), seen("old"))
}

/// What may be done instead, where no other container can take the place of the old one.
const INTO_ANOTHER: &str = "restore a backup of it into a new cluster: pglife restore … --into NAME";

/// What stands in the way of another container in the place of `old`, which is made of `body`, and what should be known. `images` are the
/// old one's and the new one's.
pub(super) fn findings(
    old: &Container,
    body: &ContainerCreateBody,
    images: [&Image; 2],
    pgdata: &str,
    survey: &Survey,
) -> Vec<Finding> {
    let mut found = of_data(old, body, pgdata, survey);
    found.extend(of_sockets(old, survey));
    found.extend(of_start(old, body, images));
    found.extend(of_files(old, pgdata, survey));
    if let Some(project) = old.labels.get("com.docker.compose.project") {
        found.push(Finding::warning(
            format!(
                "the container belongs to project \"{project}\" of Docker Compose, whose file names the old image and the old volume; until \
                 `finalize` the kept container belongs to it, too, and `docker compose start`, `restart`, `down` and `up` would start or \
                 remove that one"
            ),
            "use none of them until `finalize` (docker restart NAME does for the new one); write the new image and volume into the file \
             before the next `docker compose up`, which would make the old container again",
        ));
    }
    found
}

/// Where the data lie.
fn of_data(old: &Container, body: &ContainerCreateBody, pgdata: &str, survey: &Survey) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut blocks = |what: String, remedy: &str| found.push(Finding::blocks(what, remedy));
    let mount = old.mount_of(pgdata);
    match mount {
        Some(mount) if mount.kind == "bind" && survey.is_own_disk => blocks(
            format!(
                "its data lie in {} of the host, which is a disk of its own: beside it there is no room for others",
                mount.source
            ),
            INTO_ANOTHER,
        ),
        Some(mount) if mount.kind == "volume" || mount.kind == "bind" => {}
        _ => blocks(
            format!("the data directory {pgdata} lies in the container itself, or in memory, and would go with it"),
            INTO_ANOTHER,
        ),
    }
    let host = body.host_config.as_ref();
    let asked = host.and_then(|host| host.mounts.as_deref()).unwrap_or_default();
    let is_of_data = |target: &str| mount.is_some_and(|mount| same_path(target, &mount.destination));
    if let Some(folder) = asked
        .iter()
        .filter(|asked| asked.target.as_deref().is_some_and(is_of_data))
        .find_map(|asked| asked.volume_options.as_ref()?.subpath.as_ref().filter(|folder| !folder.is_empty()))
    {
        blocks(format!("its data lie in a part of a volume, {folder}, which pglife does not look for"), INTO_ANOTHER);
    }
    if survey.data_directory.trim_end_matches('/') != pgdata {
        blocks(
            format!("its data directory is {}, and the policy says {pgdata}", survey.data_directory),
            "correct `pgdata` in the policy",
        );
    }
    let in_memory = host.and_then(|host| host.tmpfs.as_ref()).into_iter().flatten().map(|(folder, _)| folder);
    let mut below: Vec<&str> =
        old.mounts.iter().map(|mount| &mount.destination).chain(in_memory).map(String::as_str).collect();
    below.retain(|folder| is_below(folder, pgdata) && !same_path(folder, pgdata));
    below.sort_unstable();
    below.dedup();
    for folder in below {
        blocks(
            format!("{folder} is mounted inside the data directory: a new one is made in an empty folder"),
            "make the container anew without that mount, after moving what is in there into the data directory; or restore a backup of it \
             into a new cluster: pglife restore … --into NAME",
        );
    }
    let of_variable = old.variable("POSTGRES_INITDB_WALDIR").filter(|folder| !is_below(folder, pgdata));
    let of_option = old.variable("POSTGRES_INITDB_ARGS").is_some_and(names_wal_folder);
    if let Some(folder) = of_variable.or(of_option.then_some("another folder (POSTGRES_INITDB_ARGS)")) {
        blocks(
            format!("its WAL lies in {folder}, outside the data directory: both servers would write there"),
            INTO_ANOTHER,
        );
    }
    found
}

/// Whether options of initdb say where the WAL lies.
fn names_wal_folder(options: &str) -> bool {
    let says = |word: &str| ["-X", "--waldir", "--xlogdir"].iter().any(|option| word.starts_with(option));
    options.split_whitespace().any(|word| says(word.trim_start_matches(['\'', '"'])))
}

/// Where clients have the socket.
fn of_sockets(old: &Container, survey: &Survey) -> Vec<Finding> {
    let shared = shared_sockets(old, survey).into_iter().map(|(folder, mount)| {
        Finding::blocks(
            format!(
                "its socket folder {folder} lies in {} {}, which other containers may have, too: clients would enter servers that are not \
                 proven yet",
                mount.kind, mount.source
            ),
            "make the container anew without that mount, and have clients enter by TCP; or restore a backup of it into a new cluster: \
             pglife restore … --into NAME",
        )
    });
    shared.collect()
}

/// What starts the server, and others of its kind.
fn of_start(old: &Container, body: &ContainerCreateBody, images: [&Image; 2]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut blocks = |what: String, remedy: &str| found.push(Finding::blocks(what, remedy));
    if body.host_config.as_ref().is_some_and(|host| host.auto_remove == Some(true)) {
        blocks(
            "the container was made with --rm: once stopped it would be gone, and the way back with it".to_owned(),
            "make it anew without --rm, on the same volume",
        );
    }
    if let Some(label) = ["com.docker.swarm.service.name", "io.kubernetes.pod.name"]
        .iter()
        .find(|label| old.labels.contains_key(**label))
    {
        blocks(
            format!("the container belongs to something that would start another one in its place ({label})"),
            INTO_ANOTHER,
        );
    }
    let first = body.cmd.as_ref().and_then(|command| command.first());
    let is_plain = first.is_none_or(|word| word == "postgres" || word.starts_with('-'));
    if body.entrypoint.is_some() || !is_plain {
        blocks(
            "it is started by a command of its own, to which no settings can be added".to_owned(),
            "start it by the image's own entry point, with `postgres` and its settings as the command",
        );
    }
    // The container has no command of its own.
    for image in images.iter().filter(|image| body.cmd.is_none() && image.command != ["postgres"]) {
        blocks(
            format!(
                "the container is started by the command of its image, and that of {} is not `postgres` alone: {}",
                image.reference,
                image.command.join(" ")
            ),
            "make the container anew with a command of its own, not the image's, that begins with `postgres` and has all that the \
             server needs; or restore a backup of it into a new cluster: pglife restore … --into NAME",
        );
    }
    found
}

/// What the server reads besides its data.
fn of_files(old: &Container, pgdata: &str, survey: &Survey) -> Vec<Finding> {
    let tls = tls_files(survey);
    let read = survey.settings.iter().map(|setting| &setting.file).chain(&survey.access_files).chain(&tls);
    let mut outside: Vec<&String> = read.filter(|file| !is_below(file, pgdata)).collect();
    outside.sort();
    outside.dedup();
    let data = old.mount_of(pgdata);
    let told = outside.into_iter().filter_map(|file| match old.mount_of(file) {
        None => Some(Finding::warning(
            format!("{file} lies in the old container or its image, and is not carried"),
            "have it in the new image, too; or in the data directory, or in a folder that is mounted",
        )),
        mount if mount == data => Some(Finding::blocks(
            format!("{file} lies beside the data directory, in what holds the old data: the new server would not find it"),
            "move it into the data directory, or into a folder that is mounted by itself, and change the setting that names it",
        )),
        Some(_) => None,
    });
    told.collect()
}

/// The folders in which the server, or a new one that has not its settings yet, has its socket, where they lie in a mount of `old` that
/// others may have, too.
fn shared_sockets<'c>(old: &'c Container, survey: &Survey) -> Vec<(String, &'c Mount)> {
    /// Where the official image has it.
    const USUAL: &str = "/var/run/postgresql";
    let whole = |folder: &String| match folder.strip_prefix('@') {
        // No file, but a name in the container's own network.
        Some(_) => None,
        None if folder.starts_with('/') => Some(folder.clone()),
        None => Some(format!("{}/{folder}", survey.data_directory)),
    };
    let mut folders: Vec<String> = survey.socket_folders.iter().filter_map(whole).collect();
    if !folders.iter().any(|folder| same_path(without_var(folder), without_var(USUAL))) {
        folders.push(USUAL.to_owned());
    }
    let shared = |folder: String| {
        let holds = |mount: &&Mount| {
            is_below(&folder, &mount.destination) || is_below(without_var(&folder), without_var(&mount.destination))
        };
        let depth = |mount: &&Mount| without_var(&mount.destination).len();
        let mount = old.mounts.iter().filter(holds).max_by_key(depth)?;
        ["volume", "bind"].contains(&mount.kind.as_str()).then_some((folder, mount))
    };
    folders.into_iter().filter_map(shared).collect()
}

/// In images `/var/run` is another name for `/run`.
fn without_var(path: &str) -> &str {
    if is_below(path, "/var/run") { path.strip_prefix("/var").unwrap_or(path) } else { path }
}

/// Has a container mount what `old` mounts, wherever that had it from, but `data` in the place of its volume with the data.
pub(super) fn mount(host: &mut HostConfig, old: &Container, data: Option<(&Single, &str)>) {
    let (mut binds, mut mounts) = (host.binds.take().unwrap_or_default(), host.mounts.take().unwrap_or_default());
    // A volume without a name would be another, empty one.
    mounts.retain(|mount| mount.source.is_some() || mount.typ.is_none_or(|kind| kind.to_string() != "volume"));
    host.volumes_from = None;
    let is_named = |path: &str| {
        binds.iter().any(|bind| destination(bind) == path)
            || mounts.iter().any(|mount| mount.target.as_deref().is_some_and(|target| same_path(target, path)))
    };
    let unnamed: Vec<String> = old
        .mounts
        .iter()
        .filter(|mount| ["volume", "bind"].contains(&mount.kind.as_str()) && !is_named(&mount.destination))
        .map(|mount| format!("{}:{}{}", mount.source, mount.destination, if mount.writable { "" } else { ":ro" }))
        .collect();
    binds.extend(unnamed);
    if let Some((single, source)) = data {
        binds.retain(|bind| destination(bind) != single.data_mount);
        mounts.retain(|mount| mount.target.as_deref().is_none_or(|target| !same_path(target, &single.data_mount)));
        binds.push(format!("{source}:{}", single.data_mount));
    }
    host.binds = Some(binds);
    host.mounts = Some(mounts);
}

/// Where a bind of the form `source:destination[:options]` is seen.
fn destination(bind: &str) -> &str {
    bind.split(':').nth(1).unwrap_or_default().trim_end_matches('/')
}

fn same_path(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// The data directory stays where it is, whatever the image says.
pub(super) fn keep_data_directory(body: &mut ContainerCreateBody, single: &Single) {
    let environment = body.env.get_or_insert_default();
    environment.retain(|variable| !variable.starts_with("PGDATA="));
    environment.push(format!("PGDATA={}", single.pgdata));
}

/// Adds settings to the command; where it is the image's, to that of the official image.
pub(super) fn add_settings<'s>(body: &mut ContainerCreateBody, settings: impl IntoIterator<Item = &'s str>) {
    let command = body.cmd.get_or_insert_with(|| vec!["postgres".to_owned()]);
    command.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting.to_owned()]));
}

/// The server is reached from within the container alone, by workers.
pub(super) const HIDDEN: &str = "listen_addresses=127.0.0.1";

/// A container in another's network would be found there.
pub(super) fn own_network(host: &mut HostConfig) {
    if host.network_mode.as_deref().is_some_and(|mode| mode == "host" || mode.starts_with("container:")) {
        host.network_mode = Some("bridge".to_owned());
    }
}

/// Makes of `body` the server into which the data go: empty, without secrets, with the settings that a restore needs and no others.
pub(super) fn empty(
    body: &mut ContainerCreateBody,
    single: &Single,
    role: &RoleName,
    port: NonZeroU16,
    wal_segment_bytes: u64,
) {
    /// What makes roles, databases and rules at the first start.
    const OF_FIRST_START: [&str; 5] =
        ["POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_HOST_AUTH_METHOD", "POSTGRES_INITDB_WALDIR"];
    let host = body.host_config.get_or_insert_default();
    if let Some(binds) = &mut host.binds {
        binds.retain(|bind| !is_below(destination(bind), FIRST_START));
    }
    if let Some(mounts) = &mut host.mounts {
        mounts.retain(|mount| mount.target.as_deref().is_none_or(|target| !is_below(target, FIRST_START)));
    }
    // Those of the image, too.
    host.tmpfs.get_or_insert_default().insert(FIRST_START.to_owned(), String::new());
    host.readonly_rootfs = Some(false);
    let environment = body.env.get_or_insert_default();
    environment.retain(|variable| !OF_FIRST_START.iter().any(|name| variable.starts_with(name)));
    environment.extend([
        format!("POSTGRES_USER={role}"),
        "POSTGRES_DB=postgres".to_owned(),
        // The role has no password until the roles are restored; by the rules of this server nobody else enters.
        "POSTGRES_HOST_AUTH_METHOD=trust".to_owned(),
    ]);
    if wal_segment_bytes != 16 << 20 {
        environment.retain(|variable| !variable.starts_with("POSTGRES_INITDB_ARGS"));
        environment.push(format!("POSTGRES_INITDB_ARGS=--wal-segsize={}", wal_segment_bytes >> 20));
    }
    body.cmd = Some(vec!["postgres".to_owned()]);
    let settings = single.restore_settings.iter().map(|(name, value)| format!("{name}={value}"));
    let fixed = [
        "ssl=off".to_owned(),
        "synchronous_standby_names=".to_owned(),
        format!("port={port}"),
        format!("hba_file={}/{}", RULES.0, RULES.1),
    ];
    let all: Vec<String> = settings.chain(fixed).collect();
    add_settings(body, all.iter().map(String::as_str));
}

/// The access rules of that server, and the folder where it looks for them.
pub(super) fn rules() -> (&'static str, SmallFile) {
    let content =
        b"# Workers of pglife, while the data go in.\nlocal all all trust\nhost all all 127.0.0.1/32 trust\n".to_vec();
    (RULES.0, SmallFile { name: RULES.1.to_owned(), content, mode: 0o644 })
}

#[cfg(test)]
mod tests;
