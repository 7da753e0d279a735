//! Every metric, in one registry that is passed along, never global.
//!
//! Labels come from closed sets only: methods of the descriptors, spaces, reasons; never a user's or a topic's name.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry,
};

/// Seconds from 10 µs to 10 s: appends, flushes, deliveries, unary calls.
const FAST_SECS: &[f64] = &[
    0.00001, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
    0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Seconds from one to six hours: lives of streams.
const LIFE_SECS: &[f64] = &[
    1.0, 10.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 21600.0,
];
/// Counts in powers of four.
const COUNTS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    1_048_576.0,
];

/// Why a streaming RPC ended.
const STREAM_ENDS: &[&str] = &[
    "complete",
    "client_cancel",
    "deadline",
    "refused",
    "overload",
    "error",
    "drain",
    "max_age",
];
/// Why a connection was closed by the server.
const REFUSALS: &[&str] = &["limit", "descriptors", "preface", "protocol"];
/// Where signals are lost: a listener's channel, the way to the other instances, and messages there that nobody understands.
const CARRIERS: &[&str] = &["channel", "peers", "unreadable"];
/// Why a sample of clients' telemetry is refused.
const REJECTIONS: &[&str] = &[
    "name",
    "labels",
    "value",
    "kind",
    "timestamp",
    "key",
    "limit",
];
/// The topics of what the service tells of itself.
const FEEDS: &[&str] = &["metrics", "events", "logs"];
/// How the stream of an upload ends.
const UPLOADS: &[&str] = &[
    "stored",
    "broken",
    "superseded",
    "refused",
    "failed",
    "expired",
];
/// Where a subscription reads.
const SOURCES: &[&str] = &["tail", "log"];

/// Handles to every metric.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// RPCs started, by `grpc_type`, `grpc_service`, `grpc_method`.
    pub started: IntCounterVec,
    /// RPCs ended, by `grpc_type`, `grpc_service`, `grpc_method`, `grpc_code`.
    pub handled: IntCounterVec,
    /// Messages received, by `grpc_type`, `grpc_service`, `grpc_method`.
    pub msg_received: IntCounterVec,
    /// Messages sent, by `grpc_type`, `grpc_service`, `grpc_method`.
    pub msg_sent: IntCounterVec,
    /// Seconds a unary RPC took, by `grpc_type`, `grpc_service`, `grpc_method`.
    pub handling_secs: HistogramVec,
    /// Open streams, by `grpc_service`, `grpc_method`.
    pub streams_active: IntGaugeVec,
    /// Streams ended, by `reason`: see its help text.
    pub streams_ended: IntCounterVec,
    /// Seconds a stream lived.
    pub stream_duration_secs: Histogram,
    /// Seconds from a stream's start to its first message.
    pub stream_first_message_secs: Histogram,
    /// Seconds from enqueue to durable, a batch.
    pub append_secs: Histogram,
    /// Seconds of one flush to storage.
    pub fsync_secs: Histogram,
    /// Records made durable by one flush.
    pub commit_records: Histogram,
    /// Records appended, by `space`.
    pub appended: IntCounterVec,
    /// Payload and key bytes appended, by `space`.
    pub appended_bytes: IntCounterVec,
    /// Appends answered with an earlier record because of their key.
    pub deduplicated: IntCounter,
    /// Times the live feed of the log had to be completed by reading the log.
    pub feed_gaps: IntCounter,
    /// Bytes the log takes on its storage.
    pub log_bytes: IntGauge,
    /// Bytes free on the disk of the log; zero where the log is on no disk of this machine.
    pub log_free_bytes: IntGauge,
    /// Records dropped by retention, by `space`.
    pub trimmed: IntCounterVec,
    /// One while the engine is in the state `state`, else zero.
    pub log_health: IntGaugeVec,
    /// One while the wall clock is too far from the log's time to be believed, else zero.
    pub log_clock_suspect: IntGauge,
    /// Seconds from append to handing a record to the connection, sampled.
    pub delivery_secs: Histogram,
    /// Seconds a stream with something to send waited for its reader.
    pub send_wait_secs: Histogram,
    /// Live subscriptions, by `source`: `tail` (memory) or `log` (catching up).
    pub subscribers: IntGaugeVec,
    /// Records a catching-up subscriber was behind when it read a page.
    pub subscriber_lag: Histogram,
    /// Followed topics with a tail in memory.
    pub tails: IntGauge,
    /// Bytes of records held in tails.
    pub tail_bytes: IntGauge,
    /// Signals dropped because their reader was slow, by `signal`.
    pub signals_dropped: IntCounterVec,
    /// Samples of clients' telemetry refused, by `reason`.
    pub collect_rejected: IntCounterVec,
    /// Points of the service's own feeds that were dropped, by `feed`.
    pub feed_dropped: IntCounterVec,
    /// Members of rooms, each user once in each room.
    pub members: IntGauge,
    /// Bytes of files received and sent, by `direction`.
    pub file_bytes: FileBytes,
    /// Bytes of all stored files.
    pub files_bytes: IntGauge,
    /// Uploads written now or waiting to go on.
    pub uploads: IntGauge,
    /// Uploads ended, by `outcome`.
    pub uploads_ended: IntCounterVec,
    /// Open connections.
    pub connections_active: IntGauge,
    /// Connections closed by the server, by `reason`.
    pub connections_refused: IntCounterVec,
    /// One while draining.
    pub draining: IntGauge,
    /// One when a canary record was delivered in time.
    pub canary_up: IntGauge,
    /// Seconds the canary's record took from publish to delivery.
    pub canary_secs: Histogram,
    /// Always one; labelled `version`.
    pub build_info: GaugeVec,
    /// Seconds since the process started when the instance became ready.
    pub recovery_secs: Gauge,
}

