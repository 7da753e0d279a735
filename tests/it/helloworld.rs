//! The three `helloworld` services, as their tutorial's clients use them.

use std::time::{Duration, Instant};

use futures::stream;
use tonic::Code;
use weir::proto::helloworld::{
    AllStreamReq, ClientStreamReq, ServerStreamReq,
    all_stream_server_client::AllStreamServerClient,
    client_stream_server_client::ClientStreamServerClient,
    server_stream_server_client::ServerStreamServerClient,
};

use crate::support::{Settings, TestServer, next, soon};

#[tokio::test]
async fn server_stream_answers_five_times() {
    let server = TestServer::start().await;
    let mut client = ServerStreamServerClient::new(server.channel().await);
    let request = ServerStreamReq { data: "1".into() };
    let mut stream = client.server_stream(request).await.unwrap().into_inner();
    for _ in 0..5 {
        assert_eq!(next(&mut stream).await.data, "1");
    }
    assert!(soon("the end", stream.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn client_stream_joins_everything_by_commas() {
    let server = TestServer::start().await;
    let mut client = ClientStreamServerClient::new(server.channel().await);
    let parts = |texts: &'static [&'static str]| {
        stream::iter(texts.iter().map(|data| ClientStreamReq {
            data: (*data).into(),
        }))
    };
    let joined = client
        .client_stream(parts(&["0", "1", "", "3", "4"]))
        .await
        .unwrap();
    assert_eq!(joined.into_inner().data, "0,1,,3,4");
    let nothing = client.client_stream(parts(&[])).await.unwrap();
    assert_eq!(nothing.into_inner().data, "");
}

#[tokio::test]
async fn client_stream_refuses_more_than_one_message_may_hold() {
    let settings = Settings::default()
        .set("limits.message", "64KiB")
        .set("log.queue", "1MiB");
    let server = TestServer::with(settings).await;
    let mut client = ClientStreamServerClient::new(server.channel().await);
    let part = ClientStreamReq {
        data: "x".repeat(40_000),
    };
    let status = client
        .client_stream(stream::iter([part.clone(), part]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

#[tokio::test]
async fn all_stream_counts_by_the_second_and_ends_when_both_sides_are_done() {
    let server = TestServer::start().await;
    let mut client = AllStreamServerClient::new(server.channel().await);
    let (requests, incoming) = tokio::sync::mpsc::channel(8);
    let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
    let started = Instant::now();
    let mut stream = client.all_stream(incoming).await.unwrap().into_inner();
    for number in 0..5 {
        requests
            .send(AllStreamReq {
                data: number.to_string(),
            })
            .await
            .unwrap();
        assert_eq!(next(&mut stream).await.data, number.to_string());
    }
    let counted = started.elapsed();
    assert!(
        counted >= Duration::from_secs(4),
        "five numbers within {counted:?}"
    );
    let ends = tokio::time::timeout(Duration::from_millis(300), stream.message()).await;
    assert!(
        ends.is_err(),
        "the stream ended although the client may still send"
    );
    drop(requests);
    assert!(soon("the end", stream.message()).await.unwrap().is_none());
}
