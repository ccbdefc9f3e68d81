//! An S3 server of another make, for what the one in the process doesn't have: versions and object
//! lock. It checks neither signatures nor checksums.

use std::{
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    types::{
        DefaultRetention, ObjectLockConfiguration, ObjectLockEnabled, ObjectLockRetentionMode,
        ObjectLockRule,
    },
};
use pgkeep::storage::s3::S3Settings;

use super::{scratch::Scratch, wait_until};

/// A server, which ends when this is dropped, and a client of it.
#[derive(Debug)]
pub struct Moto {
    child: Child,
    port: u16,
    credentials: PathBuf,
    _scratch: Scratch,
    runtime: tokio::runtime::Runtime,
    client: Client,
}

/// A version of an object, or a marker that hides the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub key: String,
    pub id: String,
    pub is_marker: bool,
}

impl Moto {
    /// Starts one.
    pub fn start() -> Self {
        let scratch = Scratch::new("moto");
        let credentials = scratch
            .file("credentials", "[default]\naws_access_key_id = x\naws_secret_access_key = y\n");
        let port = {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let child = Command::new(program())
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start moto_server");
        let config = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://127.0.0.1:{port}"))
            .force_path_style(true)
            .credentials_provider(Credentials::new("x", "y", None, None, "test"))
            .build();
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let client = Client::from_conf(config);
        let moto = Moto { child, port, credentials, _scratch: scratch, runtime, client };
        wait_until("moto_server listens", 60, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        moto
    }

    /// Makes a bucket. With `days` every object is held so long, by nobody to be shortened; without
    /// it the bucket only keeps versions.
    pub fn bucket(&self, name: &str, days: Option<i32>) {
        self.runtime.block_on(async {
            self.client
                .create_bucket()
                .bucket(name)
                .object_lock_enabled_for_bucket(days.is_some())
                .send()
                .await
                .expect("make a bucket");
            let versioning = aws_sdk_s3::types::VersioningConfiguration::builder()
                .status(aws_sdk_s3::types::BucketVersioningStatus::Enabled)
                .build();
            self.client
                .put_bucket_versioning()
                .bucket(name)
                .versioning_configuration(versioning)
                .send()
                .await
                .expect("keep versions");
            let Some(days) = days else { return };
            let retention = DefaultRetention::builder()
                .mode(ObjectLockRetentionMode::Compliance)
                .days(days)
                .build();
            let lock = ObjectLockConfiguration::builder()
                .object_lock_enabled(ObjectLockEnabled::Enabled)
                .rule(ObjectLockRule::builder().default_retention(retention).build())
                .build();
            self.client
                .put_object_lock_configuration()
                .bucket(name)
                .object_lock_configuration(lock)
                .send()
                .await
                .expect("lock the bucket");
        });
    }

    /// All versions of objects whose keys begin with `prefix`, and all markers.
    pub fn versions(&self, bucket: &str, prefix: &str) -> Vec<Version> {
        let listed = self.client.list_object_versions().bucket(bucket).prefix(prefix).send();
        let listed = self.runtime.block_on(listed).expect("list versions");
        let version = |key: Option<&str>, id: Option<&str>, is_marker| Version {
            key: key.unwrap_or_default().to_owned(),
            id: id.unwrap_or_default().to_owned(),
            is_marker,
        };
        let versions = listed.versions().iter().map(|v| version(v.key(), v.version_id(), false));
        let markers = listed.delete_markers().iter();
        versions.chain(markers.map(|m| version(m.key(), m.version_id(), true))).collect()
    }

    /// Hides an object, as a deletion does that names no version.
    pub fn hide(&self, bucket: &str, key: &str) {
        let hidden = self.client.delete_object().bucket(bucket).key(key).send();
        self.runtime.block_on(hidden).expect("hide");
    }

    /// What a client needs.
    pub fn settings(&self, bucket: &str, prefix: &str) -> S3Settings {
        S3Settings {
            endpoint: Some(self.endpoint()),
            credentials_file: Some(self.credentials.clone()),
            attempts: 3,
            stall: Duration::from_secs(20),
            ..S3Settings::new(bucket, prefix)
        }
    }

    /// Where it listens.
    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Where it listens, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// A repository's table in the configuration.
    pub fn table(&self, name: &str) -> String {
        format!(
            "[repository.{name}.s3]\nendpoint = \"{}\"\ncredentials-file = \"{}\"",
            self.endpoint(),
            self.credentials.display()
        )
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> PathBuf {
    let candidates = [
        "/var/lib/pgkeep-test/moto/bin/moto_server".to_owned(),
        format!("{}/target/pgkeep-test/moto/bin/moto_server", env!("CARGO_MANIFEST_DIR")),
    ];
    let found = candidates.iter().map(PathBuf::from).find(|path| path.exists());
    found.expect("moto_server isn't installed for the tests: run `make test` once")
}
