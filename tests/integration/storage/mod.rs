//! Storage: one suite for every back end, and what only a directory or only a bucket has.

mod conformance;
mod faulty;
mod local;
mod s3;

use std::sync::Arc;

use bytes::Bytes;
use pgkeep::storage::{ObjectName, Storage, local::Local, s3::S3};

use crate::support::{faulty::Faulty, memory::Memory, s3::Server};

/// A storage to test, and what has to live as long as it does.
struct Place {
    storage: Arc<dyn Storage>,
    _below: Below,
}

/// What a storage stands on.
enum Below {
    Folder(#[expect(dead_code, reason = "it is removed when this is dropped")] tempfile::TempDir),
    Nothing,
    Server(#[expect(dead_code, reason = "it stops when this is dropped")] Server),
}

/// A directory of this process's user.
fn directory() -> Place {
    let folder = tempfile::tempdir().expect("make a directory");
    let storage = Local::open(folder.path()).expect("open it");
    Place { storage: Arc::new(storage), _below: Below::Folder(folder) }
}

/// The wrapper that injects faults has to keep the contract while it injects none.
fn wrapped() -> Place {
    let Place { storage, _below } = directory();
    Place { storage: Arc::new(Faulty::new(storage)), _below }
}

/// A bucket of a server in this process.
fn bucket() -> Place {
    let server = Server::start();
    let storage = S3::new(server.settings("some/prefix"));
    Place { storage: Arc::new(storage), _below: Below::Server(server) }
}

/// What tests use that need a repository a thousand times.
fn memory() -> Place {
    Place { storage: Arc::new(Memory::default()), _below: Below::Nothing }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new(text).expect("a good name")
}

/// Bytes that differ from place to place, and by `seed`.
fn content(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// The suite as tests, for each back end.
macro_rules! conform {
    ($($back_end:ident),*: $checks:tt) => {
        $(conform!(@one $back_end $checks);)*
    };
    (@one $back_end:ident [$($check:ident),* $(,)?]) => {
        mod $back_end {
            $(
                #[tokio::test]
                async fn $check() {
                    let place = super::$back_end();
                    super::conformance::$check(&place.storage).await;
                }
            )*
        }
    };
}

conform!(directory, wrapped, memory, bucket: [
    what_is_put_can_be_read_and_sized,
    a_taken_name_is_refused_and_keeps_its_content,
    of_racing_creators_exactly_one_wins,
    nothing_is_visible_before_finish,
    a_dropped_writer_leaves_nothing,
    ranges_are_exact,
    a_range_past_the_end_is_an_error,
    only_what_has_a_bounded_size_is_read_whole,
    what_is_not_there_is_not_found,
    listings_are_in_byte_order_and_by_prefix,
    listings_go_on_after_a_name,
    a_listing_in_pages_is_the_same_listing,
    folders_are_told,
    deleting_can_be_repeated,
    many_are_deleted_together,
    a_deleted_name_can_be_used_again,
    replacing_is_all_or_nothing,
    durability_of_what_is_there_can_be_asked_for,
]);
