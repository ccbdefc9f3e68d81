//! What may be configured, and how everything else is refused.

use std::{ffi::OsString, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use pgkeep::{
    config::{
        ClusterSettings, KEYS, KeySource, Location, Overrides, RetentionSettings, Settings,
        StandbyOutage, StreamSettings,
    },
    error::{Kind, Result},
    storage::s3::{Checksums, S3Settings, Sse},
};

const REPOSITORY: &str = "[repository.main]\nurl = \"file:///r\"\nencryption = \"none\"\n";

fn load(file: &Path, environment: &[(&str, &str)]) -> Result<Settings> {
    let overrides = Overrides { config: Some(file.to_owned()), cluster: None };
    let pair = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
    Settings::load_with(&overrides, environment.iter().map(pair).collect())
}

fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Settings> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgkeep.toml");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    load(&file, environment)
}

/// The error's text and hints, with the file's path shortened.
fn refusal(text: &str, environment: &[(&str, &str)]) -> String {
    let e = load_text(text, environment).expect_err(text);
    assert_eq!(e.kind(), Kind::Usage, "{e}");
    assert!(!e.hints().is_empty(), "no hint: {e}");
    let whole = format!("{e}\n{}", e.hints().join("\n"));
    match (whole.find("/tmp/"), whole.find("pgkeep.toml")) {
        (Some(from), Some(to)) if from < to => whole.replace(&whole[from..to], ""),
        _ => whole,
    }
}

#[test]
fn a_whole_file_is_read() {
    let settings = load_text(
        r#"
        threads = 3

        [repository.second]
        url = "file:///srv/two"
        passphrase-file = "/etc/pgkeep/passphrase"
        compression-level = 3

        [repository.first]
        url = "file:///srv/one/"
        key-file = "/etc/pgkeep/first.key"

        [cluster.billing]
        conninfo = "host=/run/postgresql user=postgres"
        pgdata = "/var/lib/postgresql/17/billing"
        standby-outage = "stop"
        archive-timeout = "5min"
        stall-timeout = "20s"
        outage-timeout = "0s"

        [cluster.billing.stream]
        slot = "receiver_1"
        max-lag = "250ms"
        conninfo = "host=one,two target_session_attrs=primary"
        "#,
        &[],
    )
    .unwrap();
    assert_eq!(settings.threads, 3);
    let names: Vec<_> = settings.repositories.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, ["second", "first"], "in the order of the file");
    assert_eq!(settings.repositories[0].compression_level, 3);
    assert_eq!(settings.repositories[1].compression_level, 1);
    assert_eq!(settings.repositories[1].location, Location::Directory("/srv/one".into()));
    assert_eq!(settings.repositories[1].key, KeySource::File("/etc/pgkeep/first.key".into()));
    let expected = ClusterSettings {
        name: "billing".into(),
        conninfo: "host=/run/postgresql user=postgres".into(),
        pgdata: Some("/var/lib/postgresql/17/billing".into()),
        standby_outage: StandbyOutage::Stop,
        archive_wait: Duration::from_secs(300),
        stall_timeout: Duration::from_secs(20),
        outage_wait: Duration::ZERO,
        stream: StreamSettings {
            slot: "receiver_1".into(),
            max_lag: Duration::from_millis(250),
            conninfo: Some("host=one,two target_session_attrs=primary".into()),
        },
    };
    assert_eq!(settings.clusters, [expected]);
}

