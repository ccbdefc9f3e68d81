//! pgkeep: PostgreSQL backup and point-in-time recovery.
//!
//! The map of the house. Imports go one way, from the top of this list to its end, and
//! `tests/integration/house` fails on an edge that isn't allowed:
//!
//! - [`cli`]: one file a command: its arguments, and what it prints. No logic.
//! - [`demo`]: the whole story on a throwaway cluster, told by calling the operations below.
//! - The operations. They don't import each other, but that a drill, in [`verify`], restores; what two
//!   of them share belongs in `repo` or `postgres`.
//!   - [`backup`]: the pipeline from a source of files to a committed backup.
//!   - [`archive`]: pushing WAL into the repositories, getting it back, proving that it works.
//!   - [`restore`]: choosing a backup and a timeline, planning, writing the data directory.
//!   - [`retention`]: deleting backups, pinning them, removing what nobody refers to any more.
//!   - [`verify`]: whether the repositories hold what they promise, and whether it can be restored.
//!   - [`info`]: what the repositories hold, from when until when one can restore, and how far the
//!     server is ahead.
//! - [`repo`]: the repository format: sealed objects, keys, packs, the tree, catalog, leases.
//! - [`config`]: file, environment and flags made into typed settings.
//! - [`storage`]: bytes by name, on a local disk or in S3. Knows nothing of what it holds.
//! - [`postgres`]: what PostgreSQL is: positions, names, file formats, the wire protocol. Knows
//!   nothing of pgkeep.
//! - [`progress`]: what an operation tells while it runs.
//! - [`error`]: what every operation fails with: a kind with an exit code, a sentence, a hint.
//! - [`steps`]: the moments at which tests kill the process.

pub mod archive;
pub mod backup;
pub mod cli;
pub mod config;
pub mod demo;
pub mod error;
pub mod info;
pub mod postgres;
pub mod progress;
pub mod repo;
pub mod restore;
pub mod retention;
pub mod steps;
pub mod storage;
pub mod verify;
