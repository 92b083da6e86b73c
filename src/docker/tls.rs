//! The way to an engine elsewhere, by mutual TLS.
//!
//! The three files are read when the connection is made, so that what is wrong with them is told by name, and not as a handshake
//! that failed. Only the authority in `ca` is trusted, as `docker --tlscacert` does it; none of the system's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bollard::BollardRequest;
use bollard::errors::Error as EngineError;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// How long the engine's machine may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// What is wrong with one of our own files.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadFile {
    pub(super) file: PathBuf,
    pub(super) why: String,
}

/// A client of the engine at `address` (`host:port`) that gives up waiting for an answer's head after `seconds`.
pub(super) fn client(address: &str, identity: &Identity, seconds: u64) -> Result<bollard::Docker, EngineError> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(Duration::from_secs(60)));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(identity.0.clone())
        .https_only()
        .enable_http1()
        .wrap_connector(connector);
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let client = Arc::new(client);
    let transport = move |request: BollardRequest| {
        let client = Arc::clone(&client);
        Box::pin(async move { client.request(request).await.map_err(EngineError::from) })
    };
    let address = format!("https://{address}");
    bollard::Docker::connect_with_custom_transport(transport, Some(address), seconds, bollard::API_DEFAULT_VERSION)
}

/// Whom we trust, and who we are.
#[derive(Debug)]
pub(super) struct Identity(ClientConfig);

impl Identity {
    /// Reads the authority's certificate, and our own certificate and key.
    pub(super) fn read(ca: &Path, cert: &Path, key: &Path) -> Result<Self, BadFile> {
        let mut trusted = RootCertStore::empty();
        for certificate in certificates(ca)? {
            trusted.add(certificate).map_err(|error| bad(ca, &error))?;
        }
        let ours = certificates(cert)?;
        let secret = PrivateKeyDer::from_pem_slice(&bytes(key)?).map_err(|_| no_pem(key, "private key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| bad(key, &error))?.with_root_certificates(trusted);
        // It says so too where the key is another certificate's.
        let config = config.with_client_auth_cert(ours, secret).map_err(|error| bad(key, &error))?;
        Ok(Self(config))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, BadFile> {
    let bytes = bytes(file)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(no_pem(file, "certificate")),
    }
}

fn bytes(file: &Path) -> Result<Vec<u8>, BadFile> {
    std::fs::read(file).map_err(|error| bad(file, &error))
}

fn no_pem(file: &Path, what: &str) -> BadFile {
    BadFile { file: file.to_owned(), why: format!("there is no {what} in it (as PEM)") }
}

fn bad(file: &Path, why: &dyn std::fmt::Display) -> BadFile {
    BadFile { file: file.to_owned(), why: why.to_string() }
}

const STRANGER: &str = "the engine's certificate is not signed by the authority in `ca`: put in the one that signed it";
const EXPIRED: &str = "the engine's certificate has expired: renew it on that machine";
const HUNG_UP: &str = "the engine hung up: it was just being stopped, or it refuses our certificate: `cert` must be signed \
                       by the authority in the engine's --tlscacert, and must not have expired";

/// What to do about a handshake that failed, by what rustls said of it; nothing where it was something else.
///
/// With TLS 1.3 our side of it is over before the engine looks at our certificate. When it hangs up while our request is on its
/// way, its alert is lost with the connection.
pub(super) fn advice(said: &str) -> Option<&'static str> {
    let known = [
        ("UnknownIssuer", STRANGER),
        ("BadSignature", STRANGER),
        (
            "not valid for name",
            "the engine's certificate is for another name: use one of its names in `endpoint`, or renew it",
        ),
        ("certificate: Expired", EXPIRED),
        ("certificate expired", EXPIRED),
        ("alert: CertificateExpired", "our certificate in `cert` has expired: have a new one signed"),
        ("alert: CertificateRequired", "the engine saw no certificate of ours: look at `cert` and `key`"),
        (
            "alert: ",
            "the engine refuses our certificate: `cert` must be signed by the authority in the engine's --tlscacert",
        ),
        ("Connection reset", HUNG_UP),
        ("Broken pipe", HUNG_UP),
        // The connection was over before our request was on its way.
        ("connection was not ready", HUNG_UP),
        ("connection closed before message completed", HUNG_UP),
        ("InvalidContentType", "the engine speaks no TLS at that port: start it with --tlsverify, or correct the port"),
    ];
    known.iter().find(|(words, _)| said.contains(words)).map(|(_, next)| *next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_good_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        let read = || Identity::read(&file, &file, &file).expect_err("a problem");
        assert!(read().why.contains("No such file"), "{:?}", read());
        std::fs::write(&file, "rubbish").expect("written");
        assert_eq!(read(), BadFile { file: file.clone(), why: "there is no certificate in it (as PEM)".to_owned() });
    }

    #[test]
    fn what_rustls_says_is_told_in_plain_words() {
        let told = |said| advice(said).unwrap_or("nothing");
        assert!(told("invalid peer certificate: UnknownIssuer").contains("`ca`"));
        assert!(
            told("invalid peer certificate: certificate expired: verification time 1 …").contains("on that machine")
        );
        assert!(told("received fatal alert: CertificateExpired").contains("our certificate"));
        assert!(told("received fatal alert: BadCertificate").contains("--tlscacert"));
        assert!(told("Connection reset by peer (os error 104)").contains("must not have expired"));
        assert!(told("operation was canceled: connection was not ready").contains("must not have expired"));
        assert_eq!(told("Connection refused (os error 111)"), "nothing");
    }
}
