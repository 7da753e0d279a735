//! The three that are compared, behind one face.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use tokio::sync::oneshot;
use weir::{
    config,
    log::{
        Ack, Engine, Limit, NewRecord, Page, Sequence, Space, Timestamp, Topic, embedded::Embedded,
    },
    telemetry::Metrics,
};

use crate::{bare::Bare, baseline::Baseline};

/// A page of a subscriber that catches up.
pub(crate) const PAGE: Limit = Limit {
    records: 1024,
    bytes: 64 * 1024,
};

#[derive(Clone)]
pub(crate) enum Side {
    Weir(Arc<Embedded>),
    Fjall(Arc<Baseline>),
    Bare(Arc<Bare>),
}

/// An append that is under way.
pub(crate) enum Pending {
    Weir(Ack),
    Fjall(oneshot::Receiver<()>),
}

impl Pending {
    pub(crate) async fn done(self) {
        match self {
            Self::Weir(ack) => drop(ack.await.unwrap()),
            Self::Fjall(ack) => ack.await.unwrap(),
        }
    }
}

impl Side {
    pub(crate) fn all(root: &Path) -> [Self; 3] {
        [
            Self::Weir(Arc::new(open_weir(&root.join("weir"), None))),
            Self::Fjall(Arc::new(Baseline::open(&root.join("fjall")))),
            Self::Bare(Arc::new(Bare::create(&root.join("bare")))),
        ]
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Weir(_) => "weir",
            Self::Fjall(_) => "fjall",
            Self::Bare(_) => "bare",
        }
    }

    pub(crate) fn can_read(&self) -> bool {
        !matches!(self, Self::Bare(_))
    }

    pub(crate) async fn enqueue(&self, batch: Vec<NewRecord>) -> Pending {
        match self {
            Self::Weir(engine) => Pending::Weir(engine.enqueue(batch).await.unwrap()),
            Self::Fjall(engine) => Pending::Fjall(engine.enqueue(batch).await),
            Self::Bare(_) => unreachable!("the bare loop has no queue"),
        }
    }

    pub(crate) async fn read(&self, topic: &Topic, from: Sequence) -> Page {
        match self {
            Self::Weir(engine) => engine.read(topic, from, PAGE).await.unwrap(),
            Self::Fjall(engine) => engine.read(topic, from).await,
            Self::Bare(_) => unreachable!("the bare loop reads nothing"),
        }
    }
}

/// Weir's engine with its defaults, but for the time between rounds of retention.
pub(crate) fn open_weir(dir: &Path, interval: Option<std::time::Duration>) -> Embedded {
    let defaults = config::Log::default();
    let config = config::Log {
        dir: dir.into(),
        retention_interval: interval.unwrap_or(defaults.retention_interval),
        max_topics: 4_000_000,
        ..defaults
    };
    Embedded::open(&config, Metrics::new()).unwrap()
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(Space::Room, name).unwrap()
}

pub(crate) fn record(topic: &Topic, bytes: usize) -> NewRecord {
    NewRecord {
        topic: topic.clone(),
        publisher: "bench".into(),
        id: "0123456789abcdef".into(),
        kind: 1,
        event_time: None,
        key: None,
        trace: None,
        payload: Bytes::from(vec![b'x'; bytes]),
    }
}

/// Bytes of one record as the log's codec writes it: what is kept.
pub(crate) fn stored_bytes(size: usize) -> usize {
    let mut out = Vec::new();
    weir::log::encode(&record(&topic("t"), size), Timestamp(0), &mut out);
    out.len()
}
