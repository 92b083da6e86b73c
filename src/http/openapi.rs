//! What the daemon's HTTP side answers, for programs: `OpenAPI` 3.1. The shapes are those of the types that are sent.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cluster::ClusterName;
use crate::policy::freshness::Level;
use crate::status::board::{Running, Snapshot};
use crate::status::{ClusterStatus, History, Verdict};

/// A list as every answer of the API is one.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Answer<T> {
    #[serde(rename = "apiVersion")]
    pub(super) api_version: &'static str,
    pub(super) kind: &'static str,
    pub(super) items: Vec<T>,
}

impl<T> Answer<T> {
    pub(super) fn of(kind: &'static str, item: T) -> Self {
        Self { api_version: "pglife/v1", kind, items: vec![item] }
    }
}

/// A cluster with what lies behind it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ClusterAnswer {
    /// How it is.
    pub(super) status: ClusterStatus,
    /// What is to be said about it, check by check.
    pub(super) checks: Vec<Verdict>,
    /// The runs that go on.
    pub(super) running: Vec<Running>,
    /// What lies behind it.
    pub(super) history: History,
}

/// What load balancers and uptime monitors read.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Freshness {
    /// The cluster.
    pub(super) cluster: ClusterName,
    /// The worst of the checks.
    pub(super) level: Level,
    /// The checks.
    pub(super) checks: Vec<Verdict>,
}

/// Why there is no answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Problem {
    /// In words.
    pub(super) error: &'static str,
}

/// The document.
pub(super) fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let cluster = json!([{ "name": "cluster", "in": "path", "required": true, "schema": { "type": "string" } }]);
    let unknown = answer(&mut generator, "There is no such cluster.", SchemaGenerator::subschema_for::<Problem>);
    let early = answer(&mut generator, "The daemon has not looked yet.", SchemaGenerator::subschema_for::<Problem>);
    let board = answer(&mut generator, "What the daemon knows.", SchemaGenerator::subschema_for::<Answer<Snapshot>>);
    let whole = answer(
        &mut generator,
        "The cluster with its history.",
        SchemaGenerator::subschema_for::<Answer<ClusterAnswer>>,
    );
    let mut fresh = |words| answer(&mut generator, words, SchemaGenerator::subschema_for::<Freshness>);
    let freshness = json!({
        "200": fresh("Every check is well."), "429": fresh("A warning."),
        "503": fresh("Critical; or, with `error`, the daemon has not looked yet."), "404": unknown,
    });
    let text = |words: &str| json!({ "description": words, "content": { "text/plain": {} } });
    let yes_or_no = |yes: &str, no: &str| {
        let told = |words: &str| json!({ "description": words, "content": { "application/json": {} } });
        json!({ "200": told(yes), "503": told(no) })
    };
    let get = |summary: &str, parameters: &Value, responses: Value| json!({ "get": { "summary": summary, "parameters": parameters, "responses": responses } });
    let none = json!([]);
    let paths = json!({
        "/api/v1/status": get("All clusters, what runs, what is wrong", &none, json!({ "200": board })),
        "/api/v1/clusters/{cluster}": get(
            "One cluster with its history", &cluster, json!({ "200": whole, "404": unknown, "503": early })
        ),
        "/v1/clusters/{cluster}/freshness": get("For load balancers and uptime monitors", &cluster, freshness),
        "/metrics": get("For Prometheus", &none, json!({ "200": text("Text format 0.0.4.") })),
        "/healthz": get("Does the daemon's wheel turn", &none, yes_or_no("It does.", "It does not.")),
        "/readyz": get(
            "Has it looked, does Docker answer, is its configuration valid",
            &none, yes_or_no("Yes.", "No; `problems` says why."),
        ),
    });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pglife", "version": env!("CARGO_PKG_VERSION"),
            "description": "How the clusters are. Nothing can be changed here.",
        },
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

