//! The methods this instance serves: a closed set, known from the descriptors.

use std::{collections::HashMap, sync::Arc};

use prometheus::{Histogram, IntCounter, IntGauge};
use prost::Message as _;
use prost_types::FileDescriptorSet;

use crate::telemetry::Metrics;

/// How a method streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// Many requests, one response.
    ClientStream,
    /// One request, many responses.
    ServerStream,
    /// Many of both.
    BidiStream,
}

impl Kind {
    const fn new(is_client_streaming: bool, is_server_streaming: bool) -> Self {
        match (is_client_streaming, is_server_streaming) {
            (false, false) => Self::Unary,
            (true, false) => Self::ClientStream,
            (false, true) => Self::ServerStream,
            (true, true) => Self::BidiStream,
        }
    }

    /// Its name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ClientStream => "client_stream",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// A method and its metrics.
#[derive(Debug)]
pub struct Method {
    /// Its place among all methods.
    pub index: usize,
    /// `package.Service/Method`.
    pub full_name: String,
    /// `package.Service`.
    pub service: String,
    /// The method's own name.
    pub name: String,
    /// How it streams.
    pub kind: Kind,
    pub(super) started: IntCounter,
    pub(super) received: IntCounter,
    pub(super) sent: IntCounter,
    pub(super) active: Option<IntGauge>,
    pub(super) handling: Option<Histogram>,
    pub(super) metrics: Metrics,
}

impl Method {
    fn new(index: usize, service: &str, name: &str, kind: Kind, metrics: &Metrics) -> Self {
        let labels = [kind.as_str(), service, name];
        let active = || metrics.streams_active.with_label_values(&[service, name]);
        let handling = || metrics.handling_secs.with_label_values(&labels);
        // There from the start, so that a ratio of errors has something to divide by.
        metrics.handled.with_label_values(&[
            labels[0],
            labels[1],
            labels[2],
            code_name(tonic::Code::Ok),
        ]);
        Self {
            index,
            full_name: format!("{service}/{name}"),
            service: service.to_owned(),
            name: name.to_owned(),
            kind,
            started: metrics.started.with_label_values(&labels),
            received: metrics.msg_received.with_label_values(&labels),
            sent: metrics.msg_sent.with_label_values(&labels),
            active: (kind != Kind::Unary).then(active),
            handling: (kind == Kind::Unary).then(handling),
            metrics: metrics.clone(),
        }
    }

    /// Whether the core serves it: health and reflection know no log.
    pub(super) fn is_of_core(&self) -> bool {
        !self.service.starts_with("grpc.")
    }

    pub(super) fn handled(&self, code: tonic::Code) {
        let labels = [
            self.kind.as_str(),
            &self.service,
            &self.name,
            code_name(code),
        ];
        self.metrics.handled.with_label_values(&labels).inc();
    }
}

/// Every method served, and one entry for all others.
#[derive(Debug, Clone)]
pub struct Methods {
    by_path: Arc<HashMap<String, Arc<Method>>>,
    other: Arc<Method>,
}

impl Methods {
    /// The methods in these encoded descriptor sets.
    ///
    /// # Errors
    /// The bytes are no descriptor set.
    pub fn new(descriptors: &[&[u8]], metrics: &Metrics) -> Result<Self, prost::DecodeError> {
        let mut by_path = HashMap::new();
        for bytes in descriptors {
            for (service, name, kind) in methods(bytes)? {
                let index = by_path.len();
                let method = Method::new(index, &service, &name, kind, metrics);
                by_path.insert(format!("/{}", method.full_name), Arc::new(method));
            }
        }
        let other = Method::new(by_path.len(), "other", "other", Kind::Unary, metrics);
        Ok(Self {
            by_path: Arc::new(by_path),
            other: Arc::new(other),
        })
    }

    /// The method at this request path.
    #[must_use]
    pub fn of(&self, path: &str) -> &Arc<Method> {
        self.by_path.get(path).unwrap_or(&self.other)
    }

    /// Every method, the entry for all others last, in the order of [`Method::index`].
    #[must_use]
    pub fn all(&self) -> Vec<&Arc<Method>> {
        let mut all: Vec<_> = self.by_path.values().collect();
        all.sort_by_key(|method| method.index);
        all.push(&self.other);
        all
    }
}

fn methods(descriptors: &[u8]) -> Result<Vec<(String, String, Kind)>, prost::DecodeError> {
    let mut methods = Vec::new();
    for file in FileDescriptorSet::decode(descriptors)?.file {
        for service in &file.service {
            let service_name = match file.package() {
                "" => service.name().to_owned(),
                package => format!("{package}.{}", service.name()),
            };
            methods.extend(service.method.iter().map(|method| {
                let kind = Kind::new(method.client_streaming(), method.server_streaming());
                (service_name.clone(), method.name().to_owned(), kind)
            }));
        }
    }
    Ok(methods)
}

/// A code's name in metrics, as the Go middleware spells it.
pub(super) const fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
