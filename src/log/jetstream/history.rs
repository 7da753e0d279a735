//! Reads that go to the stream: history behind what memory holds, trim positions, times, names.

use tokio::time::Instant;

use super::{
    api::{PAGE, PAGE_BYTES},
    shared::Shared,
    subject::Subject,
    view::Found,
    wire::Content,
};
use crate::{
    log::{Bounds, Error, Limit, Page, Sequence, Space, Timestamp, Topic},
    nats::stream::SUBJECTS,
};

/// How often a trim that others raced is tried.
const TRIES: usize = 10;

impl Shared {
    pub(super) async fn read(
        &self,
        topic: &Topic,
        from: Sequence,
        limit: Limit,
    ) -> Result<Page, Error> {
        self.ready().await?;
        let found = match self.view.read(topic, from, limit)? {
            Found::Ahead(_) => {
                // The position may come from another replica that is ahead of this one.
                self.refresh().await?;
                self.view.read(topic, from, limit)?
            }
            found => found,
        };
        match found {
            Found::Page(page) => Ok(page),
            Found::Older(tail) => self.read_older(topic, from, tail, limit).await,
            Found::Ahead(tail) => {
                let first = self.first(topic).await?;
                crate::log::start_of_read(from, first, tail)?;
                Err(Error::BeyondTail { tail })
            }
        }
    }

    /// Reads from the stream what lies before `tail`.
    pub(super) async fn read_older(
        &self,
        topic: &Topic,
        from: Sequence,
        tail: Sequence,
        limit: Limit,
    ) -> Result<Page, Error> {
        let subject = self.api.subjects.log(topic);
        let deadline = Instant::now() + self.api.stream.timeout;
        let mut page = Page {
            records: Vec::new(),
            next: from.max(Sequence::FIRST),
            tail,
        };
        let mut bytes = 0;
        // One page of the stream, or less where that comes to the end; the reader asks for more.
        'pages: loop {
            let wanted = limit.records.saturating_sub(page.records.len());
            let most = limit.bytes.min(PAGE_BYTES);
            let entries = self
                .api
                .read(Some(&subject), page.next, wanted, most)
                .await?;
            let count = entries.len();
            for entry in entries {
                if entry.sequence >= tail {
                    page.next = tail;
                    break 'pages;
                }
                page.next = entry.sequence.next();
                let record = match entry.content {
                    Content::Record(_, record) => record,
                    Content::Broken(what) => return Err(Error::Corrupt(what)),
                    Content::Trim(..) => continue,
                };
                bytes += record.payload.len();
                page.records.push(record);
                if page.records.len() >= limit.records || bytes >= limit.bytes {
                    break 'pages;
                }
            }
            if count == wanted.clamp(1, PAGE) || page.records.len() >= PAGE || bytes >= PAGE_BYTES {
                break;
            }
            if count > 0 {
                continue;
            }
            if self.api.stream.is_single {
                page.next = tail;
                break;
            }
            match self.api.next_after(&subject, page.next).await? {
                Some(next) if next < tail => self.api.pause(deadline).await?,
                _ => {
                    page.next = tail;
                    break;
                }
            }
        }
        // Asked last: what was dropped while this read is told.
        let first = self.first(topic).await?;
        if from.max(Sequence::FIRST) < first {
            return Err(Error::Trimmed { first });
        }
        Ok(page)
    }

    /// Makes this node know everything that is in the stream by now.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        let info = self.api.info(None).await?;
        self.reached(info.last.next()).await
    }

    /// The position before which the topic's records were dropped.
    async fn first(&self, topic: &Topic) -> Result<Sequence, Error> {
        Ok(self.trim_mark(topic).await?.0)
    }

    /// The same, and the position of the message that says so.
    async fn trim_mark(&self, topic: &Topic) -> Result<(Sequence, Option<Sequence>), Error> {
        let mark = self.api.latest(&self.api.subjects.trim(topic)).await?;
        Ok(match mark {
            Some(entry) => match entry.content {
                Content::Trim(_, first) => (first, Some(entry.sequence)),
                Content::Record(..) | Content::Broken(_) => {
                    return Err(Error::Corrupt(format!("the trim position of {topic}")));
                }
            },
            None => (Sequence::FIRST, None),
        })
    }

    pub(super) async fn bounds(&self, topic: &Topic) -> Result<Bounds, Error> {
        self.ready().await?;
        let (first, mark) = self.trim_mark(topic).await?;
        // Another replica may have dropped records for the sake of one that this node has not seen.
        self.reached(mark.unwrap_or_default().next()).await?;
        let tail = self.view.next();
        Ok(Bounds { first, tail })
    }

    pub(super) async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, Error> {
        self.ready().await?;
        let tail = self.view.next();
        let subject = self.api.subjects.log(topic);
        let found = self.api.since(&subject, time).await?;
        let first = self.first(topic).await?;
        // A trim notes its position before it drops.
        Ok(match found {
            Some(found) if found < first => {
                let next = self.api.next_after(&subject, first).await?;
                next.map_or(tail, |next| next.min(tail))
            }
            Some(found) => found.min(tail),
            None => tail,
        })
    }

    /// Notes the topic's new first position, then drops what lies before it. How many records that were.
    pub(super) async fn trim(&self, topic: &Topic, before: Sequence) -> Result<u64, Error> {
        self.ready().await?;
        let before = before.min(self.view.next());
        let Some(last) = self.last_before(topic, before).await? else {
            return Ok(0);
        };
        let last = last.sequence;
        let subject = self.api.subjects.trim(topic);
        for _ in 0..TRIES {
            let (first, mark) = self.trim_mark(topic).await?;
            let wanted = last.next().max(first);
            if wanted > first {
                let payload = super::wire::trim_payload(wanted);
                let mark = mark.unwrap_or_default().0;
                let stream = &self.api.stream;
                let noted = stream.replace(subject.clone(), payload, Some(mark)).await?;
                let Some(noted) = noted else {
                    // Somebody else trimmed at the same time.
                    continue;
                };
                self.reached(Sequence(noted).next()).await?;
            }
            // Also when it was noted before: whoever did may have died before it dropped them.
            let log = self.api.subjects.log(topic);
            return Ok(self.api.stream.purge(&log, Some(wanted.0)).await?);
        }
        Err(Error::Unavailable(format!(
            "others trim {topic} at the same time"
        )))
    }

    pub(super) async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, Error> {
        self.ready().await?;
        let mut topics = std::collections::BTreeSet::new();
        for filter in self.api.subjects.space(space) {
            let mut offset = 0;
            loop {
                let info = self.api.info(Some((&filter, offset))).await?;
                let count = info.subjects.len();
                for subject in info.subjects {
                    let found = self.api.subjects.parse(&subject);
                    let Some(Subject::Log(topic) | Subject::Trim(topic)) = found else {
                        continue;
                    };
                    if after.is_none_or(|after| topic > *after) {
                        topics.insert(topic);
                    }
                    if topics.len() > limit {
                        topics.pop_last();
                    }
                }
                offset += count;
                if count < SUBJECTS {
                    break;
                }
            }
        }
        Ok(topics.into_iter().take(limit).collect())
    }
}
