//! The tests against real PostgreSQL and a real repository, as one program: it links once, and a
//! helper that no test uses is a warning.

mod archive;
mod authentication;
mod backup;
mod catalog;
mod clocks;
mod command_line;
mod configuration;
mod drill;
mod durability;
mod faults;
mod fixture;
mod formats_oracle;
mod full;
mod fuzzed;
mod house;
mod incremental;
mod life;
mod native;
mod power;
mod protocol;
mod recovery;
mod replication;
mod restore_choice;
mod restore_write;
mod retention;
mod s3;
mod self_test;
mod server_faults;
mod steps;
mod storage;
mod stream;
mod support;
mod verify;
mod wal_oracle;
