//! How backups come to an end: deleting them, keeping them from it, and removing what is left.
//!
//! [`delete()`] and [`clean_up`] mark backups as deleted and then [`sweep`]: they read who refers to
//! what ([`references`]) and remove what nobody needs. [`pin`] and [`unpin`] say what has to stay. The
//! marks themselves, and the other half of the protocol, which a running backup follows, are in
//! [`crate::repo::tombstone`].

mod clean;
mod delete;
mod pins;
pub mod references;
pub mod sweep;

pub use clean::clean_up;
pub use delete::{Deletion, delete};
pub use pins::{Pinned, Unpinned, pin, unpin};
