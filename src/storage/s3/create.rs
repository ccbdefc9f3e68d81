//! Creating: never over what is there, and knowing one's own work again.
//!
//! An answer may be lost, and the request that is sent once more then finds the name taken by the
//! first one. So each object carries a random mark among its metadata, and where a name is taken the
//! mark tells whether it was this very writer that took it.

use aws_sdk_s3::{
    operation::{
        create_multipart_upload::builders::CreateMultipartUploadFluentBuilder,
        put_object::builders::PutObjectFluentBuilder,
    },
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart, ServerSideEncryption, StorageClass},
};
use bytes::Bytes;

use super::{
    engine::Engine,
    errors::Failure,
    settings::{CLASSED, Sse},
};
use crate::storage::{ErrorKind, ObjectName, Result, StorageError};

/// The name of the mark among an object's metadata (`x-amz-meta-pgkeep-mark`).
const MARK: &str = "pgkeep-mark";

/// The mark of one writer, in hexadecimal.
pub(super) fn mark() -> String {
    let mut random = [0u8; 16];
    match getrandom::fill(&mut random) {
        Ok(()) => hex::encode(random),
        // Nothing is recognised by it then: a lost answer becomes an error.
        Err(_) => String::new(),
    }
}

/// What a PUT does with a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is refused.
    Refuse,
    /// It is replaced.
    Replace,
}

