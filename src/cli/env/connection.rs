//! How Consul is reached: as its own tools are told (`CONSUL_HTTP_ADDR`, …), else as `[consul]` says.

use std::path::PathBuf;

use super::super::{Context, Failure};
use crate::consul::Consul;
use crate::control::failed;
use crate::exit::Exit;
use crate::settings;

/// A client; nothing is asked yet.
pub(super) fn open(context: &Context) -> Result<Consul, Failure> {
    let what = "Consul cannot be asked";
    if let Some((settings, token)) = from_environment(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    {
        return Ok(Consul::new(&settings).map_err(failed(what))?.with_token(token));
    }
    let opened = context.settings().map_err(|failure| failure.context(what).next(NEXT))?;
    let settings = opened.settings().map_err(|error| Failure::from(error).context(what).next(NEXT))?;
    let Some(settings) = &settings.consul else {
        return Err(Failure::message(
            Exit::Usage,
            format!("{what}: there is no [consul] in {}", opened.file().display()),
        )
        .next(NEXT));
    };
    Ok(Consul::new(settings).map_err(failed(what))?)
}

const NEXT: &str = "set CONSUL_HTTP_ADDR (and CONSUL_HTTP_TOKEN_FILE), or write [consul] into pglife.toml";

/// What the environment says: consul(1), "Environment Variables"; None without an address.
fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Option<(settings::Consul, Option<String>)> {
    let address = variable("CONSUL_HTTP_ADDR")?;
    let tls = variable("CONSUL_HTTP_SSL").is_some_and(|value| ["1", "true"].contains(&value.to_lowercase().as_str()));
    let scheme = if tls { "https" } else { "http" };
    let address = if address.contains("://") { address } else { format!("{scheme}://{address}") };
    let address = address.trim_end_matches('/').to_owned();
    let prefix = variable("PGLIFE_CONSUL_PREFIX").map(|prefix| prefix.trim_matches('/').to_owned());
    let is_tls = address.starts_with("https://");
    let file = |name: &str| variable(name).map(PathBuf::from).filter(|_| is_tls);
    let mut settings = settings::Consul {
        ca: file("CONSUL_CACERT"),
        client: file("CONSUL_CLIENT_CERT")
            .zip(file("CONSUL_CLIENT_KEY"))
            .map(|(cert, key)| settings::ClientCertificate { cert, key }),
        token_file: variable("CONSUL_HTTP_TOKEN_FILE").map(PathBuf::from),
        ..settings::Consul::at(address)
    };
    if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
        settings.kv_prefix = prefix;
    }
    Some((settings, variable("CONSUL_HTTP_TOKEN")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Option<(settings::Consul, Option<String>)> {
        from_environment(|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_environment_says_it_as_consul_s_own_tools_read_it() {
        assert_eq!(read(&[("CONSUL_HTTP_TOKEN", "x")]), None);
        let (settings, token) = read(&[("CONSUL_HTTP_ADDR", "consul:8500")]).expect("an address");
        assert_eq!(
            (settings.address.as_str(), settings.kv_prefix.as_str(), token),
            ("http://consul:8500", "pglife", None)
        );
        let all = [
            ("CONSUL_HTTP_ADDR", "consul:8501/"),
            ("CONSUL_HTTP_SSL", "TRUE"),
            ("CONSUL_CACERT", "/ca.pem"),
            ("CONSUL_CLIENT_CERT", "/cert.pem"),
            ("CONSUL_CLIENT_KEY", "/key.pem"),
            ("CONSUL_HTTP_TOKEN", "secret"),
            ("PGLIFE_CONSUL_PREFIX", "/service/pglife/"),
        ];
        let (settings, token) = read(&all).expect("an address");
        assert_eq!((settings.address.as_str(), settings.kv_prefix.as_str()), ("https://consul:8501", "service/pglife"));
        let client = settings::ClientCertificate { cert: "/cert.pem".into(), key: "/key.pem".into() };
        assert_eq!(settings.client, Some(client));
        assert_eq!((settings.ca, token.as_deref()), (Some(PathBuf::from("/ca.pem")), Some("secret")));
    }
}
