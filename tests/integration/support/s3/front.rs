//! The layer before the server: atomic creations, counts, and faults.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_core::Stream;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, dto::*};
use s3s_fs::FileSystem;

/// What kind of server it is.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// It honours `If-None-Match`. One that doesn't overwrites, and says nothing.
    pub conditional: bool,
    /// It sends the checksum that an object was stored with. Without, a test may damage an object
    /// and see what pgkeep says of it.
    pub checksums: bool,
}

impl Default for Traits {
    fn default() -> Self {
        Traits { conditional: true, checksums: true }
    }
}

/// A request, for those who decide about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `GetObject`, `PutObject`, and so on.
    pub operation: &'static str,
    /// The key or the prefix.
    pub key: String,
    /// How many requests of this operation there were before it.
    pub before: u64,
}

/// What becomes of a request.
#[derive(Debug, Clone)]
pub enum Go {
    /// It is answered as it should be.
    On,
    /// It isn't done, and this is the answer.
    Refuse(S3ErrorCode),
    /// It is done, and this is the answer all the same.
    DoneBut(S3ErrorCode),
    /// Of CompleteMultipartUpload: the answer begins with 200, and this is its body.
    Inside200(S3ErrorCode),
}

type Plan = Box<dyn FnMut(&Call) -> Go + Send>;

/// The layer.
pub struct Front {
    files: FileSystem,
    folder: PathBuf,
    traits: Traits,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    plan: Mutex<Plan>,
    creating: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    uploads: Mutex<BTreeMap<String, (String, Timestamp)>>,
    failing: Mutex<BTreeSet<String>>,
}

impl fmt::Debug for Front {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a server with {:?}", self.traits)
    }
}

impl Front {
    /// A layer before a server with its files in this folder.
    pub fn new(folder: &Path, traits: Traits) -> Self {
        Front {
            files: FileSystem::new(folder).expect("an S3 server"),
            folder: folder.to_owned(),
            traits,
            counts: Mutex::default(),
            plan: Mutex::new(Box::new(|_| Go::On)),
            creating: Mutex::default(),
            uploads: Mutex::default(),
            failing: Mutex::default(),
        }
    }

    /// What kind of server it is.
    pub fn traits(&self) -> Traits {
        self.traits
    }

    /// From now on this decides about each request.
    pub fn plan(&self, plan: impl FnMut(&Call) -> Go + Send + 'static) {
        self.counts.lock().unwrap().clear();
        *self.plan.lock().unwrap() = Box::new(plan);
    }

    /// From now on each request of this operation is refused so.
    pub fn refuse(&self, operation: &'static str, code: S3ErrorCode) {
        self.plan(
            move |call| {
                if call.operation == operation { Go::Refuse(code.clone()) } else { Go::On }
            },
        );
    }

    /// Lets everything through again.
    pub fn heal(&self) {
        self.plan(|_| Go::On);
    }

    /// From now on every request below this folder fails, whatever the plan says of it.
    pub fn fail(&self, folder: &str) {
        self.failing.lock().unwrap().insert(format!("{folder}/"));
    }

    /// Requests below this folder are answered again.
    pub fn mend(&self, folder: &str) {
        self.failing.lock().unwrap().remove(&format!("{folder}/"));
    }

    /// How many requests there were since the plan was made, by operation.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap().clone()
    }

    /// Uploads in parts that are neither completed nor aborted: their keys.
    pub fn uploads(&self) -> Vec<String> {
        self.uploads.lock().unwrap().values().map(|(key, _)| key.clone()).collect()
    }

    /// As if all uploads had been ended.
    pub fn forget_uploads(&self) {
        self.uploads.lock().unwrap().clear();
    }

    fn decide(&self, operation: &'static str, key: &str) -> S3Result<Go> {
        let before = {
            let mut counts = self.counts.lock().unwrap();
            let count = counts.entry(operation).or_default();
            *count += 1;
            *count - 1
        };
        if self.failing.lock().unwrap().iter().any(|folder| key.starts_with(folder)) {
            return Err(error(S3ErrorCode::InternalError));
        }
        let call = Call { operation, key: key.to_owned(), before };
        match (*self.plan.lock().unwrap())(&call) {
            Go::Refuse(code) => Err(error(code)),
            go => Ok(go),
        }
    }

    /// One creator a key at a time: the server looks whether a name is taken before it reads the
    /// body, so that two could succeed.
    async fn alone(&self, key: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = self.creating.lock().unwrap().entry(key.to_owned()).or_default().clone();
        lock.lock_owned().await
    }

    fn condition(&self, condition: Option<IfNoneMatch>) -> Option<IfNoneMatch> {
        condition.filter(|_| self.traits.conditional)
    }
}

fn error(code: S3ErrorCode) -> S3Error {
    S3Error::with_message(code, "a fault of the test")
}

/// The answer, or that of the plan although it was done.
fn after<T>(go: Go, answer: S3Result<S3Response<T>>) -> S3Result<S3Response<T>> {
    match go {
        Go::DoneBut(code) => answer.and(Err(error(code))),
        _ => answer,
    }
}