#[test]
fn a_bucket_is_read_with_its_table() {
    let settings = load_text(
        "[repository.main]\nurl = \"s3://bucket/some/prefix\"\nkey-file = \"/k\"\n\
         [repository.main.s3]\nendpoint = \"https://minio:9000/\"\nregion = \"eu\"\n\
         path-style = false\nprofile = \"backup\"\ncredentials-file = \"/c\"\nca-file = \"/ca\"\n\
         storage-class = \"STANDARD_IA\"\nsse = \"aws:kms\"\nkms-key = \"alias/x\"\n\
         checksums = \"when-required\"\nattempts = 2\nretry-pause = \"20ms\"",
        &[("PGKEEP_REPOSITORY__MAIN__S3__STALL_TIMEOUT", "30s")],
    )
    .unwrap();
    let Location::Bucket(place) = &settings.repositories[0].location else {
        panic!("{:?}", settings.repositories)
    };
    let expected = S3Settings {
        endpoint: Some("https://minio:9000".into()),
        region: Some("eu".into()),
        path_style: Some(false),
        profile: Some("backup".into()),
        credentials_file: Some("/c".into()),
        ca_file: Some("/ca".into()),
        storage_class: Some("STANDARD_IA".into()),
        sse: Sse::Kms(Some("alias/x".into())),
        checksums: Checksums::WhenRequired,
        attempts: 2,
        first_pause: Duration::from_millis(20),
        stall: Duration::from_secs(30),
        ..S3Settings::new("bucket", "some/prefix")
    };
    assert_eq!(**place, expected);
    assert_eq!(settings.repositories[0].location.to_string(), "s3://bucket/some/prefix");
}

#[test]
fn retention_rules_are_a_repositorys_own() {
    let settings = load_text(
        "[repository.a]\nurl = \"file:///a\"\nkey-file = \"/k\"\n\
         [repository.a.retention]\nfull = 2\ndays = 14\ndaily = 7\nweekly = 4\nmonthly = 12\n\
         minimum = 3\nafter-backup = false\n\
         [repository.b]\nurl = \"file:///b\"\nkey-file = \"/k\"\n",
        &[("PGKEEP_REPOSITORY__A__RETENTION__YEARLY", "5")],
    )
    .unwrap();
    let expected = RetentionSettings {
        full: Some(2),
        days: Some(14),
        daily: Some(7),
        weekly: Some(4),
        monthly: Some(12),
        yearly: Some(5),
        minimum: Some(3),
        after_backup: false,
    };
    assert_eq!(settings.repositories[0].retention, expected);
    assert_eq!(settings.repositories[1].retention, RetentionSettings::NONE);
    assert!(!RetentionSettings { after_backup: false, ..RetentionSettings::NONE }.has_rules());
}

