//! `verify`: nothing is found on what is sound, and everything that is done to it is.
//!
//! Most of it is tried on copies of the fixture, which has an object of every kind and is small: the
//! library verifies it in a tenth of a second. What a person or a CI job sees of it is tried with
//! the program, on a repository of a real cluster.

mod contents;
mod mutations;
mod outages;
mod program;
mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use pgkeep::{
    config::{Overrides, Settings},
    error::Result,
    progress::Silent,
    repo::{
        Repository,
        keys::{KeyMaterial, read_key_file},
        layout::ClusterLayout,
    },
    storage::Storage,
    verify::{
        BLOCKS_AT_ONCE, VerifyRequest,
        report::{Level, Report},
        verify_configured,
    },
};

use crate::support::Scratch;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Copies a folder or a file.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let name = entry.unwrap().file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
    private(to);
}

/// Takes a path from everybody else: git keeps no such permissions.
fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = if path.is_dir() { 0o700 } else { 0o600 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A copy of the encrypted fixture, of the user that runs the tests.
struct Sound {
    scratch: Scratch,
}

impl Sound {
    fn new() -> Self {
        let sound = Sound { scratch: Scratch::new("verify") };
        copy(&fixtures().join("repository-v1"), &sound.root());
        copy(&fixtures().join("repository-v1.key"), &sound.key_file());
        sound
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("repository")
    }

    fn key_file(&self) -> PathBuf {
        self.scratch.path().join("repository.key")
    }

    fn material(&self) -> KeyMaterial {
        KeyMaterial::KeyFile(read_key_file(&self.key_file()).unwrap())
    }

    /// Verifies it as the program does.
    async fn verify(&self, level: Level) -> Result<Report> {
        let config = self.scratch.path().join("pgkeep.toml");
        let text = format!(
            "[repository.main]\nurl = \"file://{}\"\nkey-file = \"{}\"\n[cluster.main]\npgdata = \"/x\"\n",
            self.root().display(),
            self.key_file().display()
        );
        fs::write(&config, text).unwrap();
        let overrides = Overrides { config: Some(config), cluster: None };
        let settings = Settings::load(&overrides).unwrap();
        let repositories = settings.selected_repositories(None).unwrap();
        let (layout, request) = (layout(), request(level));
        let report = verify_configured(repositories[0], &layout, &request, silent()).await?;
        Ok(report.expect("all was asked for"))
    }
}

fn layout() -> ClusterLayout {
    ClusterLayout::new("main").unwrap()
}

fn silent() -> Arc<Silent> {
    Arc::new(Silent)
}

fn request(level: Level) -> VerifyRequest {
    VerifyRequest { backup: None, level, threads: 2, blocks_at_once: BLOCKS_AT_ONCE }
}

async fn open(storage: Arc<dyn Storage>, material: &KeyMaterial) -> Result<Repository> {
    Repository::open("main", storage, material, 1).await
}
