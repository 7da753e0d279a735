//! A gRPC client that is little more than HTTP/2, so that the load generator costs less than the server it measures.

use std::{fmt, future::poll_fn, str::FromStr, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use bytes::{Bytes, BytesMut};
use h2::{
    RecvStream,
    client::{Connection, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Request, Response, header};
use serde::Serialize;
use tokio::{net::TcpStream, time::timeout};

/// How long any single answer may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The largest window of HTTP/2: flow control shall never be what is measured.
const WINDOW_BYTES: u32 = (1 << 31) - 1;
/// Streams that may be opened before the server has said how many it takes.
const STREAMS_AT_FIRST: usize = 100;

/// The connection itself; nothing moves unless it is polled.
pub(super) type Driver = Connection<TcpStream, Bytes>;

/// Where a server listens, without TLS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Target(String);

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        ensure!(
            !text.starts_with("https://"),
            "TLS is not spoken here: aim at a plain port"
        );
        let authority = text.strip_prefix("http://").unwrap_or(text);
        let authority = authority.trim_end_matches('/');
        let port = authority.rsplit_once(':').map(|(_, port)| port.parse());
        ensure!(
            matches!(port, Some(Ok(1..=u16::MAX))),
            "expected http://HOST:PORT"
        );
        Ok(Self(authority.to_owned()))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Target {
    /// A plain TCP connection, without delays.
    pub(super) async fn dial(&self) -> Result<TcpStream> {
        let dialled = timeout(PATIENCE, TcpStream::connect(&self.0)).await;
        let stream = dialled
            .map_err(|_| anyhow!("{self} does not answer"))?
            .with_context(|| format!("cannot connect to {self}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// An HTTP/2 connection. The caller must poll the driver.
    pub(super) async fn connect(&self) -> Result<(SendRequest<Bytes>, Driver)> {
        let stream = self.dial().await?;
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .data_frame_budget(usize::MAX)
            .enable_push(false);
        let handshake = timeout(PATIENCE, builder.handshake(stream)).await;
        handshake
            .map_err(|_| anyhow!("{self} does not speak HTTP/2 in time"))?
            .with_context(|| format!("{self} does not speak HTTP/2"))
    }

    /// An HTTP/2 connection that a task of its own drives.
    pub(super) async fn connect_driven(&self) -> Result<SendRequest<Bytes>> {
        let (sender, driver) = self.connect().await?;
        // Its error reaches every stream of the connection too.
        tokio::spawn(async { driver.await.ok() });
        Ok(sender)
    }

    /// The head of a call to `chat.ChatService`.
    pub(super) fn request(&self, method: &str) -> Result<Request<()>> {
        self.request_to(&format!("chat.ChatService/{method}"))
    }

    /// The head of a call to the method of this full name.
    pub(super) fn request_to(&self, method: &str) -> Result<Request<()>> {
        Request::post(format!("http://{self}/{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(())
            .context("the address is no valid authority")
    }
}

/// Waits until the connection may open another stream.
pub(super) async fn ready(sender: &mut SendRequest<Bytes>) -> Result<()> {
    timeout(PATIENCE, poll_fn(|cx| sender.poll_ready(cx)))
        .await
        .map_err(|_| anyhow!("the server allows no further streams on a connection"))?
        .context("the connection is closed")
}

/// Opens a call that sends one message.
pub(super) async fn call(
    sender: &mut SendRequest<Bytes>,
    head: Request<()>,
    frame: Bytes,
) -> Result<ResponseFuture> {
    ready(sender).await?;
    let (response, mut body) = sender.send_request(head, false)?;
    body.send_data(frame, true)?;
    Ok(response)
}

/// The stream of messages of an accepted call.
pub(super) async fn accepted(response: ResponseFuture, patience: Duration) -> Result<RecvStream> {
    let answered = timeout(patience, response).await;
    let response: Response<RecvStream> = answered.map_err(|_| anyhow!("no answer in time"))??;
    let (head, body) = response.into_parts();
    ensure!(head.status == 200, "answered with HTTP {}", head.status);
    check_status(&head.headers)?;
    Ok(body)
}

/// The only message of a finished call, without its prefix.
pub(super) async fn only_message(mut body: RecvStream, patience: Duration) -> Result<Bytes> {
    timeout(patience, async {
        let mut frame = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            frame.extend_from_slice(&chunk);
        }
        check_status(&body.trailers().await?.unwrap_or_default())?;
        ensure!(
            frame.len() >= super::frame::PREFIX_BYTES,
            "answered without a message"
        );
        Ok(frame.split_off(super::frame::PREFIX_BYTES).freeze())
    })
    .await
    .map_err(|_| anyhow!("no complete answer in time"))?
}

/// Why a stream that should go on came to its end.
pub(super) fn ended(trailers: Option<HeaderMap>) -> anyhow::Error {
    match check_status(&trailers.unwrap_or_default()) {
        Ok(()) => anyhow!("the server ended the stream"),
        Err(error) => error,
    }
}

/// Fails if the headers carry a status that is not OK.
fn check_status(headers: &HeaderMap) -> Result<()> {
    match tonic::Status::from_header_map(headers) {
        Some(status) if status.code() != tonic::Code::Ok => {
            bail!("answered {:?}: {}", status.code(), status.message())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_scheme() {
        for text in [
            "http://127.0.0.1:50051",
            "127.0.0.1:50051",
            "http://127.0.0.1:50051/",
        ] {
            assert_eq!(
                text.parse::<Target>().unwrap().to_string(),
                "127.0.0.1:50051"
            );
        }
        assert_eq!("[::1]:1".parse::<Target>().unwrap().to_string(), "[::1]:1");
    }

    #[test]
    fn useless_addresses_are_refused() {
        for text in [
            "https://127.0.0.1:50051",
            "localhost",
            "127.0.0.1:0",
            "127.0.0.1:x",
            "",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_is_told_with_its_reason() {
        let mut headers = HeaderMap::new();
        assert!(check_status(&headers).is_ok());
        headers.insert("grpc-status", "8".parse().unwrap());
        headers.insert("grpc-message", "too%20much".parse().unwrap());
        let error = check_status(&headers).unwrap_err().to_string();
        assert_eq!(error, "answered ResourceExhausted: too much");
    }
}
