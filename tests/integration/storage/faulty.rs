//! The fault-injecting storage does what it says.

use pgkeep::storage::{ErrorKind, Range, Storage};

use super::{directory, name};
use crate::support::faulty::{Fault, Faulty, Operation};

#[tokio::test]
async fn the_nth_operation_of_a_kind_goes_wrong_once() {
    let place = directory();
    let faulty = Faulty::new(place.storage.clone());
    faulty.put(&name("a"), "content".into()).await.expect("put");
    faulty.nth(Operation::Read, 2, Fault::Fails(ErrorKind::Denied));
    let object = name("a");
    let read = || faulty.read(&object, Range::All);
    assert!(read().await.is_ok());
    assert_eq!(read().await.expect_err("the second").kind, ErrorKind::Denied);
    assert!(read().await.is_ok());
    assert_eq!(faulty.faults(), 1);
    faulty.nth(Operation::Read, 1, Fault::Flips);
    assert_eq!(read().await.expect("flipped"), "conuent");
    faulty.nth(Operation::Finish, 1, Fault::AnswerLost);
    assert!(faulty.put(&name("b"), "stored".into()).await.is_err());
    assert_eq!(place.storage.read(&name("b"), Range::All).await.expect("it is there"), "stored");
    assert_eq!(faulty.log().len(), 3, "create, write, finish");
}

#[tokio::test]
async fn after_its_death_nothing_answers_and_what_was_durable_stays() {
    for done in [false, true] {
        let place = directory();
        let faulty = Faulty::new(place.storage.clone());
        faulty.dies(2, done);
        assert!(faulty.put(&name("a"), "1".into()).await.is_ok());
        assert!(faulty.put(&name("b"), "2".into()).await.is_err());
        assert!(faulty.put(&name("c"), "3".into()).await.is_err());
        assert!(faulty.read(&name("a"), Range::All).await.is_err());
        let left = place.storage.list("", None, 10).await.expect("list");
        let left: Vec<&str> = left.iter().map(|object| object.name.as_str()).collect();
        assert_eq!(left, if done { vec!["a", "b"] } else { vec!["a"] });
    }
}

#[tokio::test]
async fn a_seed_repeats_its_faults() {
    let run = async |seed| {
        let place = directory();
        let faulty = Faulty::new(place.storage.clone());
        faulty.random(seed, 4);
        let mut went_well = Vec::new();
        for number in 0..50 {
            went_well.push(faulty.put(&name(&format!("o{number}")), "x".into()).await.is_ok());
        }
        assert!(faulty.faults() > 5);
        faulty.heal();
        assert!(faulty.put(&name("after"), "x".into()).await.is_ok());
        assert_eq!(faulty.changes(), 1);
        went_well
    };
    assert_eq!(run(1).await, run(1).await);
    assert_ne!(run(1).await, run(2).await);
}
