//! Gives a request up when nothing moves, however long it takes as a whole.
//!
//! A timeout for the whole request would make large objects impossible over slow links, and the
//! SDK's own watch looks at answers only: it sees a body from memory as one piece that is sent at
//! once. So between the SDK and its HTTP client stands this: it hands the body over in small
//! pieces, and ends the request when neither another piece was taken nor an answer came for too
//! long, and the kernel has sent nothing of what it took, either. From the answer's head on the SDK
//! watches.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use aws_smithy_runtime_api::client::{
    connection::CaptureSmithyConnection,
    http::{
        HttpClient, HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector,
        http_client_fn,
    },
    orchestrator::HttpRequest,
    result::ConnectorError,
};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{
    bounded::{asks_for_an_object, bounded},
    send_queue::unacknowledged,
};

/// How much of a body is handed over at a time, in bytes.
const PIECE: usize = 64 << 10;

/// The client, with each request given up after `stall` without progress.
pub(super) fn watched(inner: SharedHttpClient, stall: Duration) -> SharedHttpClient {
    http_client_fn(move |settings, components| {
        let inner = inner.http_connector(settings, components);
        SharedHttpConnector::new(Watched { inner, stall })
    })
}

/// Nothing has moved for so long.
#[derive(Debug, thiserror::Error)]
#[error("nothing moved for {} s", .0.as_secs_f32())]
pub(super) struct Standstill(Duration);

#[derive(Debug)]
struct Watched {
    inner: SharedHttpConnector,
    stall: Duration,
}

impl HttpConnector for Watched {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let moved = Arc::new(AtomicU64::new(0));
        if request.body().content_length() != Some(0) {
            let body = request.take_body();
            let pieces = Pieces { body, rest: Bytes::new(), moved: moved.clone() };
            *request.body_mut() = SdkBody::from_body_1_x(pieces);
        }
        let connection = request.extension::<CaptureSmithyConnection>().cloned();
        let may_be_an_object = asks_for_an_object(&request);
        let answer = self.inner.call(request);
        let stall = self.stall;
        HttpConnectorFuture::new(async move {
            tokio::select! {
                biased;
                answer = answer => answer.map(|answer| bounded(answer, may_be_an_object)),
                () = standstill(&moved, connection, stall) => {
                    Err(ConnectorError::timeout(Standstill(stall).into()))
                }
            }
        })
    }
}

/// Returns when nothing has moved for `stall`: neither from above into the kernel nor from there to
/// the other end.
async fn standstill(
    moved: &AtomicU64,
    connection: Option<CaptureSmithyConnection>,
    stall: Duration,
) {
    let (mut before, mut queued_before) = (moved.load(Ordering::Relaxed), None);
    loop {
        tokio::time::sleep(stall).await;
        let now = moved.load(Ordering::Relaxed);
        let queued = match &connection {
            Some(connection) => queued(connection).await,
            None => None,
        };
        // Nothing that can't be told counts as movement.
        let sent = queued_before.is_some() && queued.is_some() && queued != queued_before;
        if now == before && !sent {
            return;
        }
        (before, queued_before) = (now, queued);
    }
}

/// How much of what the kernel took of a request it hasn't brought to the other end yet.
async fn queued(connection: &CaptureSmithyConnection) -> Option<u64> {
    let connection = connection.get()?;
    unacknowledged(connection.local_addr()?, connection.remote_addr()?).await
}

/// A body in small pieces, which counts them.
struct Pieces {
    body: SdkBody,
    rest: Bytes,
    moved: Arc<AtomicU64>,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = aws_smithy_types::body::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.rest.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        self.moved.fetch_add(1, Ordering::Relaxed);
        let len = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(len)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = Body::size_hint(&self.body);
        let rest = self.rest.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
