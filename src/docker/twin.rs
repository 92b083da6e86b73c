//! What a container is made of, taken from the container itself, so that another can take its place: its own environment,
//! labels, limits, ports, networks and aliases, without what came from its image.

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, EndpointSettings, NetworkConnectRequest, RestartPolicy,
};
use serde_json::{Map, Value};

use super::{DockerError, Engine};

/// What a container is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Blueprint {
    /// For `create_container`; its image, mounts and ports are the original's. It joins its first network only.
    pub body: ContainerCreateBody,
    /// Networks it joins after it was made, and how. The first one is in the body: old engines take no more there.
    pub more_networks: Vec<(String, EndpointSettings)>,
}

impl Engine {
    /// What the container called `name` is made of.
    pub async fn blueprint(&self, name: &str) -> Result<Blueprint, DockerError> {
        let what = || format!("look at what container {name} is made of");
        let found = self.control.inspect_container(name, None).await.map_err(self.failed(what()))?;
        let id = found.id.clone().unwrap_or_default();
        let image = self
            .control
            .inspect_image(&found.image.clone().unwrap_or_default())
            .await
            .map_err(self.failed(format!("look at the image of container {name}")))?;
        let config = object(&found.config);
        let own = without_image(config, &object(&image.config), &id);
        let mut body: ContainerCreateBody = serde_json::from_value(Value::Object(own))
            .map_err(|error| DockerError::Io { action: what(), source: std::io::Error::other(error) })?;
        body.image = Some(found.image.unwrap_or_default());
        body.host_config = found.host_config;
        let main = body.host_config.as_ref().and_then(|host| host.network_mode.clone()).unwrap_or_default();
        let name = found.name.unwrap_or_default();
        let endpoints = found.network_settings.and_then(|network| network.networks).unwrap_or_default();
        let mut more_networks: Vec<(String, EndpointSettings)> = Vec::new();
        let mut first = None;
        for (network, endpoint) in endpoints {
            let endpoint = wanted_endpoint(endpoint, &id, name.trim_start_matches('/'));
            if network == main {
                first = Some((network, endpoint));
            } else if !["bridge", "host", "none"].contains(&network.as_str()) {
                more_networks.push((network, endpoint));
            }
        }
        more_networks.sort_by(|a, b| a.0.cmp(&b.0));
        body.networking_config = first.map(|(network, endpoint)| bollard::models::NetworkingConfig {
            endpoints_config: Some(std::collections::HashMap::from([(network, endpoint)])),
        });
        Ok(Blueprint { body, more_networks })
    }

    /// Has a container join a network.
    pub async fn connect_network(
        &self,
        container: &str,
        network: &str,
        endpoint: EndpointSettings,
    ) -> Result<(), DockerError> {
        let request = NetworkConnectRequest { container: container.to_owned(), endpoint_config: Some(endpoint) };
        self.control
            .connect_network(network, request)
            .await
            .map_err(self.failed(format!("connect container {container} to network {network}")))
    }

    /// The container's restart policy.
    pub async fn restart_policy(&self, container: &str) -> Result<RestartPolicy, DockerError> {
        let found = self.control.inspect_container(container, None).await;
        let found = found.map_err(self.failed(format!("look at container {container}")))?;
        Ok(found.host_config.and_then(|host| host.restart_policy).unwrap_or_default())
    }

    /// Gives the container another restart policy.
    pub async fn set_restart_policy(&self, container: &str, policy: RestartPolicy) -> Result<(), DockerError> {
        let update = ContainerUpdateBody { restart_policy: Some(policy), ..Default::default() };
        self.control
            .update_container(container, update)
            .await
            .map_err(self.failed(format!("change the restart policy of container {container}")))
    }
}

fn object<T: serde::Serialize>(value: &T) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// The parts of a container's `config` that do not come from its image.
fn without_image(mut config: Map<String, Value>, image: &Map<String, Value>, id: &str) -> Map<String, Value> {
    config.retain(|key, value| key == "Env" || key == "Labels" || image.get(key) != Some(value));
    for key in ["Image", "MacAddress"] {
        config.remove(key);
    }
    // Where nobody chose it, it is the beginning of the id.
    if config.get("Hostname").and_then(Value::as_str).is_some_and(|name| id.starts_with(name)) {
        config.remove("Hostname");
    }
    if let (Some(Value::Array(own)), Some(Value::Array(images))) = (config.get_mut("Env"), image.get("Env")) {
        own.retain(|variable| !images.contains(variable));
    }
    if let (Some(Value::Object(own)), Some(Value::Object(images))) = (config.get_mut("Labels"), image.get("Labels")) {
        own.retain(|key, value| images.get(key) != Some(value));
    }
    config
}

/// What was asked for of a network, without what the engine gave.
fn wanted_endpoint(endpoint: EndpointSettings, id: &str, name: &str) -> EndpointSettings {
    let given = |alias: &String| id.starts_with(alias.as_str()) || alias == name;
    EndpointSettings {
        aliases: endpoint.aliases.map(|aliases| aliases.into_iter().filter(|alias| !given(alias)).collect()),
        ipam_config: endpoint.ipam_config,
        links: endpoint.links,
        driver_opts: endpoint.driver_opts,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_image_gave_is_left_to_the_next_image() {
        let config = json!({
            "Hostname": "0123456789ab", "Image": "pglife/postgres:17", "User": "", "Cmd": ["postgres"],
            "Env": ["PGDATA=/data/17", "POSTGRES_USER=postgres"],
            "Labels": {"pglife.major": "17", "pglife.cluster": "a"},
            "StopTimeout": 120,
        });
        let image = json!({
            "User": "", "Cmd": ["postgres"], "Env": ["PGDATA=/data/17"], "Labels": {"pglife.major": "17"},
        });
        let (Value::Object(config), Value::Object(image)) = (config, image) else { unreachable!() };
        let own = without_image(config, &image, "0123456789abcdef");
        assert_eq!(
            Value::Object(own),
            json!({"Env": ["POSTGRES_USER=postgres"], "Labels": {"pglife.cluster": "a"}, "StopTimeout": 120})
        );
    }

    #[test]
    fn aliases_that_were_given_are_kept_and_the_engine_s_are_not() {
        let aliases = ["0123456789ab", "db", "chado-db"].map(str::to_owned).to_vec();
        let endpoint =
            EndpointSettings { aliases: Some(aliases), network_id: Some("x".to_owned()), ..Default::default() };
        let wanted = wanted_endpoint(endpoint, "0123456789abcdef", "chado-db");
        assert_eq!(wanted.aliases, Some(vec!["db".to_owned()]));
        assert_eq!(wanted.network_id, None);
    }
}
