//! A chat service that does what a test tells it to, and what stands between it and the client.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::Instant,
};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use crate::{
    client::Timing,
    proto::chat::{
        Message, MessageType, Metric, MetricsRequest, SendMessageRequest, SendMessageResponse,
        SubscribeRequest, UploadResponse,
        chat_service_server::{ChatService, ChatServiceServer},
    },
};

type Reply<T> = Result<Response<T>, Status>;
type Delivery<T> = BoxStream<'static, Result<T, Status>>;

/// What the server does with one subscription.
pub(super) struct Act {
    pub(super) header: Option<u64>,
    pub(super) log: Option<&'static str>,
    pub(super) items: Vec<Message>,
    pub(super) end: End,
}

/// How a subscription ends.
pub(super) enum End {
    With(Status),
    Cleanly,
    Never,
}

/// The script and what came of it.
#[derive(Default)]
pub(super) struct Script {
    subscriptions: Mutex<VecDeque<Result<Act, Status>>>,
    publish_failures: Mutex<VecDeque<Status>>,
    positions: Mutex<Vec<Option<u64>>>,
    logs: Mutex<Vec<Option<String>>>,
    sent: Mutex<Vec<SendMessageRequest>>,
    uploads: Mutex<Vec<Vec<Message>>>,
}

impl Script {
    pub(super) fn plays(acts: impl IntoIterator<Item = Result<Act, Status>>) -> Arc<Self> {
        Arc::new(Self {
            subscriptions: Mutex::new(acts.into_iter().collect()),
            ..Self::default()
        })
    }

    pub(super) fn fails_publishes(failures: impl IntoIterator<Item = Status>) -> Arc<Self> {
        Arc::new(Self {
            publish_failures: Mutex::new(failures.into_iter().collect()),
            ..Self::default()
        })
    }

    /// The positions the subscriptions asked for.
    pub(super) fn positions(&self) -> Vec<Option<u64>> {
        self.positions.lock().unwrap().clone()
    }

    /// The logs the subscriptions named.
    pub(super) fn logs(&self) -> Vec<Option<String>> {
        self.logs.lock().unwrap().clone()
    }

    pub(super) fn sent(&self) -> Vec<SendMessageRequest> {
        self.sent.lock().unwrap().clone()
    }

    pub(super) fn uploads(&self) -> Vec<Vec<Message>> {
        self.uploads.lock().unwrap().clone()
    }

    fn publish_outcome(&self) -> Result<(), Status> {
        self.publish_failures
            .lock()
            .unwrap()
            .pop_front()
            .map_or(Ok(()), Err)
    }

    /// Serves the script on a loopback port until the test's runtime ends.
    pub(super) fn serve(self: &Arc<Self>) -> SocketAddr {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = incoming.local_addr().unwrap();
        let service = ChatServiceServer::from_arc(self.clone());
        tokio::spawn(
            Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        addr
    }
}

#[tonic::async_trait]
impl ChatService for Script {
    type SubscribeMessagesStream = Delivery<Message>;
    type ChatStream = Delivery<Message>;
    type StreamMetricsStream = Delivery<Metric>;

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Reply<SendMessageResponse> {
        assert!(
            request.metadata().contains_key("grpc-timeout"),
            "a try has a deadline"
        );
        self.sent.lock().unwrap().push(request.into_inner());
        self.publish_outcome()?;
        Ok(Response::new(SendMessageResponse::default()))
    }

    async fn subscribe_messages(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Reply<Delivery<Message>> {
        self.positions
            .lock()
            .unwrap()
            .push(request.get_ref().after_sequence);
        let log = request.metadata().get("log-id");
        let log = log.map(|log| log.to_str().unwrap().to_owned());
        self.logs.lock().unwrap().push(log);
        let act = self.subscriptions.lock().unwrap().pop_front();
        let act = act.unwrap_or_else(|| Err(Status::permission_denied("the script is over")))?;
        let items = stream::iter(act.items.into_iter().map(Ok));
        let mut response = Response::new(match act.end {
            End::With(status) => items.chain(stream::iter([Err(status)])).boxed(),
            End::Cleanly => items.boxed(),
            End::Never => items.chain(stream::pending()).boxed(),
        });
        if let Some(position) = act.header {
            response
                .metadata_mut()
                .insert("after-sequence", position.into());
        }
        if let Some(log) = act.log {
            response
                .metadata_mut()
                .insert("log-id", log.parse().unwrap());
        }
        Ok(response)
    }

    async fn upload_messages(&self, request: Request<Streaming<Message>>) -> Reply<UploadResponse> {
        let messages: Vec<_> = request.into_inner().map(Result::unwrap).collect().await;
        let message_count = i32::try_from(messages.len()).unwrap();
        self.uploads.lock().unwrap().push(messages);
        self.publish_outcome()?;
        Ok(Response::new(UploadResponse {
            message_count,
            success: true,
        }))
    }

    async fn chat(&self, _: Request<Streaming<Message>>) -> Reply<Delivery<Message>> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn stream_metrics(&self, _: Request<MetricsRequest>) -> Reply<Delivery<Metric>> {
        Err(Status::unimplemented("not in the script"))
    }
}

/// A message at a position of the room.
pub(super) fn record(sequence: u64) -> Message {
    Message {
        id: format!("m{sequence}"),
        content: format!("content {sequence}"),
        sequence,
        ..Message::default()
    }
}

/// What a room says first.
pub(super) fn welcome() -> Message {
    Message {
        id: "system".into(),
        r#type: MessageType::System.into(),
        ..Message::default()
    }
}

/// Time that passes at once, and what was made of it.
#[derive(Default)]
pub(super) struct Clock {
    delays: Mutex<Vec<Duration>>,
}

impl Clock {
    pub(super) fn delays(&self) -> Vec<Duration> {
        self.delays.lock().unwrap().clone()
    }
}

impl Timing for Clock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn jitter(&self) -> f64 {
        0.5
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        self.delays.lock().unwrap().push(delay);
        std::future::ready(()).boxed()
    }
}

/// Forwards connections to a server, and can cut them all.
pub(super) struct Proxy {
    pub(super) addr: SocketAddr,
    cut: Arc<Notify>,
}

impl Proxy {
    pub(super) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let cut = Arc::new(Notify::new());
        tokio::spawn(forward(listener, server, cut.clone()));
        Self { addr, cut }
    }

    /// Closes every open connection, without a goodbye.
    pub(super) fn cut(&self) {
        self.cut.notify_waiters();
    }
}

async fn forward(listener: TcpListener, server: SocketAddr, cut: Arc<Notify>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let cut = cut.clone();
        tokio::spawn(async move {
            let is_cut = cut.notified();
            let mut server = TcpStream::connect(server).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => (),
                () = is_cut => (),
            }
        });
    }
}
