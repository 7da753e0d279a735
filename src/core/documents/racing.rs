//! Another replica edits and compacts a document between any two steps of this one.

use std::{
    sync::{
        Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::watch, time::timeout};
use yrs::Doc;

use super::{
    tests::{apply, change, documents_on, engine, new_editor, stored, text, topic, typed},
    *,
};
use crate::{
    client::TextDocument,
    log::{
        self, Ack, Bounds, Engine, Follow, Follower, Health, Limit, LogId, Page, Space, Timestamp,
    },
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// An engine in front of which, from one look at the document on, the other replica is always faster.
struct Racing {
    inner: Arc<dyn Engine>,
    other: Document,
    editor: Doc,
    looks: AtomicUsize,
    races: std::ops::Range<usize>,
}

impl Racing {
    fn new(
        inner: Arc<dyn Engine>,
        other: Document,
        editor: Doc,
        from: usize,
        races: usize,
    ) -> Self {
        Self {
            inner,
            other,
            editor,
            looks: AtomicUsize::new(0),
            races: from..from + races,
        }
    }

    async fn race(&self) {
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        if self.races.contains(&look) {
            apply(&self.other, typed(&self.editor, 0, "o")).await;
        }
    }
}

#[async_trait]
impl Engine for Racing {
    fn id(&self) -> LogId {
        self.inner.id()
    }

    async fn enqueue(&self, batch: Vec<NewRecord>) -> Result<Ack, log::Error> {
        self.race().await;
        self.inner.enqueue(batch).await
    }

    async fn read(&self, topic: &Topic, from: Sequence, limit: Limit) -> Result<Page, log::Error> {
        self.race().await;
        // In pages, so that something is read before the rest is dropped.
        let records = limit.records.min(2);
        self.inner
            .read(topic, from, Limit { records, ..limit })
            .await
    }

    async fn seek(&self, topic: &Topic, time: Timestamp) -> Result<Sequence, log::Error> {
        self.inner.seek(topic, time).await
    }

    fn tail(&self) -> Sequence {
        self.inner.tail()
    }

    async fn newest(
        &self,
        topic: &Topic,
        before: Sequence,
        limit: Limit,
    ) -> Result<Vec<Arc<Record>>, log::Error> {
        self.race().await;
        self.inner.newest(topic, before, limit).await
    }

    async fn bounds(&self, topic: &Topic) -> Result<Bounds, log::Error> {
        self.race().await;
        self.inner.bounds(topic).await
    }

    async fn follow(
        &self,
        topic: &Topic,
        follower: Weak<dyn Follower>,
    ) -> Result<Follow, log::Error> {
        self.race().await;
        self.inner.follow(topic, follower).await
    }

    async fn trim(&self, topic: &Topic, before: Sequence) -> Result<(), log::Error> {
        self.race().await;
        self.inner.trim(topic, before).await
    }

    async fn topics(
        &self,
        space: Space,
        after: Option<&Topic>,
        limit: usize,
    ) -> Result<Vec<Topic>, log::Error> {
        self.inner.topics(space, after, limit).await
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

/// A replica that loses `races` races from its look number `from` on, and the other, whose every edit is compacted.
async fn racing(from: usize, races: usize) -> (Arc<Racing>, Document, Document) {
    let config = config::Documents {
        compact_after: 4,
        ..config::Documents::default()
    };
    let always = config::Documents {
        compact_after: 1,
        ..config::Documents::default()
    };
    let inner = engine();
    let editor = new_editor();
    let first = documents_on(Arc::clone(&inner), &config);
    let first = first.open(&topic("a")).unwrap();
    for _ in 0..3 {
        apply(&first, typed(&editor, 0, "o")).await;
    }
    let other = documents_on(Arc::clone(&inner), &always);
    let other = other.open(&topic("a")).unwrap();
    let engine = Arc::new(Racing::new(inner, other.clone(), editor, from, races));
    let here = documents_on(Arc::clone(&engine) as Arc<dyn Engine>, &config);
    let here = here.open(&topic("a")).unwrap();
    (engine, here, other)
}

/// What a follower ends up with, having read `joined` until it has everything.
async fn followed(here: &Document, joined: Joined, wanted: &str) -> String {
    let copy = TextDocument::new("content");
    copy.apply(&joined.missing).unwrap();
    let mut records = joined.records;
    while copy.text() != wanted {
        match timeout(PATIENCE, records.next()).await.unwrap() {
            Ok(batch) => {
                // As services pass them on: without snapshots.
                let updates = batch
                    .data
                    .iter()
                    .filter(|record| Kind::of(record) == Kind::Update);
                updates.for_each(|record| copy.apply(&record.payload).unwrap());
            }
            Err(log::Error::Trimmed { .. }) => {
                let again = here.join(Bytes::new()).await.unwrap();
                copy.apply(&again.missing).unwrap();
                records = again.records;
            }
            Err(error) => panic!("{error}"),
        }
    }
    copy.text()
}

#[tokio::test]
async fn whoever_joins_while_others_compact_has_everything() {
    for from in 0..12 {
        for races in 1..6 {
            let (engine, here, other) = racing(from, races).await;
            let joined = here.join(Bytes::new()).await.unwrap();
            // The others go on when it is in.
            apply(&other, typed(&engine.editor, 0, "o")).await;
            let wanted = text(&other).await;
            assert_eq!(
                followed(&here, joined, &wanted).await,
                wanted,
                "{from} {races}"
            );
            assert_eq!(text(&here).await, wanted);
        }
    }
}

#[tokio::test]
async fn what_is_stored_while_others_compact_is_acknowledged_and_kept() {
    for from in 0..16 {
        for races in 1..6 {
            let (_engine, here, other) = racing(from, races).await;
            let editor = new_editor();
            for _ in 0..6 {
                let (saved, error) = here.apply(vec![change(typed(&editor, 0, "h"))]).await;
                assert_eq!((saved.len(), error), (1, None), "{from} {races}");
            }
            let text = text(&other).await;
            assert_eq!(text.matches('h').count(), 6, "{from} {races}");
            assert_eq!(super::tests::text(&here).await, text);
        }
    }
}

#[tokio::test]
async fn a_document_compacted_without_end_is_unavailable_and_not_wrong() {
    let (_engine, here, _other) = racing(1, usize::MAX / 2).await;
    let error = here.join(Bytes::new()).await.err();
    assert!(
        matches!(error, Some(Error::Log(log::Error::Unavailable(_)))),
        "{error:?}"
    );
}

#[tokio::test]
async fn one_snapshot_does_for_all_replicas() {
    let config = config::Documents {
        compact_after: 10,
        ..config::Documents::default()
    };
    let inner = engine();
    let replicas = [(); 3].map(|()| documents_on(Arc::clone(&inner), &config));
    let open: Vec<_> = replicas
        .iter()
        .map(|documents| documents.open(&topic("a")).unwrap())
        .collect();
    let editor = new_editor();
    for document in open.iter().cycle().take(12) {
        apply(document, typed(&editor, 0, "x")).await;
    }
    // The snapshot after ten, and two updates: no other replica made one of its own.
    assert_eq!(stored(&replicas[0], &topic("a")).await.0, 3);
}
