//! gRPC-Web, binary and text, over HTTP/1.1 and HTTP/2, on the gRPC port and on the HTTP port; and what browsers ask first.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};

use tokio::net::TcpStream;
use weir::{
    log::LogId,
    proto::chat::{Message, SendMessageResponse, SubscribeRequest},
};

use crate::support::{
    Settings, TestServer, eventually, follow,
    raw::{frame, framed},
    send, soon,
};

const SEND: &str = "/chat.ChatService/SendMessage";
const SUBSCRIBE: &str = "/chat.ChatService/SubscribeMessages";
const BINARY: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text";
const PAGE: &str = "https://chat.example.org";
/// The flag of the frame that holds the trailers.
const TRAILERS: u8 = 0x80;

/// Sends one request on a connection of its own. The connection ends with the response.
async fn exchange(address: SocketAddr, request: Request<Bytes>) -> Response<Incoming> {
    let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let request = request.map(Full::new);
    let answer = async {
        if request.version() == Version::HTTP_2 {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), socket)
                    .await
                    .unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        } else {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(socket).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await
        }
    };
    soon("a response", answer).await.unwrap()
}

/// A way to the server.
#[derive(Debug, Clone, Copy)]
struct Way {
    address: SocketAddr,
    version: Version,
    kind: &'static str,
}

impl Way {
    /// Every one there is.
    fn all(server: &TestServer) -> Vec<Self> {
        let mut all = Vec::new();
        for address in [server.grpc(), server.http()] {
            for version in [Version::HTTP_11, Version::HTTP_2] {
                all.extend([BINARY, TEXT].map(|kind| Self {
                    address,
                    version,
                    kind,
                }));
            }
        }
        all
    }

    async fn call(&self, path: &str, headers: &[(&str, &str)], message: &[u8]) -> Reply {
        let body = match self.kind {
            TEXT => encode(message).into_bytes(),
            _ => message.to_vec(),
        };
        let mut request = Request::post(format!("http://{}{path}", self.address))
            .version(self.version)
            .header("content-type", self.kind)
            .header("accept", self.kind)
            .header("x-grpc-web", "1");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = exchange(self.address, request.body(body.into()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::OK, "{self:?}");
        Reply {
            headers: response.headers().clone(),
            body: response.into_body(),
            is_text: self.kind == TEXT,
            text: Vec::new(),
            bytes: BytesMut::new(),
        }
    }
}

/// A response, frame by frame.
struct Reply {
    headers: HeaderMap,
    body: Incoming,
    is_text: bool,
    text: Vec<u8>,
    bytes: BytesMut,
}

impl Reply {
    /// The next frame: its flag and its content; `None` at the end.
    async fn frame(&mut self) -> Option<(u8, Bytes)> {
        loop {
            if let [flag, a, b, c, d, rest @ ..] = &self.bytes[..] {
                let (flag, length) = (*flag, u32::from_be_bytes([*a, *b, *c, *d]) as usize);
                if rest.len() >= length {
                    let frame = self.bytes.split_to(5 + length).freeze();
                    return Some((flag, frame.slice(5..)));
                }
            }
            match soon("a frame", self.body.frame()).await {
                Some(frame) => {
                    self.take(&frame.unwrap().into_data().expect("trailers come as data"))
                }
                None => {
                    assert!(self.bytes.is_empty() && self.text.is_empty(), "no rest");
                    return None;
                }
            }
        }
    }

    fn take(&mut self, data: &[u8]) {
        if !self.is_text {
            return self.bytes.extend_from_slice(data);
        }
        self.text.extend_from_slice(data);
        let whole = self.text.len() / 4 * 4;
        let rest = self.text.split_off(whole);
        self.bytes.extend_from_slice(&decode(&self.text));
        self.text = rest;
    }

    async fn message<M: prost::Message + Default>(&mut self) -> M {
        let (flag, content) = self.frame().await.expect("a message");
        assert_eq!(flag, 0, "{content:?}");
        M::decode(content).unwrap()
    }

    /// The trailers, which come last: in a frame, or as headers where there is nothing else.
    async fn trailers(mut self) -> HashMap<String, String> {
        if self.headers.contains_key("grpc-status") {
            assert!(self.frame().await.is_none());
            let pairs = self.headers.iter();
            return pairs
                .map(|(name, value)| (name.to_string(), value.to_str().unwrap().into()))
                .collect();
        }
        let (flag, content) = self.frame().await.expect("trailers");
        assert_eq!(flag, TRAILERS);
        assert!(self.frame().await.is_none());
        let lines = std::str::from_utf8(&content)
            .unwrap()
            .split_terminator("\r\n");
        let pairs = lines.map(|line| line.split_once(':').expect("name:value"));
        pairs
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect()
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let index = (bits >> (18 - 6 * place) & 63) as usize;
            text.push(if place <= chunk.len() {
                ALPHABET[index].into()
            } else {
                '='
            });
        }
    }
    text
}

