//! An S3 server in the test process, whose objects are files.
//!
//! It checks signatures and checksums (`s3s-fs`). Before it stands a layer of ours ([`front`]) that
//! makes creations atomic, counts requests, lists uploads, and goes wrong when a test says so.

pub mod front;
mod http;
pub mod policy;
pub mod tls;
pub mod wire;

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder as Connections,
};
use pgkeep::storage::s3::S3Settings;
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tokio::{net::TcpListener, runtime::Runtime};

pub use front::{Call, Front, Go, Traits};
pub use wire::Wire;

use super::scratch::Scratch;

/// The one bucket of a server.
pub const BUCKET: &str = "pgkeep-test";

const ACCESS_KEY: &str = "AKIAPGKEEPTEST";
const SECRET_KEY: &str = "a secret that has to be right";

/// A server, which stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    front: Arc<Front>,
    address: SocketAddr,
    folder: Scratch,
    credentials: PathBuf,
    runtime: Option<Runtime>,
}

impl Server {
    /// A server that does as S3 does.
    pub fn start() -> Self {
        Server::with(Traits::default())
    }

    /// A server with traits of its own.
    pub fn with(traits: Traits) -> Self {
        let folder = Scratch::new("s3");
        folder.folder(&format!("objects/{BUCKET}"));
        let credentials = folder.file(
            "credentials",
            format!(
                "[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n"
            ),
        );
        let front = Arc::new(Front::new(&folder.path().join("objects"), traits));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .enable_all()
            .build()
            .expect("a runtime");
        // Bound here, since a test may be asynchronous itself.
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        runtime.spawn(serve(front.clone(), listener));
        Server { front, address, folder, credentials, runtime: Some(runtime) }
    }

    /// A server of its own with the same objects.
    pub fn copy(&self) -> Self {
        let copy = Server::with(self.front.traits());
        let objects = |server: &Server| server.folder.path().join("objects");
        fs::remove_dir_all(objects(&copy)).expect("remove a folder");
        super::template::copy(&objects(self), &objects(&copy));
        copy
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where the objects below a prefix are files.
    pub fn objects(&self, prefix: &str) -> PathBuf {
        self.folder.path().join("objects").join(BUCKET).join(prefix)
    }

    /// Makes the folder of a prefix, so that it is the server's user's: tests move it away.
    pub fn make_prefix(&self, prefix: &str) {
        self.folder.folder(&format!("objects/{BUCKET}/{prefix}"));
    }

    /// What stands before it: counts, and what goes wrong.
    pub fn front(&self) -> &Front {
        &self.front
    }

    /// What a client needs: few attempts, so that tests of failures are quick.
    pub fn settings(&self, prefix: &str) -> S3Settings {
        S3Settings {
            endpoint: Some(self.endpoint()),
            credentials_file: Some(self.credentials.clone()),
            attempts: 3,
            ..S3Settings::new(BUCKET, prefix)
        }
    }

    /// The key and the secret that it knows.
    pub fn credentials(&self) -> (&'static str, &'static str) {
        (ACCESS_KEY, SECRET_KEY)
    }

    /// A repository's lines in the configuration, without its key.
    pub fn configuration(&self, name: &str, prefix: &str) -> (String, String) {
        let url = format!("url = \"s3://{BUCKET}/{prefix}\"");
        let table = format!(
            "[repository.{name}.s3]\nendpoint = \"{}\"\ncredentials-file = \"{}\"\nattempts = 3",
            self.endpoint(),
            self.credentials.display(),
        );
        (url, table)
    }

    /// Removes the bucket with all that is in it.
    pub fn remove_bucket(&self) {
        fs::remove_dir_all(self.objects("")).expect("remove the bucket");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(front: Arc<Front>, listener: std::net::TcpListener) {
    let service = {
        let mut builder = S3ServiceBuilder::new(front::Shared(front));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        builder.build()
    };
    let listener = TcpListener::from_std(listener).expect("listen");
    let connections = Connections::new(TokioExecutor::new());
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let connection =
            connections.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
        tokio::spawn(connection);
    }
}