#[test]
fn each_mistake_is_refused_by_key_file_and_line() {
    for (text, expected) in [
        ("threads = 0", "threads (pgkeep.toml, line 1): 0 is out of range"),
        ("[repository.a.retention]\nfull = 0", "repository.a"),
        (
            "[repository.a]\nurl = \"file:///a\"\nkey-file = \"/k\"\nretention.full = 0",
            "repository.a.retention.full (pgkeep.toml, line 4): 0 is out of range",
        ),
        (
            "[repository.a.retention]\nfulls = 1",
            "unknown key repository.a.retention.fulls (pgkeep.toml, line 2)",
        ),
        ("threads = \"2\"", "threads (pgkeep.toml, line 1): a text where a number"),
        ("threads = 1.5", "threads (pgkeep.toml, line 1): a value of type float"),
        ("\n\ntheads = 2", "unknown key theads (pgkeep.toml, line 3)"),
        ("[repositories.main]", "unknown key repositories (pgkeep.toml, line 1)"),
        ("[cluster.main]\npgdta = \"/x\"", "unknown key cluster.main.pgdta (pgkeep.toml, line 2)"),
        ("[cluster.main.deep]\nx = 1", "unknown key cluster.main.deep (pgkeep.toml, line 1)"),
        ("cluster.main.port = 1", "unknown key cluster.main.port (pgkeep.toml, line 1)"),
        ("[cluster]\npgdata = \"/x\"", "cluster.pgdata (pgkeep.toml, line 2): the name"),
        ("cluster = 1", "cluster (pgkeep.toml, line 1): it has to be a table"),
        ("[[cluster]]", "cluster (pgkeep.toml, line 1): it has to be a table"),
        ("[cluster.Main]", "\"Main\" can't be the name of a cluster (pgkeep.toml, line 1)"),
        ("[cluster.\"../x\"]", "\"../x\" can't be the name of a cluster"),
        (
            "[cluster.main]\npgdata = \"data\"",
            "cluster.main.pgdata (pgkeep.toml, line 2): \"data\"",
        ),
        ("[cluster.main]\npgdata = \"~/data\"", "~ isn't expanded"),
        ("[cluster.main]\npgdata = \"/a/../b\"", "has a .. in it"),
        ("[cluster.main]\npgdata = \"\"", "cluster.main.pgdata (pgkeep.toml, line 2): it is empty"),
        ("[cluster.main]\npgdata = 17", "a number where a text in quotes is expected"),
        (
            "[cluster.main]\nstandby-outage = \"wait\"",
            "cluster.main.standby-outage (pgkeep.toml, line 2): \"wait\" isn't one of its values\n\
             standby-outage takes \"continue\" or \"stop\"",
        ),
        ("[cluster.main]\narchive-timeout = 60", "(pgkeep.toml, line 2): \"60\" has no unit"),
        ("[cluster.main]\narchive-timeout = \"soon\"", "\"soon\" isn't a duration"),
        ("[cluster.main]\narchive-timeout = \"0s\"", "\"0s\" is out of range"),
        ("[cluster.main]\noutage-timeout = \"2h\"", "\"2h\" is out of range"),
        (
            "[repository.main]\nencryption = \"none\"",
            "repository.main (pgkeep.toml, line 1): url isn't set",
        ),
        (
            "[repository.main]\nurl = \"file:///r\"",
            "repository.main (pgkeep.toml, line 1): the repository has no key",
        ),
        (
            "[repository.main]\nurl = \"file:///r\"\nkey-file = \"/k\"\npassphrase-file = \"/p\"",
            "repository.main.key-file (pgkeep.toml, line 3) and repository.main.passphrase-file \
             (pgkeep.toml, line 4) exclude each other",
        ),
        (
            "[repository.main]\nurl = \"file:///r\"\nencryption = \"rot13\"",
            "repository.main.encryption (pgkeep.toml, line 3): \"rot13\" isn't one of its values",
        ),
        (
            "[repository.main]\nurl = \"s3://AKIA:secret@bucket/prefix\"\nencryption = \"none\"",
            "repository.main.url (pgkeep.toml, line 2): credentials don't belong into it",
        ),
        (
            "[repository.main]\nurl = \"s3://bucket/prefix?region=x\"\nencryption = \"none\"",
            "repository.main.url (pgkeep.toml, line 2): it has options in it",
        ),
        (
            "[repository.main]\nurl = \"s3://bucket\"\nencryption = \"none\"\n[repository.main.s3]\n\
             bucket = \"x\"",
            "unknown key repository.main.s3.bucket (pgkeep.toml, line 5)",
        ),
        (
            "[repository.main]\nurl = \"s3://bucket\"\nencryption = \"none\"\ns3 = \"x\"",
            "repository.main.s3 (pgkeep.toml, line 4): it has to be a table",
        ),
        (
            "[repository.main]\nurl = \"file:///r\"\nencryption = \"none\"\n[repository.main.s3]\n\
             region = \"x\"",
            "repository.main.s3.region (pgkeep.toml, line 5): the url of repository.main isn't one of S3",
        ),
        (
            "[repository.main]\nurl = \"s3://bucket\"\nencryption = \"none\"\n[repository.main.s3]\n\
             path-style = \"yes\"",
            "repository.main.s3.path-style (pgkeep.toml, line 5): it is neither true nor false",
        ),
        (
            "[repository.main]\nurl = \"s3://bucket\"\nencryption = \"none\"\n[repository.main.s3]\n\
             endpoint = \"minio:9000\"",
            "repository.main.s3.endpoint (pgkeep.toml, line 5): it isn't an address",
        ),
        (
            "[repository.main]\nurl = \"s3://bucket\"\nencryption = \"none\"\n[repository.main.s3]\n\
             storage-class = \"GLACIER\"",
            "repository.main.s3.storage-class (pgkeep.toml, line 5): objects of class GLACIER can't be read",
        ),
        (
            "[repository.main]\nurl = \"s3://bucket\"\nencryption = \"none\"\n[repository.main.s3]\n\
             kms-key = \"x\"",
            "repository.main.s3.kms-key (pgkeep.toml, line 5): it needs sse = \"aws:kms\"",
        ),
        ("[repository.main]\nurl = \"/r\"\nkey-file = \"/k\"", "it isn't a URL"),
        ("[repository.main]\nurl = \"file://r\"\nkey-file = \"/k\"", "three slashes"),
        (
            "[repository.main]\nurl = \"file:///r\"\nkey-file = \"/k\"\ncompression-level = 20",
            "repository.main.compression-level (pgkeep.toml, line 4): 20 is out of range",
        ),
        (
            "[repository.a]\nurl = \"file:///r\"\nkey-file = \"/k\"\n\
             [repository.b]\nurl = \"file:///r/\"\nkey-file = \"/k\"",
            "repository.a and repository.b lie in the same place file:///r",
        ),
        (
            "[repository.main]\nurl = \"file:///pg/r\"\nkey-file = \"/k\"\n[cluster.main]\npgdata = \"/pg\"",
            "repository.main.url (pgkeep.toml, line 2): the repository would lie in the data \
             directory of cluster.main",
        ),
        (
            "[cluster.a]\npgdata = \"/pg\"\n[cluster.b]\npgdata = \"/pg\"",
            "cluster.b.pgdata (pgkeep.toml, line 4): cluster.a has the same data directory",
        ),
        (
            "[repository.main]\nurl = file:///r",
            "pgkeep.toml, line 2: the value of url is a text without quotes\na text is in quotes: \
             url = \"…\"",
        ),
        ("[cluster.main]\npgdata = /data", "line 2: the value of pgdata is a text without quotes"),
        ("[cluster.main]\narchive-timeout = 60s", "value of archive-timeout is a text without"),
        ("threads = ", "pgkeep.toml, line 1, column 11: "),
        ("threads = 1\nthreads = 2", "pgkeep.toml, line 2, column 1: duplicate key threads"),
        ("[cluster.main", "pgkeep.toml, line 1, column 14: "),
    ] {
        let said = refusal(text, &[]);
        assert!(said.contains(expected), "{text}\n  expected {expected}\n  said {said}");
    }
}

