//! What isn't the backup's fault is an error of its own, and no verdict.

use super::Site;
use crate::support::objects::{ObjectKind, objects_of};

#[test]
fn what_is_not_the_backups_fault_is_no_verdict() {
    let site = Site::new(17);
    let fails = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = site.pgkeep.fails([&["drill"], arguments].concat());
        assert_eq!(output.code, code, "{output}");
        for words in words {
            assert!(output.stderr.contains(words), "{words}: {output}");
        }
        site.nothing_is_left();
    };
    fails(&[], 1, &["there is no backup of cluster main", "hint: `pgkeep info`"]);
    site.backup("full");
    fails(&["--backup", "20200101T000000Z-full"], 1, &["there is no backup 20200101T000000Z-full"]);
    fails(&["--target-name", "nowhere"], 8, &["restore point \"nowhere\""]);
    fails(&["--directory", "/nonexistent"], 10, &["use the directory /nonexistent"]);

    let edit = |from: &str, to: &str| {
        site.pgkeep.edit(|text| {
            assert!(text.contains(from), "{from}: {text}");
            text.replacen(from, to, 1)
        });
    };
    edit("[drill]\n", "[drill]\nuser = \"nobody_at_all\"\n");
    fails(&[], 6, &["role \"nobody_at_all\" does not exist", "hint: name a role"]);
    edit("user = \"nobody_at_all\"\n", "settings = { shared_buffers = \"much\" }\n");
    fails(&[], 6, &["the server ended before it opened", "shared_buffers", "hint: its log"]);
    edit("settings = { shared_buffers = \"much\" }\n", "");
    edit("bin-dir", "#bin-dir");
    edit("[drill]\n", "[drill]\nbin-dir = \"/usr/lib/postgresql/15/bin\"\n");
    fails(&[], 10, &["the backup is of PostgreSQL 17", "has PostgreSQL 15", "bin-dir in [drill]"]);

    site.pgkeep.add_repository("second");
    site.pgkeep.init();
    fails(&[], 2, &["several repositories are configured", "--repo"]);
    assert!(objects_of(&site.pgkeep.repository(), ObjectKind::Drill).is_empty());
}

#[test]
fn root_is_told_to_be_somebody_else() {
    if !crate::support::install::is_root() {
        eprintln!("skipped: the tests don't run as root");
        return;
    }
    let site = Site::new(17);
    let mut command = std::process::Command::new(crate::support::install::pgkeep_binary());
    command.arg("--config").arg(site.pgkeep.config()).arg("drill");
    let output = crate::support::pgkeep::run_to_end(&mut command);
    assert_eq!(output.code, 2, "{output}");
    assert!(output.stderr.contains("as in `sudo -u postgres pgkeep drill …`"), "{output}");
    site.nothing_is_left();
}
