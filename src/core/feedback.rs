//! Consumers' feedback and the staff's replies.
//!
//! All feedback is one topic; a feedback's id is its position. The replies to a consumer are a topic of their own, where
//! marks say up to which reply the consumer was served. **Delivery of replies is at least once**: a reply is handed to the
//! consumer's connection, then marked. Normally each is served once; a crash or a broken connection between the two
//! repeats it with the consumer's next stream.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Error, Name, Pipeline, Topics,
    appender::Appended,
    hub::{Merged, Records, Start, Subscription},
    rooms::new_id,
};
use crate::{
    log::{self, Limit, NewRecord, Record, Sequence, Space, Topic, TopicError},
    telemetry::trace,
};

/// The one topic of [`Space::Feedback`].
const TOPIC: &str = "all";
/// How a feedback's id begins.
const ID_PREFIX: &str = "feedback-";
/// The highest rating; zero is none.
pub const MAX_RATING: u16 = 5;

/// Records of one page when the log is searched.
const PAGE: Limit = Limit {
    records: 1000,
    bytes: 1024 * 1024,
};
/// Pages one list searches at most; then it ends early and says where to go on.
const LIST_PAGES: usize = 10;
/// Bytes of feedback after which a list takes no further one.
const LIST_BYTES: usize = 1024 * 1024;
/// Replies that are read ahead when a consumer comes; further ones follow live.
const UNDELIVERED: usize = 1000;

/// A record of a reply topic is a reply. The numbers are stored: never change one.
const REPLY: u16 = 0;
/// A record of a reply topic says up to which reply the consumer was served.
const MARK: u16 = 1;

/// A feedback to store.
#[derive(Debug, Clone)]
pub struct NewFeedback {
    /// Who gives it.
    pub consumer: Name,
    /// What they say.
    pub text: Bytes,
    /// 1 to [`MAX_RATING`]; 0: none.
    pub rating: u16,
    /// Its idempotency key.
    pub key: Option<Name>,
}

/// A reply to store.
#[derive(Debug, Clone)]
pub struct NewReply {
    /// The feedback it answers.
    pub feedback_id: String,
    /// Who writes it.
    pub author: Name,
    /// What.
    pub message: String,
    /// Its idempotency key.
    pub key: Option<Name>,
}

/// What a stored reply says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The feedback it answers.
    pub feedback_id: String,
    /// What it says.
    pub message: String,
}

/// Which feedback to list.
#[derive(Debug, Clone)]
pub struct Query {
    /// Only of this consumer.
    pub consumer: Option<Name>,
    /// Only answered, or only unanswered.
    pub is_answered: Option<bool>,
    /// Only after this position.
    pub after: Sequence,
    /// How many at most.
    pub limit: usize,
}

/// A page of feedback.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The feedback, each with whether it is answered.
    pub items: Vec<(Arc<Record>, bool)>,
    /// The position after which the next page begins, if there may be more.
    pub next: Option<Sequence>,
}

/// Replies that wait for a consumer, and the position behind them.
#[derive(Debug, Clone)]
pub struct Undelivered {
    /// The replies.
    pub replies: Vec<Arc<Record>>,
    /// What comes after this position follows.
    pub after: Sequence,
}

/// All feedback and replies. Cheap to clone.
#[derive(Clone)]
pub struct Feedback {
    topics: Topics,
    all: Topic,
}

impl Feedback {
    /// The feedback among `topics`.
    ///
    /// # Errors
    /// None in practice: the topic's name is fixed.
    pub fn new(topics: Topics) -> Result<Self, TopicError> {
        let all = Topic::new(Space::Feedback, TOPIC)?;
        Ok(Self { topics, all })
    }

    /// A pipeline for many records; feed it with [`Self::record`] and [`Self::mark`].
    #[must_use]
    pub fn pipeline(&self) -> Pipeline {
        self.topics.pipeline()
    }

    /// The record of a feedback.
    #[must_use]
    pub fn record(&self, new: NewFeedback) -> NewRecord {
        NewRecord {
            topic: self.all.clone(),
            publisher: new.consumer.into(),
            id: new_id(),
            kind: new.rating,
            event_time: None,
            key: new.key.map(Into::into),
            trace: trace::current(),
            payload: new.text,
        }
    }