#[test]
fn the_environment_goes_over_the_file_by_one_rule() {
    let settings = load_text(
        &format!("threads = 2\n{REPOSITORY}[cluster.main]\npgdata = \"/a\""),
        &[
            ("PGKEEP_THREADS", "7"),
            ("PGKEEP_CLUSTER__MAIN__PGDATA", "/b"),
            ("PGKEEP_CLUSTER__MAIN__STANDBY_OUTAGE", "stop"),
            ("PGKEEP_CLUSTER__MAIN__STREAM__SLOT", "other"),
            ("PGKEEP_REPOSITORY__MAIN__COMPRESSION_LEVEL", "9"),
            ("PGKEEP_REPOSITORY__OFF_SITE__URL", "file:///off"),
            ("PGKEEP_REPOSITORY__OFF_SITE__KEY_FILE", "/k"),
            ("PGKEEPER", "not ours"),
            ("PATH", "/bin"),
            // Of a service of Kubernetes that is called so.
            ("PGKEEP_SERVICE_HOST", "10.0.0.1"),
            ("PGKEEP_SERVICE_PORT_HTTPS", "443"),
            ("PGKEEP_PORT", "tcp://10.0.0.1:443"),
            ("PGKEEP_S3_PORT_9000_TCP_ADDR", "10.0.0.1"),
        ],
    )
    .unwrap();
    assert_eq!(settings.threads, 7);
    assert_eq!(settings.clusters[0].pgdata.as_deref(), Some(Path::new("/b")));
    assert_eq!(settings.clusters[0].standby_outage, StandbyOutage::Stop);
    assert_eq!(settings.clusters[0].stream.slot, "other");
    assert_eq!(settings.repositories[0].compression_level, 9);
    assert_eq!(settings.repositories[1].name, "off-site");
}

