//! The whole of it on S3: servers that differ from others, memory, and what it costs.
//!
//! With `PGKEEP_TEST_REPOSITORY=s3` the other modules run on S3 too; here is what that doesn't show.

mod cost;
mod credentials;
mod faults;
mod headers;
mod locked;
mod memory;
mod names;
mod permissions;
mod recovery;
mod served;
mod slow;
mod tls;