impl Engine {
    /// Stores an object with one request.
    pub async fn put(&self, name: &ObjectName, bytes: Bytes, taken: Taken) -> Result<()> {
        let operation = if taken == Taken::Refuse { "create" } else { "replace" };
        let about = self.about(operation, name.as_str());
        let client = self.client(&about).await?;
        let mark = mark();
        let condition = self.if_none_match().filter(|_| taken == Taken::Refuse);
        let put = self
            .attempts(|| async {
                let request = client
                    .put_object()
                    .bucket(&self.settings.bucket)
                    .key(self.settings.key(name.as_str()))
                    .metadata(MARK, &mark)
                    .set_if_none_match(condition.clone())
                    .body(ByteStream::from(bytes.clone()));
                let request = self.dressed_put(request, bytes.len());
                request.send().await.map_err(|e| about.failure(&e))
            })
            .await;
        match put {
            Ok(answer) => {
                self.saw_version(answer.version_id());
                Ok(())
            }
            Err(failure) if failure.error.already_exists() => {
                self.settle(name, &mark, failure).await
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// Begins an upload in parts. Returns its id.
    pub async fn begin_upload(&self, name: &ObjectName, mark: &str) -> Result<String> {
        let about = self.about("create", name.as_str());
        let client = self.client(&about).await?;
        let answer = self
            .attempts(|| async {
                let request = client
                    .create_multipart_upload()
                    .bucket(&self.settings.bucket)
                    .key(self.settings.key(name.as_str()))
                    .metadata(MARK, mark);
                self.dressed_upload(request).send().await.map_err(|e| about.failure(&e))
            })
            .await?;
        answer.upload_id().map(str::to_owned).ok_or_else(|| {
            about.error(ErrorKind::Refused, "the server gave no id for an upload in parts")
        })
    }

    /// Sends a part.
    pub async fn put_part(
        &self,
        name: &ObjectName,
        upload: &str,
        number: i32,
        bytes: Bytes,
    ) -> Result<CompletedPart> {
        let about = self.about("write", name.as_str());
        let client = self.client(&about).await?;
        let answer = self
            .attempts(|| async {
                let request = client
                    .upload_part()
                    .bucket(&self.settings.bucket)
                    .key(self.settings.key(name.as_str()))
                    .upload_id(upload)
                    .part_number(number)
                    .body(ByteStream::from(bytes.clone()));
                request.send().await.map_err(|e| about.failure(&e))
            })
            .await?;
        // The checksum that the part was sent with belongs into the list of parts, if it had one.
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag().map(str::to_owned))
            .set_checksum_crc32(answer.checksum_crc32().map(str::to_owned))
            .set_checksum_crc32_c(answer.checksum_crc32_c().map(str::to_owned))
            .set_checksum_crc64_nvme(answer.checksum_crc64_nvme().map(str::to_owned))
            .build())
    }

    /// Makes an object of the parts.
    pub async fn complete(
        &self,
        name: &ObjectName,
        upload: &str,
        mark: &str,
        parts: Vec<CompletedPart>,
    ) -> Result<()> {
        let about = self.about("create", name.as_str());
        let client = self.client(&about).await?;
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let completed = self
            .attempts(|| async {
                let request = client
                    .complete_multipart_upload()
                    .bucket(&self.settings.bucket)
                    .key(self.settings.key(name.as_str()))
                    .upload_id(upload)
                    .multipart_upload(parts.clone())
                    .set_if_none_match(self.if_none_match());
                request.send().await.map_err(|e| about.failure(&e))
            })
            .await;
        match completed {
            Ok(answer) => {
                self.saw_version(answer.version_id());
                Ok(())
            }
            // An upload that was completed is gone, whoever hears of it.
            Err(failure) if failure.error.already_exists() || failure.is("NoSuchUpload") => {
                self.settle(name, mark, failure).await
            }
            Err(failure) => Err(failure.error),
        }
    }

    /// The name is taken, or the upload is gone: by whom? Our own mark means that an answer was
    /// lost, and all is well.
    async fn settle(&self, name: &ObjectName, mark: &str, failure: Failure) -> Result<()> {
        let head = self.head(name, None).await;
        let failed = failure.error;
        match head {
            Ok(head) => match head.metadata().and_then(|all| all.get(MARK)) {
                Some(theirs) if !mark.is_empty() && theirs == mark => Ok(()),
                _ => Err(StorageError {
                    kind: ErrorKind::AlreadyExists,
                    message: "there is one of this name already".into(),
                    ..failed
                }),
            },
            // The upload is gone, and nothing came of it.
            Err(looked) if looked.is("NotFound") => {
                Err(StorageError { kind: ErrorKind::Unavailable, ..failed })
            }
            Err(Failure { error: looked, .. }) => Err(StorageError {
                kind: looked.kind,
                message: format!(
                    "{}; whose it is couldn't be looked at: {}",
                    failed.message, looked.message
                ),
                hint: looked.hint,
                ..failed
            }),
        }
    }

    /// Removes what was sent of an upload. Parts that were still on their way may arrive after it,
    /// so it is done until none is left.
    pub async fn abort(&self, name: &ObjectName, upload: &str) -> Result<()> {
        let about = self.about("abort", name.as_str());
        let client = self.client(&about).await?;
        let aborted = self
            .attempts(|| async {
                let request = client
                    .abort_multipart_upload()
                    .bucket(&self.settings.bucket)
                    .key(self.settings.key(name.as_str()))
                    .upload_id(upload);
                request.send().await.map_err(|e| about.failure(&e))
            })
            .await;
        match aborted {
            Err(failure) if !failure.is("NoSuchUpload") => Err(failure.error),
            _ => Ok(()),
        }
    }

    fn class(&self) -> Option<StorageClass> {
        self.settings.storage_class.as_deref().map(StorageClass::from)
    }

    fn encryption(&self) -> (Option<ServerSideEncryption>, Option<String>) {
        match &self.settings.sse {
            Sse::Default => (None, None),
            Sse::Aes256 => (Some(ServerSideEncryption::Aes256), None),
            Sse::Kms(key) => (Some(ServerSideEncryption::AwsKms), key.clone()),
        }
    }

    /// A PUT with what the settings say of the object.
    pub(super) fn dressed_put(
        &self,
        request: PutObjectFluentBuilder,
        len: usize,
    ) -> PutObjectFluentBuilder {
        let (encryption, key) = self.encryption();
        request
            .set_storage_class(self.class().filter(|_| len >= CLASSED))
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key)
    }

    fn dressed_upload(
        &self,
        request: CreateMultipartUploadFluentBuilder,
    ) -> CreateMultipartUploadFluentBuilder {
        let (encryption, key) = self.encryption();
        request
            .set_storage_class(self.class())
            .set_server_side_encryption(encryption)
            .set_ssekms_key_id(key)
    }
}
