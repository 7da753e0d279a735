//! What this instance is to the others.

use std::{net::SocketAddr, sync::OnceLock};

use crate::{
    call::Streams,
    core::{
        Signals,
        instance::Instance,
        readiness::{Condition, Readiness},
    },
    log::Timestamp,
    peers::{Counters, Description, Local, Run, Signal},
};

/// Answers for the instance.
pub(super) struct Host {
    pub(super) instance: Instance,
    pub(super) readiness: Readiness,
    pub(super) streams: Streams,
    pub(super) started: Timestamp,
    pub(super) grpc: Vec<SocketAddr>,
    /// There once the log is open.
    pub(super) signals: OnceLock<Signals>,
}

impl Local for Host {
    fn hear(&self, from: Run, signal: Signal) {
        if let Some(signals) = self.signals.get() {
            signals.hear(from, signal);
        }
    }

    fn describe(&self) -> Description {
        Description {
            id: self.instance.id().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            started: self.started.0,
            is_draining: self.readiness.holds(Condition::Draining),
            reasons: self.readiness.reasons(),
            streams: self.streams.count() as u64,
            grpc: self.grpc.iter().map(ToString::to_string).collect(),
        }
    }

    fn counters(&self) -> Counters {
        self.instance.counters()
    }
}
