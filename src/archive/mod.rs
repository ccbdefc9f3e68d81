//! The archive of WAL: pushing it into the repositories, getting it back, proving that it works.
//!
//! [`push()`] is PostgreSQL's `archive_command`, [`get()`] its `restore_command`, [`stream()`] receives
//! WAL as it is written, [`check()`] is what a person runs to know that archiving works. Nothing here ever writes below a data directory, but for
//! the one path that `restore_command` names.

mod ahead;
pub mod check;
mod command;
pub mod data_directory;
mod destination;
mod diagnose;
pub mod fetch_ahead;
mod gaps;
pub mod get;
mod heal;
mod partial;
mod pgdata;
pub mod proven;
pub mod push;
mod replication;
mod server;
mod settings;
mod source;
pub mod spool;
pub mod state;
mod store;
pub mod stream;
mod tablespaces;

pub use crate::repo::wal_taken::Stored;
pub use check::{CheckOptions, CheckReport, CheckStep, StepState, check};
pub use fetch_ahead::{FetchAhead, fetch_ahead};
pub use get::{GetOptions, Got, get};
pub use push::{PushOutcome, push};
pub use stream::stream;
