//! What the tests stand on: real PostgreSQL clusters, the program under test, and ways to break
//! things.

pub mod answers;
pub mod child;
pub mod chosen;
pub mod clock;
pub mod cluster;
pub mod disk;
pub mod faulty;
pub mod files;
pub mod gate;
pub mod host;
pub mod install;
pub mod memory;
pub mod moto;
pub mod objects;
pub mod pgkeep;
pub mod pgwire;
pub mod places;
pub mod random;
pub mod reading;
pub mod s3;
pub mod scratch;
pub mod server;
pub mod session;
pub mod sound;
pub mod steps;
pub mod strace;
pub mod tables;
pub mod template;
pub mod wal;

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

pub use cluster::Cluster;
pub use install::versions;
pub use pgkeep::Pgkeep;
pub use scratch::Scratch;
pub use server::Stop;
pub use tables::Writes;

/// Waits until `condition` holds, and fails the test when it doesn't within `seconds`.
pub fn wait_until(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        assert!(Instant::now() < end, "waited {seconds} s in vain until {what}");
        sleep(Duration::from_millis(20));
    }
}

/// One test a PostgreSQL version: `on_each_version!(a_backup_restores);` beside
/// `fn a_backup_restores(version: u32) { … }`. Versions that `PGKEEP_TEST_POSTGRES` leaves out
/// are skipped, and say so.
macro_rules! on_each_version {
    ($test:ident) => {
        crate::support::on_each_version!($test: 15 postgres_15, 16 postgres_16, 17 postgres_17, 18 postgres_18);
    };
    ($test:ident: $($version:literal $name:ident),*) => {
        mod $test {
            $(
                #[test]
                fn $name() {
                    if crate::support::versions().contains(&$version) {
                        super::$test($version);
                    } else {
                        eprintln!("skipped: PGKEEP_TEST_POSTGRES leaves out {}", $version);
                    }
                }
            )*
        }
    };
}
pub(crate) use on_each_version;
