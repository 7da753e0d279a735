//! What no honest client sends. Whatever it is, it is answered as the protocol says or its connection ends; the server goes
//! on and holds nothing of it.

use std::net::SocketAddr;

use http::{Method, Request, StatusCode};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;
use weir::proto::chat::Message;

use crate::support::{
    Settings, TestServer,
    errors::{fields, info},
    eventually, follow, next,
    raw::{Answer, Raw, data, frame, framed, rest},
    send, soon,
};

const SEND: &str = "/chat.ChatService/SendMessage";
const SUBSCRIBE: &str = "/chat.ChatService/SubscribeMessages";
const UPLOAD: &str = "/chat.ChatService/UploadMessages";
const CHAT: &str = "/chat.ChatService/Chat";
const METHODS: [&str; 4] = [SEND, SUBSCRIBE, UPLOAD, CHAT];
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame that says nothing: SETTINGS without any.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Asserts that the server still serves and holds nothing.
async fn is_well(server: &TestServer) {
    let mut reader = server.chat().await;
    let mut stream = reader
        .subscribe_messages(follow("still here", None))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    let mut writer = server.chat().await;
    let sent = writer
        .send_message(send("still here", "ann", "hi"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.sequence, sent.sequence);
    drop((stream, reader, writer));
    eventually("an idle server", || async {
        let text = server.admin_get("/metrics").await;
        let streams = text
            .lines()
            .filter(|line| line.starts_with("weir_streams_active{"));
        let is_idle = streams.into_iter().all(|line| line.ends_with(" 0"))
            // The one that asks, and the canary's subscription.
            && text.contains("\nweir_connections_active 1\n")
            && text.contains("\nweir_subscribers{source=\"tail\"} 1\n")
            && text.contains("\nweir_tails 1\n");
        is_idle.then_some(())
    })
    .await;
}

/// Writes all of `bytes`, unless the server closes before, and reads until it does.
async fn talk(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let (mut reading, mut writing) = socket.split();
    let mut answer = Vec::new();
    let exchange = async {
        let write = async {
            let _ = writing.write_all(bytes).await;
        };
        let read = async {
            let _ = reading.read_to_end(&mut answer).await;
        };
        tokio::join!(write, read);
    };
    soon("the connection to end", exchange).await;
    answer
}

/// The status line of an HTTP/1.1 answer.
async fn status_line(address: SocketAddr, request: &str) -> String {
    let answer = talk(address, request.as_bytes()).await;
    let text = String::from_utf8_lossy(&answer);
    text.lines().next().unwrap_or_default().to_owned()
}

/// The error code of the GOAWAY among the frames in `bytes`.
fn goaway(mut bytes: &[u8]) -> Option<u32> {
    while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let (payload, rest) = rest.split_at_checked(length)?;
        if *kind == 7 {
            return Some(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
        }
        bytes = rest;
    }
    None
}

/// An HTTP/2 frame.
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block that begins a call, without compression.
fn call_of(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "weir"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

#[tokio::test]
async fn messages_that_do_not_decode_are_bad_arguments() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    let mut truncated = framed(&send("general", "ann", "hi")).to_vec();
    truncated.pop();
    let wrong = [
        ("no protobuf", frame(0, b"\xff\xff\xff").to_vec()),
        (
            "a string that is no UTF-8",
            frame(0, b"\x0a\x02\xff\xfe").to_vec(),
        ),
        ("compressed without saying how", frame(1, b"").to_vec()),
        ("an unknown flag", frame(2, b"").to_vec()),
        ("every flag", frame(255, b"x").to_vec()),
        ("truncated", truncated),
        ("half a prefix", vec![0, 0, 0]),
    ];
    for path in METHODS {
        for (what, body) in &wrong {
            let answer = raw.call(path, &[], body.clone()).await;
            let status = answer.status();
            assert_eq!(answer.http, StatusCode::OK);
            assert_eq!(
                status.code(),
                Code::InvalidArgument,
                "{path} {what}: {status:?}"
            );
            assert_eq!(fields(&status), ["message"], "{path} {what}");
            assert_eq!(info(&status).0, "INVALID_ARGUMENT", "{path} {what}");
        }
    }
    for path in [SEND, SUBSCRIBE] {
        let status = raw.call(path, &[], "").await.status();
        assert_eq!(
            status.code(),
            Code::InvalidArgument,
            "{path} without a message: {status:?}"
        );
        assert_eq!(fields(&status), ["message"], "{path}");
    }
    is_well_beside(&server, raw).await;
}

/// [`is_well`], once `raw` has been seen to work and is closed.
async fn is_well_beside(server: &TestServer, raw: Raw) {
    let answer = raw
        .call(SEND, &[], framed(&send("general", "ann", "hi")))
        .await;
    assert_eq!(answer.code(), Code::Ok, "the connection itself goes on");
    drop(raw);
    is_well(server).await;
}

#[tokio::test]
async fn a_message_of_a_false_length_is_refused_before_it_is_read() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    for path in METHODS {
        let answer = raw.call(path, &[], &b"\0\xff\xff\xff\xffabc"[..]).await;
        let status = answer.status();
        assert_eq!(status.code(), Code::ResourceExhausted, "{path}: {status:?}");
        assert_eq!(info(&status).0, "LIMIT_EXCEEDED");
    }
    is_well_beside(&server, raw).await;
}

