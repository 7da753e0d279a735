//! The server under test: the real binary on free ports, over real sockets.

pub(crate) mod errors;
pub(crate) mod raw;
pub mod server;

pub use server::{OWN_ADDRESS, Settings, TestServer};

use std::{
    future::Future,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use weir::proto::chat::{
    Message, SendMessageRequest, SubscribeRequest, chat_service_client::ChatServiceClient,
};

/// A client of `chat.ChatService`.
pub(crate) type Chat = ChatServiceClient<Channel>;

/// How long a test waits for something that should happen soon; reaching it is a failure.
pub const SOON: Duration = Duration::from_secs(60);

/// Polls `check` until it gives a value.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, check: impl Fn() -> F) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// What `future` gives, soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// A connection whose socket the test can close under it.
pub(crate) async fn breakable(server: &TestServer) -> (Channel, std::net::TcpStream) {
    let address = server.grpc();
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    let connector = tower::service_fn(move |_: Uri| {
        let keep = Arc::clone(&keep);
        async move {
            let socket = TcpStream::connect(address).await?.into_std()?;
            *keep.lock().unwrap() = Some(socket.try_clone()?);
            Ok::<_, std::io::Error>(TokioIo::new(TcpStream::from_std(socket)?))
        }
    });
    let endpoint = Endpoint::from_shared(server.url()).unwrap();
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let socket = kept.lock().unwrap().take().unwrap();
    (channel, socket)
}

/// The next message of a stream that must have one.
pub async fn next<T>(stream: &mut tonic::Streaming<T>) -> T {
    soon("a message", stream.message())
        .await
        .expect("the stream goes on")
        .expect("the stream has not ended")
}

/// How a stream ends, skipping what it still delivers.
pub async fn end<T>(stream: &mut tonic::Streaming<T>) -> Result<(), Status> {
    soon("the stream's end", async {
        while stream.message().await?.is_some() {}
        Ok(())
    })
    .await
}

/// A message of `user` for `room`.
pub fn message(room: &str, user: &str, content: &str) -> Message {
    Message {
        user: user.into(),
        room: room.into(),
        content: content.into(),
        ..Message::default()
    }
}

/// A request to send it.
pub fn send(room: &str, user: &str, content: &str) -> SendMessageRequest {
    SendMessageRequest {
        user: user.into(),
        room: room.into(),
        content: content.into(),
        ..SendMessageRequest::default()
    }
}

/// A request to follow `room`.
pub fn follow(room: &str, after_sequence: Option<u64>) -> SubscribeRequest {
    SubscribeRequest {
        room: room.into(),
        user: "reader".into(),
        after_sequence,
    }
}
