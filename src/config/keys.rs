//! Every key that may be configured, with what it takes and what it means.
//!
//! This table is the definition: the file and the environment are read by it, what isn't in it is
//! refused, the hints of errors come from it, and `docs/commands.md` repeats it word for word (a
//! test compares them).

/// Where a key stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// At the top of the file, before the first table.
    Top,
    /// In a table `[repository.NAME]`.
    Repository,
    /// In a table `[repository.NAME.s3]`.
    S3,
    /// In a table `[repository.NAME.retention]`.
    Retention,
    /// In a table `[cluster.NAME]`.
    Cluster,
    /// In a table `[cluster.NAME.stream]`.
    Stream,
    /// In the table `[drill]`.
    Drill,
}

impl Scope {
    /// The word that the keys' path begins with; none at the top.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Scope::Top => None,
            Scope::Repository | Scope::S3 | Scope::Retention => Some("repository"),
            Scope::Cluster | Scope::Stream => Some("cluster"),
            Scope::Drill => Some("drill"),
        }
    }

    /// The name of the table within a repository's or cluster's, where it is one.
    pub fn table(self) -> Option<&'static str> {
        match self {
            Scope::S3 => Some("s3"),
            Scope::Retention => Some("retention"),
            Scope::Stream => Some("stream"),
            Scope::Top | Scope::Repository | Scope::Cluster | Scope::Drill => None,
        }
    }

    /// The table of this name within this one.
    pub(super) fn within(self, table: &str) -> Option<Scope> {
        match (self, table) {
            (Scope::Repository, "s3") => Some(Scope::S3),
            (Scope::Repository, "retention") => Some(Scope::Retention),
            (Scope::Cluster, "stream") => Some(Scope::Stream),
            _ => None,
        }
    }

    /// As in `[repository.NAME.s3]`; none at the top.
    fn header(self) -> Option<String> {
        if self == Scope::Drill {
            return Some("drill".to_owned());
        }
        let table = self.table().map(|table| format!(".{table}")).unwrap_or_default();
        self.word().map(|word| format!("{word}.NAME{table}"))
    }

    /// The keys that stand here, in the order of [`KEYS`].
    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(move |key| key.scope == self)
    }

    /// The key of this name that stands here.
    pub(super) fn key(self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }

    /// For hints: what stands here, as in `[cluster.NAME] takes conninfo, pgdata`.
    pub(super) fn takes(self) -> String {
        let names: Vec<_> = self.keys().map(|key| key.name).collect();
        let and = match self {
            Scope::Repository => {
                ", and the tables [repository.NAME.s3] and [repository.NAME.retention]"
            }
            Scope::Cluster => ", and the table [cluster.NAME.stream]",
            _ => "",
        };
        match self.header() {
            None => format!(
                "the top of the file takes {} and the tables [repository.NAME], [cluster.NAME] and \
                 [drill]",
                names.join(", ")
            ),
            Some(header) => format!("[{header}] takes {}{and}", names.join(", ")),
        }
    }
}

/// One key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Where it stands.
    pub scope: Scope,
    /// Its name, the last part of its path.
    pub name: &'static str,
    /// What it may be set to.
    pub takes: &'static str,
    /// What holds when it isn't set.
    pub default: &'static str,
    /// What it decides.
    pub meaning: &'static str,
}

impl Key {
    /// The key's path, with `NAME` for the repository's or cluster's name.
    pub fn path(&self) -> String {
        match self.scope.header() {
            None => self.name.to_owned(),
            Some(header) => format!("{header}.{}", self.name),
        }
    }

    /// The key's path within its repository's or cluster's table.
    pub(super) fn local(&self) -> String {
        match self.scope.table() {
            None => self.name.to_owned(),
            Some(table) => format!("{table}.{}", self.name),
        }
    }

    /// Whether it takes a list or a table, and no text or number.
    pub(super) fn is_structured(&self) -> bool {
        self.scope == Scope::Drill && matches!(self.name, "queries" | "settings")
    }

    /// The environment variable that sets it, with `NAME` for the name.
    pub fn variable(&self) -> String {
        let path = self.path().to_ascii_uppercase().replace('-', "_").replace('.', "__");
        format!("{}{path}", super::environment::PREFIX)
    }
}

