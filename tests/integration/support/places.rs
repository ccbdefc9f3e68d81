//! Where the repositories of a test lie: in directories, or, with `PGKEEP_TEST_REPOSITORY=s3`, in a
//! bucket of an S3 server in the test process. Either way an object is a file.

use std::path::{Path, PathBuf};

use pgkeep::config::Location;

use super::s3::{Server, Traits};

/// Whether repositories are to lie in S3.
pub fn on_s3() -> bool {
    match std::env::var("PGKEEP_TEST_REPOSITORY").as_deref() {
        Err(_) | Ok("file") => false,
        Ok("s3") => true,
        Ok(other) => panic!("PGKEEP_TEST_REPOSITORY is file or s3, not {other:?}"),
    }
}

/// Whether a test is to be left out on S3, and says why.
pub fn skipped_on_s3(why: &str) -> bool {
    if on_s3() {
        eprintln!("skipped on S3: {why}");
    }
    on_s3()
}

/// The places of one test's repositories.
#[derive(Debug)]
pub struct Places {
    folder: PathBuf,
    server: Option<Server>,
}

impl Places {
    /// Directories in `folder`, or prefixes of a server of its own.
    pub fn new(folder: &Path) -> Self {
        // Objects are damaged by changing their files, and then pgkeep shall find it and not the
        // checksum that the server sends along.
        let traits = Traits { checksums: false, ..Traits::default() };
        let server = on_s3().then(|| Server::with(traits));
        Places { folder: folder.to_owned(), server }
    }

    /// Prefixes of this server.
    pub fn on(server: Server) -> Self {
        Places { folder: PathBuf::new(), server: Some(server) }
    }

    /// The server, where they lie in S3.
    pub fn server(&self) -> Option<&Server> {
        self.server.as_ref()
    }

    /// The folder with the objects of the repository of this name.
    pub fn objects(&self, name: &str) -> PathBuf {
        match &self.server {
            None => self.folder.join(name),
            Some(server) => server.objects(name),
        }
    }

    /// The location of the repository of this name.
    pub fn location(&self, name: &str) -> Location {
        match &self.server {
            None => Location::Directory(self.folder.join(name)),
            Some(server) => {
                server.make_prefix(name);
                Location::Bucket(Box::new(server.settings(name)))
            }
        }
    }

    /// The lines of the configuration for a repository of this name.
    pub fn configuration(&self, name: &str, key_file: &Path) -> String {
        let key = format!("key-file = \"{}\"", key_file.display());
        match &self.server {
            None => {
                let folder = self.folder.join(name);
                format!("[repository.{name}]\nurl = \"file://{}\"\n{key}", folder.display())
            }
            Some(server) => {
                server.make_prefix(name);
                let (url, table) = server.configuration(name, name);
                format!("[repository.{name}]\n{url}\n{key}\n{table}")
            }
        }
    }
}