#[test]
fn each_mistake_in_the_environment_is_refused_by_its_variable() {
    for (variable, value, expected) in [
        ("PGKEEP_THREDS", "2", "unknown environment variable PGKEEP_THREDS"),
        ("PGKEEP_", "2", "unknown environment variable PGKEEP_"),
        ("PGKEEP_REPOSITORY_MAIN_URL", "file:///r", "PGKEEP_REPOSITORY_MAIN_URL"),
        ("PGKEEP_CLUSTER__MAIN__PORT", "1", "[cluster.NAME] takes conninfo"),
        ("PGKEEP_cluster__main__pgdata", "/b", "unknown environment variable PGKEEP_cluster"),
        (
            "PGKEEP_CLUSTER____PGDATA",
            "/b",
            "\"\" can't be the name of a cluster (PGKEEP_CLUSTER____PGDATA)",
        ),
        ("PGKEEP_THREADS", "two", "threads (PGKEEP_THREADS): \"two\" isn't a number"),
        ("PGKEEP_THREADS", "", "threads (PGKEEP_THREADS): \"\" isn't a number"),
        ("PGKEEP_CLUSTER__MAIN__PGDATA", "x", "cluster.main.pgdata (PGKEEP_CLUSTER__MAIN__PGDATA)"),
        ("PGKEEP_CLUSTER__MAIN__ARCHIVE_TIMEOUT", "60", "\"60\" has no unit"),
        ("PGKEEP_REPOSITORY__MAIN__KEY_FILE", "/k", "exclude each other"),
    ] {
        let said = refusal(REPOSITORY, &[(variable, value)]);
        assert!(said.contains(expected), "{variable}\n  expected {expected}\n  said {said}");
    }
}

#[test]
fn a_container_needs_no_file() {
    let variables = [
        ("PGKEEP_REPOSITORY__MAIN__URL", "file:///r"),
        ("PGKEEP_REPOSITORY__MAIN__KEY_FILE", "/k"),
    ];
    let pair = |(name, value): (&str, &str)| (OsString::from(name), OsString::from(value));
    let overrides = Overrides { config: None, cluster: Some("billing".into()) };
    let settings =
        Settings::load_with(&overrides, variables.map(pair).into_iter().collect()).unwrap();
    assert_eq!(settings.repositories.len(), 1);
    assert_eq!(settings.cluster(Some("billing")).unwrap(), &ClusterSettings::named("billing"));
}

#[test]
fn a_file_that_was_named_has_to_be_there() {
    let named = Overrides { config: Some("/nowhere/pgkeep.toml".into()), cluster: None };
    let e = Settings::load_with(&named, Vec::new()).unwrap_err();
    assert_eq!(e.to_string(), "there is no configuration file /nowhere/pgkeep.toml");
    for (path, why) in [("/nowhere/x.toml", "no configuration file"), ("x.toml", "absolute")] {
        let variables = vec![("PGKEEP_CONFIG".into(), path.into())];
        let e = Settings::load_with(&Overrides::default(), variables).unwrap_err();
        assert!(e.to_string().contains(why), "{e}");
        assert_eq!(e.kind(), Kind::Usage);
    }
}

