//! Files over HTTP: ranges, validators and headers, on both versions, and what a drain does to a download.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::{
    file_support::{Clients, content, sha256, store},
    support::{Settings, TestServer, soon},
};

/// One request on a connection of its own.
async fn ask(
    address: SocketAddr,
    version: Version,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Response<Incoming> {
    let mut request = Request::builder()
        .method(method)
        .version(version)
        .uri(format!("http://{address}{path}"))
        .header("host", "test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let socket = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let answer = async {
        if version == Version::HTTP_2 {
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

struct Whole {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Whole {
    #[track_caller]
    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
            .to_str()
            .unwrap()
    }
}

async fn get(server: &TestServer, path: &str, headers: &[(&str, &str)]) -> Whole {
    let response = ask(server.http(), Version::HTTP_11, Method::GET, path, headers).await;
    whole(response).await
}

async fn whole(response: Response<Incoming>) -> Whole {
    let (head, body) = response.into_parts();
    let body = soon("a body", body.collect()).await.unwrap().to_bytes();
    Whole {
        status: head.status,
        headers: head.headers,
        body,
    }
}

/// A server with one file, and the file's path.
async fn with_file(bytes: &[u8]) -> (TestServer, String) {
    file_on(TestServer::start().await, bytes).await
}

async fn file_on(server: TestServer, bytes: &[u8]) -> (TestServer, String) {
    let mut clients = Clients::of(&server).await;
    let id = store(&mut clients, "a b.txt", bytes).await.file_id;
    (server, format!("/files/{id}"))
}

#[tokio::test]
async fn a_file_is_served_with_all_its_headers() {
    let bytes = content(1_000_000);
    let (server, path) = with_file(&bytes).await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for method in [Method::GET, Method::HEAD] {
            let response = ask(server.http(), version, method.clone(), &path, &[]).await;
            let response = whole(response).await;
            assert_eq!(response.status, StatusCode::OK);
            for (name, value) in [
                ("content-type", "text/x-test"),
                ("content-length", "1000000"),
                ("etag", &format!("\"{}\"", sha256(&bytes))),
                ("accept-ranges", "bytes"),
                ("x-content-type-options", "nosniff"),
                ("content-security-policy", "default-src 'none'; sandbox"),
                (
                    "content-disposition",
                    "attachment; filename=\"a b.txt\"; filename*=UTF-8''a%20b.txt",
                ),
            ] {
                assert_eq!(response.header(name), value);
            }
            let modified = response.header("last-modified");
            assert!(
                modified.ends_with(" GMT") && modified.len() == 29,
                "{modified}"
            );
            match method {
                Method::GET => assert!(response.body == bytes),
                _ => assert!(response.body.is_empty()),
            }
        }
    }
}

#[tokio::test]
async fn ranges_are_served_as_http_has_them() {
    let bytes = content(500_000);
    let (server, path) = with_file(&bytes).await;
    for (asked, range) in [
        ("bytes=0-0", 0..1),
        ("bytes=100000-400000", 100_000..400_001),
        ("bytes=499999-", 499_999..500_000),
        ("bytes=-10", 499_990..500_000),
        ("bytes=10-999999999", 10..500_000),
    ] {
        let response = get(&server, &path, &[("range", asked)]).await;
        assert_eq!(response.status, StatusCode::PARTIAL_CONTENT, "{asked}");
        let text = format!("bytes {}-{}/500000", range.start, range.end - 1);
        assert_eq!(response.header("content-range"), text);
        assert!(response.body == bytes[range], "{asked}");
    }
    for asked in ["bytes=500000-", "bytes=-0"] {
        let response = get(&server, &path, &[("range", asked)]).await;
        assert_eq!(response.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(response.header("content-range"), "bytes */500000");
        assert!(response.body.is_empty());
    }
    // What is no single range is answered with the whole file.
    for asked in ["bytes=0-1,4-5", "lines=1-2", "bytes=5-1"] {
        let response = get(&server, &path, &[("range", asked)]).await;
        assert_eq!(
            (response.status, response.body.len()),
            (StatusCode::OK, 500_000)
        );
    }
}

#[tokio::test]
async fn validators_spare_what_is_known_and_guard_ranges() {
    let (server, path) = with_file(b"hello").await;
    let first = get(&server, &path, &[]).await;
    let (etag, modified) = (first.header("etag"), first.header("last-modified"));
    let weak = format!("W/{etag}");
    let list = format!("\"x\", {etag}");
    for (name, value) in [
        ("if-none-match", etag),
        ("if-none-match", &weak),
        ("if-none-match", &list),
        ("if-none-match", "*"),
        ("if-modified-since", modified),
    ] {
        let response = get(&server, &path, &[(name, value)]).await;
        assert_eq!(response.status, StatusCode::NOT_MODIFIED, "{name}: {value}");
        assert_eq!(response.header("etag"), etag);
        assert!(response.body.is_empty());
    }
    let response = get(&server, &path, &[("if-none-match", "\"x\"")]).await;
    assert_eq!(response.status, StatusCode::OK);
    for (version, status) in [
        (etag, StatusCode::PARTIAL_CONTENT),
        (modified, StatusCode::PARTIAL_CONTENT),
        ("\"x\"", StatusCode::OK),
        (&weak, StatusCode::OK),
    ] {
        let asked = [("range", "bytes=1-2"), ("if-range", version)];
        let response = get(&server, &path, &asked).await;
        assert_eq!(response.status, status, "{version}");
    }
}

#[tokio::test]
async fn what_is_no_file_is_not_found() {
    let (server, path) = with_file(b"hello").await;
    for path in [
        "/files/nope",
        "/files/file-00000000000000000000000000000000",
        "/files/..%2f..%2f..%2fetc%2fpasswd",
        "/files/../data/weir",
        "/files/meta/x.json",
        &format!("{path}/"),
        &format!("{path}%00"),
    ] {
        let response = get(&server, path, &[]).await;
        assert_eq!(response.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(response.body, "not found\n", "{path}");
    }
    let response = ask(server.http(), Version::HTTP_11, Method::DELETE, &path, &[]).await;
    assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn an_empty_file_is_served() {
    let (server, path) = with_file(b"").await;
    let response = get(&server, &path, &[]).await;
    assert_eq!(response.status, StatusCode::OK);
    assert_eq!(response.header("content-length"), "0");
    let response = get(&server, &path, &[("range", "bytes=0-")]).await;
    assert_eq!(response.status, StatusCode::RANGE_NOT_SATISFIABLE);
}

#[tokio::test]
async fn no_name_gets_out_of_its_header() {
    let server = TestServer::start().await;
    let mut clients = Clients::of(&server).await;
    for (name, expected) in [
        (
            "../../etc/passwd",
            "attachment; filename=\".._.._etc_passwd\"; filename*=UTF-8''.._.._etc_passwd",
        ),
        (
            "\"x\"; naïve\u{202e}.txt",
            "attachment; filename=\"_x_; na_ve_.txt\"; filename*=UTF-8''%22x%22%3B%20na%C3%AFve_.txt",
        ),
    ] {
        let id = store(&mut clients, name, b"x").await.file_id;
        let response = get(&server, &format!("/files/{id}"), &[]).await;
        assert_eq!(response.header("content-disposition"), expected);
    }
}

#[tokio::test]
async fn a_drain_ends_downloads_and_the_process() {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let settings = Settings::default().set("drain.timeout", "1s");
        let server = TestServer::with(settings).await;
        let (mut server, path) = file_on(server, &content(32 * 1024 * 1024)).await;
        let response = ask(server.http(), version, Method::GET, &path, &[]).await;
        let mut body = response.into_body();
        soon("the first bytes", body.frame())
            .await
            .unwrap()
            .unwrap();
        server.terminate();
        // Nothing is read before it is gone: a client that is fast enough would get the whole file.
        assert_eq!(server.exit_code().await, Some(0));
        let rest = soon("the body's end", async move {
            while let Some(frame) = body.frame().await {
                frame?;
            }
            Ok::<_, hyper::Error>(())
        });
        assert!(rest.await.is_err(), "a cut body must not look complete");
    }
}
