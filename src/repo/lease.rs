//! Leases: who is at work here. They tell running from crashed; nothing's safety rests on them.
//!
//! A lease is the only object that is replaced. It is plain JSON and holds no secret: host,
//! process, operation, when it was last renewed. One that wasn't renewed for [`EXPIRED_AFTER`] is
//! taken for a crashed process's; on the host itself a crash is seen at once ([`Holder`]).

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    BackupId, Repository, catalog::PAGE, holder::Holder, id::RandomId, layout::ClusterLayout,
};
use crate::{
    error::{Context, Kind, Result},
    postgres::Lsn,
    storage::{ObjectName, Range},
};

/// How often a holder renews its lease.
pub const RENEWED_EVERY: Duration = Duration::from_secs(30);

/// After how long without renewal the holder is taken for dead.
pub const EXPIRED_AFTER: Duration = Duration::from_secs(300);

/// A lease as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Lease {
    /// Its id.
    pub id: RandomId,
    /// The host.
    pub host: String,
    /// The process id there.
    pub process: u32,
    /// What tells that process from every other; `None` where the system doesn't say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// What is being done: `backup`, `restore`.
    pub operation: String,
    /// The backup it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<BackupId>,
    /// WAL from here on is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_lsn: Option<Lsn>,
    /// When it was taken.
    pub since: DateTime<Utc>,
    /// When it was last renewed.
    pub renewed: DateTime<Utc>,
}

/// The name of this host, as objects say who made them.
pub fn this_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl Lease {
    /// A lease for what this process does.
    pub fn new(operation: &str, backup: Option<BackupId>) -> Result<Self> {
        let now = Utc::now();
        Ok(Lease {
            id: RandomId::random()?,
            host: this_host(),
            process: std::process::id(),
            holder: Holder::this_process(),
            operation: operation.to_owned(),
            backup,
            start_lsn: None,
            since: now,
            renewed: now,
        })
    }

    /// Whether its holder has stopped renewing it.
    pub fn is_expired(&self, now: DateTime<Utc>) -> bool {
        (now - self.renewed).to_std().is_ok_and(|age| age > EXPIRED_AFTER)
    }

    /// Whether it is certain, as seen from here, that the process that took it is gone.
    pub fn is_abandoned(&self) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.is_gone(self.process))
    }

    /// Whether it is for reading a backup, and not for taking one.
    pub fn restores(&self) -> bool {
        matches!(&*self.operation, "restore" | "drill")
    }

    /// Whether its holder is at work, as far as can be told.
    pub fn is_alive(&self, now: DateTime<Utc>) -> bool {
        !self.is_expired(now) && !self.is_abandoned()
    }

    async fn store(&self, repository: &Repository, layout: &ClusterLayout) -> Result<()> {
        let json = serde_json::to_vec(self).context(Kind::Internal, || "write a lease")?;
        Ok(repository.storage().replace(&layout.lease(self.id), json.into()).await?)
    }
}

/// A lease that is held, and renewed in the background, until it is released.
#[derive(Debug)]
pub struct HeldLease {
    repository: Repository,
    layout: ClusterLayout,
    lease: Lease,
    clock: LeaseClock,
    renewing: tokio::task::JoinHandle<()>,
}

impl HeldLease {
    /// Takes a lease.
    pub async fn take(
        repository: &Repository,
        layout: &ClusterLayout,
        lease: Lease,
    ) -> Result<Self> {
        lease.store(repository, layout).await?;
        let clock = LeaseClock { at: Instant::now(), then: lease.renewed };
        let (repository, layout) = (repository.clone(), layout.clone());
        let renewing =
            tokio::spawn(renew(repository.clone(), layout.clone(), lease.clone(), clock));
        Ok(HeldLease { repository, layout, lease, clock, renewing })
    }

    /// Says from where on WAL is needed.
    pub async fn needs_wal_from(&mut self, lsn: Lsn) -> Result<()> {
        self.renewing.abort();
        self.lease.start_lsn = Some(lsn);
        self.lease.renewed = self.clock.now();
        self.lease.store(&self.repository, &self.layout).await?;
        let (repository, layout) = (self.repository.clone(), self.layout.clone());
        self.renewing = tokio::spawn(renew(repository, layout, self.lease.clone(), self.clock));
        Ok(())
    }

    /// Gives it back. A lease that can't be removed expires by itself.
    pub async fn release(self) {
        self.renewing.abort();
        let name = self.layout.lease(self.lease.id);
        if let Err(e) = self.repository.storage().delete(&name).await {
            tracing::warn!("{e}");
        }
    }
}

impl Drop for HeldLease {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// The time by which a lease is renewed: never earlier than it was taken and the time that has passed
/// since. If the clock is set back meanwhile, the lease doesn't look as if it hadn't been renewed for so
/// long, which would have others take a running backup for a crashed one.
#[derive(Debug, Clone, Copy)]
struct LeaseClock {
    at: Instant,
    then: DateTime<Utc>,
}

impl LeaseClock {
    fn now(self) -> DateTime<Utc> {
        Utc::now().max(self.then + self.at.elapsed())
    }
}

async fn renew(repository: Repository, layout: ClusterLayout, mut lease: Lease, clock: LeaseClock) {
    loop {
        tokio::time::sleep(RENEWED_EVERY).await;
        lease.renewed = clock.now();
        if let Err(e) = lease.store(&repository, &layout).await {
            tracing::warn!("renew the lease: {e}");
        }
    }
}

/// The leases there are. One that can't be read is warned about and left out.
pub async fn leases(repository: &Repository, layout: &ClusterLayout) -> Result<Vec<Lease>> {
    let storage = repository.storage();
    let mut leases = Vec::new();
    let mut after: Option<ObjectName> = None;
    loop {
        let last = after.as_ref().map(ObjectName::as_str);
        let page = storage.list(&layout.leases_folder(), last, PAGE).await?;
        let Some(end) = page.last() else { return Ok(leases) };
        after = Some(end.name.clone());
        for listed in page {
            match storage.read(&listed.name, Range::All).await {
                Ok(bytes) => match serde_json::from_slice(&bytes) {
                    Ok(lease) => leases.push(lease),
                    Err(e) => tracing::warn!("{}: {e}", listed.name),
                },
                Err(e) if e.is_not_found() => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}
