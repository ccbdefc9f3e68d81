//! Writing: what is small in one PUT, the rest in parts that are sent while more is being made.
//!
//! A writer fills one part at a time. Parts on their way share one budget for the whole storage, and
//! a writer waits for its share, so memory stays bounded however many objects are written at once.

use std::{collections::VecDeque, mem, sync::Arc};

use async_trait::async_trait;
use aws_sdk_s3::types::CompletedPart;
use bytes::{Bytes, BytesMut};
use tokio::task::JoinHandle;

use super::{
    create::{Taken, mark},
    owner::{Owner, joined},
};
use crate::storage::{ErrorKind, ObjectName, ObjectWriter, Result};

/// How large a part is, and the largest object that is stored in one request, in bytes. S3 takes
/// parts from 5 MiB on.
pub(super) const PART: usize = 8 << 20;

/// The most parts that an object may have, by S3's own limit: objects of up to 78 GiB.
const MAX_PARTS: usize = 10_000;

/// An object on its way.
pub(super) struct S3Writer {
    owner: Arc<Owner>,
    name: ObjectName,
    mark: String,
    /// What isn't sent yet: at most a part.
    filling: BytesMut,
    upload: Option<Upload>,
}

/// An upload in parts.
struct Upload {
    id: String,
    sent: Vec<CompletedPart>,
    sending: VecDeque<JoinHandle<Result<CompletedPart>>>,
}

impl S3Writer {
    /// Begins an object. Nothing is sent before there is more than a part of it.
    pub fn new(owner: Arc<Owner>, name: ObjectName) -> Self {
        S3Writer { owner, name, mark: mark(), filling: BytesMut::new(), upload: None }
    }

    /// Sends a part as soon as the budget has room for it.
    async fn send(&mut self, part: Bytes) -> Result<()> {
        let engine = self.owner.engine().clone();
        let about = engine.about("write", self.name.as_str());
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let (engine, name, mark) = (engine.clone(), self.name.clone(), self.mark.clone());
                let begin = async move { engine.begin_upload(&name, &mark).await };
                let id = self.owner.run(&about, begin).await?;
                self.upload.insert(Upload { id, sent: Vec::new(), sending: VecDeque::new() })
            }
        };
        // One that failed is known early, and not only when everything was read.
        while let Some(oldest) = upload.sending.pop_front_if(|part| part.is_finished()) {
            upload.sent.push(joined(&about, oldest.await)?);
        }
        let number = upload.sent.len() + upload.sending.len() + 1;
        if number > MAX_PARTS {
            return Err(about.error(ErrorKind::Refused, "it has more parts than S3 takes"));
        }
        let room = engine.parts.clone().acquire_owned().await;
        let room = room.map_err(|e| about.error(ErrorKind::Unavailable, e.to_string()))?;
        let (name, id) = (self.name.clone(), upload.id.clone());
        upload.sending.push_back(self.owner.spawn(&about, async move {
            let sent = engine.put_part(&name, &id, number as i32, part.clone()).await;
            engine.buffers.take_back(part);
            drop(room);
            sent
        })?);
        Ok(())
    }
}

#[async_trait]
impl ObjectWriter for S3Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut rest: &[u8] = &bytes;
        while self.filling.len() + rest.len() > PART {
            let (now, later) = rest.split_at(PART - self.filling.len());
            self.owner.engine().buffers.append(&mut self.filling, now);
            rest = later;
            let part = mem::take(&mut self.filling).freeze();
            self.send(part).await?;
        }
        self.owner.engine().buffers.append(&mut self.filling, rest);
        Ok(())
    }

    async fn finish(mut self: Box<Self>) -> Result<()> {
        let engine = self.owner.engine().clone();
        let about = engine.about("create", self.name.as_str());
        let last = mem::take(&mut self.filling).freeze();
        let name = self.name.clone();
        if self.upload.is_none() {
            let put = async move {
                let done = engine.put(&name, last.clone(), Taken::Refuse).await;
                engine.buffers.take_back(last);
                done
            };
            return self.owner.run(&about, put).await;
        }
        self.send(last).await?;
        let Some(upload) = &mut self.upload else { return Ok(()) };
        while let Some(oldest) = upload.sending.pop_front() {
            upload.sent.push(joined(&about, oldest.await)?);
        }
        let (id, parts, mark) = (upload.id.clone(), upload.sent.clone(), self.mark.clone());
        let complete = async move { engine.complete(&name, &id, &mark, parts).await };
        self.owner.run(&about, complete).await?;
        self.upload = None;
        Ok(())
    }
}

impl Drop for S3Writer {
    /// What was sent of an object that isn't finished is removed.
    fn drop(&mut self) {
        if let Some(Upload { id, sending, .. }) = self.upload.take() {
            self.owner.abort(self.name.clone(), id, sending.into());
        }
    }
}
