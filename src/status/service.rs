//! Where clients reach a cluster, as the service in Consul says it. Pure.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Serialize;

use crate::settings::Endpoint;

/// A database that is registered in Consul, because its policy says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ServiceStatus {
    /// Where clients reach it; None while it is not known, such as for a server that is down.
    pub place: Option<Place>,
}

/// An address and a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Place {
    /// A name or an address; None: that of this machine, as its agent knows it.
    pub address: Option<String>,
    /// The port.
    pub port: u16,
}

/// Where clients reach what Docker has published on the host at `endpoint`: `0.0.0.0:5432`, `:::5432`, `127.0.0.1:5433`.
/// None: nowhere, or only on a machine that is not this one.
pub(super) fn place(published: &[String], endpoint: &Endpoint) -> Option<Place> {
    published.iter().find_map(|binding| {
        let (ip, port) = binding.rsplit_once(':')?;
        let (ip, port): (IpAddr, u16) = (ip.parse().ok()?, port.parse().ok()?);
        let address = match endpoint {
            Endpoint::Unix(_) => (!ip.is_unspecified()).then(|| ip.to_string()),
            Endpoint::Tls { .. } if ip.is_loopback() => return None,
            Endpoint::Tls { address, .. } if ip.is_unspecified() => Some(host_of(address).to_owned()),
            Endpoint::Tls { .. } => Some(ip.to_string()),
        };
        Some(Place { address, port })
    })
}

/// `docker.example` of `docker.example:2376`, `::1` of `[::1]:2376`.
fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_where_clients_reach_it() {
        let here = Endpoint::Unix("/run/docker.sock".into());
        let away = |address: &str| Endpoint::Tls {
            address: address.to_owned(),
            ca: "ca".into(),
            cert: "cert".into(),
            key: "key".into(),
        };
        let found = |published: &[&str], endpoint: &Endpoint| {
            let published: Vec<String> = published.iter().map(|binding| (*binding).to_owned()).collect();
            place(&published, endpoint).map(|place| format!("{} {}", place.address.unwrap_or_default(), place.port))
        };
        for (published, at_home, elsewhere) in [
            (&["0.0.0.0:5432", ":::5432"][..], Some(" 5432"), Some("docker.example 5432")),
            (&[":::5432"], Some(" 5432"), Some("docker.example 5432")),
            (&["127.0.0.1:5433"], Some("127.0.0.1 5433"), None),
            (&["127.0.0.1:5433", "10.0.0.7:5432"], Some("127.0.0.1 5433"), Some("10.0.0.7 5432")),
            (&["::1:5433"], Some("::1 5433"), None),
            (&[], None, None),
            (&["rubbish", ":", "a:b"], None, None),
        ] {
            assert_eq!(found(published, &here).as_deref(), at_home, "{published:?}");
            assert_eq!(found(published, &away("docker.example:2376")).as_deref(), elsewhere, "{published:?}");
        }
        assert_eq!(found(&["0.0.0.0:1"], &away("[fd00::1]:2376")).as_deref(), Some("fd00::1 1"));
    }
}
