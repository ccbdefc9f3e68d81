//! The tests' server for others: `make bench` counts at it what a command asks for.

use std::io::Read;

use crate::support::s3::{BUCKET, Server};

#[test]
#[ignore = "serves until its input ends"]
fn serves() {
    let server = Server::start();
    let (key, secret) = server.credentials();
    println!("serving {} {BUCKET} {key} {secret}", server.address().port());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
