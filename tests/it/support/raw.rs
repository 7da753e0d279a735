//! Requests made by hand: HTTP/2 without a gRPC client between, which would have a deadline of its own and send nothing wrong.

use std::net::SocketAddr;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, Response, StatusCode};
use prost::Message;
use tokio::{net::TcpStream, task::JoinHandle};
use tonic::{Code, Status};

use super::soon;

/// An HTTP/2 connection. Dropping it closes the socket.
pub(crate) struct Raw {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Raw {
    /// A connection with wide windows.
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut builder = Builder::new();
        builder
            .initial_window_size(1 << 24)
            .initial_connection_window_size(1 << 26);
        Self::with(address, &builder).await
    }

    /// A connection with these settings.
    pub(crate) async fn with(address: SocketAddr, builder: &Builder) -> Self {
        let socket = TcpStream::connect(address).await.unwrap();
        let (requests, connection) = soon("a handshake", builder.handshake(socket))
            .await
            .unwrap();
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { requests, driver }
    }

    /// Fails once the server asked this connection to go.
    pub(crate) async fn ready(&self) -> Result<(), h2::Error> {
        soon("a place for a stream", self.requests.clone().ready())
            .await
            .map(drop)
    }

    /// Begins a gRPC call of `path`; `headers` replace the usual ones.
    pub(crate) async fn begin(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://weir{path}"))
            .body(())
            .unwrap();
        let usual = [("content-type", "application/grpc"), ("te", "trailers")];
        for (name, value) in usual.iter().chain(headers) {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        self.send(request).await
    }

    /// Sends a request's head.
    pub(crate) async fn send(&self, request: Request<()>) -> (ResponseFuture, SendStream<Bytes>) {
        let ready = soon("a place for a stream", self.requests.clone().ready()).await;
        ready.unwrap().send_request(request, false).unwrap()
    }

    /// A whole call with `body`.
    pub(crate) async fn call(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let (response, mut sending) = self.begin(path, headers).await;
        sending.send_data(body.into(), true).unwrap();
        Answer::of(response).await
    }

    /// Begins a call with one message and reads the head of its response.
    pub(crate) async fn open(
        &self,
        path: &str,
        headers: &[(&'static str, &str)],
        request: &impl Message,
    ) -> Response<RecvStream> {
        let (response, mut sending) = self.begin(path, headers).await;
        sending.send_data(framed(request), true).unwrap();
        soon("a response", response).await.unwrap()
    }
}

/// A whole response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) http: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: HeaderMap,
}

impl Answer {
    pub(crate) async fn of(response: ResponseFuture) -> Self {
        let response = soon("a response", response).await.unwrap();
        let (head, mut stream) = response.into_parts();
        let mut body = Vec::new();
        while let Some(data) = data(&mut stream).await {
            body.extend_from_slice(&data);
        }
        let trailers = soon("trailers", stream.trailers()).await.unwrap();
        Self {
            http: head.status,
            headers: head.headers,
            body,
            trailers: trailers.unwrap_or_default(),
        }
    }

    /// The status, wherever it stands.
    pub(crate) fn status(&self) -> Status {
        Status::from_header_map(&self.trailers)
            .or_else(|| Status::from_header_map(&self.headers))
            .unwrap_or_else(|| panic!("no status in {self:?}"))
    }

    pub(crate) fn code(&self) -> Code {
        self.status().code()
    }
}

/// The next piece of a body; `None` at its end.
pub(crate) async fn data(stream: &mut RecvStream) -> Option<Bytes> {
    let data = soon("data", stream.data()).await?.unwrap();
    stream.flow_control().release_capacity(data.len()).unwrap();
    Some(data)
}

/// How a stream of messages ends, and what it delivers before.
pub(crate) async fn rest<M: Message + Default>(stream: &mut RecvStream) -> (Vec<M>, Status) {
    let mut bytes = BytesMut::new();
    while let Some(data) = data(stream).await {
        bytes.extend_from_slice(&data);
    }
    let trailers = soon("trailers", stream.trailers())
        .await
        .unwrap()
        .expect("trailers");
    (
        unframed(bytes.freeze()),
        Status::from_header_map(&trailers).expect("a status"),
    )
}

/// `message` as gRPC frames it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    frame(0, &message.encode_to_vec())
}

/// A frame with any flag and content.
pub(crate) fn frame(flag: u8, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + content.len());
    bytes.put_u8(flag);
    bytes.put_u32(content.len().try_into().unwrap());
    bytes.put_slice(content);
    bytes.freeze()
}

/// The messages in `bytes`, which must be whole.
pub(crate) fn unframed<M: Message + Default>(mut bytes: Bytes) -> Vec<M> {
    let mut messages = Vec::new();
    while bytes.has_remaining() {
        assert_eq!(bytes.get_u8(), 0, "not compressed");
        let length = bytes.get_u32() as usize;
        messages.push(M::decode(bytes.split_to(length)).unwrap());
    }
    messages
}
