//! Listening sockets and what happens to each accepted connection.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::body::Body;
use tower::Service;

use super::{
    Capacity, Peer, Settings,
    connection::{Connection, Streams},
    io::write_once,
};
use crate::telemetry::Metrics;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;
/// How long accepting pauses after an error, such as that the machine is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address`; port 0 takes a free one.
///
/// # Errors
/// The address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // A restarted server must not wait for old connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What a connection can be served by: any tower service from requests to responses that cannot fail.
pub trait HttpService:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> HttpService for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// How connections end.
#[derive(Debug, Clone, Default)]
pub struct Closing {
    /// No further connection is accepted.
    pub accept: CancellationToken,
    /// Every connection is asked to go: GOAWAY, its streams go on.
    pub goaway: CancellationToken,
    /// Every connection is dropped.
    pub abort: CancellationToken,
}

/// Accepts connections and serves them. Cheap to clone; connections of all listeners share its limit.
#[derive(Clone)]
pub struct Acceptor {
    settings: Arc<Settings>,
    permits: Arc<Semaphore>,
    /// Why a connection finds no permit.
    shortage: &'static str,
    closing: Closing,
    tasks: TaskTracker,
    metrics: Metrics,
}

impl Acceptor {
    /// An acceptor of so many connections at most, whose tasks run on `tasks`.
    #[must_use]
    pub fn new(
        settings: Settings,
        capacity: Capacity,
        closing: Closing,
        tasks: TaskTracker,
        metrics: Metrics,
    ) -> Self {
        Self {
            settings: Arc::new(settings),
            permits: Arc::new(Semaphore::new(
                capacity.connections.min(Semaphore::MAX_PERMITS),
            )),
            shortage: capacity.reason,
            closing,
            tasks,
            metrics,
        }
    }

    /// Serves connections of `listener` with `service` until accepting is cancelled.
    pub async fn serve<S: HttpService>(self, listener: TcpListener, service: S) {
        let stopped = self.closing.accept.clone();
        let mut is_failing = false;
        loop {
            let accepted = tokio::select! {
                () = stopped.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    is_failing = false;
                    self.accepted(stream, peer, service.clone());
                }
                Err(error) => {
                    // One line for a shortage, however often it is met.
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "connections cannot be accepted");
                    }
                    // The kernel holds the connection and would give the same answer at once.
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accepted<S: HttpService>(&self, stream: TcpStream, peer: SocketAddr, service: S) {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            self.refused(self.shortage);
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection closed at once");
            return;
        }
        let this = self.clone();
        self.tasks.spawn(async move {
            let _open = Open::new(&this.metrics, permit);
            this.connection(stream, peer, service).await;
        });
    }

    /// One connection's life: served until it ends, grows old, never speaks, or has to go.
    async fn connection<S: HttpService>(&self, stream: TcpStream, peer: SocketAddr, service: S) {
        let streams = Streams::default();
        let serving = streams.clone();
        let (socket, flusher) = write_once(stream);
        let link = flusher.link();
        let linked = link.clone();
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(Peer(peer));
            request.extensions_mut().insert(linked.clone());
            if request.version() == Version::HTTP_2 {
                request.extensions_mut().insert(serving.serving());
            }
            service.clone().call(request)
        });
        let builder = self.settings.builder(streams.clone());
        let protocol = builder.serve_connection(TokioIo::new(socket), service);
        let mut connection = pin!(Connection::new(protocol, streams, flusher));
        let mut preface = pin!(sleep(self.settings.preface_timeout));
        let mut age = pin!(sleep(jittered(self.settings.max_age)));
        let mut leaving = pin!(link.leaving());
        let (mut is_heard, mut is_leaving) = (false, false);
        loop {
            tokio::select! {
                biased;
                outcome = connection.as_mut() => {
                    // Its streams go with it.
                    link.broke();
                    return self.ended(outcome);
                }
                () = self.closing.abort.cancelled() => {
                    link.broke();
                    return;
                }
                () = self.closing.goaway.cancelled(), if !is_leaving => is_leaving = true,
                () = age.as_mut(), if !is_leaving => is_leaving = true,
                () = leaving.as_mut(), if !is_leaving => is_leaving = true,
                () = preface.as_mut(), if !is_heard => {
                    if connection.is_silent() {
                        return self.refused("preface");
                    }
                    is_heard = true;
                    continue;
                }
            }
            let protocol: Pin<&mut _> = connection.as_mut().protocol();
            protocol.graceful_shutdown();
        }
    }

    fn ended(&self, outcome: io::Result<()>) {
        if let Err(error) = outcome {
            tracing::debug!(%error, "a connection ended");
            self.refused("protocol");
        }
    }

    fn refused(&self, reason: &str) {
        let refused = &self.metrics.connections_refused;
        refused.with_label_values(&[reason]).inc();
    }
}

/// A duration within a tenth of `age`, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(rand::random_range(0.9..1.1))
}

/// Counts an open connection.
struct Open {
    gauge: prometheus::IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Open {
    fn new(metrics: &Metrics, permit: OwnedSemaphorePermit) -> Self {
        metrics.connections_active.inc();
        Self {
            gauge: metrics.connections_active.clone(),
            _permit: permit,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