/// Groups of four, each padded by itself if need be: that is how a stream of text frames comes.
fn decode(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for group in text.chunks(4) {
        let padding = group.iter().filter(|byte| **byte == b'=').count();
        let bits = group.iter().fold(0_u32, |bits, byte| {
            let index = ALPHABET
                .iter()
                .position(|letter| letter == byte)
                .unwrap_or(0);
            bits << 6 | u32::try_from(index).unwrap()
        });
        bytes.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    bytes
}

#[test]
fn the_tests_own_base64_is_right() {
    for (bytes, text) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(encode(bytes.as_bytes()), text);
        assert_eq!(decode(text.as_bytes()), bytes.as_bytes());
    }
}

#[tokio::test]
async fn unary_calls_work_every_way() {
    let server = TestServer::start().await;
    let mut last = 0;
    for (index, way) in Way::all(&server).into_iter().enumerate() {
        let content = format!("späß {}", "x".repeat(index));
        let mut reply = way
            .call(SEND, &[], &framed(&send("general", "ann", &content)))
            .await;
        assert_eq!(
            reply.headers["content-type"]
                .to_str()
                .unwrap()
                .split('+')
                .next(),
            way.kind.split('+').next()
        );
        let sent: SendMessageResponse = reply.message().await;
        assert!(sent.sequence > last, "{way:?}");
        last = sent.sequence;
        let trailers = reply.trailers().await;
        assert_eq!(trailers["grpc-status"], "0", "{way:?}");
    }
}