    /// Stores one feedback; returns when it is durable.
    ///
    /// # Errors
    /// [`Error::KeyConflict`], or what the log reports.
    pub async fn submit(&self, new: NewFeedback) -> Result<Appended, Error> {
        self.topics.append(self.record(new)).await
    }

    /// Follows all feedback.
    ///
    /// # Errors
    /// The start is trimmed or beyond the tail, or what the log reports.
    pub async fn watch(&self, start: Start) -> Result<Merged, Error> {
        let topics = std::slice::from_ref(&self.all);
        self.topics.merge(topics, start).await
    }

    /// Stores a reply; returns when it is durable.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such feedback, [`Error::KeyConflict`], or what the log reports.
    pub async fn reply(&self, new: NewReply) -> Result<Appended, Error> {
        let feedback = match sequence_of(&new.feedback_id) {
            Some(sequence) => self.topics.record(&self.all, sequence).await?,
            None => None,
        };
        let Some(feedback) = feedback else {
            return Err(Error::NotFound {
                kind: "feedback",
                name: new.feedback_id,
            });
        };
        let record = NewRecord {
            topic: replies(&feedback.publisher)?,
            publisher: new.author.into(),
            id: new_id(),
            kind: REPLY,
            event_time: None,
            key: new.key.map(Into::into),
            trace: trace::current(),
            // The feedback is part of the content: the same key for a reply to another one is another content.
            payload: format!("{}\n{}", new.feedback_id, new.message).into(),
        };
        self.topics.append(record).await
    }

    /// The replies that wait for the consumer whose replies are in `topic`.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn undelivered(&self, topic: &Topic) -> Result<Undelivered, Error> {
        let marked = self.marked(topic).await?;
        let mut replies = Vec::new();
        let mut from = marked.next();
        loop {
            let page = self.page(topic, from).await?;
            for record in page.records {
                if record.kind != REPLY {
                    continue;
                }
                let after = record.sequence;
                replies.push(record);
                if replies.len() == UNDELIVERED {
                    return Ok(Undelivered { replies, after });
                }
            }
            from = page.next;
            if page.next >= page.tail {
                let after = Sequence(page.next.0.saturating_sub(1));
                return Ok(Undelivered { replies, after });
            }
        }
    }

    /// The position up to which the consumer was served: one pass over the consumer's replies.
    async fn marked(&self, topic: &Topic) -> Result<Sequence, Error> {
        let mut marked = Sequence::default();
        let mut from = Sequence::FIRST;
        loop {
            let page = self.page(topic, from).await?;
            let marks = page.records.iter().filter(|record| record.kind == MARK);
            marked = marks
                .filter_map(|record| mark_of(record))
                .fold(marked, Sequence::max);
            from = page.next;
            if page.next >= page.tail {
                return Ok(marked);
            }
        }
    }

    /// The record that marks the consumer as served up to `sequence`.
    #[must_use]
    pub fn mark(&self, topic: &Topic, sequence: Sequence) -> NewRecord {
        NewRecord {
            topic: topic.clone(),
            publisher: topic.name().into(),
            id: new_id(),
            kind: MARK,
            event_time: None,
            key: None,
            trace: None,
            payload: Bytes::copy_from_slice(&sequence.0.to_be_bytes()),
        }
    }

    /// Stores the mark; see [`Self::mark`].
    ///
    /// # Errors
    /// What the log reports.
    pub async fn delivered(&self, topic: &Topic, sequence: Sequence) -> Result<(), Error> {
        self.topics
            .append(self.mark(topic, sequence))
            .await
            .map(drop)
    }

    /// Follows the replies to a consumer; [`reply_of`] tells them from marks.
    ///
    /// # Errors
    /// The start is trimmed or beyond the tail, or what the log reports.
    pub async fn follow(
        &self,
        topic: &Topic,
        start: Start,
    ) -> Result<Subscription<Records>, Error> {
        self.topics.subscribe(topic, start, Records).await
    }

    /// Follows the replies to no consumer yet, and to any number once they are added.
    #[must_use]
    pub fn merged(&self) -> Merged {
        self.topics.merged()
    }

    /// A page of feedback, oldest first. It may hold fewer than asked for although more follow: a search goes over a
    /// bounded number of records at a time.
    ///
    /// # Errors
    /// What the log reports.
    pub async fn list(&self, query: &Query) -> Result<Listed, Error> {
        let mut answers = Answers::default();
        let mut items = Vec::new();
        let mut bytes = 0;
        let mut from = query.after.next();
        for _ in 0..LIST_PAGES {
            let page = self.page(&self.all, from).await?;
            for record in page.records {
                let sequence = record.sequence;
                let consumer = query.consumer.as_ref().map(Name::as_str);
                if consumer.is_some_and(|consumer| *consumer != *record.publisher) {
                    continue;
                }
                let is_answered = self.is_answered(&record, &mut answers).await?;
                if query
                    .is_answered
                    .is_some_and(|wanted| wanted != is_answered)
                {
                    continue;
                }
                bytes += record.payload.len();
                items.push((record, is_answered));
                if items.len() >= query.limit || bytes >= LIST_BYTES {
                    let next = Some(sequence);
                    return Ok(Listed { items, next });
                }
            }
            from = page.next;
            if page.next >= page.tail {
                return Ok(Listed { items, next: None });
            }
        }
        let next = Some(Sequence(from.0.saturating_sub(1)));
        Ok(Listed { items, next })
    }

    /// Whether the consumer got a reply to this feedback. A reply lies behind what it answers, so the first feedback of a
    /// consumer reads all that later ones need.
    async fn is_answered(&self, feedback: &Record, answers: &mut Answers) -> Result<bool, Error> {
        let consumer = &feedback.publisher;
        if !answers.contains_key(consumer) {
            let topic = replies(consumer)?;
            let mut answered = HashSet::new();
            let mut from = feedback.sequence.next();
            loop {
                let page = self.page(&topic, from).await?;
                let read = page.records.iter().filter_map(|record| reply_of(record));
                answered.extend(read.filter_map(|reply| sequence_of(&reply.feedback_id)));
                from = page.next;
                if page.next >= page.tail {
                    break;
                }
            }
            answers.insert(consumer.clone(), answered);
        }
        let answered = answers.get(consumer);
        Ok(answered.is_some_and(|answered| answered.contains(&feedback.sequence)))
    }

    /// A page from `from` on, or from the first retained record.
    async fn page(&self, topic: &Topic, from: Sequence) -> Result<log::Page, Error> {
        match self.topics.read(topic, from, PAGE).await {
            Err(Error::Log(log::Error::Trimmed { first })) => {
                self.topics.read(topic, first, PAGE).await
            }
            read => read,
        }
    }
}

