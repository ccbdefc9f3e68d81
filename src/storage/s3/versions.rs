//! Buckets that keep versions of objects, or hold them until a date, and uploads left behind.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::{
    operation::head_object::HeadObjectOutput,
    primitives::DateTime as SdkTime,
    types::{ObjectLockRetention, ObjectLockRetentionMode},
};
use chrono::{DateTime, Utc};

use super::{engine::Engine, errors::Failure};
use crate::storage::{ErrorKind, ObjectName, Result, StorageError};

/// The most versions that one object may have. Nothing is created twice but leases, and those in minutes.
const MOST_VERSIONS: usize = 1_000_000;

/// What is wrong with a listing that would never end.
const GOES_NOWHERE: &str = "the server says that there is more, and not where it goes on";

/// Until when, and how strictly, an object is held.
#[derive(Debug, Clone)]
pub(super) struct Retention {
    mode: ObjectLockRetentionMode,
    pub until: DateTime<Utc>,
}

fn retention_in(head: &HeadObjectOutput) -> Option<Retention> {
    let until = head.object_lock_retain_until_date()?;
    let until = DateTime::from_timestamp(until.secs(), until.subsec_nanos())?;
    let mode = ObjectLockRetentionMode::from(head.object_lock_mode()?.as_str());
    Some(Retention { mode, until })
}

impl Engine {
    /// Removes an object: in a bucket with versions each version of it, since a deletion that names
    /// none only hides the object.
    pub async fn delete(&self, name: &ObjectName) -> Result<()> {
        if !self.is_versioned() {
            return self.delete_version(name, None).await;
        }
        let mut locked = None;
        for version in self.versions(name).await? {
            match self.delete_version(name, Some(&version)).await {
                Err(e) if e.kind == ErrorKind::Locked => locked = Some(e),
                result => result?,
            }
        }
        locked.map_or(Ok(()), Err)
    }

    /// The versions of an object, with what hides them.
    async fn versions(&self, name: &ObjectName) -> Result<Vec<String>> {
        let about = self.about("delete", name.as_str());
        let client = self.client(&about).await?;
        let key = self.settings.key(name.as_str());
        let mut found = Vec::new();
        let mut after: Option<(Option<String>, Option<String>)> = None;
        loop {
            let (key_marker, version_marker) = after.clone().unwrap_or_default();
            let page = self
                .attempts(|| async {
                    let request = client
                        .list_object_versions()
                        .bucket(&self.settings.bucket)
                        .prefix(&key)
                        .set_key_marker(key_marker.clone())
                        .set_version_id_marker(version_marker.clone());
                    request.send().await.map_err(|e| about.failure(&e))
                })
                .await?;
            let versions = page.versions().iter().map(|v| (v.key(), v.version_id()));
            let markers = page.delete_markers().iter().map(|m| (m.key(), m.version_id()));
            for (of, version) in versions.chain(markers) {
                if of == Some(key.as_str()) {
                    found.extend(version.map(str::to_owned));
                }
            }
            // Names that go on behind this one sort after it.
            let past = page.next_key_marker().is_some_and(|next| next > key.as_str());
            if !page.is_truncated().unwrap_or(false) || past {
                return Ok(found);
            }
            let marker = page.next_version_id_marker().map(str::to_owned);
            let next = Some((page.next_key_marker().map(str::to_owned), marker));
            if next == after || next == Some((None, None)) || found.len() > MOST_VERSIONS {
                return Err(self.not_a_listing(name.as_str(), GOES_NOWHERE));
            }
            after = next;
        }
    }

    async fn delete_version(&self, name: &ObjectName, version: Option<&str>) -> Result<()> {
        let about = self.about("delete", name.as_str());
        let client = self.client(&about).await?;
        let deleted = self
            .attempts(|| async {
                let request = client
                    .delete_object()
                    .bucket(&self.settings.bucket)
                    .key(self.settings.key(name.as_str()))
                    .set_version_id(version.map(str::to_owned));
                request.send().await.map_err(|e| about.failure(&e))
            })
            .await;
        match deleted {
            Ok(answer) => {
                // The bucket keeps versions, and that wasn't known: now the object is hidden only.
                if version.is_none() && answer.delete_marker() == Some(true) {
                    self.saw_version(Some("marker"));
                    return Box::pin(self.delete(name)).await;
                }
                Ok(())
            }
            Err(failure) if failure.error.is_not_found() => Ok(()),
            Err(failure) => Err(self.denied_or_locked(name, version, failure).await),
        }
    }

    /// A lock is refused as a missing permission is; the object tells which it was.
    async fn denied_or_locked(
        &self,
        name: &ObjectName,
        version: Option<&str>,
        failure: Failure,
    ) -> StorageError {
        if failure.error.kind != ErrorKind::Denied && failure.error.kind != ErrorKind::Refused {
            return failure.error;
        }
        match self.retention(name, version).await {
            Ok(Some(held)) if held.until > Utc::now() => StorageError {
                kind: ErrorKind::Locked,
                message: format!("object lock holds it until {}", held.until.to_rfc3339()),
                hint: None,
                ..failure.error
            },
            _ => failure.error,
        }
    }

