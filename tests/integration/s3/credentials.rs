//! Credentials, from each place where the SDK looks for them. The server checks signatures, so a run
//! that succeeds has found them; with another secret from the same place it doesn't.

use std::{fs, process::Command};

use crate::support::{Pgkeep, answers::Answers, pgkeep::run_to_end, s3::Server, scratch};

/// Makes a repository, and a configuration that says nothing of credentials.
fn without_credentials() -> Pgkeep {
    let pgkeep = Pgkeep::without_cluster_on(Server::start());
    pgkeep.init();
    pgkeep.edit(|text| {
        let lines = text.lines().filter(|line| !line.starts_with("credentials-file"));
        lines.collect::<Vec<_>>().join("\n") + "\n"
    });
    pgkeep
}

/// With the right secret the repository is read, and with another it isn't.
fn come_from(pgkeep: &Pgkeep, prepare: impl Fn(&mut Command, &str, &str)) {
    let (key, secret) = pgkeep.server().expect("a server").credentials();
    let run = |secret| {
        let mut command = pgkeep.command(["info"]);
        prepare(&mut command, key, secret);
        run_to_end(&mut command)
    };
    let found = run(secret);
    assert_eq!(found.code, 0, "{found}");
    let refused = run("another secret");
    assert_eq!(refused.code, 13, "{refused}");
    assert!(refused.stderr.contains("SignatureDoesNotMatch"), "{refused}");
    assert!(!format!("{refused}").contains("another secret"), "{refused}");
}

/// As the services for containers and instances give them.
fn in_json(key: &str, secret: &str) -> String {
    serde_json::json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": key,
        "SecretAccessKey": secret,
        "Token": "a token of the session",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "Expiration": "2099-01-01T00:00:00Z",
    })
    .to_string()
}

#[test]
fn from_the_environment() {
    come_from(&without_credentials(), |command, key, secret| {
        command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret);
    });
}

#[test]
fn from_a_profile() {
    let pgkeep = without_credentials();
    let home = pgkeep.scratch().folder("home");
    pgkeep.scratch().folder("home/.aws");
    let write = |profile: &str, key: &str, secret: &str| {
        let text =
            format!("[{profile}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n");
        scratch::write(&home.join(".aws/credentials"), text);
    };
    come_from(&pgkeep, |command, key, secret| {
        write("default", key, secret);
        command.env("HOME", &home);
    });
    come_from(&pgkeep, |command, key, secret| {
        write("backup", key, secret);
        command.env("HOME", &home).env("AWS_PROFILE", "backup");
    });
    pgkeep.set("repository.main.s3", "profile = \"backup\"");
    come_from(&pgkeep, |command, key, secret| {
        write("backup", key, secret);
        command.env("HOME", &home);
    });
}

#[test]
fn from_a_program_that_a_profile_names() {
    let pgkeep = without_credentials();
    let home = pgkeep.scratch().folder("home");
    pgkeep.scratch().folder("home/.aws");
    come_from(&pgkeep, |command, key, secret| {
        let said = serde_json::json!({
            "Version": 1, "AccessKeyId": key, "SecretAccessKey": secret,
        });
        scratch::write(&home.join("said.json"), said.to_string());
        let text = format!("[default]\ncredential_process = cat {}/said.json\n", home.display());
        scratch::write(&home.join(".aws/config"), text);
        command.env("HOME", &home);
    });
}

#[test]
fn from_a_web_identity() {
    let pgkeep = without_credentials();
    let token = pgkeep.scratch().file("token", "a token of the cluster's");
    come_from(&pgkeep, |command, key, secret| {
        let answer = format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId>\
             <SecretAccessKey>{secret}</SecretAccessKey><SessionToken>a token</SessionToken>\
             <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
             <AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/x/y</Arn>\
             <AssumedRoleId>x:y</AssumedRoleId></AssumedRoleUser>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        );
        let service = Answers::start(move |_| Some(answer.clone()));
        command
            .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token)
            .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backup")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ENDPOINT_URL_STS", service.url());
        keep(service);
    });
}

#[test]
fn from_the_container() {
    come_from(&without_credentials(), |command, key, secret| {
        let answer = in_json(key, secret);
        let service = Answers::start(move |asked| {
            asked.starts_with("GET /role HTTP").then(|| answer.clone())
        });
        command.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/role", service.url()));
        keep(service);
    });
}

#[test]
fn from_the_instance() {
    come_from(&without_credentials(), |command, key, secret| {
        let answer = in_json(key, secret);
        let service = Answers::start(move |asked| {
            let mut words = asked.split(' ');
            let place = "/latest/meta-data/iam/security-credentials";
            match (words.next()?, words.next()?.strip_prefix(place)) {
                ("PUT", _) => Some("a token of the service".to_owned()),
                ("GET", Some("" | "/")) => Some("backup".to_owned()),
                ("GET", Some("/backup")) => Some(answer.clone()),
                _ => None,
            }
        });
        command
            .env_remove("AWS_EC2_METADATA_DISABLED")
            .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url());
        keep(service);
    });
}

/// A service answers for as long as the test runs.
fn keep(service: Answers) {
    std::mem::forget(service);
}

#[test]
fn a_file_that_is_named_is_the_only_place() {
    let pgkeep = without_credentials();
    let (key, secret) = pgkeep.server().expect("a server").credentials();
    let text = |secret| {
        format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    };
    let file = pgkeep.scratch().file("named", text(secret));
    pgkeep.set("repository.main.s3", &format!("credentials-file = \"{}\"", file.display()));
    let info = |of_environment: &str| {
        let mut command = pgkeep.command(["info"]);
        command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", of_environment);
        run_to_end(&mut command)
    };
    let found = info("another secret");
    assert_eq!(found.code, 0, "{found}");
    scratch::write(&file, text("another secret"));
    let refused = info(secret);
    assert!(refused.stderr.contains("SignatureDoesNotMatch"), "{refused}");
    // Nor does another one take its place when it is gone.
    fs::remove_file(&file).expect("remove a file");
    let gone = info(secret);
    assert!(gone.code > 1, "{gone}");
    assert!(gone.stderr.contains(&file.display().to_string()), "{gone}");
    // Without any it is said where they may come from.
    pgkeep.edit(|text| text.replace("credentials-file", "#"));
    let none = pgkeep.fails(["info"]);
    assert!(none.stderr.contains("no credentials"), "{none}");
    assert!(none.stderr.contains("credentials-file names"), "{none}");
}