#[tokio::test]
async fn messages_arrive_while_the_stream_is_open() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    for way in Way::all(&server) {
        let request = follow("general", None);
        let mut reply = way.call(SUBSCRIBE, &[], &framed(&request)).await;
        assert!(reply.headers.contains_key("after-sequence"));
        let welcome: Message = reply.message().await;
        assert_eq!(welcome.id, "system", "{way:?}");
        for content in ["one", "", "three"] {
            let sent = chat
                .send_message(send("general", "ann", content))
                .await
                .unwrap()
                .into_inner();
            let heard: Message = reply.message().await;
            assert_eq!(
                (heard.sequence, heard.content.as_str()),
                (sent.sequence, content),
                "{way:?}"
            );
        }
    }
    eventually("all of them gone", || async {
        let series = "weir_streams_active{grpc_method=\"SubscribeMessages\",grpc_service=\"chat.ChatService\"}";
        (server.metric(series).await == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_log_is_named_and_another_one_refused() {
    let server = TestServer::start().await;
    for way in Way::all(&server) {
        let request = framed(&send("general", "ann", "hi"));
        let reply = way.call(SEND, &[], &request).await;
        let id = reply.headers["log-id"].to_str().unwrap().to_owned();
        assert_eq!(id.len(), 32, "{way:?}");
        let mut named = way.call(SEND, &[("log-id", &id)], &request).await;
        named.message::<SendMessageResponse>().await;
        assert_eq!(named.trailers().await["grpc-status"], "0", "{way:?}");
        let other = LogId::random().to_string();
        let request = framed(&follow("general", Some(1)));
        let refused = way.call(SUBSCRIBE, &[("log-id", &other)], &request).await;
        assert_eq!(refused.headers["log-id"], id, "{way:?}");
        let trailers = refused.trailers().await;
        assert_eq!(trailers["grpc-status"], "11", "{way:?}");
        assert!(trailers.contains_key("grpc-status-details-bin"));
    }
}

#[tokio::test]
async fn errors_come_with_their_details() {
    let server = TestServer::start().await;
    for way in Way::all(&server) {
        let trailers = way
            .call(SEND, &[], &framed(&send("general", "", "")))
            .await
            .trailers()
            .await;
        assert_eq!(trailers["grpc-status"], "3", "{way:?}");
        assert_eq!(trailers["grpc-message"], "user%20is%20required");
        assert!(trailers.contains_key("grpc-status-details-bin"));
        let request = follow("general", Some(u64::MAX));
        let trailers = way
            .call(SUBSCRIBE, &[], &framed(&request))
            .await
            .trailers()
            .await;
        assert_eq!(trailers["grpc-status"], "11", "{way:?}");
        let trailers = way
            .call("/chat.ChatService/Nothing", &[], &frame(0, b""))
            .await
            .trailers()
            .await;
        assert_eq!(trailers["grpc-status"], "12", "{way:?}");
    }
}

#[tokio::test]
async fn a_deadline_ends_an_open_stream_with_trailers() {
    let server = TestServer::start().await;
    for way in Way::all(&server) {
        let begun = Instant::now();
        let request = framed(&follow("general", None));
        let mut reply = way
            .call(SUBSCRIBE, &[("grpc-timeout", "200m")], &request)
            .await;
        reply.message::<Message>().await;
        let trailers = reply.trailers().await;
        assert_eq!(trailers["grpc-status"], "4", "{way:?}");
        assert!(begun.elapsed() >= Duration::from_millis(200));
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_web_call_is_told() {
    let server = TestServer::start().await;
    for way in Way::all(&server) {
        for wrong in [
            &frame(0, b"\xff\xff")[..],
            &frame(1, b"")[..],
            b"\0\0\0\0\x09abc",
            b"",
        ] {
            let trailers = way.call(SEND, &[], wrong).await.trailers().await;
            assert_eq!(
                trailers["grpc-status"], "3",
                "{way:?} {wrong:?}: {trailers:?}"
            );
        }
    }
    let text = Way {
        address: server.grpc(),
        version: Version::HTTP_11,
        kind: TEXT,
    };
    let request = Request::post(format!("http://{}{SEND}", text.address))
        .header("content-type", TEXT)
        .body(Bytes::from_static(b"no base64 at all!"));
    let response = exchange(text.address, request.unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["grpc-status"], "3", "{response:?}");
}

/// A browser's question before a call from `origin`.
async fn preflight(address: SocketAddr, version: Version, origin: &str) -> Response<Incoming> {
    let request = Request::options(format!("http://{address}{SEND}"))
        .version(version)
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "content-type,x-grpc-web,grpc-timeout,traceparent",
        )
        .body(Bytes::new());
    exchange(address, request.unwrap()).await
}

/// Where preflights are asked.
fn places(server: &TestServer) -> [(SocketAddr, Version); 4] {
    [
        (server.grpc(), Version::HTTP_11),
        (server.grpc(), Version::HTTP_2),
        (server.http(), Version::HTTP_11),
        (server.http(), Version::HTTP_2),
    ]
}

fn header<'r>(response: &'r Response<Incoming>, name: &str) -> Option<&'r str> {
    response
        .headers()
        .get(name)
        .map(|value| value.to_str().unwrap())
}

/// The origin that a call from `origin` allows, and what it exposes.
async fn called(server: &TestServer, origin: &str) -> HeaderMap {
    let way = Way::all(server)[0];
    let mut reply = way
        .call(
            SEND,
            &[("origin", origin)],
            &framed(&send("general", "ann", "")),
        )
        .await;
    reply.message::<SendMessageResponse>().await;
    reply.headers
}

#[tokio::test]
async fn any_page_may_call_by_default() {
    let server = TestServer::start().await;
    for (address, version) in places(&server) {
        let response = preflight(address, version, PAGE).await;
        assert!(response.status().is_success(), "{response:?}");
        assert_eq!(header(&response, "access-control-allow-origin"), Some("*"));
        let methods = header(&response, "access-control-allow-methods").unwrap();
        assert!(
            methods.split(',').any(|method| method == "POST"),
            "{methods}"
        );
        let headers = header(&response, "access-control-allow-headers");
        assert_eq!(
            headers,
            Some("content-type,x-grpc-web,grpc-timeout,traceparent")
        );
        assert_eq!(header(&response, "access-control-max-age"), Some("3600"));
    }
    let headers = called(&server, PAGE).await;
    assert_eq!(headers["access-control-allow-origin"], "*");
    let exposed = headers["access-control-expose-headers"].to_str().unwrap();
    let exposed: Vec<_> = exposed.split(',').collect();
    for name in [
        "grpc-status",
        "grpc-message",
        "grpc-status-details-bin",
        "grpc-retry-pushback-ms",
        "after-sequence",
        "log-id",
    ] {
        assert!(exposed.contains(&name), "{name} in {exposed:?}");
    }
}

#[tokio::test]
async fn only_listed_pages_may_call() {
    let listed = format!("{PAGE},http://127.0.0.1:3000");
    let server = TestServer::with(Settings::default().set("cors.allowed_origins", listed)).await;
    for (address, version) in places(&server) {
        for origin in [PAGE, "http://127.0.0.1:3000"] {
            let response = preflight(address, version, origin).await;
            assert_eq!(
                header(&response, "access-control-allow-origin"),
                Some(origin)
            );
            let vary = header(&response, "vary").unwrap_or_default().to_lowercase();
            assert!(
                vary.contains("origin"),
                "a cache must not mix them up: {vary:?}"
            );
        }
        for origin in [
            "https://evil.example.org",
            "http://chat.example.org",
            "null",
            "*",
        ] {
            let response = preflight(address, version, origin).await;
            assert_eq!(
                header(&response, "access-control-allow-origin"),
                None,
                "{origin}"
            );
        }
    }
    assert_eq!(
        called(&server, PAGE).await["access-control-allow-origin"],
        PAGE
    );
    assert!(
        !called(&server, "https://evil.example.org")
            .await
            .contains_key("access-control-allow-origin")
    );
}

#[tokio::test]
async fn no_page_may_call_where_none_is_listed() {
    let server = TestServer::with(Settings::default().set("cors.allowed_origins", "")).await;
    for (address, version) in places(&server) {
        let response = preflight(address, version, PAGE).await;
        let allowed = response
            .headers()
            .keys()
            .filter(|name| name.as_str().starts_with("access-control-allow-"));
        assert_eq!(allowed.count(), 0, "{response:?}");
    }
    let request = SubscribeRequest {
        user: String::new(),
        ..follow("general", None)
    };
    let trailers = Way::all(&server)[0]
        .call(SUBSCRIBE, &[], &framed(&request))
        .await
        .trailers()
        .await;
    assert_eq!(trailers["grpc-status"], "3", "what is no browser is served");
}
