//! Servers that this program starts itself, on data directories that it made.
//!
//! [`Binaries`] finds the programs of a major version, [`Server`] is a postmaster that is stopped when
//! it is dropped. Neither knows what the server is for.

mod binaries;
mod process;

pub use binaries::{Binaries, BinariesError};
pub use process::{Server, ServerState, Stop, StopError};