/// Reads a body that isn't wanted, as S3 does: a client that is still writing when the connection
/// is closed never sees the answer.
async fn drain(body: &mut Option<StreamingBlob>) {
    let Some(body) = body else { return };
    while let Some(Ok(_)) = next(body).await {}
}

async fn next(body: &mut StreamingBlob) -> Option<Result<Bytes, s3s::StdError>> {
    std::future::poll_fn(|context| Pin::new(&mut *body).poll_next(context)).await
}

/// The layer as a service, shared with the test.
#[derive(Debug, Clone)]
pub struct Shared(pub Arc<Front>);

#[async_trait::async_trait]
impl S3 for Shared {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let go = self.0.decide("GetObject", &request.input.key)?;
        // The server reads the object and what it has noted of it one after the other.
        let _alone = self.0.alone(&request.input.key).await;
        let mut request = request;
        if let Some(Range::Suffix { length }) = request.input.range {
            // It fails where S3 sends the whole object.
            let path = self.0.folder.join(&request.input.bucket).join(&request.input.key);
            let size = std::fs::metadata(path).map_or(length, |meta| meta.len());
            request.input.range = Some(Range::Suffix { length: length.min(size) });
        }
        let mut answer = self.0.files.get_object(request).await?;
        if !self.0.traits.checksums {
            let output = &mut answer.output;
            output.checksum_crc32 = None;
            output.checksum_crc32c = None;
            output.checksum_crc64nvme = None;
        }
        after(go, Ok(answer))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let go = self.0.decide("HeadObject", &request.input.key)?;
        after(go, self.0.files.head_object(request).await)
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let go = self.0.decide("ListObjectsV2", request.input.prefix.as_deref().unwrap_or(""))?;
        after(go, self.0.files.list_objects_v2(request).await)
    }

    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let go = match self.0.decide("PutObject", &request.input.key) {
            Err(refused) => {
                drain(&mut request.input.body).await;
                return Err(refused);
            }
            go => go?,
        };
        let _alone = self.0.alone(&request.input.key).await;
        request.input.if_none_match = self.0.condition(request.input.if_none_match);
        after(go, self.0.files.put_object(request).await)
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let go = self.0.decide("DeleteObject", &request.input.key)?;
        after(go, self.0.files.delete_object(request).await)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let key = request.input.key.clone();
        let go = self.0.decide("CreateMultipartUpload", &key)?;
        let answer = self.0.files.create_multipart_upload(request).await?;
        if let Some(id) = &answer.output.upload_id {
            let now = Timestamp::from(std::time::SystemTime::now());
            self.0.uploads.lock().unwrap().insert(id.clone(), (key, now));
        }
        after(go, Ok(answer))
    }

    async fn upload_part(
        &self,
        mut request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let go = match self.0.decide("UploadPart", &request.input.key) {
            Err(refused) => {
                drain(&mut request.input.body).await;
                return Err(refused);
            }
            go => go?,
        };
        after(go, self.0.files.upload_part(request).await)
    }

    async fn complete_multipart_upload(
        &self,
        mut request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let go = self.0.decide("CompleteMultipartUpload", &request.input.key)?;
        if let Go::Inside200(code) = go {
            let mut inside = error(code);
            inside.set_status_code(200_u16.try_into().expect("a status"));
            return Err(inside);
        }
        let _alone = self.0.alone(&request.input.key).await;
        let id = request.input.upload_id.clone();
        if !self.0.uploads.lock().unwrap().contains_key(&id) {
            return Err(error(S3ErrorCode::NoSuchUpload));
        }
        request.input.if_none_match = self.0.condition(request.input.if_none_match);
        let answer = self.0.files.complete_multipart_upload(request).await?;
        self.0.uploads.lock().unwrap().remove(&id);
        after(go, Ok(answer))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let go = self.0.decide("AbortMultipartUpload", &request.input.key)?;
        let id = request.input.upload_id.clone();
        if self.0.uploads.lock().unwrap().remove(&id).is_none() {
            return Err(error(S3ErrorCode::NoSuchUpload));
        }
        after(go, self.0.files.abort_multipart_upload(request).await)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let prefix = request.input.prefix.unwrap_or_default();
        let go = self.0.decide("ListMultipartUploads", &prefix)?;
        let uploads = self.0.uploads.lock().unwrap();
        let uploads = uploads
            .iter()
            .filter(|(_, (key, _))| key.starts_with(&prefix))
            .map(|(id, (key, initiated))| MultipartUpload {
                upload_id: Some(id.clone()),
                key: Some(key.clone()),
                initiated: Some(initiated.clone()),
                ..Default::default()
            })
            .collect();
        let output = ListMultipartUploadsOutput {
            uploads: Some(uploads),
            is_truncated: Some(false),
            ..Default::default()
        };
        after(go, Ok(S3Response::new(output)))
    }
}
