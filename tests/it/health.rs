//! Health and reflection over real sockets.

use std::{fs::File, process::Stdio};

use prost::Message as _;
use prost_types::FileDescriptorProto;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use tonic::{Code, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};
use tonic_reflection::pb::{v1, v1alpha};

use crate::support::{
    Settings, TestServer,
    errors::{info, retry_after},
    follow, next, send, soon,
};

fn of(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.into(),
    }
}

async fn health(server: &TestServer) -> HealthClient<tonic::transport::Channel> {
    HealthClient::new(server.channel().await)
}

async fn check(server: &TestServer, service: &str) -> ServingStatus {
    let checked = health(server).await.check(of(service)).await;
    checked.unwrap().into_inner().status()
}

async fn watch(server: &TestServer, service: &str) -> Streaming<HealthCheckResponse> {
    health(server)
        .await
        .watch(of(service))
        .await
        .unwrap()
        .into_inner()
}

#[tokio::test]
async fn the_server_and_its_services_are_serving_and_others_unknown() {
    let server = TestServer::start().await;
    for service in ["", "chat.ChatService", "liveness"] {
        assert_eq!(
            check(&server, service).await,
            ServingStatus::Serving,
            "{service:?}"
        );
        let mut watch = watch(&server, service).await;
        assert_eq!(
            next(&mut watch).await.status(),
            ServingStatus::Serving,
            "{service:?}"
        );
    }
    for service in ["chat.chatservice", "unknown", " "] {
        let mut health = health(&server).await;
        assert_eq!(
            health.check(of(service)).await.unwrap_err().code(),
            Code::NotFound
        );
        assert_eq!(
            health.watch(of(service)).await.unwrap_err().code(),
            Code::NotFound
        );
    }
}

