//! HTTP: a page for people, JSON and metrics for programs, health for whoever watches the daemon. It shows the board and changes
//! nothing: there is no call that does.
//!
//! | path | what | answers |
//! | --- | --- | --- |
//! | `/` | the page ([`page`]) | 200 |
//! | `/clusters/<cluster>` | the page of a cluster | 200, 404 |
//! | `/api/v1/status` | the board as JSON | 200 |
//! | `/api/v1/clusters/<cluster>` | a cluster with its history, as JSON | 200, 404 |
//! | `/api/v1/openapi.json` | what these answer ([`openapi`]) | 200 |
//! | `/v1/clusters/<cluster>/freshness` | for load balancers and uptime monitors | 200, 429 (a warning), 503, 404 |
//! | `/metrics` | for Prometheus ([`metrics`]) | 200 |
//! | `/healthz` | does the daemon's wheel turn | 200, 503 |
//! | `/readyz` | has it looked, does Docker answer, is its configuration valid | 200, 503 |
//!
//! Whoever connects costs little: so many connections at a time, a limit for sending a request's head, no bodies.

mod metrics;
mod openapi;
mod page;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::policy::freshness::Level;
use crate::status::board::{Board, Snapshot};
use crate::status::verdicts;

use openapi::{Answer, ClusterAnswer, Freshness, Problem};

/// Connections at a time; more wait.
const CONNECTIONS: usize = 64;
/// How long a request's head may take to arrive.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last.
const CONNECTION: Duration = Duration::from_secs(60);
/// A wheel that has not turned for so long stands still.
const STANDSTILL: Duration = Duration::from_secs(90);

/// Serves the board on `listener` until `cancel`.
pub async fn serve(listener: TcpListener, board: Arc<Board>, cancel: CancellationToken) {
    let router = router(board);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let place = tokio::select! {
            () = cancel.cancelled() => break,
            place = Arc::clone(&room).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: it passes, and must not become a busy loop.
                tracing::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone());
        connections.spawn(async move {
            let _place = place;
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(64 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = tokio::time::timeout(CONNECTION, connection).await {
                tracing::debug!("a connection ended: {error}");
            }
        });
    }
    connections.shutdown().await;
}

/// The address a listener really has.
pub async fn listen(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

fn router(board: Arc<Board>) -> Router {
    Router::new()
        .route("/", get(show_page))
        .route("/style.css", get(style))
        .route("/icon.svg", get(icon))
        .route("/clusters/{cluster}", get(show_cluster))
        .route("/api/v1/status", get(status))
        .route("/api/v1/clusters/{cluster}", get(cluster))
        .route("/api/v1/openapi.json", get(description))
        .route("/v1/clusters/{cluster}/freshness", get(freshness))
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(readiness))
        .fallback(nothing_here)
        .layer(map_response(guard))
        .with_state(board)
}

