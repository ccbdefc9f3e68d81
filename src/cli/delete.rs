//! `pgkeep delete`.

use clap::Args;
use serde::Serialize;

use super::{Global, each::each, human, table::Align, table::Table};
use crate::{
    error::Result,
    repo::{BackupId, layout::ClusterLayout},
    retention::{self, Deletion, amount::Amount, sweep::Swept},
};

/// Delete a backup
///
/// The backup is gone at once. What it has stored is removed, but for what other backups use of it:
/// that stays until they are deleted too. A pinned backup is refused, as is one that is just being
/// taken. WAL isn't removed.
///
/// It is deleted from all repositories that have it, or from the one that --repo names.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep delete --dry-run 20261120T195812Z-full
  pgkeep --repo offsite delete 20261120T195812Z-full")]
pub(super) struct Delete {
    /// The backup
    id: BackupId,
    /// Say what would go and what would stay, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Deletions<'a> {
    repositories: &'a [Deletion],
}

impl Delete {
    pub fn run(&self, global: &Global) -> Result<u8> {
        let settings = global.settings()?;
        let selected = settings.selected_repositories(global.repo.as_deref())?;
        let cluster = settings.cluster(global.cluster.as_deref())?;
        let layout = ClusterLayout::new(&cluster.name)?;
        let progress = global.progress();
        let done = each(&selected, async |repository| {
            if !self.dry_run {
                retention::may_remove(repository, &layout).await?;
            }
            retention::delete(repository, &layout, &self.id, self.dry_run, progress.as_ref()).await
        })?
        .or_missing(&self.id, &cluster.name)?;
        let deletions = Deletions { repositories: &done.results };
        global.output.result(&deletions, || done.results.iter().map(text).collect())?;
        done.end()
    }
}

fn text(deletion: &Deletion) -> String {
    let Swept { backup, freed, kept, held, used_by } = &deletion.swept;
    let verb = match (deletion.dry_run, deletion.already_deleted) {
        (true, _) => "would delete",
        (false, false) => "deleted",
        (false, true) => "was deleted already:",
    };
    let mut out = format!("{verb} backup {backup} from repository {}\n", deletion.repository);
    let goes = if deletion.dry_run { "would go" } else { "is gone" };
    out += &format!("  {} {goes}\n", amount(freed));
    if held.objects > 0 {
        out += &format!(
            "  {} can't go yet, since object lock holds it: delete it again later, or expire\n",
            amount(held)
        );
    }
    if kept.objects > 0 {
        let stays = if deletion.dry_run { "would stay" } else { "stays" };
        out += &format!("  {} {stays}, since other backups use it\n", amount(kept));
        let mut table = Table::new(&[("used by", Align::Left), ("uncompressed", Align::Right)]);
        for user in used_by {
            table.row([user.backup.to_string(), human::bytes(user.usage.live_bytes)]);
        }
        out += &table.show(4);
    }
    for other in &deletion.others {
        out += &format!(
            "  {} of backup {}, which was deleted before, is gone\n",
            amount(&other.freed),
            other.backup
        );
    }
    if deletion.last {
        out += "  no other backup of the cluster can be restored from this repository\n";
    }
    out
}

fn amount(amount: &Amount) -> String {
    human::objects(amount.objects, amount.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::{references::Usage, sweep::User};

    #[test]
    fn what_stays_and_why_is_said() {
        let amount = |objects, bytes| Amount { objects, bytes };
        let swept = |backup: &str, freed, kept, used_by| Swept {
            backup: backup.parse().unwrap(),
            freed,
            kept,
            held: Amount::default(),
            used_by,
        };
        let user = User {
            backup: "20261121T195812Z-incr".parse().unwrap(),
            usage: Usage { packs: 2, live_bytes: 700 << 20 },
        };
        let mut deletion = Deletion {
            repository: "main".into(),
            dry_run: true,
            already_deleted: false,
            last: false,
            swept: swept(
                "20261120T195812Z-full",
                amount(4, 1 << 30),
                amount(5, 300 << 20),
                vec![user],
            ),
            others: Vec::new(),
        };
        insta::assert_snapshot!(text(&deletion), @r"
        would delete backup 20261120T195812Z-full from repository main
          1.0 GiB in 4 objects would go
          300.0 MiB in 5 objects would stay, since other backups use it
            used by                uncompressed
            20261121T195812Z-incr     700.0 MiB
        ");
        deletion.dry_run = false;
        deletion.last = true;
        deletion.swept = swept("20261121T195812Z-incr", amount(1, 5), amount(0, 0), Vec::new());
        let other = swept("20261120T195812Z-full", amount(9, 2048), amount(0, 0), Vec::new());
        deletion.others = vec![other];
        insta::assert_snapshot!(text(&deletion), @r"
        deleted backup 20261121T195812Z-incr from repository main
          5 B in 1 object is gone
          2.0 KiB in 9 objects of backup 20261120T195812Z-full, which was deleted before, is gone
          no other backup of the cluster can be restored from this repository
        ");
    }
}
