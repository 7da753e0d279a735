//! A collector to test against: takes OTLP over gRPC on a loopback port and keeps what it got.

use std::net::SocketAddr;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

use crate::support::SOON;

/// A running collector; dropping it ends it.
pub(crate) struct Collector {
    address: SocketAddr,
    spans: watch::Receiver<Vec<Exported>>,
    server: JoinHandle<()>,
}

/// A span as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Exported {
    /// Attributes of its resource.
    pub(crate) resource: Vec<KeyValue>,
    /// The span.
    pub(crate) span: Span,
}

impl Collector {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, spans) = watch::channel(Vec::new());
        let server = tokio::spawn(async move {
            Server::builder()
                .add_service(TraceServiceServer::new(Receiver(sender)))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            address,
            spans,
            server,
        }
    }

    /// What to put into `telemetry.otlp_endpoint`.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that has arrived.
    pub(crate) fn spans(&self) -> Vec<Exported> {
        self.spans.borrow().clone()
    }

    /// The first span named `name`, once it has arrived.
    ///
    /// # Panics
    /// It does not arrive soon.
    pub(crate) async fn span(&self, name: &str) -> Exported {
        let mut spans = self.spans.clone();
        let named = |all: &[Exported]| all.iter().find(|one| one.span.name == name).cloned();
        let arrived = spans.wait_for(|all| named(all).is_some());
        let found = tokio::time::timeout(SOON, arrived).await;
        match found {
            Ok(all) => named(&all.unwrap()).unwrap(),
            Err(_) => panic!("no span {name} among {:?}", self.spans()),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Exported {
    /// The text of an attribute of the span.
    pub(crate) fn attribute(&self, key: &str) -> Option<&str> {
        text(&self.span.attributes, key)
    }

    /// The text of an attribute of the span's resource.
    pub(crate) fn resource(&self, key: &str) -> Option<&str> {
        text(&self.resource, key)
    }

    /// The trace, the span and its parent, in hexadecimal.
    pub(crate) fn ids(&self) -> (String, String, String) {
        let span = &self.span;
        (
            hex(&span.trace_id),
            hex(&span.span_id),
            hex(&span.parent_span_id),
        )
    }
}

fn text<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|one| one.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Receiver(watch::Sender<Vec<Exported>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut arrived = Vec::new();
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.unwrap_or_default().attributes;
            let spans = of_resource.scope_spans.into_iter();
            arrived.extend(spans.flat_map(|scope| scope.spans).map(|span| Exported {
                resource: resource.clone(),
                span,
            }));
        }
        self.0.send_modify(|all| all.append(&mut arrived));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
