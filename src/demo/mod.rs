//! The whole story on a throwaway cluster: a server that archives, a backup under load, an accident,
//! and back to just before it. Told line by line, with how long each step took.
//!
//! Everything is real: the servers, the commands that they call, the repository. It all lies in one
//! directory, which goes when the story ends, also when it is interrupted.

mod home;
mod server;
mod writers;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use crate::{
    archive::{self, CheckOptions, StepState},
    backup::{BackupOptions, backup},
    config::{Overrides, Settings},
    error::{Context, Error, Kind, Result},
    postgres::{SegmentName, client::Client, server::Binaries},
    progress::Progress,
    repo::{
        self, Repository, SystemId, layout::ClusterLayout, wal::WalStore,
        wal_wait::wait_for_segment,
    },
    restore::{RestoreRequest, Target, TargetAction, restore},
};
use home::Home;
pub use home::{as_server_user, is_root};
use server::Server;
use writers::Writers;

/// How the demo is to be told.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// Leave everything in place at the end.
    pub keep: bool,
    /// Work in this empty directory instead of a new one.
    pub home: Option<PathBuf>,
}

/// How many rows there are before the backup.
const ROWS: u64 = 100_000;

/// How long anything that should happen at once may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of the story, each with the time that its step took.
struct Story<'a> {
    tell: &'a (dyn Fn(&str) + Sync),
    since: Instant,
}

impl Story<'_> {
    fn line(&mut self, what: &str) {
        let took = self.since.elapsed().as_secs_f64();
        (self.tell)(&format!("{took:6.1} s  {what}"));
        self.since = Instant::now();
    }

    fn aside(&self, what: &str) {
        (self.tell)(&format!("          {what}"));
    }
}

/// Tells the story, line by line, to `tell`.
pub async fn demo(options: &DemoOptions, tell: &(dyn Fn(&str) + Sync)) -> Result<()> {
    let binaries = server::binaries()?;
    let home = Home::make(options)?;
    tell(&format!("PostgreSQL {}, everything below {}", binaries.version(), home.path().display()));
    tell("");
    let mut story = Story { tell, since: Instant::now() };
    let told = tell_it(&home, &binaries, &mut story).await;
    if options.keep {
        tell("");
        tell(&format!("kept in {}; the configuration is pgkeep.toml there", home.path().display()));
    }
    told
}

async fn tell_it(home: &Home, binaries: &Binaries, story: &mut Story<'_>) -> Result<()> {
    // Without the environment: a real repository that it names is no place for a demo.
    let overrides = Overrides { config: Some(home.configure()?), cluster: None };
    let settings = Settings::load_with(&overrides, Vec::new())?;
    let (Some(repository), Some(cluster)) =
        (settings.repositories.first(), settings.clusters.first())
    else {
        return Err(Error::new(Kind::Internal, "the demo's configuration is incomplete"));
    };
    repo::open::init(repository).await?;
    story.line("an encrypted repository and its key");

    let original = Server::create(binaries, home, "original").await?;
    story.line("a cluster; archive_command = 'pgkeep archive-push %p'");

    let mut client = original.connect().await?;
    let checked =
        archive::check(&[repository], cluster, CheckOptions::default(), Arc::new(Quiet)).await?;
    if let Some(problem) = checked.steps.iter().find(|step| step.state == StepState::Problem) {
        return Err(Error::new(Kind::Wal, problem.text.clone()));
    }
    story.line("`pgkeep check`: a segment went from the server into the repository and back");

    sql(
        &mut client,
        "create table public.account (id bigserial primary key, owner text, cents bigint)",
    )
    .await?;
    let fill = format!(
        "insert into public.account (owner, cents) select md5(n::text), n from generate_series(1, {ROWS}) n"
    );
    sql(&mut client, &fill).await?;
    story.line(&format!("a table with {} rows", grouped(ROWS)));

    let open = repo::open::open(repository).await?;
    let writers = Writers::start(&original).await?;
    let options = BackupOptions { threads: settings.threads, ..BackupOptions::default() };
    let taken = backup(std::slice::from_ref(&open), cluster, &options, Arc::new(Quiet)).await;
    let before = writers.written();
    let taken = taken?.remove(0).result?;
    story.line(&format!(
        "a full backup while {} rows were written: {} in {} files, stored as {}",
        grouped(before),
        mebibytes(taken.sizes.cluster),
        grouped(taken.sizes.files),
        mebibytes(taken.sizes.stored)
    ));

    tokio::time::sleep(Duration::from_millis(500)).await;
    let written = writers.stop().await?;
    let (rows, sum) = count(&mut client).await?;
    if rows != ROWS + written {
        let message = format!("{rows} rows in the table, {} were acknowledged", ROWS + written);
        return Err(Error::new(Kind::Internal, message));
    }
    let moment = server_time(&mut client).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    sql(&mut client, "drop table public.account").await?;
    story.line(&format!("{} rows more, and then an accident:", grouped(written - before)));
    let clock = moment.format("%H:%M:%S%.3f UTC");
    story.aside(&format!("DROP TABLE account, just after {clock}, with {} rows", grouped(rows)));

    await_archive(&mut client, &open, &cluster.name, taken.system).await?;
    story.line("the WAL of the accident is in the repository too");

    let pgdata = home.path().join("restored");
    let request = RestoreRequest {
        // Paused, the server would still hold the lock of the DROP, which was replayed up to its
        // commit, and nobody could read the table.
        action: Some(TargetAction::Promote),
        threads: settings.threads,
        ..RestoreRequest::new(pgdata, Target::Time(moment), home.restore_command())
    };
    restore(&[open], cluster, &request, Arc::new(Quiet)).await?;
    story.line(&format!("`pgkeep restore --target-time '{}'`", moment.format("%F %T%.6f+00")));

    let restored = Server::start(binaries, home, "restored").await?;
    let mut client = restored.connect().await?;
    await_promotion(&mut client).await?;
    story.line("the restored server replayed the WAL up to that moment, and is a primary");

    let found = count(&mut client).await?;
    if found != (rows, sum) {
        let message = format!("{} rows came back, {rows} were there", found.0);
        return Err(Error::new(Kind::Internal, message));
    }
    story.line(&format!(
        "counted: {} of {} rows, and every one the same",
        grouped(found.0),
        grouped(rows)
    ));
    restored.stop().await?;
    original.stop().await
}