#[test]
fn a_file_with_a_password_is_for_its_owner_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgkeep.toml");
    let read = |conninfo: &str, mode| {
        fs::write(&file, format!("[cluster.main]\nconninfo = \"{conninfo}\"")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        load(&file, &[])
    };
    let with = "host=db password=hunter2";
    let e = read(with, 0o640).unwrap_err();
    assert!(e.to_string().contains("cluster.main.conninfo"), "{e}");
    assert!(e.to_string().contains("line 2"), "{e}");
    assert!(e.to_string().contains("0640"), "{e}");
    assert!(!format!("{e:?}{:?}", e.hints()).contains("hunter2"));
    assert!(read("postgres://u:hunter2@db/", 0o604).is_err());
    assert!(read(with, 0o600).is_ok());
    assert!(read("host=db user=postgres", 0o644).is_ok());
}

#[test]
fn what_may_hold_a_secret_is_never_shown() {
    let settings = load_text(
        "[repository.main]\nurl = \"file:///r\"\npassphrase-command = \"vault --token=hunter2\"\n\
         [cluster.main]\nconninfo = \"password=hunter2\"",
        &[],
    )
    .unwrap();
    assert!(!format!("{settings:?}").contains("hunter2"));
    for text in [
        "[repository.main]\nurl = \"ftp://me:hunter2@host/\"\nkey-file = \"/k\"",
        "[repository.main]\nurl = \"s3://me:hunter2@host/\"\nkey-file = \"/k\"",
        "[cluster.main]\nconninfo = \"password=hunter2\" pgdata",
        "[cluster.main]\nconninfo = host=x password=hunter2",
        "[cluster.main]\nconninfo = 'password=hunter2",
        "[cluster.main]\nconninfo = [\"password=hunter2\"]",
        "[cluster.main]\nconninfo = \"password=hunter2\\u0000\"",
    ] {
        let said = refusal(text, &[]);
        assert!(!said.contains("hunter2"), "{said}");
    }
    let said = refusal(REPOSITORY, &[("PGKEEP_PASSWORD", "hunter2")]);
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn clusters_and_repositories_are_chosen_only_where_there_is_no_doubt() {
    let one = load_text(REPOSITORY, &[]).unwrap();
    assert_eq!(one.cluster(None).unwrap().name, "main");
    assert_eq!(one.repository(None).unwrap().name, "main");
    assert!(one.cluster(Some("other")).is_err());
    assert!(one.repository(Some("other")).unwrap_err().hints()[0].contains("main"));

    let data = tempfile::tempdir().unwrap();
    let link = data.path().join("link");
    let real = data.path().join("real");
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let several = load_text(
        &format!(
            "[repository.a]\nurl = \"file:///a\"\nkey-file = \"/k\"\n\
             [repository.b]\nurl = \"file:///b\"\nkey-file = \"/k\"\n\
             [cluster.x]\npgdata = \"/x\"\n[cluster.y]\npgdata = \"{}\"",
            link.display()
        ),
        &[],
    )
    .unwrap();
    assert!(several.cluster(None).unwrap_err().hints()[0].contains("x, y"));
    assert!(several.repository(None).unwrap_err().hints()[0].contains("a, b"));
    assert_eq!(several.selected_repositories(None).unwrap().len(), 2);
    assert_eq!(several.selected_repositories(Some("b")).unwrap()[0].name, "b");
    assert_eq!(several.cluster_of_data_directory(&real).unwrap().name, "y");
    assert!(several.cluster_of_data_directory(Path::new("/z")).is_err());
    let none = load_text("threads = 1", &[]).unwrap();
    assert!(none.selected_repositories(None).is_err());
}

#[test]
fn every_key_is_documented_as_it_is_defined() {
    let docs = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md"))
        .expect("read docs/commands.md");
    for key in KEYS {
        let row =
            format!("| `{}` | {} | {} | {} |\n", key.path(), key.takes, key.default, key.meaning,)
                .replace('*', "\\*");
        assert!(docs.contains(&row), "docs/commands.md lacks this row:\n{row}");
    }
    for name in ["PGKEEP_CONFIG", "PGKEEP_CLUSTER__MAIN__ARCHIVE_TIMEOUT"] {
        assert!(docs.contains(name), "docs/commands.md doesn't speak of {name}");
    }
}