/// What the entries of `queries` have, for messages.
pub(super) const QUERIES: &str = "a list as in [{ database = \"app\", sql = \"select count(*) > 0 from \
     public.orders\", expect = \"t\" }]; an entry may have cluster = \"NAME\" too";

/// The most threads that may be asked for.
pub(super) const MAX_THREADS: i64 = 256;

/// All keys.
pub const KEYS: &[Key] = &[
    Key {
        scope: Scope::Top,
        name: "threads",
        takes: "a number from 1 to 256",
        default: "the number of processors, at most 4",
        meaning: "how many threads of a backup compress and encrypt, and how many of a restore \
                  read and write; memory grows with it",
    },
    Key {
        scope: Scope::Top,
        name: "state-dir",
        takes: "an absolute path",
        default: "/var/tmp/pgkeep-UID, with the number of the user that runs it",
        meaning: "where archive-push and archive-get leave something for their next call: what was \
                  stored or fetched ahead. It is made if it isn't there, nobody else may write to \
                  it, and it may be lost at any time",
    },
    Key {
        scope: Scope::Repository,
        name: "url",
        takes: "file:// and an absolute path, or s3:// and a bucket, as in s3://bucket/prefix",
        default: "none: it has to be set",
        meaning: "where the repository lies; what follows file:// or s3:// is taken as it is, \
                  nothing in it is decoded. Credentials never stand in it",
    },
    Key {
        scope: Scope::Repository,
        name: "key-file",
        takes: "an absolute path",
        default: "none: one of the three keys, or encryption, has to be set",
        meaning: "the file with the repository's key; `init` makes it unless it is there",
    },
    Key {
        scope: Scope::Repository,
        name: "passphrase-file",
        takes: "an absolute path",
        default: "none",
        meaning: "a file that holds the passphrase, instead of a key file; a slow hash \
                  is computed for each command, so hosts that push WAL had better use a key file",
    },
    Key {
        scope: Scope::Repository,
        name: "passphrase-command",
        takes: "a shell command",
        default: "none",
        meaning: "a command that prints the passphrase, instead of a key file",
    },
    Key {
        scope: Scope::Repository,
        name: "encryption",
        takes: "\"none\"; leave it out for the default",
        default: "AES-256-GCM",
        meaning: "\"none\" stores everything so that whoever reads the repository reads the \
                  database",
    },
    Key {
        scope: Scope::Repository,
        name: "compression-level",
        takes: "a number from 1 to 19",
        default: "1",
        meaning: "the zstd level for what is written from now on; on pages of tables, higher \
                  levels cost much time and store little less",
    },
    Key {
        scope: Scope::S3,
        name: "endpoint",
        takes: "an address as in \"https://minio.internal:9000\"",
        default: "that of AWS for the region",
        meaning: "the server, where it isn't AWS; with http:// nothing on the way is encrypted but \
                  what the repository encrypts",
    },
    Key {
        scope: Scope::S3,
        name: "region",
        takes: "a name as in \"eu-central-1\"",
        default: "what the AWS SDK finds, else us-east-1",
        meaning: "the bucket's region; servers that aren't AWS mostly take any",
    },
    Key {
        scope: Scope::S3,
        name: "path-style",
        takes: "true or false",
        default: "true where endpoint is set, else false",
        meaning: "whether the bucket's name stands in the path, and not in the name of the host",
    },
    Key {
        scope: Scope::S3,
        name: "profile",
        takes: "a profile's name",
        default: "AWS_PROFILE, else default",
        meaning: "the profile of ~/.aws/config and ~/.aws/credentials to use, or of credentials-file",
    },
    Key {
        scope: Scope::S3,
        name: "credentials-file",
        takes: "an absolute path",
        default: "none: the AWS SDK looks for credentials",
        meaning: "a file in the form of ~/.aws/credentials to take the credentials from. Without it \
                  they are what the AWS SDK finds: in the environment, a profile, a web identity, or \
                  the role of the container or instance",
    },
    Key {
        scope: Scope::S3,
        name: "ca-file",
        takes: "an absolute path",
        default: "none",
        meaning: "certificates (PEM) of authorities to trust beside the system's",
    },
    Key {
        scope: Scope::S3,
        name: "storage-class",
        takes: "a storage class as in \"STANDARD_IA\", but none that has to be brought back first",
        default: "the server's",
        meaning: "the class of objects of 128 KiB and more; for smaller ones others cost more",
    },
    Key {
        scope: Scope::S3,
        name: "sse",
        takes: "\"aes256\" or \"aws:kms\"",
        default: "as the bucket has it",
        meaning: "encryption by the server, beside the repository's own",
    },
    Key {
        scope: Scope::S3,
        name: "kms-key",
        takes: "a key's id, alias or ARN",
        default: "the account's default key",
        meaning: "the key for sse = \"aws:kms\"",
    },
    Key {
        scope: Scope::S3,
        name: "checksums",
        takes: "\"when-supported\" or \"when-required\"",
        default: "\"when-supported\"",
        meaning: "whether requests carry the checksums of newer AWS SDKs; \"when-required\" is for \
                  servers that refuse them",
    },
    Key {
        scope: Scope::S3,
        name: "attempts",
        takes: "a number from 1 to 20",
        default: "8",
        meaning: "how often a request is tried when it fails for a reason that may pass, with \
                  growing pauses: 8 attempts take 10 to 40 s",
    },
    Key {
        scope: Scope::S3,
        name: "retry-pause",
        takes: "a duration from 1ms to 10s",
        default: "\"100ms\"",
        meaning: "the pause before the second attempt. Each further one is twice as long, up to \
                  10 s; where the server asks for fewer requests all are five times as long. A \
                  server next door needs less of it",
    },
    Key {
        scope: Scope::S3,
        name: "stall-timeout",
        takes: "a duration from 1s to 1h, as in \"30s\" or \"2min\"",
        default: "\"60s\"",
        meaning: "after how long without a byte moving a request is given up. How long it takes as \
                  a whole doesn't matter",
    },
    Key {
        scope: Scope::Retention,
        name: "full",
        takes: "a number from 1 to 10000",
        default: "none: nothing expires without a rule",
        meaning: "keep the newest full backups, this many, and everything since the oldest of them, \
                  with all WAL from there on",
    },
    Key {
        scope: Scope::Retention,
        name: "days",
        takes: "a number from 1 to 36500",
        default: "none",
        meaning: "keep what is needed to restore to every moment of the last so many days",
    },
    Key {
        scope: Scope::Retention,
        name: "daily",
        takes: "a number from 1 to 10000",
        default: "none",
        meaning: "keep the newest backup of each of the last days (in UTC) that have one, this many; \
                  these and the three below only as points to restore to, with the WAL of the backup \
                  itself",
    },
    Key {
        scope: Scope::Retention,
        name: "weekly",
        takes: "a number from 1 to 10000",
        default: "none",
        meaning: "the same for weeks, which begin on Monday",
    },
    Key {
        scope: Scope::Retention,
        name: "monthly",
        takes: "a number from 1 to 10000",
        default: "none",
        meaning: "the same for months",
    },
    Key {
        scope: Scope::Retention,
        name: "yearly",
        takes: "a number from 1 to 10000",
        default: "none",
        meaning: "the same for years",
    },
    Key {
        scope: Scope::Retention,
        name: "minimum",
        takes: "a number from 1 to 10000",
        default: "none; the newest usable backup stays in any case",
        meaning: "keep the newest usable backups, this many, whatever their age, with all WAL from the \
                  oldest of them on",
    },
    Key {
        scope: Scope::Retention,
        name: "after-backup",
        takes: "true or false",
        default: "true",
        meaning: "whether each backup is followed by an expiry, where there is a rule",
    },
    Key {
        scope: Scope::Cluster,
        name: "conninfo",
        takes: "a connection string as libpq reads it",
        default: "libpq's defaults, with the PG* environment variables",
        meaning: "how to connect to the server: as a superuser, or as a role with REPLICATION, \
                  membership in pg_monitor and EXECUTE on pg_switch_wal(). It has to lead to the server itself, not to \
                  a pooler such as PgBouncer. A password belongs in ~/.pgpass; a configuration file with a password in it must not be readable by \
                  others",
    },
    Key {
        scope: Scope::Cluster,
        name: "pgdata",
        takes: "an absolute path",
        default: "none: needed on the server when several clusters are configured",
        meaning: "the server's data directory; tells which cluster an archive-push or archive-get \
                  is for, as the server runs them in it",
    },
    Key {
        scope: Scope::Cluster,
        name: "standby-outage",
        takes: "\"continue\" or \"stop\"",
        default: "\"continue\"",
        meaning: "what archive-get on a standby answers when no repository can be asked: \
                  \"continue\" says that the file isn't there (exit code 1), so that the standby \
                  goes on streaming; \"stop\" stops the server (126)",
    },
    Key {
        scope: Scope::Cluster,
        name: "archive-timeout",
        takes: "a duration from 1s to 1d, as in \"60s\" or \"5min\"",
        default: "\"60s\"",
        meaning: "how long backup and check wait for a WAL segment to arrive in the repository",
    },
    Key {
        scope: Scope::Cluster,
        name: "stall-timeout",
        takes: "a duration from 1s to 1h, as in \"60s\" or \"5min\"",
        default: "\"2min\"",
        meaning: "after how long without a word the server is given up, where it has something to say: \
                  answers, the data of a backup, signs of life of a stream. A checkpoint may take \
                  longer",
    },
    Key {
        scope: Scope::Cluster,
        name: "outage-timeout",
        takes: "a duration from 0s to 1h, as in \"30s\" or \"2min\"",
        default: "\"30s\"",
        meaning: "how long archive-get keeps trying while a repository can't be asked",
    },
    Key {
        scope: Scope::Stream,
        name: "slot",
        takes: "a name of lower-case letters, digits and underscores, at most 63",
        default: "\"pgkeep\"",
        meaning: "the physical replication slot that holds the server's WAL for the stream; `stream` \
                  makes it. It is also the name in synchronous_standby_names, unless conninfo has an \
                  application_name",
    },
    Key {
        scope: Scope::Stream,
        name: "max-lag",
        takes: "a duration from 0s to 1h, as in \"500ms\" or \"5s\"",
        default: "\"1s\"",
        meaning: "how old WAL may become before it is stored, where no commit waits for the stream: \
                  longer means fewer and larger objects",
    },
    Key {
        scope: Scope::Stream,
        name: "conninfo",
        takes: "a connection string as libpq reads it",
        default: "that of the cluster",
        meaning: "where the stream comes from, where backups are taken from elsewhere: as a role with \
                  REPLICATION. Several hosts and target_session_attrs=primary let it follow the primary",
    },
    Key {
        scope: Scope::Drill,
        name: "queries",
        takes: QUERIES,
        default: "none",
        meaning: "what a restored cluster has to answer: each sql is run in its database, and what \
                  comes has to be what is expected, as psql -At prints it (columns joined by a \
                  vertical bar, rows one a line, NULL as nothing). With cluster, only in drills of that one",
    },
    Key {
        scope: Scope::Drill,
        name: "user",
        takes: "a role of the cluster",
        default: "the user of the cluster's conninfo",
        meaning: "as whom a drill connects to the restored server; a superuser, if pg_amcheck shall \
                  be run",
    },
    Key {
        scope: Scope::Drill,
        name: "bin-dir",
        takes: "an absolute path",
        default: "/usr/lib/postgresql/N/bin, /usr/pgsql-N/bin, then PATH",
        meaning: "where the server's programs are, which have to be of the backup's major version",
    },
    Key {
        scope: Scope::Drill,
        name: "directory",
        takes: "an absolute path",
        default: "the system's directory for temporary files",
        meaning: "in which directory a drill makes its own, where the whole cluster has to find room",
    },
    Key {
        scope: Scope::Drill,
        name: "timeout",
        takes: "a duration from 10s to 1d, as in \"10min\"",
        default: "\"10min\"",
        meaning: "after how long without a sign of progress the restored server is given up. How long \
                  it takes as a whole doesn't matter",
    },
    Key {
        scope: Scope::Drill,
        name: "amcheck",
        takes: "true or false",
        default: "true",
        meaning: "whether pg_amcheck is run where it is installed; it reads all tables and indexes",
    },
    Key {
        scope: Scope::Drill,
        name: "settings",
        takes: "a table as in { shared_buffers = \"4GB\", shared_preload_libraries = \"timescaledb\" }",
        default: "none",
        meaning: "settings of the restored server. Of the original's it has none: what it preloads, \
                  archives or connects to isn't meant for a drill",
    },
];
