//! Whether the server refuses to create what is there.
//!
//! Tried, since no server says it: over an object that is there for this alone, both ways of
//! creating are tried with the condition. A server that ignores it overwrites that object, and does
//! no harm. The object stays: whoever may only add could not remove it, and the next probe needs it.

use aws_sdk_s3::{
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use bytes::Bytes;

use super::{engine::Engine, errors::Failure};
use crate::storage::{CreateOnly, ObjectName, Result};

/// The object that is there to be created again.
const PROBE: &str = "probe";

const TEXT: &[u8] =
    b"pgkeep creates this object again and again, to see that the server refuses it\n";

impl Engine {
    /// Finds out what the server does with a creation of what is there.
    pub async fn probe(&self) -> Result<CreateOnly> {
        let name = ObjectName::of_checked_parts(PROBE.to_owned());
        // Whatever comes of the first one, the object is there afterwards.
        let there = self.probe_put(&name).await?;
        let refused = match there {
            Some(true) => true,
            Some(false) => self.probe_put(&name).await? == Some(true),
            None => return Ok(CreateOnly::Ignored),
        };
        if refused && self.probe_upload(&name).await? {
            Ok(CreateOnly::Honoured)
        } else {
            Ok(CreateOnly::Ignored)
        }
    }

    /// A conditional PUT: whether it was refused; `None` when the server doesn't take conditions.
    async fn probe_put(&self, name: &ObjectName) -> Result<Option<bool>> {
        let about = self.about("probe", name.as_str());
        let client = self.client(&about).await?;
        let put = self
            .attempts(|| async {
                let request = client
                    .put_object()
                    .bucket(&self.settings.bucket)
                    .key(self.settings.key(name.as_str()))
                    .if_none_match("*")
                    .body(ByteStream::from_static(TEXT));
                // A bucket may refuse what isn't encrypted as it wants.
                let request = self.dressed_put(request, TEXT.len());
                request.send().await.map_err(|e| about.failure(&e))
            })
            .await;
        answer(put.map(drop))
    }

    /// A conditional end of an upload in parts: whether it was refused.
    async fn probe_upload(&self, name: &ObjectName) -> Result<bool> {
        let upload = self.begin_upload(name, "").await?;
        let probed = self.probe_complete(name, &upload).await;
        self.abort(name, &upload).await?;
        Ok(answer(probed)? == Some(true))
    }

    async fn probe_complete(&self, name: &ObjectName, upload: &str) -> Result<(), Failure> {
        let part: CompletedPart = self.put_part(name, upload, 1, Bytes::from_static(TEXT)).await?;
        let about = self.about("probe", name.as_str());
        let client = self.client(&about).await?;
        let parts = CompletedMultipartUpload::builder().parts(part).build();
        self.attempts(|| async {
            let request = client
                .complete_multipart_upload()
                .bucket(&self.settings.bucket)
                .key(self.settings.key(name.as_str()))
                .upload_id(upload)
                .multipart_upload(parts.clone())
                .if_none_match("*");
            request.send().await.map_err(|e| about.failure(&e))
        })
        .await
        .map(drop)
    }
}

/// Whether a creation of what is there was refused; `None` when conditions aren't taken at all.
fn answer(created: Result<(), Failure>) -> Result<Option<bool>> {
    match created {
        Ok(()) => Ok(Some(false)),
        Err(failure) if failure.error.already_exists() => Ok(Some(true)),
        Err(failure) if failure.is("NotImplemented") => Ok(None),
        Err(failure) => Err(failure.error),
    }
}
