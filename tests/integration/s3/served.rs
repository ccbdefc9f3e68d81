//! The tests' server for others: `make bench` counts at it what a command asks for.

use std::{io::Read, net::TcpStream};

use crate::support::s3::{BUCKET, Server};

/// With `PGKEEP_TEST_SERVE` it serves until its input ends.
#[test]
fn whoever_knows_the_port_is_served() {
    let server = Server::start();
    let (key, secret) = server.credentials();
    println!("serving {} {BUCKET} {key} {secret}", server.address().port());
    if std::env::var_os("PGKEEP_TEST_SERVE").is_some() {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
    TcpStream::connect(server.address()).expect("it listens to the end");
}