#[tokio::test]
async fn compressed_requests_are_unimplemented() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    for path in METHODS {
        for encoding in ["gzip", "zstd", "snappy", "nonsense"] {
            let answer = raw
                .call(path, &[("grpc-encoding", encoding)], frame(1, b"abc"))
                .await;
            assert_eq!(
                answer.code(),
                Code::Unimplemented,
                "{path} {encoding}: {answer:?}"
            );
        }
    }
    let request = framed(&send("general", "ann", "hi"));
    let answer = raw
        .call(SEND, &[("grpc-encoding", "identity")], request)
        .await;
    assert_eq!(answer.code(), Code::Ok, "{answer:?}");
    is_well_beside(&server, raw).await;
}

#[tokio::test]
async fn unknown_paths_are_unimplemented() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    let paths = [
        "/",
        "/chat.ChatService",
        "/chat.ChatService/",
        "/chat.ChatService/Nothing",
        "/chat.ChatService/sendmessage",
        "/chat.ChatService/SendMessage/",
        "/chat.ChatService/SendMessage/x",
        "/ChatService/SendMessage",
        "/nothing.Service/Method",
        "//",
        "/%00/%ff",
        "/metrics",
    ];
    for path in paths {
        let answer = raw
            .call(path, &[], framed(&send("general", "ann", "hi")))
            .await;
        assert_eq!(answer.http, StatusCode::OK, "{path}");
        assert_eq!(answer.code(), Code::Unimplemented, "{path}: {answer:?}");
    }
    let series = "grpc_server_handled_total{grpc_code=\"Unimplemented\",grpc_method=\"other\",grpc_service=\"other\",grpc_type=\"unary\"}";
    let counted = server.metric(series).await;
    assert_eq!(counted, 12.0, "one series for all of them");
    is_well_beside(&server, raw).await;
}

