//! The buckets: created if there are none, checked otherwise.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType,
};

use super::{CHUNK_BYTES, Jetstream};
use crate::{
    log::OpenError,
    nats::{Attempt, Nats, stream::Failure, stream::Stream},
};

/// What a message takes beside a chunk, at most.
const OVERHEAD: usize = 4 * 1024;

impl Jetstream {
    /// The buckets that belong to the log's stream. Waits for JetStream as long as an instance may start.
    ///
    /// # Errors
    /// A bucket is there and of no use, or JetStream does not answer or refuses.
    pub(in crate::blob) async fn open(nats: &Nats) -> Result<Self, OpenError> {
        let (fits, needed) = (nats.client.max_payload(), CHUNK_BYTES + OVERHEAD);
        if fits < needed {
            return Err(nats.error(format!(
                "the server takes messages of {fits} bytes (max_payload), and files need {needed}"
            )));
        }
        let bucket = format!("{}-files", nats.settings.stream);
        let store = Self {
            blobs: nats.stream(format!("OBJ_{bucket}")),
            objects: nats.stream(format!("KV_{bucket}")),
            bucket,
        };
        nats.prepare(async || {
            prepare(nats, &store.blobs, store.wanted_blobs(nats)).await?;
            prepare(nats, &store.objects, store.wanted_objects(nats)).await
        })
        .await?;
        Ok(store)
    }

    fn wanted_blobs(&self, nats: &Nats) -> StreamConfig {
        let bucket = &self.bucket;
        StreamConfig {
            description: Some("The files of Weir".into()),
            subjects: vec![format!("$O.{bucket}.C.>"), format!("$O.{bucket}.M.>")],
            max_messages_per_subject: -1,
            ..common(&self.blobs, nats)
        }
    }

    fn wanted_objects(&self, nats: &Nats) -> StreamConfig {
        StreamConfig {
            description: Some("What Weir knows of its files".into()),
            subjects: vec![format!("$KV.{}.>", self.bucket)],
            max_messages_per_subject: 1,
            deny_delete: true,
            ..common(&self.objects, nats)
        }
    }
}

/// What both have in common.
fn common(stream: &Stream, nats: &Nats) -> StreamConfig {
    StreamConfig {
        name: stream.name.clone(),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        max_messages: -1,
        max_bytes: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: nats.settings.replicas,
        allow_rollup: true,
        allow_direct: true,
        ..StreamConfig::default()
    }
}

async fn prepare(nats: &Nats, stream: &Stream, wanted: StreamConfig) -> Result<(), Attempt> {
    let failed = |failure| nats.attempt(failure);
    let found = match stream.info(None).await {
        Err(Failure::Refused(refusal)) if refusal.is_no_stream() => {
            // Two replicas that start together create the same.
            return stream.configure(&wanted, false).await.map_err(failed);
        }
        found => found.map_err(failed)?.config,
    };
    if let Some(why) = unfit(&wanted, &found) {
        let name = &stream.name;
        return Err(Attempt::Hopeless(nats.error(format!(
            "the bucket {name} is not set up for files: {why}. Change it, or set jetstream.stream to another name"
        ))));
    }
    if found.num_replicas == wanted.num_replicas {
        return Ok(());
    }
    let changed = StreamConfig {
        num_replicas: wanted.num_replicas,
        ..found
    };
    tracing::info!(bucket = stream.name, "changing the bucket's replicas");
    stream.configure(&changed, true).await.map_err(failed)
}

/// What of the bucket would lose files or keep them from being written, in words.
fn unfit(wanted: &StreamConfig, found: &StreamConfig) -> Option<String> {
    let sorted = |config: &StreamConfig| {
        let mut subjects = config.subjects.clone();
        subjects.sort();
        subjects
    };
    let checks = [
        (sorted(wanted) == sorted(found), "its subjects are others"),
        (
            found.retention == wanted.retention,
            "its retention has to be by limits",
        ),
        (
            found.max_age == Duration::ZERO,
            "its max_age would drop files",
        ),
        (
            found.max_messages <= 0,
            "its max_msgs would end before the disk does",
        ),
        (
            found.max_messages_per_subject == wanted.max_messages_per_subject,
            "its max_msgs_per_subject is another",
        ),
        (
            found.max_bytes <= 0 || found.discard == DiscardPolicy::New,
            "its discard has to be new",
        ),
        (found.allow_rollup, "allow_rollup_hdrs is off"),
        (found.allow_direct, "allow_direct is off"),
        (!found.deny_purge, "deny_purge is on"),
    ];
    let why = checks.iter().find(|(is_fit, _)| !is_fit);
    why.map(|(_, why)| (*why).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_that_would_lose_files_is_unfit() {
        let wanted = StreamConfig {
            subjects: vec!["a".into(), "b".into()],
            max_messages_per_subject: -1,
            allow_rollup: true,
            allow_direct: true,
            ..StreamConfig::default()
        };
        assert_eq!(unfit(&wanted, &wanted), None);
        let turned = StreamConfig {
            subjects: vec!["b".into(), "a".into()],
            max_bytes: 1,
            discard: DiscardPolicy::New,
            ..wanted.clone()
        };
        assert_eq!(unfit(&wanted, &turned), None);
        let changes: [fn(&mut StreamConfig); 6] = [
            |config| config.max_age = Duration::from_secs(1),
            |config| config.max_messages_per_subject = 2,
            |config| config.max_bytes = 1,
            |config| config.subjects.truncate(1),
            |config| config.allow_direct = false,
            |config| config.deny_purge = true,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut found = wanted.clone();
            change(&mut found);
            assert!(unfit(&wanted, &found).is_some(), "{index}");
        }
    }
}