impl Metrics {
    /// A fresh registry with every metric registered.
    ///
    /// # Panics
    /// Two metrics share a name: a programming error that the first test of any kind shows.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "one line a metric")]
    pub fn new() -> Self {
        let make = Maker(Registry::new());
        let method = &["grpc_type", "grpc_service", "grpc_method"];
        let metrics = Self {
            started: make.counters("grpc_server_started_total", "RPCs started.", method),
            handled: make.counters(
                "grpc_server_handled_total",
                "RPCs ended, by status code.",
                &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
            ),
            msg_received: make.counters(
                "grpc_server_msg_received_total",
                "Messages received from clients.",
                method,
            ),
            msg_sent: make.counters(
                "grpc_server_msg_sent_total",
                "Messages sent to clients.",
                method,
            ),
            handling_secs: make.histograms(
                "grpc_server_handling_seconds",
                "Time a unary RPC took; streams are judged by weir_streams_ended_total and weir_delivery_latency_seconds.",
                FAST_SECS,
                method,
            ),
            streams_active: make.gauges(
                "weir_streams_active",
                "Streaming RPCs open now.",
                &["grpc_service", "grpc_method"],
            ),
            streams_ended: make.counters(
                "weir_streams_ended_total",
                "Streaming RPCs ended: complete, client_cancel, deadline, refused (a bad request), overload, error (of the service), drain, max_age.",
                &["reason"],
            ),
            stream_duration_secs: make.histogram(
                "weir_stream_duration_seconds",
                "How long streaming RPCs lived.",
                LIFE_SECS,
            ),
            stream_first_message_secs: make.histogram(
                "weir_stream_first_message_seconds",
                "Time from a streaming RPC's start to its first message.",
                FAST_SECS,
            ),
            append_secs: make.histogram(
                "weir_append_seconds",
                "Time from enqueueing a batch to its durability.",
                FAST_SECS,
            ),
            fsync_secs: make.histogram(
                "weir_fsync_seconds",
                "Time of one group commit: write and flush.",
                FAST_SECS,
            ),
            commit_records: make.histogram(
                "weir_commit_records",
                "Records made durable by one group commit.",
                COUNTS,
            ),
            appended: make.counters("weir_appended_records_total", "Records appended.", &["space"]),
            appended_bytes: make.counters(
                "weir_appended_bytes_total",
                "Bytes of records appended.",
                &["space"],
            ),
            deduplicated: make.counter(
                "weir_deduplicated_total",
                "Appends answered with an earlier record because of their idempotency key.",
            ),
            feed_gaps: make.counter(
                "weir_feed_gaps_total",
                "Times the live feed of the log had to be completed by reading the log (JetStream).",
            ),
            log_bytes: make.gauge("weir_log_bytes", "Bytes the log takes on its storage."),
            log_free_bytes: make.gauge(
                "weir_log_free_bytes",
                "Bytes free on the disk of the log; 0 where the log is on no disk of this machine.",
            ),
            trimmed: make.counters(
                "weir_trimmed_records_total",
                "Records dropped by retention.",
                &["space"],
            ),
            log_health: make.gauges(
                "weir_log_health",
                "1 for the state the log is in: ready, full, unavailable, failed or closed.",
                &["state"],
            ),
            log_clock_suspect: make.gauge(
                "weir_log_clock_suspect",
                "1 while the wall clock is too far from the log's time to be believed; retention by age waits while it is ahead.",
            ),
            delivery_secs: make.histogram(
                "weir_delivery_latency_seconds",
                "Time from append to handing the record to the reader's connection; one of sixteen live deliveries.",
                FAST_SECS,
            ),
            send_wait_secs: make.histogram(
                "weir_send_wait_seconds",
                "Time a stream with something to send waited for its reader's flow control.",
                FAST_SECS,
            ),
            subscribers: make.gauges(
                "weir_subscribers",
                "Subscriptions served from memory (tail) or catching up (log).",
                &["source"],
            ),
            subscriber_lag: make.histogram(
                "weir_subscriber_lag_records",
                "How many records, of any topic, a catching-up subscription was behind when it read a page.",
                COUNTS,
            ),
            tails: make.gauge("weir_tails", "Topics with a tail in memory."),
            tail_bytes: make.gauge("weir_tail_bytes", "Bytes of records held in tails."),
            signals_dropped: make.counters(
                "weir_signals_dropped_total",
                "Signals (things not stored) dropped because their reader was slow.",
                &["signal"],
            ),
            collect_rejected: make.counters(
                "weir_collect_rejected_total",
                "Samples of clients' telemetry refused: name, labels, value, kind, timestamp, key or limit (of series).",
                &["reason"],
            ),
            feed_dropped: make.counters(
                "weir_feed_dropped_total",
                "Points of the topics metrics, events and logs that were dropped: too many waited, or the log refused them.",
                &["feed"],
            ),
            members: make.gauge(
                "weir_members",
                "Members of all rooms: each user once in each room.",
            ),
            file_bytes: FileBytes::of(&make.counters(
                "weir_file_bytes_total",
                "Bytes of files' content, received (up) and sent (down).",
                &["direction"],
            )),
            files_bytes: make.gauge(
                "weir_files_bytes",
                "Bytes of all stored files, as this instance counts them.",
            ),
            uploads: make.gauge(
                "weir_uploads_under_way",
                "Uploads that are written now or wait to go on.",
            ),
            uploads_ended: make.counters(
                "weir_uploads_ended_total",
                "Streams of uploads ended: stored, broken, superseded, refused, failed; and broken uploads expired.",
                &["outcome"],
            ),
            connections_active: make.gauge("weir_connections_active", "Connections open now."),
            connections_refused: make.counters(
                "weir_connections_refused_total",
                "Connections the server closed: limit (server.max_connections), descriptors (the process may have too few), preface (never spoke), protocol (spoke garbage).",
                &["reason"],
            ),
            draining: make.gauge("weir_draining", "1 while the instance drains."),
            canary_up: make.gauge(
                "weir_canary_up",
                "1 when the last canary record was delivered in time.",
            ),
            canary_secs: make.histogram(
                "weir_canary_seconds",
                "Time of the canary's record from publish to delivery.",
                FAST_SECS,
            ),
            build_info: make.register(|opts| GaugeVec::new(opts, &["version"]), Opts::new(
                "weir_build_info",
                "Always 1; labelled with the version.",
            )),
            recovery_secs: make.register(
                Gauge::with_opts,
                Opts::new("weir_recovery_seconds", "Time from process start to ready."),
            ),
            registry: make.0,
        };
        metrics
            .build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1.0);
        metrics.start_at_zero();
        metrics
    }

    /// Makes every series of a closed label set, so that its first event is an increase and not an appearance.
    fn start_at_zero(&self) {
        let counters = [
            (&self.streams_ended, STREAM_ENDS),
            (&self.connections_refused, REFUSALS),
            (&self.signals_dropped, CARRIERS),
            (&self.collect_rejected, REJECTIONS),
            (&self.feed_dropped, FEEDS),
            (&self.uploads_ended, UPLOADS),
        ];
        for (counter, values) in counters {
            for value in values {
                counter.with_label_values(&[value]);
            }
        }
        for source in SOURCES {
            self.subscribers.with_label_values(&[source]);
        }
    }

    /// The registry, for scraping and for further collectors.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// The counters of files' bytes, looked up once.
#[derive(Debug, Clone)]
pub struct FileBytes {
    /// Received.
    pub up: IntCounter,
    /// Sent.
    pub down: IntCounter,
}

impl FileBytes {
    fn of(counters: &IntCounterVec) -> Self {
        Self {
            up: counters.with_label_values(&["up"]),
            down: counters.with_label_values(&["down"]),
        }
    }
}

struct Maker(Registry);

impl Maker {
    fn register<M, O>(&self, make: impl FnOnce(O) -> prometheus::Result<M>, opts: O) -> M
    where
        M: prometheus::core::Collector + Clone + 'static,
    {
        let made = make(opts).and_then(|metric| {
            self.0.register(Box::new(metric.clone()))?;
            Ok(metric)
        });
        match made {
            Ok(metric) => metric,
            Err(error) => panic!("a metric does not register: {error}"),
        }
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts, Opts::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(
            |opts| IntCounterVec::new(opts, labels),
            Opts::new(name, help),
        )
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts, Opts::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(|opts| IntGaugeVec::new(opts, labels), Opts::new(name, help))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts, opts)
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(|opts| HistogramVec::new(opts, labels), opts)
    }
}
