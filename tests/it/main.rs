//! Against the real world: Docker, PostgreSQL 13, 15, 17 and 18, stock tools. One binary, so that it is linked once.
//!
//! `scripts/test` prepares the images and runs this. A missing engine or image is a failure, never a skip. Every test makes a
//! [`house::House`] of its own: a folder with configuration, state and repository, and clusters whose names begin with the
//! house's; all of it is removed at the end, whether the test passed or not.

#![allow(unreachable_pub, reason = "everything here is private to the test binary")]
#![allow(
    clippy::disallowed_methods,
    clippy::large_stack_arrays,
    clippy::similar_names,
    clippy::doc_markdown,
    clippy::needless_pass_by_value,
    clippy::format_collect,
    clippy::case_sensitive_file_extension_comparisons,
    reason = "tests look behind the scenes, and are read by people: plain words and short helpers"
)]

mod adopt;
mod architecture;
mod authority;
mod browser;
mod bucket;
mod consul;
mod copies;
mod daemon;
mod database_service;
mod dependents;
mod documents;
mod drill;
mod encryption;
mod engine;
mod environment;
mod everything;
mod hosts;
mod house;
mod images;
mod in_place;
mod job;
mod kv_configuration;
mod long_life;
mod notify;
mod parts;
mod recovery;
mod retention;
mod room;
mod s3;
mod secrets;
mod selftest;
mod storage;
mod trouble;
mod two_daemons;
mod upgrade;
mod volume;
