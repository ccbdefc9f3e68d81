//! Bounds what a server says.
//!
//! The SDK reads an answer whole before it looks at it, however long it is; only an object's content comes piece by
//! piece, and that is bounded by what was asked for (`read.rs`). So every other answer ends here, when
//! it is longer than any that has a meaning.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The longest answer, in bytes: a thousand keys of a kilobyte each, four times as long as they need be.
/// What the SDK makes of it takes up to a hundred times as much.
const LONGEST: u64 = 4 << 20;

/// Whether the answer to a request may be an object.
pub(super) fn asks_for_an_object(request: &HttpRequest) -> bool {
    let query = request.uri().split_once('?').map_or("", |(_, query)| query);
    request.method() == "GET" && query.split('&').any(|part| part == "x-id=GetObject")
}

/// The answer, of a bounded length, unless it is an object.
pub(super) fn bounded(mut answer: HttpResponse, may_be_an_object: bool) -> HttpResponse {
    if !(may_be_an_object && answer.status().is_success()) {
        let body = Bounded { body: answer.take_body(), left: LONGEST };
        *answer.body_mut() = SdkBody::from_body_1_x(body);
    }
    answer
}

/// A body that is an error from some length on.
struct Bounded {
    body: SdkBody,
    left: u64,
}

impl Body for Bounded {
    type Data = Bytes;
    type Error = aws_smithy_types::body::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &next
            && let Some(data) = frame.data_ref()
        {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    let what = format!("an answer of more than {} MiB", LONGEST >> 20);
                    return Poll::Ready(Some(Err(what.into())));
                }
            }
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        Body::size_hint(&self.body)
    }
}
