//! The way to a server, with somebody at it: before a command goes on, something is done.
//!
//! So what may happen to a server just then, by chance and seldom, happens each time.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::cluster::Cluster;

/// What is done before a command goes on.
type Before = Arc<Mutex<dyn FnMut() + Send>>;

/// Passes on what is said between a cluster's server and those who connect here. Takes nobody any
/// more when this is dropped.
#[derive(Debug)]
pub struct Gate {
    port: u16,
    closed: Arc<AtomicBool>,
}

impl Gate {
    /// A gate before the server of `cluster`, which does `before` whenever a client sends something
    /// with `command` in it.
    pub fn before(
        cluster: &Cluster,
        command: &'static str,
        before: impl FnMut() + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a port");
        let port = listener.local_addr().expect("an address").port();
        let socket = cluster.socket_dir().join(format!(".s.PGSQL.{}", cluster.port()));
        let before: Before = Arc::new(Mutex::new(before));
        let closed = Arc::new(AtomicBool::new(false));
        let is_closed = closed.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if is_closed.load(Ordering::Relaxed) {
                    return;
                }
                let server = UnixStream::connect(&socket).expect("connect to the server");
                pass(client, server, command, before.clone());
            }
        });
        Gate { port, closed }
    }

    /// How to connect through it.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres sslmode=disable", self.port)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // Wakes who waits for somebody.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Passes on what both say, until one of them is gone.
fn pass(client: TcpStream, server: UnixStream, command: &'static str, before: Before) {
    let (mut from_server, mut to_client) = (
        server.try_clone().expect("a second handle"),
        client.try_clone().expect("a second handle"),
    );
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    thread::spawn(move || {
        let (mut from_client, mut to_server) = (client, server);
        let mut said = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_client.read(&mut said) {
            // A command is short, and sent at once.
            if said[..count].windows(command.len()).any(|part| part == command.as_bytes()) {
                before.lock().expect("nothing failed before")();
            }
            if to_server.write_all(&said[..count]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(Shutdown::Both);
    });
}
