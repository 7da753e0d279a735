//! The stream: created if there is none, checked otherwise.

use std::time::Duration;

use async_nats::jetstream::stream::{
    Config as StreamConfig, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};

use super::{
    api::{Api, Info},
    subject::Subjects,
};
use crate::{
    config::Config,
    log::OpenError,
    nats::{Attempt, Nats, stream::Failure},
};

/// The shortest window in which a stream recognises repetitions.
const SHORTEST_WINDOW: Duration = Duration::from_millis(100);
/// What a message takes beside a record's payload, at most.
const OVERHEAD: u64 = 8 * 1024;

/// The way to a stream that is fit for the log. Waits for JetStream as long as an instance may start.
pub(super) async fn connect(nats: &Nats, config: &Config) -> Result<(Api, Info), OpenError> {
    let (fits, message) = (
        nats.client.max_payload() as u64,
        config.limits.message.as_u64(),
    );
    if fits < message + OVERHEAD {
        return Err(nats.error(format!(
            "the server takes messages of {fits} bytes (max_payload), and limits.message is {message}: set max_payload to \
             {} or more, or limits.message to {} or less",
            message + OVERHEAD,
            fits.saturating_sub(OVERHEAD)
        )));
    }
    let settings = &nats.settings;
    let api = Api {
        stream: nats.stream(settings.stream.clone()),
        subjects: Subjects::new(&settings.prefix),
    };
    let info = nats
        .prepare(async || prepare(nats, &api, config).await)
        .await?;
    Ok((api, info))
}

/// Creates the stream, or checks the one there.
async fn prepare(nats: &Nats, api: &Api, config: &Config) -> Result<Info, Attempt> {
    let settings = &config.jetstream;
    let wanted = wanted(config, &api.subjects);
    let failed = |failure| nats.attempt(failure);
    let info = match api.info(None).await {
        Err(Failure::Refused(refusal)) if refusal.is_no_stream() => {
            api.stream.configure(&wanted, false).await.map_err(failed)?;
            api.info(None).await.map_err(failed)?
        }
        other => other.map_err(failed)?,
    };
    let differences = differences(&wanted, &info.config);
    if !differences.is_empty() {
        return Err(Attempt::Hopeless(nats.error(
            format!(
                "the stream {} is not set up for this log ({}): change it, or set jetstream.stream and jetstream.prefix to \
                 others",
                settings.stream,
                differences.join("; ")
            ),
        )));
    }
    let is_same = info.config.num_replicas == wanted.num_replicas
        && info.config.duplicate_window == wanted.duplicate_window;
    if !is_same {
        tracing::info!(
            stream = settings.stream,
            "changing replicas or the duplicate window of the stream"
        );
        let changed = StreamConfig {
            num_replicas: wanted.num_replicas,
            duplicate_window: wanted.duplicate_window,
            ..info.config.clone()
        };
        api.stream.configure(&changed, true).await.map_err(failed)?;
    }
    Ok(info)
}

fn wanted(config: &Config, subjects: &Subjects) -> StreamConfig {
    StreamConfig {
        name: config.jetstream.stream.clone(),
        description: Some("The log of Weir".into()),
        subjects: subjects.all(),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        // Retention is the engine's: the stream itself drops nothing.
        max_messages: -1,
        max_bytes: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: config.jetstream.replicas,
        duplicate_window: config.log.dedupe_window.max(SHORTEST_WINDOW),
        allow_rollup: true,
        allow_direct: true,
        allow_atomic_publish: true,
        republish: Some(Republish {
            source: ">".into(),
            destination: subjects.live(),
            headers_only: false,
        }),
        ..StreamConfig::default()
    }
}

/// What of the stream there would break the log, in words.
fn differences(wanted: &StreamConfig, found: &StreamConfig) -> Vec<String> {
    let mut all = Vec::new();
    let mut check = |name: &str, wanted: String, found: String| {
        if wanted != found {
            all.push(format!("{name} is {found} and has to be {wanted}"));
        }
    };
    let sorted = |subjects: &[String]| {
        let mut subjects = subjects.to_vec();
        subjects.sort();
        subjects.join(" ")
    };
    check(
        "subjects",
        sorted(&wanted.subjects),
        sorted(&found.subjects),
    );
    let text = |value: &dyn std::fmt::Debug| format!("{value:?}");
    check("retention", text(&wanted.retention), text(&found.retention));
    check("storage", text(&wanted.storage), text(&found.storage));
    check("max_age", text(&wanted.max_age), text(&found.max_age));
    check(
        "max_msgs",
        text(&wanted.max_messages),
        text(&found.max_messages),
    );
    check(
        "max_msgs_per_subject",
        text(&wanted.max_messages_per_subject),
        text(&found.max_messages_per_subject),
    );
    check(
        "allow_rollup_hdrs",
        text(&wanted.allow_rollup),
        text(&found.allow_rollup),
    );
    check(
        "allow_direct",
        text(&wanted.allow_direct),
        text(&found.allow_direct),
    );
    check(
        "allow_atomic",
        text(&wanted.allow_atomic_publish),
        text(&found.allow_atomic_publish),
    );
    check(
        "deny_purge",
        text(&wanted.deny_purge),
        text(&found.deny_purge),
    );
    let republish = |config: &StreamConfig| {
        config.republish.as_ref().map_or_else(
            || "none".to_owned(),
            |to| {
                let only = if to.headers_only {
                    " (headers only)"
                } else {
                    ""
                };
                format!("{} to {}{only}", to.source, to.destination)
            },
        )
    };
    check("republish", republish(wanted), republish(found));
    if found.max_bytes > 0 && found.discard != DiscardPolicy::New {
        all.push("discard is Old with a limit of bytes, and has to be New".into());
    }
    all
}