fn answer(generator: &mut SchemaGenerator, words: &str, schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
    json!({ "description": words, "content": { "application/json": { "schema": schema(generator) } } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::page::tests::example;
    use crate::status::verdicts;

    /// What is wrong with an answer, held against what the document says of it.
    fn wrong(path: &str, status: &str, value: &Value) -> Vec<String> {
        let document = document();
        let schema = &document["paths"][path]["get"]["responses"][status]["content"]["application/json"]["schema"];
        let mut found = Vec::new();
        hold_against(&document, schema, value, path, &mut found);
        found
    }

    /// As much of JSON Schema as the types make use of; a keyword that is not known here is a fault of this test.
    fn hold_against(document: &Value, schema: &Value, value: &Value, place: &str, found: &mut Vec<String>) {
        let Some(keywords) = schema.as_object() else {
            found.extend((schema != &json!(true)).then(|| format!("{place}: nothing is allowed here")));
            return;
        };
        for (keyword, rule) in keywords {
            let list = || rule.as_array().expect("a list");
            let fits = match keyword.as_str() {
                "description" | "title" | "format" | "minimum" | "default" => true,
                "$ref" => {
                    let pointer = rule.as_str().and_then(|text| text.strip_prefix('#')).expect("a pointer");
                    let referred = document.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is not there"));
                    hold_against(document, referred, value, place, found);
                    true
                }
                "type" => {
                    let is = |name: &Value| match name.as_str().expect("a type") {
                        "string" => value.is_string(),
                        "integer" => value.is_u64() || value.is_i64(),
                        "number" => value.is_number(),
                        "boolean" => value.is_boolean(),
                        "array" => value.is_array(),
                        "object" => value.is_object(),
                        "null" => value.is_null(),
                        other => panic!("no type {other}"),
                    };
                    rule.as_array().map_or_else(|| is(rule), |types| types.iter().any(is))
                }
                "required" => list().iter().all(|key| value.get(key.as_str().expect("a key")).is_some()),
                "properties" => {
                    for (key, member) in value.as_object().into_iter().flatten() {
                        match rule.get(key) {
                            Some(schema) => hold_against(document, schema, member, &format!("{place}/{key}"), found),
                            None => found.push(format!("{place}/{key} is not in the document")),
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    for (key, member) in value.as_object().into_iter().flatten() {
                        hold_against(document, rule, member, &format!("{place}/{key}"), found);
                    }
                    true
                }
                "items" => {
                    for member in value.as_array().into_iter().flatten() {
                        hold_against(document, rule, member, &format!("{place}[]"), found);
                    }
                    true
                }
                "enum" => list().contains(value),
                "const" => rule == value,
                "anyOf" | "oneOf" => list().iter().any(|one| {
                    let mut faults = Vec::new();
                    hold_against(document, one, value, place, &mut faults);
                    faults.is_empty()
                }),
                other => panic!("{place}: the keyword {other} is not known to this test"),
            };
            found.extend((!fits).then(|| format!("{place}: {keyword} is {rule}, the answer {value}")));
        }
    }

    #[test]
    fn answers_are_what_the_document_says() {
        let snapshot = example();
        let board = serde_json::to_value(Answer::of("DaemonStatus", &snapshot)).expect("JSON");
        assert_eq!(wrong("/api/v1/status", "200", &board), [""; 0]);
        let cluster = snapshot.clusters[0].clone();
        let whole = ClusterAnswer {
            checks: verdicts(&cluster),
            running: snapshot.running.clone(),
            history: (*cluster.history).clone(),
            status: cluster.clone(),
        };
        let mut whole = serde_json::to_value(Answer::of("ClusterStatus", whole)).expect("JSON");
        let path = "/api/v1/clusters/{cluster}";
        assert_eq!(wrong(path, "200", &whole), [""; 0]);
        let freshness =
            Freshness { cluster: cluster.cluster.clone(), level: Level::Critical, checks: verdicts(&cluster) };
        let freshness = serde_json::to_value(freshness).expect("JSON");
        assert_eq!(wrong("/v1/clusters/{cluster}/freshness", "503", &freshness), [""; 0]);
        // And it is a document that can be broken.
        whole["items"][0]["status"]["volume"]["backups"] = json!("many");
        assert_eq!(wrong(path, "200", &whole).len(), 1);
    }

    #[test]
    fn every_path_of_the_table_is_in_it() {
        let table = include_str!("../http.rs").lines().filter_map(|line| line.strip_prefix("//! | `/"));
        let paths: Vec<String> = table
            .map(|rest| format!("/{}", rest.split('`').next().expect("a part")).replace('<', "{").replace('>', "}"))
            .collect();
        let document = document();
        for path in &paths {
            // Pages are for people.
            let is_page = ["/", "/clusters/{cluster}", "/api/v1/openapi.json"].contains(&path.as_str());
            assert_eq!(document["paths"].get(path).is_some(), !is_page, "{path}");
        }
        assert!(paths.len() >= 8, "{paths:?}");
    }
}
