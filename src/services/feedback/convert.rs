//! Between the messages of feedback and the core.

use bytes::Bytes;

use crate::{
    core::{
        Error, Name,
        feedback::{MAX_RATING, NewFeedback, NewReply, Query, feedback_id, reply_of},
    },
    log::{Record, Sequence},
    proto::{
        feedback::{FeedbackRequest, FeedbackResponse, FeedbackResponseKind},
        weir::v1::{
            FeedbackFilter, FeedbackItem, ListFeedbackRequest, ReplyToFeedbackRequest, StaffReply,
            SubmitFeedbackRequest,
        },
    },
    services::check::{Check, timestamp},
};

impl TryFrom<FeedbackRequest> for NewFeedback {
    type Error = Error;

    fn try_from(request: FeedbackRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let consumer = check.name("consumer_id", request.consumer_id);
        let rating = rating(&mut check, "rating", request.rating);
        let key = check.optional("idempotency_key", request.idempotency_key);
        let whole = consumer.zip(rating);
        check.finish(whole.map(|(consumer, rating)| Self {
            consumer,
            text: Bytes::from(request.feedback),
            rating,
            key,
        }))
    }
}

impl TryFrom<SubmitFeedbackRequest> for NewFeedback {
    type Error = Error;

    fn try_from(request: SubmitFeedbackRequest) -> Result<Self, Error> {
        Self::try_from(FeedbackRequest {
            consumer_id: request.consumer_id,
            feedback: request.feedback,
            rating: request.rating,
            idempotency_key: request.idempotency_key,
        })
    }
}

pub(super) fn rating(check: &mut Check<'_>, field: &str, rating: i32) -> Option<u16> {
    let valid = u16::try_from(rating).ok();
    let valid = valid.filter(|rating| *rating <= MAX_RATING);
    if valid.is_none() {
        check.refuse(field, format!("{field} must be 0 to {MAX_RATING}"));
    }
    valid
}

/// The thank-you.
pub(super) fn thanks(consumer: &str) -> String {
    format!("Thank you for your feedback, {consumer}!")
}

pub(super) fn acknowledgement(consumer: &Name, sequence: Sequence) -> FeedbackResponse {
    FeedbackResponse {
        response_message: thanks(consumer.as_str()),
        sequence: sequence.0,
        feedback_id: feedback_id(sequence),
        kind: FeedbackResponseKind::Acknowledgement.into(),
        author: String::new(),
    }
}

/// A reply on the consumer's stream; `None` when the record is none.
pub(super) fn response(record: &Record) -> Option<FeedbackResponse> {
    let reply = reply_of(record)?;
    Some(FeedbackResponse {
        response_message: reply.message,
        sequence: record.sequence.0,
        feedback_id: reply.feedback_id,
        kind: FeedbackResponseKind::StaffReply.into(),
        author: record.publisher.to_string(),
    })
}

/// A reply as such; `None` when the record is none.
pub(super) fn staff_reply(record: &Record) -> Option<StaffReply> {
    let reply = reply_of(record)?;
    Some(StaffReply {
        feedback_id: reply.feedback_id,
        author: record.publisher.to_string(),
        message: reply.message,
        timestamp: Some(timestamp(record.shown_time())),
        sequence: record.sequence.0,
    })
}

pub(super) fn item(record: &Record, answered: bool) -> FeedbackItem {
    FeedbackItem {
        feedback_id: feedback_id(record.sequence),
        consumer_id: record.publisher.to_string(),
        feedback: String::from_utf8_lossy(&record.payload).into_owned(),
        rating: record.kind.into(),
        timestamp: Some(timestamp(record.shown_time())),
        sequence: record.sequence.0,
        answered,
    }
}

impl TryFrom<ReplyToFeedbackRequest> for NewReply {
    type Error = Error;

    fn try_from(request: ReplyToFeedbackRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let feedback = check.name("feedback_id", request.feedback_id);
        let author = check.name("author", request.author);
        let key = check.optional("idempotency_key", request.idempotency_key);
        let whole = feedback.zip(author);
        check.finish(whole.map(|(feedback, author)| Self {
            feedback_id: feedback.as_str().to_owned(),
            author,
            message: request.message,
            key,
        }))
    }
}

impl TryFrom<ListFeedbackRequest> for Query {
    type Error = Error;

    fn try_from(request: ListFeedbackRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let consumer = check.optional("consumer_id", request.consumer_id);
        let limit = check.page_size(request.page_size);
        let after = match request.page_token.as_str() {
            "" => Some(0),
            token => token.parse().ok(),
        };
        if after.is_none() {
            check.refuse("page_token", "page_token is not of an earlier page");
        }
        let is_answered = match FeedbackFilter::try_from(request.filter) {
            Ok(FeedbackFilter::Unspecified) => Some(None),
            Ok(FeedbackFilter::Answered) => Some(Some(true)),
            Ok(FeedbackFilter::Unanswered) => Some(Some(false)),
            Err(_) => {
                check.refuse("filter", format!("filter {} is not known", request.filter));
                None
            }
        };
        let whole = limit.zip(after).zip(is_answered);
        check.finish(whole.map(|((limit, after), is_answered)| Self {
            consumer,
            is_answered,
            after: Sequence(after),
            limit,
        }))
    }
}