/// What every answer says about itself.
async fn guard(response: Response) -> Result<Response, Infallible> {
    const HEADERS: [(HeaderName, &str); 5] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    let mut response = response;
    let headers: &mut HeaderMap = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

fn typed(kind: &'static str, text: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

fn json_answer(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("only text keys") + "\n";
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn nothing_here() -> Response {
    (StatusCode::NOT_FOUND, "there is nothing here; the page is at /\n").into_response()
}

async fn show_page(State(board): State<Arc<Board>>) -> Response {
    typed("text/html; charset=utf-8", page::page(&board.read(), Timestamp::now()))
}

async fn show_cluster(State(board): State<Arc<Board>>, Path(name): Path<String>) -> Response {
    match page::cluster_page(&board.read(), &name, Timestamp::now()) {
        Some(html) => typed("text/html; charset=utf-8", html),
        None => {
            (StatusCode::NOT_FOUND, "there is no such cluster; the page with all of them is at /\n").into_response()
        }
    }
}

async fn style() -> Response {
    typed("text/css; charset=utf-8", page::STYLE.to_owned())
}

async fn icon() -> Response {
    typed("image/svg+xml", page::ICON.to_owned())
}

async fn show_metrics(State(board): State<Arc<Board>>) -> Response {
    typed("text/plain; version=0.0.4; charset=utf-8", metrics::metrics(&board.read()))
}

async fn status(State(board): State<Arc<Board>>) -> Response {
    let now = Timestamp::now();
    let mut snapshot = board.read();
    for cluster in &mut snapshot.clusters {
        *cluster = cluster.at(now);
    }
    json_answer(StatusCode::OK, &Answer::of("DaemonStatus", snapshot))
}

async fn cluster(State(board): State<Arc<Board>>, Path(name): Path<String>) -> Response {
    let snapshot = board.read();
    let Some(cluster) = snapshot.clusters.iter().find(|cluster| cluster.cluster.as_str() == name) else {
        return unknown_cluster(&snapshot);
    };
    let status = cluster.at(Timestamp::now());
    let item = ClusterAnswer {
        checks: verdicts(&status),
        running: snapshot.running.iter().filter(|run| run.cluster == status.cluster).cloned().collect(),
        history: (*status.history).clone(),
        status,
    };
    json_answer(StatusCode::OK, &Answer::of("ClusterStatus", item))
}

/// A cluster that was asked for and is not there, or not looked at yet.
fn unknown_cluster(snapshot: &Snapshot) -> Response {
    let (status, why) = match snapshot.looked_at {
        None => (StatusCode::SERVICE_UNAVAILABLE, "the daemon has not looked yet"),
        Some(_) => (StatusCode::NOT_FOUND, "there is no such cluster"),
    };
    json_answer(status, &Problem { error: why })
}

async fn description() -> Response {
    json_answer(StatusCode::OK, &openapi::document())
}

async fn freshness(State(board): State<Arc<Board>>, Path(name): Path<String>) -> Response {
    let snapshot = board.read();
    let Some(cluster) = snapshot.clusters.iter().find(|cluster| cluster.cluster.as_str() == name) else {
        return unknown_cluster(&snapshot);
    };
    let verdicts = verdicts(&cluster.at(Timestamp::now()));
    let worst = verdicts.iter().map(|verdict| verdict.level).max().unwrap_or(Level::Critical);
    let status = match worst {
        Level::Ok => StatusCode::OK,
        Level::Warn => StatusCode::TOO_MANY_REQUESTS,
        Level::Critical => StatusCode::SERVICE_UNAVAILABLE,
    };
    json_answer(status, &Freshness { cluster: cluster.cluster.clone(), level: worst, checks: verdicts })
}

async fn health(State(board): State<Arc<Board>>) -> Response {
    let (still, turned_at) = {
        let snapshot = board.read();
        (stands_still(&snapshot, Timestamp::now()), snapshot.turned_at)
    };
    let status = if still { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    json_answer(status, &json!({ "healthy": !still, "turned_at": turned_at }))
}

async fn readiness(State(board): State<Arc<Board>>) -> Response {
    let snapshot = board.read();
    let mut problems: Vec<String> = snapshot.flags.values().cloned().collect();
    if snapshot.looked_at.is_none() {
        problems.push("the clusters have not been looked at yet".to_owned());
    }
    if stands_still(&snapshot, Timestamp::now()) {
        problems.push("the daemon's wheel stands still".to_owned());
    }
    let down = snapshot.docker_up.iter().filter(|(_, up)| !**up);
    problems.extend(down.map(|(host, _)| format!("the Docker engine of host \"{host}\" does not answer")));
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json_answer(status, &json!({ "ready": problems.is_empty(), "role": snapshot.role, "problems": problems }))
}

fn stands_still(snapshot: &Snapshot, now: Timestamp) -> bool {
    now.duration_since(snapshot.turned_at).as_secs() > i64::try_from(STANDSTILL.as_secs()).unwrap_or(i64::MAX)
}