/// Of consumers, which feedback was answered.
type Answers = HashMap<Box<str>, HashSet<Sequence>>;

/// The id of the feedback at `sequence`.
#[must_use]
pub fn feedback_id(sequence: Sequence) -> String {
    format!("{ID_PREFIX}{sequence}")
}

fn sequence_of(feedback_id: &str) -> Option<Sequence> {
    let digits = feedback_id.strip_prefix(ID_PREFIX)?;
    let sequence = Sequence(digits.parse().ok()?);
    // One feedback has one id: no signs and no leading zeros.
    (self::feedback_id(sequence) == feedback_id).then_some(sequence)
}

/// The topic of the replies to a consumer.
///
/// # Errors
/// The name is blank or too long.
pub fn replies(consumer: &str) -> Result<Topic, Error> {
    Topic::new(Space::Reply, consumer)
        .map_err(|error| Error::invalid("consumer_id", format!("consumer_id {error}")))
}

/// What a record of a reply topic replies; `None` when it is a mark.
#[must_use]
pub fn reply_of(record: &Record) -> Option<Reply> {
    if record.kind != REPLY {
        return None;
    }
    let text = String::from_utf8_lossy(&record.payload);
    let (feedback_id, message) = text.split_once('\n')?;
    Some(Reply {
        feedback_id: feedback_id.to_owned(),
        message: message.to_owned(),
    })
}

fn mark_of(record: &Record) -> Option<Sequence> {
    let bytes = <[u8; 8]>::try_from(&record.payload[..]).ok()?;
    Some(Sequence(u64::from_be_bytes(bytes)))
}
