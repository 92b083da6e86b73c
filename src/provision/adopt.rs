//! Taking over a container that runs PostgreSQL already: everything about it is found by looking, then a policy is written.
//! Nothing about the container changes.

use std::path::PathBuf;

use serde::Serialize;

use crate::cluster::{ClusterName, ContainerName, HostName, PgMajor, RoleName};
use crate::control::{ControlPlane, OperationError, SOCKET_FOLDER, close_worker, failed};
use crate::docker::{Container, Image};
use crate::exit::Exit;
use crate::state::Operation;

use super::await_server;

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// The container.
    pub container: ContainerName,
    /// What the cluster shall be called.
    pub name: ClusterName,
    /// Where the container is.
    pub host: HostName,
    /// The superuser, where looking does not find it.
    pub user: Option<RoleName>,
    /// File with its password, where the server asks for one.
    pub password_file: Option<PathBuf>,
}

/// A container as it was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The data directory.
    pub pgdata: String,
    /// Kind and source of the mount it lies in, such as `volume shop-data`; None where it lies in the container itself.
    pub storage: Option<String>,
    /// The port inside the container.
    pub port: u16,
    /// The superuser.
    pub user: RoleName,
    /// The image.
    pub image: String,
    /// It is made from pglife's own image, so workers enter by the socket.
    pub by_socket: bool,
}

/// A cluster that was taken over.
#[derive(Debug, Serialize)]
pub struct Adopted {
    /// Its policy file.
    pub policy: PathBuf,
    /// What was found.
    pub found: Found,
    /// The server's version.
    pub version: String,
    /// Its major.
    pub major: PgMajor,
    /// What the operator should read.
    pub warnings: Vec<String>,
}

/// Reads from container and image what a policy needs. Pure.
pub fn look(container: &Container, image: &Image, user: Option<&RoleName>) -> Result<Found, String> {
    let variable = |name: &str| {
        let of_image = || image.environment.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        container.variable(name).or_else(of_image).filter(|value| !value.is_empty())
    };
    let argument = container
        .command
        .iter()
        .zip(container.command.iter().skip(1))
        .find_map(|(flag, value)| (flag == "-D").then_some(value.as_str()));
    let pgdata = argument.or(variable("PGDATA")).ok_or(
        "neither its environment nor its image has PGDATA, and it is not started with -D: is this a PostgreSQL server in the official image's layout?",
    )?;
    let port = match variable("PGPORT") {
        Some(text) => text.parse().map_err(|_| format!("PGPORT={text} is not a port"))?,
        None => 5432,
    };
    let user = match (user, variable("POSTGRES_USER")) {
        (Some(user), _) => user.clone(),
        (None, Some(name)) => RoleName::new(name).map_err(|error| error.to_string())?,
        (None, None) => RoleName::new("postgres").map_err(|error| error.to_string())?,
    };
    Ok(Found {
        storage: container.mount_of(pgdata).map(|mount| format!("{} {}", mount.kind, mount.source)),
        pgdata: pgdata.to_owned(),
        port,
        user,
        image: container.image.clone(),
        by_socket: image.is_ours() && container.mount_of(SOCKET_FOLDER).is_some(),
    })
}

/// The policy for what was found.
fn policy_text(request: &Request, found: &Found, major: PgMajor, repository: &str) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let mut text = format!(
        "# Written by `pglife cluster adopt {}`. See `pglife policy show {}` for every setting with its default.\n\n[cluster]\n",
        request.container, request.name
    );
    let mut line = |key: &str, value: String| text.push_str(&format!("{key} = {value}\n"));
    line("host", quoted(request.host.as_str()));
    line("major", quoted(&major.to_string()));
    line("container", quoted(request.container.as_str()));
    line("pgdata", quoted(&found.pgdata));
    line("port", found.port.to_string());
    line("user", quoted(found.user.as_str()));
    if let Some(file) = &request.password_file {
        line("password_file", quoted(&file.to_string_lossy()));
    }
    text.push_str(&format!(
        "\n[backup.dump]\nschedule = \"30 2 * * *\"\ntimezone = \"UTC\"\nrepos = [{}]\n\n[freshness]\ndump = {{ warn = \"26h\", critical = \"50h\" }}\n",
        quoted(repository)
    ));
    text
}

