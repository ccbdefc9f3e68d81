//! How backups come to an end: deleting them, keeping them from it, and removing what is left.
//!
//! [`mod@expire`] looks at what there is ([`facts`]), [`plan`]s by the rules what stays, and does it.
//! [`delete()`] and [`clean_up`] mark backups as deleted and then [`sweep`]: they read who refers to
//! what ([`references`]) and remove what nobody needs. WAL is [`cut`]. [`pin`] and [`unpin`] say what
//! has to stay. The marks themselves, and the other half of the protocol, which a running backup follows, are in
//! [`crate::repo::tombstone`].

mod allowed;
pub mod amount;
mod clean;
mod cut;
mod delete;
mod drills;
mod expire;
pub mod facts;
mod pins;
pub mod plan;
pub mod references;
pub mod sweep;

pub use allowed::may_remove;
pub use clean::clean_up;
pub use delete::{Deletion, delete};
pub use expire::{Expiry, WalCut, expire};
pub use pins::{Pinned, Unpinned, pin, unpin};