    /// Until when a version of an object is held, if it is.
    pub async fn retention(
        &self,
        name: &ObjectName,
        version: Option<&str>,
    ) -> Result<Option<Retention>> {
        Ok(retention_in(&self.head(name, version).await?))
    }

    /// Until when an object is held, as it was stored; `None` only if it surely isn't. A server leaves
    /// the lock out of what it says of an object when the credentials may not ask for it, so where it
    /// may be there the bucket is asked whether it locks what is stored.
    pub async fn retained_until(&self, name: &ObjectName) -> Result<Option<DateTime<Utc>>> {
        let head = self.head(name, None).await?;
        if let Some(held) = retention_in(&head) {
            return Ok(Some(held.until));
        }
        // A lock holds versions: without them there is none.
        if head.version_id().is_none() || !self.locks_what_is_stored().await? {
            return Ok(None);
        }
        let message = "the bucket locks what is stored in it, and doesn't say until when";
        let error = self.about("look at the lock of", name.as_str());
        Err(StorageError {
            hint: Some("s3:GetObjectRetention lets it say so: docs/s3.md".to_owned()),
            ..error.error(ErrorKind::Denied, message)
        })
    }

    /// Whether the bucket has a retention for what is stored in it and says nothing of its own.
    async fn locks_what_is_stored(&self) -> Result<bool> {
        let about = self.about("look at the object lock of", "");
        let client = self.client(&about).await?;
        let asked = self
            .attempts(|| async {
                let request =
                    client.get_object_lock_configuration().bucket(&self.settings.bucket).send();
                request.await.map_err(|e| about.failure(&e))
            })
            .await;
        match asked {
            Ok(answer) => Ok(answer
                .object_lock_configuration()
                .and_then(|lock| lock.rule())
                .is_some_and(|rule| rule.default_retention().is_some())),
            // There is no lock, or the server knows none.
            Err(failure)
                if failure.is("ObjectLockConfigurationNotFoundError")
                    || failure.is("NotImplemented") =>
            {
                Ok(false)
            }
            Err(failure) if failure.error.kind == ErrorKind::Denied => Err(StorageError {
                hint: Some(
                    "s3:GetBucketObjectLockConfiguration lets it be asked: docs/s3.md".to_owned(),
                ),
                ..failure.error
            }),
            Err(failure) => Err(failure.error),
        }
    }

    /// Has an object held at least until then, as strictly as it is held now. One that isn't held
    /// stays so: false.
    pub async fn extend_retention(&self, name: &ObjectName, until: DateTime<Utc>) -> Result<bool> {
        let Some(held) = self.retention(name, None).await? else { return Ok(false) };
        if held.until >= until {
            return Ok(true);
        }
        let about = self.about("lock", name.as_str());
        let client = self.client(&about).await?;
        // Dates have whole seconds: never earlier than was asked for.
        let seconds = until.timestamp() + i64::from(until.timestamp_subsec_nanos() > 0);
        let retention = ObjectLockRetention::builder()
            .mode(held.mode)
            .retain_until_date(SdkTime::from_secs(seconds))
            .build();
        self.attempts(|| async {
            let request = client
                .put_object_retention()
                .bucket(&self.settings.bucket)
                .key(self.settings.key(name.as_str()))
                .retention(retention.clone());
            request.send().await.map_err(|e| about.failure(&e))
        })
        .await?;
        Ok(true)
    }

    /// Ends uploads in parts below `prefix` that began longer ago than that.
    pub async fn remove_leftovers(&self, prefix: &str, older_than: Duration) -> Result<u64> {
        let about = self.about("list", prefix);
        let client = self.client(&about).await?;
        let before = SystemTime::now().checked_sub(older_than).unwrap_or(SystemTime::UNIX_EPOCH);
        let before = SdkTime::from(before);
        let mut removed = 0;
        let mut after: (Option<String>, Option<String>) = (None, None);
        loop {
            let page = self
                .attempts(|| async {
                    let request = client
                        .list_multipart_uploads()
                        .bucket(&self.settings.bucket)
                        .prefix(self.settings.key(prefix))
                        .set_key_marker(after.0.clone())
                        .set_upload_id_marker(after.1.clone());
                    request.send().await.map_err(|e| about.failure(&e))
                })
                .await;
            let page = match page {
                // Some servers keep no such list; what they keep of uploads is their affair.
                Err(failure) if failure.is("NotImplemented") => {
                    tracing::debug!("{}", failure.error);
                    return Ok(removed);
                }
                page => page?,
            };
            for upload in page.uploads() {
                let name = upload.key().and_then(|key| self.settings.name(key));
                let name = name.and_then(|name| ObjectName::new(name).ok());
                let old = upload.initiated().is_some_and(|at| *at < before);
                if let (true, Some(name), Some(id)) = (old, name, upload.upload_id()) {
                    self.abort(&name, id).await?;
                    removed += 1;
                }
            }
            if !page.is_truncated().unwrap_or(false) {
                return Ok(removed);
            }
            let next = (
                page.next_key_marker().map(str::to_owned),
                page.next_upload_id_marker().map(str::to_owned),
            );
            if next == after || next == (None, None) {
                return Err(self.not_a_listing(prefix, GOES_NOWHERE));
            }
            after = next;
        }
    }
}
