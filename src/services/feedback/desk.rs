//! `weir.v1.FeedbackDesk`: the business's side.

use bytes::{Bytes, BytesMut};
use tonic::{Request, Response, Status};

use super::convert;
use crate::{
    call::into_status,
    core::{
        Error,
        feedback::{NewReply, Query},
        hub::Start,
    },
    log::{Record, Topic},
    proto::weir::v1::{
        FeedbackItem, ListFeedbackRequest, ListFeedbackResponse, ReplyToFeedbackRequest,
        ReplyToFeedbackResponse, WatchFeedbackRequest,
        feedback_desk_server::{FeedbackDesk, FeedbackDeskServer},
    },
    services::{
        Core, ENVELOPE_BYTES, Responses,
        check::{Check, start},
        live::{Live, Selected, Source, WithLive, frame},
        message_limit,
    },
};

/// The service with its subscription.
pub(super) fn routes(core: &Core) -> WithLive<FeedbackDeskServer<Desk>> {
    let limit = message_limit(&core.limits);
    let desk = Desk { core: core.clone() };
    let watching = desk.clone();
    let generated = FeedbackDeskServer::new(desk)
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES));
    WithLive::new(generated, limit, core.metrics.clone()).method(
        "/weir.v1.FeedbackDesk/WatchFeedback",
        move |request| {
            let desk = watching.clone();
            async move { desk.watch(request).await.map_err(into_status) }
        },
    )
}

/// The service.
#[derive(Clone)]
pub(super) struct Desk {
    core: Core,
}

impl Desk {
    async fn watch(
        &self,
        request: WatchFeedbackRequest,
    ) -> Result<Live<impl Source + use<>>, Error> {
        let Watch { start, min, max } = Watch::try_from(request)?;
        let merged = self.core.feedback.watch(start).await?;
        let encode = move |_: &Topic, record: &Record, out: &mut BytesMut| {
            let is_wanted = (min..=max).contains(&record.kind);
            if is_wanted {
                frame(&convert::item(record, false), out);
            }
            is_wanted
        };
        let source = Selected { merged, encode };
        let first = Bytes::new();
        Ok(Live { first, source })
    }
}

#[tonic::async_trait]
impl FeedbackDesk for Desk {
    type WatchFeedbackStream = Responses<FeedbackItem>;

    /// Never called: [`routes`] serves this method from frames of its own.
    async fn watch_feedback(
        &self,
        _: Request<WatchFeedbackRequest>,
    ) -> Result<Response<Self::WatchFeedbackStream>, Status> {
        Err(Status::unimplemented("served as a live subscription"))
    }

    async fn reply_to_feedback(
        &self,
        request: Request<ReplyToFeedbackRequest>,
    ) -> Result<Response<ReplyToFeedbackResponse>, Status> {
        let reply = NewReply::try_from(request.into_inner()).map_err(into_status)?;
        let stored = self.core.feedback.reply(reply).await.map_err(into_status)?;
        Ok(Response::new(ReplyToFeedbackResponse {
            sequence: stored.sequence.0,
        }))
    }

    async fn list_feedback(
        &self,
        request: Request<ListFeedbackRequest>,
    ) -> Result<Response<ListFeedbackResponse>, Status> {
        let query = Query::try_from(request.into_inner()).map_err(into_status)?;
        let listed = self.core.feedback.list(&query).await.map_err(into_status)?;
        let next = listed.next.map(|next| next.to_string());
        let items = listed.items.iter();
        Ok(Response::new(ListFeedbackResponse {
            items: items
                .map(|(record, answered)| convert::item(record, *answered))
                .collect(),
            next_page_token: next.unwrap_or_default(),
        }))
    }
}

/// Which feedback to follow.
struct Watch {
    start: Start,
    min: u16,
    max: u16,
}

impl TryFrom<WatchFeedbackRequest> for Watch {
    type Error = Error;

    fn try_from(request: WatchFeedbackRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let min = convert::rating(&mut check, "min_rating", request.min_rating);
        let max = convert::rating(&mut check, "max_rating", request.max_rating);
        let start = start(request.after_sequence);
        let max = max.map(|max| if max == 0 { u16::MAX } else { max });
        let whole = min.zip(max);
        if whole.is_some_and(|(min, max)| min > max) {
            check.refuse("max_rating", "max_rating must not be below min_rating");
        }
        check.finish(whole.map(|(min, max)| Self { start, min, max }))
    }
}
