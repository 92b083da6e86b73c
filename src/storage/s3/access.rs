//! From `[repos.<name>]` to a bucket that can be reached: credentials and trusted certificates, found on the control
//! plane. Workers get both on their stdin; they look for nothing themselves.
//!
//! Credentials come from the first of these that there is, and from no other if that one is not usable:
//! 1. the file that `credentials_file` names;
//! 2. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, for temporary ones, `AWS_SESSION_TOKEN`;
//! 3. the role of the instance (EC2's metadata service, version 2).
//!
//! Those of a file and of a role are looked for again while they are used ([`renewal`](super::renewal)).

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::ProvideCredentials as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::super::error::Cause;
use super::super::{Place, StorageError};
use super::connection::pem;
use super::renewal::{Fetched, Renewable, Source};
use super::{Bucket, Credentials, LockMode, ObjectLock, Secret};
use crate::settings;

/// The variables that count.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `AWS_ACCESS_KEY_ID`
    pub access_key: Option<String>,
    /// `AWS_SECRET_ACCESS_KEY`
    pub secret_key: Option<Secret>,
    /// `AWS_SESSION_TOKEN`
    pub session_token: Option<Secret>,
    /// `AWS_REGION`, else `AWS_DEFAULT_REGION`
    pub region: Option<String>,
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`
    pub metadata_service: Option<String>,
    /// `AWS_EC2_METADATA_DISABLED`
    pub without_metadata_service: bool,
}

impl Environment {
    /// Those of this process. An empty one is none.
    pub fn of_process() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            access_key: variable("AWS_ACCESS_KEY_ID"),
            secret_key: variable("AWS_SECRET_ACCESS_KEY").map(Secret::new),
            session_token: variable("AWS_SESSION_TOKEN").map(Secret::new),
            region: variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")),
            metadata_service: variable("AWS_EC2_METADATA_SERVICE_ENDPOINT"),
            without_metadata_service: variable("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value == "true"),
        }
    }
}

/// Where nothing else is said. Services with one region take it for theirs.
const DEFAULT_REGION: &str = "us-east-1";

/// Finds what is needed to reach a repository in a bucket. The bucket is not asked for.
pub fn reach(repository: &settings::S3Repository, environment: &Environment) -> Result<Bucket, StorageError> {
    let place = Place::new(repository.to_string());
    let region = repository.region.clone().or_else(|| environment.region.clone());
    let without_tls = repository.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    Ok(Bucket {
        bucket: repository.bucket.clone(),
        prefix: repository.prefix.clone(),
        endpoint: repository.endpoint.clone(),
        region: region.unwrap_or_else(|| DEFAULT_REGION.to_owned()),
        path_style: repository.path_style,
        credentials: credentials(repository, environment, &place)?,
        authorities: if without_tls { String::new() } else { authorities(repository.ca_file.as_deref(), &place)? },
        object_lock: repository.object_lock.map(|duration| ObjectLock {
            seconds: duration.as_secs(),
            mode: match repository.object_lock_mode {
                settings::LockMode::Governance => LockMode::Governance,
                settings::LockMode::Compliance => LockMode::Compliance,
            },
        }),
    })
}

fn credentials(
    repository: &settings::S3Repository,
    environment: &Environment,
    place: &Place,
) -> Result<Renewable, StorageError> {
    let none = |why: String, source: Option<Cause>| StorageError::NoCredentials { path: place.clone(), why, source };
    if let Some(file) = &repository.credentials_file {
        let text = read_private(file)
            .map_err(|source| none(format!("{} cannot be read", file.display()), Some(Box::new(source))))?;
        let credentials = credentials_in(&text).map_err(|why| none(format!("{} {why}", file.display()), None))?;
        return Ok(Renewable::new(Fetched { credentials, end: None }, Some(Source::File(file.clone()))));
    }
    match (&environment.access_key, &environment.secret_key) {
        (Some(access_key), Some(secret_key)) => Ok(Renewable::from(Credentials {
            access_key: access_key.clone(),
            secret_key: secret_key.clone(),
            session_token: environment.session_token.clone(),
        })),
        (Some(_), None) => Err(none("AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not".to_owned(), None)),
        (None, Some(_)) => Err(none("AWS_SECRET_ACCESS_KEY is set, but AWS_ACCESS_KEY_ID is not".to_owned(), None)),
        (None, None) => {
            let nothing = "[repos.…] names no `credentials_file`, AWS_ACCESS_KEY_ID is not set";
            if environment.without_metadata_service {
                return Err(none(format!("{nothing}, and AWS_EC2_METADATA_DISABLED is"), None));
            }
            let fetched = of_instance(environment.metadata_service.as_deref())
                .map_err(|source| none(format!("{nothing}, and this machine has no role"), Some(source)))?;
            Ok(Renewable::new(fetched, Some(Source::Instance(environment.metadata_service.clone()))))
        }
    }
}

fn read_private(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file)?;
    if fs::metadata(file)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!("others may read the secret in {0}: chmod 600 {0}", file.display());
    }
    Ok(text)
}

/// The section `[default]` of a file as `~/.aws/credentials`: AWS SDKs and Tools Reference Guide, "Shared config and
/// credentials files".
pub(super) fn credentials_in(text: &str) -> Result<Credentials, String> {
    let (mut in_default, mut seen) = (false, false);
    let (mut access_key, mut secret_key, mut session_token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            in_default = section.split(']').next().is_some_and(|name| name.trim() == "default");
            seen |= in_default;
            continue;
        }
        if let Some((key, value)) = line.split_once('=').filter(|_| in_default) {
            match key.trim() {
                "aws_access_key_id" => access_key = Some(value.trim().to_owned()),
                "aws_secret_access_key" => secret_key = Some(Secret::new(value.trim())),
                "aws_session_token" => session_token = Some(Secret::new(value.trim())),
                _ => {}
            }
        }
    }
    let given = |name: &str| format!("has no {name} in its section [default]");
    if !seen {
        return Err("has no section [default]".to_owned());
    }
    Ok(Credentials {
        access_key: access_key.filter(|key| !key.is_empty()).ok_or_else(|| given("aws_access_key_id"))?,
        secret_key: secret_key
            .filter(|secret| !secret.reveal().is_empty())
            .ok_or_else(|| given("aws_secret_access_key"))?,
        session_token: session_token.filter(|token| !token.reveal().is_empty()),
    })
}

const METADATA_PATIENCE: Duration = Duration::from_secs(2);

/// The credentials of the instance's role. They are asked for on a thread of their own: the caller may be inside a runtime.
pub(super) fn of_instance(endpoint: Option<&str>) -> Result<Fetched, Cause> {
    let ask = async {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let provider = ProviderConfig::default().with_http_client(http);
        let mut client = imds::Client::builder()
            .configure(&provider)
            .max_attempts(2)
            .connect_timeout(METADATA_PATIENCE)
            .read_timeout(METADATA_PATIENCE);
        if let Some(endpoint) = endpoint {
            client = client.endpoint(endpoint)?;
        }
        let provider = imds::credentials::ImdsCredentialsProvider::builder().imds_client(client.build()).build();
        let found = provider.provide_credentials().await.map_err(|error| super::failure::words(&error))?;
        let credentials = Credentials {
            access_key: found.access_key_id().to_owned(),
            secret_key: Secret::new(found.secret_access_key()),
            session_token: found.session_token().map(Secret::new),
        };
        Ok(Fetched { credentials, end: found.expiry() })
    };
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(ask));
        asked.join().unwrap_or_else(|_| Err("asking for the instance's role failed".into()))
    })
}

/// The system's trusted authorities and those in `ca_file`, as PEM.
fn authorities(ca_file: Option<&Path>, place: &Place) -> Result<String, StorageError> {
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a certificate of the system is left out");
    }
    let mut text: String = system.certs.iter().map(pem).collect();
    if let Some(file) = ca_file {
        let untrusted = |why: String| StorageError::Untrusted { path: place.clone(), source: why.into() };
        let unreadable = |error: &dyn std::fmt::Display| untrusted(format!("{}: {error}", file.display()));
        let content = fs::read(file).map_err(|error| unreadable(&error))?;
        let before = text.len();
        for certificate in CertificateDer::pem_slice_iter(&content) {
            text.push_str(&pem(&certificate.map_err(|error| unreadable(&error))?));
        }
        if text.len() == before {
            return Err(untrusted(format!("{} holds no certificate", file.display())));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::time::SystemTime;

    use super::*;
    use crate::exit::Exit;

    fn repository() -> settings::S3Repository {
        settings::S3Repository {
            bucket: "backups".to_owned(),
            prefix: "pg".to_owned(),
            endpoint: Some("http://s3.example.org".to_owned()),
            region: None,
            credentials_file: None,
            ca_file: None,
            path_style: true,
            object_lock: None,
            object_lock_mode: settings::LockMode::Governance,
        }
    }

    fn environment() -> Environment {
        Environment { without_metadata_service: true, ..Environment::default() }
    }

    #[test]
    fn a_file_is_read_as_aws_reads_it() {
        let text = "# c\n[other]\naws_access_key_id=no\n[default]\n; c\n aws_access_key_id = AKID \nregion = x\n\
                    aws_secret_access_key=se=cret\n[x]\naws_secret_access_key = no\n";
        let expected =
            Credentials { access_key: "AKID".to_owned(), secret_key: Secret::new("se=cret"), session_token: None };
        assert_eq!(credentials_in(text), Ok(expected));
        let token = format!("{text}\n[default]\naws_session_token = tok==\n");
        assert_eq!(credentials_in(&token).expect("credentials").session_token, Some(Secret::new("tok==")));
        for (text, why) in [
            ("", "has no section [default]"),
            ("AKID:secret", "has no section [default]"),
            ("[default]\naws_access_key_id = x\n", "has no aws_secret_access_key in its section [default]"),
            ("[default]\naws_access_key_id =\n", "has no aws_access_key_id in its section [default]"),
        ] {
            assert_eq!(credentials_in(text), Err(why.to_owned()));
        }
    }

    #[test]
    fn the_file_that_is_named_counts_and_no_other_source() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("credentials");
        let repository = settings::S3Repository { credentials_file: Some(file.clone()), ..repository() };
        let environment = Environment {
            access_key: Some("env".to_owned()),
            secret_key: Some(Secret::new("x")),
            region: Some("eu".to_owned()),
            ..environment()
        };
        let error = reach(&repository, &environment).expect_err("no file");
        assert_eq!(error.exit(), Exit::Credentials);
        let text = error.to_string();
        assert!(text.contains("s3://backups/pg") && text.contains("credentials cannot be read"), "{text}");
        fs::write(&file, "[default]\naws_access_key_id = file\naws_secret_access_key = y\n").expect("written");
        let reached = reach(&repository, &environment).expect("reached");
        assert_eq!((reached.credentials.newest().access_key.as_str(), reached.region.as_str()), ("file", "eu"));
        assert!(reached.credentials.has_source());
        let without_file = settings::S3Repository { credentials_file: None, ..repository };
        let reached = reach(&without_file, &environment).expect("reached").credentials;
        assert_eq!((reached.newest().access_key.as_str(), reached.has_source()), ("env", false));
    }

    #[test]
    fn without_credentials_the_error_says_where_they_were_looked_for() {
        let half = Environment { access_key: Some("env".to_owned()), ..environment() };
        for (environment, words) in [
            (environment(), "AWS_EC2_METADATA_DISABLED"),
            (half, "AWS_SECRET_ACCESS_KEY is not"),
            (
                Environment { metadata_service: Some("http://127.0.0.1:1".to_owned()), ..Environment::default() },
                "this machine has no role",
            ),
        ] {
            let error = reach(&repository(), &environment).expect_err("no credentials");
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.exit(), Exit::Credentials);
        }
    }

    #[test]
    fn an_instance_has_the_credentials_of_its_role() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let service = std::thread::spawn(move || {
            let mut asked = Vec::new();
            let mut sessions = 0;
            while asked.len() < 6 {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
                let first = lines.next().expect("a line").expect("text");
                for line in lines.map_while(Result::ok) {
                    if line.is_empty() {
                        break;
                    }
                }
                let body = match first.split(' ').nth(1).expect("a path") {
                    "/latest/api/token" => "token".to_owned(),
                    path if path.ends_with("security-credentials/") => "backup-role".to_owned(),
                    path if path.ends_with("/backup-role") => {
                        sessions += 1;
                        format!(
                            r#"{{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC",
                            "AccessKeyId":"ASIA{sessions}","SecretAccessKey":"s","Token":"t","Expiration":"2100-01-01T00:00:00Z"}}"#
                        )
                    }
                    other => panic!("{other}"),
                };
                let head = format!(
                    "HTTP/1.1 200 OK\r\nx-aws-ec2-metadata-token-ttl-seconds: 21600\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).expect("answered");
                asked.push(first);
            }
        });
        let environment = Environment { metadata_service: Some(endpoint), ..Environment::default() };
        // Inside a runtime, as the control plane does.
        let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
        let reached = runtime.block_on(async { reach(&repository(), &environment) }).expect("a role");
        let expected = |access_key: &str| Credentials {
            access_key: access_key.to_owned(),
            secret_key: Secret::new("s"),
            session_token: Some(Secret::new("t")),
        };
        assert_eq!(reached.credentials.newest(), expected("ASIA1"));
        // When these are about to end, there are others.
        assert!(reached.credentials.has_source());
        let again = of_instance(environment.metadata_service.as_deref()).expect("a role");
        service.join().expect("no panic");
        let end = SystemTime::from("2100-01-01T00:00:00Z".parse::<jiff::Timestamp>().expect("a time"));
        assert_eq!(again, Fetched { credentials: expected("ASIA2"), end: Some(end) });
    }

    #[test]
    fn an_authority_that_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let place = Place::new("s3://backups");
        for content in
            [None, Some("no certificate"), Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")]
        {
            if let Some(content) = content {
                fs::write(&file, content).expect("written");
            }
            let error = authorities(Some(&file), &place).expect_err("no authority");
            assert_eq!(error.exit(), Exit::Repository);
            let source = std::error::Error::source(&error).expect("a cause").to_string();
            assert!(source.contains("ca.pem"), "{source}");
        }
    }
}