/// Takes over a running container: looks at it, logs in, writes the policy.
pub async fn adopt(control: &ControlPlane, request: &Request) -> Result<Adopted, OperationError> {
    let what = format!("container \"{}\" was not adopted", request.container);
    let repository = control.configuration.settings.repositories.keys().next().ok_or_else(|| {
        OperationError::new(Exit::Usage, format!("{what}: pglife.toml has no repository to back it up to"))
            .next("add one: [repos.local] type = \"local\" path = \"…\"")
    })?;
    let engine = control.engine(&request.host).await.map_err(failed(&what))?;
    let container = engine.require_container(&request.container).await.map_err(failed(&what))?;
    if !container.running {
        return Err(OperationError::new(Exit::Postgres, format!("{what}: it does not run ({})", container.status))
            .next(format!("start it: docker start {}", request.container)));
    }
    let image = engine.require_image(&container.image_id).await.map_err(failed(&what))?;
    let found = look(&container, &image, request.user.as_ref())
        .map_err(|why| OperationError::new(Exit::Refused, format!("{what}: {why}")))?;

    // The major is known only when the server has answered, so the first look goes by a policy that is never written.
    let draft = |major: PgMajor| policy_text(request, &found, major, repository.as_str());
    let check = |text: &str| control.configuration.check_policy(&request.name, text).map_err(failed(&what));
    let policy = check(&draft(PgMajor::since_10(10)))?;
    let run = control.begin(Operation::Adopt, &request.name, &engine).await?;
    let adopted = async {
        let found = found.clone();
        let (session, server) = await_server(
            control,
            &run,
            &policy,
            &engine,
            &container,
            &image,
            vec![],
            &what,
            ADOPT_PATIENCE_SECONDS,
            None,
        )
        .await?;
        close_worker(session).await;
        let text = draft(server.major);
        check(&text)?;
        let policy = control.write_policy(&request.name, &text).await.map_err(failed(&what))?;
        let mut warnings = Vec::new();
        if found.storage.is_none() {
            warnings.push(format!(
                "the data directory {} lies in the container itself: removing the container removes the data",
                found.pgdata
            ));
        }
        Ok(Adopted { policy, found, version: server.version, major: server.major, warnings })
    }
    .await
    .map_err(|error: OperationError| {
        let error = error.safe("the container is as it was, and no policy was written");
        if error.exit != Exit::Credentials {
            return error;
        }
        // There is no policy yet that the general advice could be about.
        let next =
            "name a superuser who may enter from 127.0.0.1, and a file with the password: --user, --password-file";
        OperationError { next: Some(next.to_owned()), ..error }
    });
    run.end(adopted, |adopted| (Exit::Ok, format!("PostgreSQL {}", adopted.version), None)).await
}

/// A server that is adopted runs already.
const ADOPT_PATIENCE_SECONDS: u64 = 10;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::docker::Mount;

    fn container(environment: &[&str], command: &[&str]) -> Container {
        Container {
            id: "c0ffee".to_owned(),
            name: "legacy".to_owned(),
            image: "postgres:17".to_owned(),
            image_id: "sha256:1".to_owned(),
            running: true,
            status: "running".to_owned(),
            mounts: vec![Mount {
                kind: "bind".to_owned(),
                source: "/srv/pg".to_owned(),
                folder: "/srv/pg".to_owned(),
                destination: "/var/lib/postgresql".to_owned(),
                writable: true,
            }],
            environment: environment.iter().map(ToString::to_string).collect(),
            command: command.iter().map(ToString::to_string).collect(),
            ..Container::default()
        }
    }

    fn image(environment: &[&str]) -> Image {
        Image {
            reference: "postgres:17".to_owned(),
            id: "sha256:1".to_owned(),
            digests: vec![],
            labels: HashMap::new(),
            environment: environment.iter().map(ToString::to_string).collect(),
            command: vec!["postgres".to_owned()],
        }
    }

    #[test]
    fn the_official_layout_is_found() {
        let image = image(&["PGDATA=/var/lib/postgresql/data"]);
        let found = look(&container(&["POSTGRES_USER=shop"], &["docker-entrypoint.sh", "postgres"]), &image, None)
            .expect("found");
        assert_eq!(found.pgdata, "/var/lib/postgresql/data");
        assert_eq!(found.storage.as_deref(), Some("bind /srv/pg"));
        assert_eq!((found.port, found.user.as_str(), found.by_socket), (5432, "shop", false));
    }

    #[test]
    fn what_the_container_says_wins_over_its_image() {
        let image = image(&["PGDATA=/var/lib/postgresql/data", "PGPORT=5432"]);
        let container =
            container(&["PGDATA=/var/lib/postgresql/17/x", "PGPORT=6000"], &["postgres", "-D", "/elsewhere"]);
        let found = look(&container, &image, Some(&RoleName::new("root").expect("a role"))).expect("found");
        assert_eq!((found.pgdata.as_str(), found.storage, found.port), ("/elsewhere", None, 6000));
        assert_eq!(found.user.as_str(), "root");
    }

    #[test]
    fn something_else_is_refused() {
        assert!(look(&container(&[], &["nginx"]), &image(&[]), None).is_err());
    }
}