#[tokio::test]
async fn what_is_no_grpc_request_is_refused_in_http() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::HEAD] {
        let request = Request::builder()
            .method(method.clone())
            .uri("http://weir/chat.ChatService/SendMessage");
        let (response, mut sending) = raw.send(request.body(()).unwrap()).await;
        sending.send_data("".into(), true).unwrap();
        let answer = Answer::of(response).await;
        assert_eq!(answer.http, StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_eq!(answer.headers["allow"], "POST");
    }
    for kind in ["application/json", "text/plain", "application/xgrpc", ""] {
        let answer = raw.call(SEND, &[("content-type", kind)], "").await;
        assert_eq!(answer.http, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{kind:?}");
    }
    let http1 = |head: &str| {
        format!("{head}\r\nhost: weir\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
    };
    for (head, expected) in [
        ("GET / HTTP/1.1", "HTTP/1.1 405"),
        ("GET /chat.ChatService/SendMessage HTTP/1.1", "HTTP/1.1 405"),
        (
            "POST /chat.ChatService/SendMessage HTTP/1.1",
            "HTTP/1.1 415",
        ),
        (
            "POST / HTTP/1.1\r\ncontent-type: application/json",
            "HTTP/1.1 415",
        ),
        (
            "POST /chat.ChatService/SendMessage HTTP/1.1\r\ncontent-type: application/grpc",
            "HTTP/1.1 505",
        ),
        (
            "GET / HTTP/1.1\r\ncontent-type: application/grpc-web",
            "HTTP/1.1 405",
        ),
        ("BREW /pot HTTP/1.1", "HTTP/1.1 405"),
        ("nonsense", "HTTP/1.1 400"),
        ("GET / HTTP/9.9", "HTTP/1.1 400"),
    ] {
        let line = status_line(server.grpc(), &http1(head)).await;
        assert!(line.starts_with(expected), "{head:?}: {line:?}");
    }
    is_well_beside(&server, raw).await;
}

#[tokio::test]
async fn large_headers_pass_and_oversize_ones_are_refused() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    let request = framed(&send("general", "ann", "hi"));
    let answer = raw
        .call(
            SEND,
            &[("x-large", &"x".repeat(32 * 1024))],
            request.clone(),
        )
        .await;
    assert_eq!(answer.code(), Code::Ok, "{answer:?}");
    let answer = raw
        .call(SEND, &[("x-large", &"x".repeat(80 * 1024))], request)
        .await;
    assert_eq!(answer.http, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    is_well_beside(&server, raw).await;

    let large = format!(
        "GET / HTTP/1.1\r\nx-large: {}\r\n\r\n",
        "x".repeat(200 * 1024)
    );
    let line = status_line(server.grpc(), &large).await;
    assert!(
        line.is_empty() || line.starts_with("HTTP/1.1 431"),
        "{line:?}"
    );
    is_well(&server).await;
}

#[tokio::test]
async fn a_connection_that_never_speaks_is_closed() {
    let server = TestServer::with(Settings::default().set("server.preface_timeout", "500ms")).await;
    let speaking = Raw::connect(server.grpc()).await;
    for (count, said) in [
        (1.0, &b""[..]),
        (2.0, b"P"),
        (3.0, &PREFACE[..16]),
        (4.0, &PREFACE[..23]),
    ] {
        assert_eq!(talk(server.grpc(), said).await, b"", "{said:?}");
        let series = "weir_connections_refused_total{reason=\"preface\"}";
        eventually("the count", || async {
            (server.metric(series).await == count).then_some(())
        })
        .await;
    }
    // The beginning of a request of HTTP/1.1 is no request either.
    let answer = talk(
        server.grpc(),
        b"POST /chat.ChatService/SendMessage HTTP/1.1\r\nx: ",
    )
    .await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer:?}"
    );
    talk(server.http(), b"").await;
    talk(server.admin(), b"").await;
    is_well_beside(&server, speaking).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let server = TestServer::with(Settings::default().set("server.max_connections", 2)).await;
    let mut held = vec![
        Raw::connect(server.grpc()).await,
        Raw::connect(server.http()).await,
    ];
    eventually("both places taken", || async {
        // The one that asks has a place of its own.
        (server.metric("weir_connections_active").await == 3.0).then_some(())
    })
    .await;
    assert_eq!(talk(server.grpc(), PREFACE).await, b"");
    let refused = server
        .metric("weir_connections_refused_total{reason=\"limit\"}")
        .await;
    assert_eq!(refused, 1.0, "and the admin port answers still");
    held.pop();
    let address = server.grpc();
    eventually("a place", || async move {
        let request = b"GET / HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n";
        (!talk(address, request).await.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn wrong_frames_end_their_connection_and_say_so() {
    let server = TestServer::start().await;
    let setting = |id: u16, value: u32| {
        let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        h2_frame(4, 0, 0, &payload)
    };
    let headers = |stream, block: &[u8]| h2_frame(1, 4, stream, block);
    let wrong = [
        ("settings of 5 bytes", h2_frame(4, 0, 0, b"abcde")),
        ("settings of a stream", h2_frame(4, 0, 1, b"")),
        (
            "an acknowledgement with content",
            h2_frame(4, 1, 0, b"abcdef"),
        ),
        ("a window too large", setting(4, u32::MAX)),
        ("frames too small", setting(5, 1)),
        ("push neither on nor off", setting(2, 7)),
        ("data without a stream", h2_frame(0, 0, 0, b"abc")),
        ("data of an idle stream", h2_frame(0, 0, 1, b"abc")),
        (
            "a reset of an idle stream",
            h2_frame(3, 0, 1, &[0, 0, 0, 8]),
        ),
        ("headers of an even stream", headers(2, &call_of(SEND))),
        ("headers that do not decode", headers(1, &[0xff; 9])),
        ("a window update of nothing", h2_frame(8, 0, 0, &[0; 4])),
        (
            "a window beyond its size",
            h2_frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
        ),
        ("a continuation of nothing", h2_frame(9, 4, 1, b"")),
        ("a ping of 7 bytes", h2_frame(6, 0, 0, b"1234567")),
        ("a push from a client", h2_frame(5, 4, 1, &[0, 0, 0, 2])),
        (
            "a frame too large",
            [&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1], &[0_u8; 64][..]].concat(),
        ),
    ];
    for (what, frames) in wrong {
        let answer = talk(server.grpc(), &[PREFACE, SETTINGS, &frames].concat()).await;
        let code = goaway(&answer);
        assert!(
            code.is_some_and(|code| code > 0),
            "{what}: {code:?} in {answer:?}"
        );
    }
    is_well(&server).await;
    let refused = server
        .metric("weir_connections_refused_total{reason=\"protocol\"}")
        .await;
    assert!(refused >= 17.0, "{refused}");
}

#[tokio::test]
async fn a_stream_too_many_is_refused_and_the_others_go_on() {
    let settings = Settings::default().set("server.max_streams_per_connection", 1);
    let server = TestServer::with(settings).await;
    let mut socket = TcpStream::connect(server.grpc()).await.unwrap();
    let request = framed(&follow("general", None));
    let first = [
        h2_frame(1, 4, 1, &call_of(SUBSCRIBE)),
        h2_frame(0, 1, 1, &request),
    ]
    .concat();
    let second = [
        h2_frame(1, 4, 3, &call_of(SUBSCRIBE)),
        h2_frame(0, 1, 3, &request),
    ]
    .concat();
    socket
        .write_all(&[PREFACE, SETTINGS, &first, &second].concat())
        .await
        .unwrap();
    let refusal = h2_frame(3, 0, 3, &[0, 0, 0, 7]);
    let mut answer = Vec::new();
    let read_until = async |socket: &mut TcpStream, answer: &mut Vec<u8>, part: &[u8]| {
        while !answer.windows(part.len()).any(|window| window == part) {
            let read = soon("more", socket.read_buf(answer)).await.unwrap();
            assert!(read > 0, "the connection goes on: {answer:?}");
        }
    };
    read_until(&mut socket, &mut answer, &refusal).await;
    let mut chat = server.chat().await;
    chat.send_message(send("general", "ann", "to stream one"))
        .await
        .unwrap();
    read_until(&mut socket, &mut answer, b"to stream one").await;
    drop((socket, chat));
    is_well(&server).await;
}

#[tokio::test]
async fn random_bytes_do_no_harm() {
    let server = TestServer::with(Settings::default().set("server.preface_timeout", "300ms")).await;
    let mut random = StdRng::seed_from_u64(0x57_45_49_52);
    for round in 0..60 {
        let mut bytes = match round % 3 {
            0 => Vec::new(),
            1 => [PREFACE, SETTINGS].concat(),
            _ => [PREFACE, SETTINGS, &h2_frame(1, 4, 1, &call_of(CHAT))].concat(),
        };
        let start = bytes.len();
        bytes.resize(start + random.random_range(1..5000), 0);
        random.fill_bytes(&mut bytes[start..]);
        let mut socket = TcpStream::connect(server.grpc()).await.unwrap();
        let _ = socket.write_all(&bytes).await;
        // Half of them wait for the server to close, half just go.
        if round % 2 == 0 && socket.shutdown().await.is_ok() {
            let mut answer = Vec::new();
            let _ = soon("the connection to end", socket.read_to_end(&mut answer)).await;
        }
    }
    is_well(&server).await;
}

#[tokio::test]
async fn random_messages_do_no_harm() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    let mut random = StdRng::seed_from_u64(0x50_52_4f_54);
    for round in 0..200 {
        let mut content = vec![0; random.random_range(0..200)];
        random.fill_bytes(&mut content);
        let answer = raw.call(METHODS[round % 4], &[], frame(0, &content)).await;
        assert_eq!(answer.http, StatusCode::OK);
        let code = answer.code();
        assert!(
            matches!(code, Code::Ok | Code::InvalidArgument),
            "{content:?}: {answer:?}"
        );
    }
    is_well_beside(&server, raw).await;
}

#[tokio::test]
async fn a_flood_of_resets_ends_at_most_its_own_connection() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let mut stream = chat
        .subscribe_messages(follow("general", None))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    for _ in 0..3 {
        let mut flood = [PREFACE, SETTINGS].concat();
        let request = framed(&follow("general", Some(0)));
        for id in (1..4001).step_by(2) {
            flood.extend(h2_frame(1, 4, id, &call_of(SUBSCRIBE)));
            flood.extend(h2_frame(0, 1, id, &request));
            flood.extend(h2_frame(3, 0, id, &[0, 0, 0, 8]));
        }
        flood.extend(h2_frame(7, 0, 0, &[0; 8]));
        talk(server.grpc(), &flood).await;
    }
    let sent = chat
        .send_message(send("general", "ann", "hi"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next(&mut stream).await.sequence, sent.sequence);
    drop((stream, chat));
    is_well(&server).await;
}

#[tokio::test]
async fn floods_of_settings_and_pings_that_nobody_reads_are_bounded() {
    let server = TestServer::start().await;
    let before = server.resident_bytes();
    let mut socket = TcpStream::connect(server.grpc()).await.unwrap();
    socket
        .write_all(&[PREFACE, SETTINGS].concat())
        .await
        .unwrap();
    let ping = h2_frame(6, 0, 0, &[0; 8]);
    let flood = [SETTINGS, &ping].concat().repeat(1000);
    // Until the server takes no more, or closes, or has taken twenty-six megabytes.
    let write = async {
        for _ in 0..1000 {
            let written = tokio::time::timeout(
                std::time::Duration::from_millis(500),
                socket.write_all(&flood),
            )
            .await;
            if !matches!(written, Ok(Ok(()))) {
                break;
            }
        }
    };
    soon("the flood", write).await;
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes for one connection");
    drop(socket);
    is_well(&server).await;
}

#[tokio::test]
async fn half_a_message_waits_and_leaves_nothing_when_its_client_goes() {
    let server = TestServer::start().await;
    let raw = Raw::connect(server.grpc()).await;
    let request = framed(&send("general", "ann", "hi"));
    let mut calls = Vec::new();
    for path in METHODS {
        let (response, mut sending) = raw.begin(path, &[]).await;
        sending.send_data(request.slice(..7), false).unwrap();
        calls.push((response, sending));
    }
    drop(calls);
    // A stream that its client resets after it began.
    let response = raw.open(SUBSCRIBE, &[], &follow("general", None)).await;
    let mut body = response.into_body();
    data(&mut body).await.expect("a welcome");
    drop(body);
    let (response, mut sending) = raw.begin(CHAT, &[("grpc-timeout", "1S")]).await;
    sending.send_data(request.slice(..3), false).unwrap();
    let response = soon("a response", response).await.unwrap();
    let (messages, status) = rest::<Message>(&mut response.into_body()).await;
    assert_eq!((messages.len(), status.code()), (0, Code::DeadlineExceeded));
    is_well_beside(&server, raw).await;
}
