//! What happens to containers, as the engine tells it.
//!
//! Events are only a reason to look: what is done is decided by what is found then. So one that is lost, doubled or late does no harm
//! beyond the time until the next look.

use std::collections::HashMap;

use bollard::query_parameters as query;
use futures_util::{Stream, StreamExt as _};
use jiff::Timestamp;

use super::{DockerError, Engine};

/// What changes whether a container serves. Health checks would tell of each `exec` otherwise.
const ACTIONS: [&str; 9] = ["create", "start", "die", "stop", "pause", "unpause", "rename", "destroy", "health_status"];

impl Engine {
    /// The names of containers to which something happens, from `since` on. It ends with an error, when the engine goes away.
    pub fn container_events(&self, since: Timestamp) -> impl Stream<Item = Result<String, DockerError>> + Send + use<> {
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), ACTIONS.iter().map(|&action| action.to_owned()).collect()),
        ]);
        let options =
            query::EventsOptionsBuilder::default().since(&since.as_second().to_string()).filters(&filters).build();
        let engine = self.clone();
        self.control.events(Some(options)).map(move |event| {
            let event = event.map_err(engine.failed("follow its events"))?;
            let attributes = event.actor.and_then(|actor| actor.attributes).unwrap_or_default();
            Ok(attributes.get("name").cloned().unwrap_or_default())
        })
    }
}
