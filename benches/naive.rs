//! The baseline of `weir bench`: a chat server written with tonic the obvious way, as a tutorial does it.
//!
//! A room is a list of bounded channels, one for each subscriber; every message is cloned into every channel and every
//! stream encodes its own copy. A full channel drops the message. Nothing is stored. Only two things differ from a
//! tutorial: flow-control windows that survive uploads of small messages, and more streams a connection than 200.
//!
//! ```text
//! cargo bench --bench naive -- --addr 127.0.0.1:50061
//! ```

#[path = "naive/files.rs"]
mod files;

use std::{
    collections::HashMap,
    io::{self, Write as _},
    net::SocketAddr,
    pin::Pin,
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use clap::{Parser, ValueEnum};
use futures::{Stream, StreamExt as _, stream};
use tokio::{net::TcpListener, runtime, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};
use weir::proto::{
    chat::{
        Message, MessageType, Metric, MetricsRequest, SendMessageRequest, SendMessageResponse,
        SubscribeRequest, UploadResponse,
        chat_service_server::{ChatService, ChatServiceServer},
    },
    streaming::v1::streaming_service_server::StreamingServiceServer,
};

/// Messages that may wait for one subscriber before further ones are dropped.
const QUEUE: usize = 100;
/// A stream's window, and a connection's. With tonic's defaults HTTP/2 takes small messages in bulk for an attack.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Streams a connection may hold; the default of 200 is too few to compare ten thousand subscribers.
const STREAMS_PER_CONNECTION: u32 = 100_000;

/// A chat server written with tonic the obvious way: what `weir bench` compares Weir with.
#[derive(Debug, Parser)]
#[command(
    after_help = "Prints one line with its address and process id when it listens, and on SIGTERM or Ctrl-C how \
    many messages full queues dropped. Nothing is stored.\n\n\
    Example:\n  cargo bench --bench naive -- --addr 127.0.0.1:50061\n  \
    weir bench fanout --addr http://127.0.0.1:50061 --pid PID"
)]
struct Args {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0", value_name = "IP:PORT")]
    addr: SocketAddr,
    /// Which of tokio's schedulers runs the server. `#[tokio::main]`, as in tutorials, is multi-thread.
    #[arg(long, value_enum, default_value_t = Scheduler::MultiThread)]
    scheduler: Scheduler,
    /// Passed by `cargo bench`; means nothing here.
    #[arg(long, hide = true)]
    bench: bool,
}

/// tokio's schedulers.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scheduler {
    /// A worker for each core, or `TOKIO_WORKER_THREADS`. A woken task runs next, so a connection tends to write once for
    /// every message.
    MultiThread,
    /// One thread. Woken tasks wait their turn, so a connection writes what several streams have for it.
    CurrentThread,
}

/// What every call shares.
#[derive(Debug, Default)]
struct State {
    rooms: Mutex<HashMap<String, Vec<mpsc::Sender<Message>>>>,
    delivered: AtomicU64,
    dropped: AtomicU64,
}

impl State {
    fn subscribe(&self, room: String) -> mpsc::Receiver<Message> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.entry(room).or_default().push(sender);
        receiver
    }

    fn publish(&self, message: &Message) {
        let mut rooms = self.rooms.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(subscribers) = rooms.get_mut(&message.room) else {
            return;
        };
        let (mut delivered, mut dropped) = (0, 0);
        subscribers.retain(|subscriber| match subscriber.try_send(message.clone()) {
            Ok(()) => {
                delivered += 1;
                true
            }
            Err(mpsc::error::TrySendError::Full(_)) => {
                dropped += 1;
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        if subscribers.is_empty() {
            rooms.remove(&message.room);
        }
        self.delivered.fetch_add(delivered, Ordering::Relaxed);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }
}

/// The service, as generated code wants it.
#[derive(Debug, Clone, Default)]
struct Naive(Arc<State>);

type Reply<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl ChatService for Naive {
    type SubscribeMessagesStream = BoxStream<Message>;
    type ChatStream = BoxStream<Message>;
    type StreamMetricsStream = BoxStream<Metric>;

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Reply<SendMessageResponse> {
        let SendMessageRequest {
            user,
            content,
            room,
            ..
        } = request.into_inner();
        let timestamp = Some(SystemTime::now().into());
        let id = uuid::Uuid::now_v7().to_string();
        let message = Message {
            id: id.clone(),
            user,
            content,
            room,
            timestamp,
            ..Message::default()
        };
        self.0.publish(&message);
        Ok(Response::new(SendMessageResponse {
            message_id: id,
            timestamp,
            sequence: 0,
        }))
    }

    async fn subscribe_messages(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Reply<BoxStream<Message>> {
        let SubscribeRequest { room, user, .. } = request.into_inner();
        let welcome = system(
            "system",
            "System",
            format!("Welcome to room {room}, {user}!"),
            &room,
        );
        let live = ReceiverStream::new(self.0.subscribe(room));
        let messages = stream::once(async { welcome }).chain(live).map(Ok);
        Ok(Response::new(Box::pin(messages)))
    }

    async fn upload_messages(&self, request: Request<Streaming<Message>>) -> Reply<UploadResponse> {
        let mut messages = request.into_inner();
        let mut message_count = 0;
        while let Some(message) = messages.message().await? {
            self.0.publish(&message);
            message_count += 1;
        }
        Ok(Response::new(UploadResponse {
            message_count,
            success: true,
        }))
    }

    async fn chat(&self, request: Request<Streaming<Message>>) -> Reply<BoxStream<Message>> {
        let state = Arc::clone(&self.0);
        let echoes = request.into_inner().map(move |message| {
            let message = message?;
            state.publish(&message);
            let (id, content) = (
                format!("echo_{}", message.id),
                format!("Echo: {}", message.content),
            );
            Ok(system(&id, "Server", content, &message.room))
        });
        Ok(Response::new(Box::pin(echoes)))
    }

    async fn stream_metrics(&self, _request: Request<MetricsRequest>) -> Reply<BoxStream<Metric>> {
        Err(Status::unimplemented("the baseline measures nothing"))
    }
}

fn system(id: &str, user: &str, content: String, room: &str) -> Message {
    Message {
        id: id.to_owned(),
        user: user.to_owned(),
        content,
        room: room.to_owned(),
        timestamp: Some(SystemTime::now().into()),
        r#type: MessageType::System.into(),
        ..Message::default()
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut builder = match args.scheduler {
        Scheduler::MultiThread => runtime::Builder::new_multi_thread(),
        Scheduler::CurrentThread => runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build()?.block_on(run(&args))
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let service = Naive::default();
    let listener = TcpListener::bind(args.addr).await?;
    say(&format!(
        "naive listening on http://{} pid {}",
        listener.local_addr()?,
        process::id()
    ))?;
    tokio::select! {
        served = serve(listener, service.clone()) => served?,
        ended = end_of_life() => ended?,
    }
    let (delivered, dropped) = (&service.0.delivered, &service.0.dropped);
    say(&format!(
        "naive queued {} messages and dropped {}",
        delivered.load(Ordering::Relaxed),
        dropped.load(Ordering::Relaxed)
    ))
}

async fn serve(listener: TcpListener, service: Naive) -> anyhow::Result<()> {
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(ChatServiceServer::new(service))
        .add_service(StreamingServiceServer::new(files::Files))
        .serve_with_incoming(connections)
        .await?;
    Ok(())
}

async fn end_of_life() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
