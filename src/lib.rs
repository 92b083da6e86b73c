//! pglife: backups, restores and upgrades of PostgreSQL clusters that run in Docker containers.
//!
//! The map of the house. Imports run downward only.
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`cluster`], [`exit`], [`sql`] | names, versions, exit codes, quoting: no I/O |
//! | [`encryption`] | keys of sealed backups: who can open one, and what opens it: no I/O |
//! | [`backup_set`] | what a backup set is and where its objects lie: no I/O |
//! | [`facts`] | what a cluster holds, and what a copy of it lacks: no I/O |
//! | [`document`] | a TOML document read key by key, every problem remembered: no I/O |
//! | [`settings`], [`policy`] | `pglife.toml` and `policies/<cluster>.toml`, validated: no I/O |
//! | [`configuration`] | finds, reads and writes those files |
//! | [`storage`], [`docker`], [`postgres`], [`state`], [`consul`] | adapters: one outside world each |
//! | [`kv`] | policies in Consul's KV: read, copied, written |
//! | [`pipeline`] | the way of the bytes: compress, hash, store, and back |
//! | [`worker`] | the data plane: the job protocol, and the process inside a worker container |
//! | [`control`] | what every operation needs: the engines, the repository, a run with its locks |
//! | [`provision`], [`backup`], [`restore`], [`verification`], [`prune`], [`export`], [`sync`] | operations: a plan, then effects |
//! | [`extract`] | one database out of a copy of volumes: a server is started on it, dumped, and the dump restored |
//! | [`drill`] | proves a backup: a restore into a throwaway server, compared and certified |
//! | [`selftest`] | spoils copies of a backup, and wants verification and drill to notice |
//! | [`upgrade`] | moves a cluster to a newer major; made of backup, restore and facts |
//! | [`status`] | how the clusters are: plain snapshots |
//! | [`dependents`] | containers that go down with a cluster, and come back with it |
//! | [`http`] | shows what the daemon knows |
//! | [`daemon`] | starts what is scheduled, and tells how things are |
//! | [`cli`] | the command line; `cli/output.rs` is the only place that prints |

pub mod backup;
pub mod backup_set;
pub mod causes;
pub mod cli;
pub mod cluster;
pub mod configuration;
pub mod consul;
pub mod control;
pub mod daemon;
pub mod dependents;
pub mod docker;
pub mod document;
pub mod drill;
pub mod encryption;
pub mod environment;
pub mod exit;
pub mod export;
pub mod extract;
pub mod facts;
pub mod http;
pub mod kv;
pub mod notify;
pub mod pipeline;
pub mod policy;
pub mod postgres;
pub mod provision;
pub mod prune;
pub mod restore;
pub mod selftest;
pub mod settings;
pub mod sql;
pub mod state;
pub mod status;
pub mod storage;
pub mod sync;
pub mod upgrade;
pub mod verification;
pub mod worker;
