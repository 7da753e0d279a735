//! The canary: a record published to a private topic has to be delivered. Readiness follows it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{
    Appender, Error, Hub,
    hub::{Records, Start, Subscription},
    readiness::{Condition, Readiness},
};
use crate::{
    config,
    log::{Engine, NewRecord, Sequence, Space, Timestamp, Topic},
    telemetry::{Metrics, Traces},
};

/// The probe of one instance.
pub struct Canary {
    appender: Appender,
    hub: Hub,
    config: config::Canary,
    instance: Box<str>,
    readiness: Readiness,
    metrics: Metrics,
}

impl Canary {
    /// A canary of the instance called `instance`.
    #[must_use]
    pub fn new(
        engine: Arc<dyn Engine>,
        hub: Hub,
        config: config::Canary,
        instance: &str,
        readiness: Readiness,
        metrics: Metrics,
    ) -> Self {
        Self {
            appender: Appender::new(engine, Traces::off()),
            hub,
            config,
            instance: instance.into(),
            readiness,
            metrics,
        }
    }

    /// Probes for ever: publishes, waits for the delivery, tells readiness. A failed probe subscribes anew, so it recovers
    /// with what it probes.
    pub async fn run(self) {
        let mut ticks = interval(self.config.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut subscription = None;
        loop {
            ticks.tick().await;
            let probed = timeout(self.config.timeout, self.probe(&mut subscription)).await;
            match probed {
                Ok(Ok(took)) => self.delivered(took),
                Ok(Err(error)) => self.failed(&mut subscription, error.to_string()),
                Err(_) => {
                    let late = humantime::format_duration(self.config.timeout);
                    self.failed(&mut subscription, format!("no delivery within {late}"));
                }
            }
        }
    }

    async fn probe(&self, kept: &mut Option<Subscription<Records>>) -> Result<Duration, Error> {
        let topic = self.topic()?;
        let subscription = match kept {
            Some(subscription) => subscription,
            None => kept.insert(self.hub.subscribe(&topic, Start::Live, Records).await?),
        };
        let published = Timestamp::now();
        let appended = self.appender.append(self.record(topic)).await?;
        delivery(subscription, appended.sequence).await?;
        Ok(published.elapsed())
    }

    fn topic(&self) -> Result<Topic, Error> {
        Topic::new(Space::Canary, &self.instance)
            .map_err(|error| Error::invalid("server.instance_id", error.to_string()))
    }

    fn record(&self, topic: Topic) -> NewRecord {
        NewRecord {
            topic,
            publisher: self.instance.clone(),
            id: "canary".into(),
            kind: 0,
            event_time: None,
            key: None,
            trace: None,
            payload: Bytes::new(),
        }
    }

    fn delivered(&self, took: Duration) {
        self.metrics.canary_secs.observe(took.as_secs_f64());
        self.metrics.canary_up.set(1);
        self.readiness.clear(Condition::Canary);
    }

    fn failed(&self, subscription: &mut Option<Subscription<Records>>, why: String) {
        *subscription = None;
        self.metrics.canary_up.set(0);
        self.readiness.fail(Condition::Canary, why);
    }
}

/// Waits until the record at `sequence` is delivered.
async fn delivery(
    subscription: &mut Subscription<Records>,
    sequence: Sequence,
) -> Result<(), Error> {
    while subscription.cursor() <= sequence {
        subscription.next().await?;
    }
    Ok(())
}