/// Keeps the story free of the operations' own progress; what they warn of is logged.
struct Quiet;

impl Progress for Quiet {
    fn step(&self, message: &str) {
        tracing::info!("{message}");
    }

    fn total(&self, _: Option<u64>) {}

    fn advance(&self, _: u64) {}

    fn warn(&self, message: &str) {
        tracing::warn!("{message}");
    }
}

async fn sql(client: &mut Client, statement: &str) -> Result<()> {
    client.execute(statement).await.context(Kind::Postgres, || "prepare the demo")
}

/// One value of one row.
async fn value(client: &mut Client, query: &str) -> Result<String> {
    let rows = client.query(query).await.context(Kind::Postgres, || "ask the demo's server")?;
    let value = rows.first().and_then(|row| row.get(0)).map(str::to_owned);
    value.ok_or_else(|| Error::new(Kind::Postgres, format!("no answer to {query}")))
}

/// How many rows the table has, and a checksum of all of them.
async fn count(client: &mut Client) -> Result<(u64, String)> {
    let query =
        "select count(*) || ' ' || md5(string_agg(a::text, ',' order by id)) from public.account a";
    let answer = value(client, query).await?;
    let parsed =
        answer.split_once(' ').and_then(|(rows, sum)| Some((rows.parse().ok()?, sum.to_owned())));
    parsed.ok_or_else(|| Error::new(Kind::Postgres, format!("{answer:?} is no count")))
}

async fn server_time(client: &mut Client) -> Result<DateTime<Utc>> {
    let query =
        "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let text = value(client, query).await?;
    text.parse().context(Kind::Postgres, || format!("read the server's time {text:?}"))
}

/// Closes the current segment and waits until it is in the repository.
async fn await_archive(
    client: &mut Client,
    repository: &Repository,
    cluster: &str,
    system: SystemId,
) -> Result<()> {
    let segment = value(client, "select pg_walfile_name(pg_switch_wal())").await?;
    let segment: SegmentName =
        segment.parse().context(Kind::Postgres, || "read the name of the closed segment")?;
    let store = WalStore::new(repository, &ClusterLayout::new(cluster)?, system);
    wait_for_segment(&store, segment, PATIENCE).await.map(drop)
}

async fn await_promotion(client: &mut Client) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while value(client, "select pg_is_in_recovery()").await? != "f" {
        if Instant::now() > deadline {
            return Err(Error::new(Kind::Postgres, "the restored server didn't reach the target"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// 1234567 as 1,234,567.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