#[tokio::test]
async fn nothing_but_liveness_is_serving_before_the_log_is_recovered() {
    // The engine opens its lock file for writing, which waits for a reader where that file is a pipe.
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let pipe = dir.path().join("data/lock");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let server = TestServer::starting(dir, Settings::default(), Stdio::inherit()).await;

    let mut watches = Vec::new();
    for service in ["", "chat.ChatService"] {
        assert_eq!(
            check(&server, service).await,
            ServingStatus::NotServing,
            "{service:?}"
        );
        let mut watch = watch(&server, service).await;
        assert_eq!(next(&mut watch).await.status(), ServingStatus::NotServing);
        watches.push(watch);
    }
    assert_eq!(check(&server, "liveness").await, ServingStatus::Serving);
    let ready = server.admin_get("/readyz").await;
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.ends_with("recovering\n"),
        "{ready}"
    );
    assert!(server.admin_get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(
        server
            .admin_get("/metrics")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let mut chat = server.chat().await;
    let refused = [
        chat.send_message(send("general", "ann", "hi"))
            .await
            .unwrap_err(),
        chat.subscribe_messages(follow("general", None))
            .await
            .unwrap_err(),
    ];
    for status in refused {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert_eq!(status.message(), "the log is being recovered");
        assert_eq!(info(&status).0, "STORAGE_UNAVAILABLE");
        assert!(retry_after(&status).is_some());
    }
    assert!(!services(&server).await.is_empty(), "reflection answers");

    let reader = rustix::fs::open(&pipe, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty());
    let _reader = File::from(reader.unwrap());
    for watch in &mut watches {
        assert_eq!(next(watch).await.status(), ServingStatus::Serving);
    }
    server.ready().await;
    chat.send_message(send("general", "ann", "hi"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_stop_during_recovery_is_obeyed() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    let pipe = dir.path().join("data/lock");
    rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut server = TestServer::starting(dir, Settings::default(), Stdio::inherit()).await;
    assert_eq!(check(&server, "").await, ServingStatus::NotServing);
    server.terminate();
    assert_eq!(server.exit_code().await, Some(0));
}

/// What one request to reflection v1 is answered with.
async fn ask(
    server: &TestServer,
    request: v1::server_reflection_request::MessageRequest,
) -> v1::server_reflection_response::MessageResponse {
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await;
    next(&mut answers.unwrap().into_inner())
        .await
        .message_response
        .unwrap()
}

async fn services(server: &TestServer) -> Vec<String> {
    use v1::{
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    match ask(server, MessageRequest::ListServices(String::new())).await {
        MessageResponse::ListServicesResponse(list) => {
            list.service.into_iter().map(|one| one.name).collect()
        }
        other => panic!("{other:?}"),
    }
}

const SERVICES: [&str; 4] = [
    "chat.ChatService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// That these are chat.proto's file with its comments, and what it imports.
fn assert_chat_proto(files: &[Vec<u8>]) {
    let files: Vec<_> = files
        .iter()
        .map(|file| FileDescriptorProto::decode(&file[..]).unwrap())
        .collect();
    let chat = files
        .iter()
        .find(|file| file.name() == "chat.proto")
        .unwrap();
    assert_eq!(chat.package(), "chat");
    assert_eq!(chat.service[0].name(), "ChatService");
    let locations = &chat
        .source_code_info
        .as_ref()
        .expect("source information")
        .location;
    // Service 0, and its method 1.
    for (path, comment) in [(&[6, 0][..], "Rooms:"), (&[6, 0, 2, 1], "Follows a room")] {
        let location = locations.iter().find(|one| one.path == path).unwrap();
        assert!(
            location
                .leading_comments()
                .trim_start()
                .starts_with(comment),
            "{location:?}"
        );
    }
}

#[tokio::test]
async fn reflection_lists_every_service_and_describes_the_chat_with_its_comments() {
    use v1::{
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = TestServer::start().await;
    let mut listed = services(&server).await;
    listed.sort();
    for service in SERVICES {
        assert!(
            listed.iter().any(|one| one == service),
            "{service} in {listed:?}"
        );
    }
    // What is served has its health.
    for service in listed.iter().filter(|name| !name.starts_with("grpc.")) {
        assert_eq!(
            check(&server, service).await,
            ServingStatus::Serving,
            "{service}"
        );
    }
    for request in [
        MessageRequest::FileContainingSymbol("chat.ChatService".into()),
        MessageRequest::FileContainingSymbol("chat.ChatService.Chat".into()),
        MessageRequest::FileContainingSymbol("chat.Message".into()),
        MessageRequest::FileByFilename("chat.proto".into()),
    ] {
        match ask(&server, request).await {
            MessageResponse::FileDescriptorResponse(files) => {
                assert_chat_proto(&files.file_descriptor_proto)
            }
            other => panic!("{other:?}"),
        }
    }
    for name in ["google/protobuf/timestamp.proto", "chat.proto"] {
        match ask(&server, MessageRequest::FileByFilename(name.into())).await {
            MessageResponse::FileDescriptorResponse(files) => {
                assert!(!files.file_descriptor_proto.is_empty())
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn the_older_reflection_tells_the_same() {
    use v1alpha::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let server = TestServer::start().await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let requests = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("chat.ChatService".into()),
    ];
    let requests = requests.map(|request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    });
    let answers = client
        .server_reflection_info(tokio_stream::iter(requests))
        .await;
    let mut answers = answers.unwrap().into_inner();
    match next(&mut answers).await.message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => {
            let mut names: Vec<_> = list.service.into_iter().map(|one| one.name).collect();
            names.sort();
            let mut listed = services(&server).await;
            listed.sort();
            assert_eq!(names, listed);
        }
        other => panic!("{other:?}"),
    }
    match next(&mut answers).await.message_response.unwrap() {
        MessageResponse::FileDescriptorResponse(files) => {
            assert_chat_proto(&files.file_descriptor_proto)
        }
        other => panic!("{other:?}"),
    }
    assert!(soon("the end", answers.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    let server = TestServer::with(Settings::default().set("server.reflection", false)).await;
    let mut client =
        v1::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let status = client
        .server_reflection_info(tokio_stream::iter([]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert_eq!(check(&server, "").await, ServingStatus::Serving);
}
