//! The clients of `examples/`: one of each kind of stream, in three languages.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use weir::proto::{
    streaming::v1::{
        DownloadFileRequest, file_chunk, streaming_service_client::StreamingServiceClient,
    },
    weir::v1::{
        PublishNotificationRequest, ReplyToFeedbackRequest, WatchFeedbackRequest,
        feedback_desk_client::FeedbackDeskClient, publisher_client::PublisherClient,
    },
};

use crate::{
    support::{OWN_ADDRESS, Settings, TestServer, eventually, soon},
    tools::tool,
};

fn start(program: &str, args: &[&str]) -> Child {
    Command::new(tool(program))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

struct Talker {
    name: &'static str,
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Talker {
    /// Starts a client and waits until it is in the room.
    async fn start(name: &'static str, program: &str, args: &[&str]) -> Self {
        let mut process = start(program, args);
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut talker = Self {
            name,
            process,
            lines,
        };
        assert_eq!(
            talker.line().await,
            format!("System: Welcome to room general, {name}!")
        );
        talker
    }

    async fn line(&mut self) -> String {
        soon(self.name, self.lines.next_line())
            .await
            .unwrap()
            .unwrap_or_else(|| panic!("{} ended", self.name))
    }

    async fn say(&mut self, text: &str) {
        let stdin = self.process.stdin.as_mut().unwrap();
        stdin
            .write_all(format!("{text}\n").as_bytes())
            .await
            .unwrap();
    }
}

/// Everyone says something in turn, and everyone hears it.
async fn round(talkers: &mut [Talker], text: &str) {
    for speaker in 0..talkers.len() {
        talkers[speaker].say(text).await;
        let expected = format!("{}: {text}", talkers[speaker].name);
        for talker in &mut *talkers {
            assert_eq!(talker.line().await, expected, "what {} heard", talker.name);
        }
    }
}

/// The three clients: who they are, how they are started.
fn clients(address: &str) -> [(&'static str, &'static str, Vec<&str>); 3] {
    [
        (
            "py",
            "python",
            vec!["examples/python/chat.py", "py", "--address", address],
        ),
        (
            "js",
            "node",
            vec!["examples/node/chat.js", "js", "general", address],
        ),
        ("go", "go-chat", vec!["-user", "go", "-address", address]),
    ]
}

#[tokio::test]
async fn a_line_piped_into_an_example_is_said_and_shown() {
    let server = TestServer::start().await;
    let address = server.grpc().to_string();
    for (name, program, args) in clients(&address) {
        let mut process = start(program, &args);
        process
            .stdin
            .take()
            .unwrap()
            .write_all(b"in and out\n")
            .await
            .unwrap();
        let done = soon(name, process.wait_with_output()).await.unwrap();
        let shown = String::from_utf8_lossy(&done.stdout).into_owned();
        let expected = format!("System: Welcome to room general, {name}!\n{name}: in and out\n");
        assert_eq!((shown, done.status.code()), (expected, Some(0)));
    }
}

#[tokio::test]
async fn the_examples_talk_to_each_other_across_kill_9() {
    let mut server = TestServer::with(Settings::default().set("server.grpc", OWN_ADDRESS)).await;
    let address = server.grpc().to_string();
    let mut talkers = Vec::new();
    for (name, program, args) in clients(&address) {
        talkers.push(Talker::start(name, program, &args).await);
    }
    round(&mut talkers, "hello").await;
    server.kill().await;
    for talker in &mut talkers {
        talker.say("meanwhile").await;
    }
    let _server = server.restart_in_place().await;
    for talker in &mut talkers {
        let mut heard = Vec::new();
        for _ in 0..3 {
            heard.push(talker.line().await);
        }
        heard.sort();
        assert_eq!(
            heard,
            ["go: meanwhile", "js: meanwhile", "py: meanwhile"],
            "what {} heard",
            talker.name
        );
    }
    round(&mut talkers, "welcome back").await;
    for mut talker in talkers {
        drop(talker.process.stdin.take());
        assert_eq!(
            soon(talker.name, talker.lines.next_line()).await.unwrap(),
            None,
            "{} goes on",
            talker.name
        );
        let status = soon(talker.name, talker.process.wait()).await.unwrap();
        assert!(status.success(), "{}: {status}", talker.name);
    }
}

#[tokio::test]
async fn the_examples_end_where_the_log_is_another() {
    let mut server = TestServer::with(Settings::default().set("server.grpc", OWN_ADDRESS)).await;
    let address = server.grpc().to_string();
    let mut talkers = Vec::new();
    for (name, program, args) in clients(&address) {
        talkers.push(Talker::start(name, program, &args).await);
    }
    round(&mut talkers, "hello").await;
    server.kill().await;
    std::fs::remove_dir_all(server.dir().join("data")).unwrap();
    let _server = server.restart_in_place().await;
    for mut talker in talkers {
        let shown = soon(talker.name, talker.lines.next_line()).await.unwrap();
        assert_eq!(shown, None, "{} goes on", talker.name);
        let status = soon(talker.name, talker.process.wait()).await.unwrap();
        assert_eq!(status.code(), Some(1), "{}", talker.name);
    }
}

/// The lines a process prints.
fn lines(process: &mut Child) -> Lines<BufReader<ChildStdout>> {
    BufReader::new(process.stdout.take().unwrap()).lines()
}

async fn next_line(what: &str, lines: &mut Lines<BufReader<ChildStdout>>) -> String {
    let line = soon(what, lines.next_line()).await.unwrap();
    line.unwrap_or_else(|| panic!("{what} ended"))
}

async fn notify(server: &TestServer, user: &str, title: &str) {
    let mut publisher = PublisherClient::new(server.channel().await);
    let request = PublishNotificationRequest {
        user_id: user.into(),
        title: title.into(),
        body: "text".into(),
        category: "news".into(),
        ..PublishNotificationRequest::default()
    };
    publisher.publish_notification(request).await.unwrap();
}

#[tokio::test]
async fn the_examples_follow_notifications_across_kill_9() {
    let mut server = TestServer::with(Settings::default().set("server.grpc", OWN_ADDRESS)).await;
    let address = server.grpc().to_string();
    let followers = [
        (
            "python",
            vec![
                "examples/python/notifications.py",
                "ann",
                "--count",
                "3",
                "--address",
                &address,
            ],
        ),
        (
            "node",
            vec!["examples/node/notifications.js", "ann", "3", &address],
        ),
        (
            "go-notifications",
            vec!["-user", "ann", "-count", "3", "-address", &address],
        ),
    ];
    let mut running: Vec<_> = followers
        .iter()
        .map(|(program, args)| {
            let mut process = start(program, args);
            let lines = lines(&mut process);
            (*program, process, lines)
        })
        .collect();
    eventually("three followers", async || {
        let tails = server.metric("weir_subscribers{source=\"tail\"}").await;
        // Each follows two topics; the canary follows one.
        (tails >= 7.0).then_some(())
    })
    .await;
    notify(&server, "ann", "one").await;
    notify(&server, "bob", "not hers").await;
    for (name, _, lines) in &mut running {
        assert_eq!(next_line(name, lines).await, "[news] one: text");
    }
    server.kill().await;
    let server = server.restart_in_place().await;
    notify(&server, "", "to all").await;
    notify(&server, "ann", "three").await;
    for (name, mut process, mut lines) in running {
        assert_eq!(next_line(name, &mut lines).await, "[news] to all: text");
        assert_eq!(next_line(name, &mut lines).await, "[news] three: text");
        let status = soon(name, process.wait()).await.unwrap();
        assert!(status.success(), "{name}: {status}");
    }
}

#[tokio::test]
async fn the_examples_upload_a_file_that_http_serves() {
    let server = TestServer::start().await;
    let address = server.grpc().to_string();
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let uploaders = ["python", "node", "go-upload"];
    for program in uploaders {
        // Every language has a file of its own: the same content would be the same upload.
        let mut content = content.clone();
        content.extend_from_slice(program.as_bytes());
        let path = server.dir().join(program);
        std::fs::write(&path, &content).unwrap();
        let path = path.to_str().unwrap();
        let args = match program {
            "python" => vec!["examples/python/upload.py", path, "--address", &address],
            "node" => vec!["examples/node/upload.js", path, &address],
            _ => vec!["-address", &address, path],
        };
        let mut first = None;
        // The second run finds that the upload is complete.
        for _ in 0..2 {
            let done = soon(program, start(program, &args).wait_with_output())
                .await
                .unwrap();
            let printed = String::from_utf8_lossy(&done.stdout).into_owned();
            assert!(done.status.success(), "{program}: {printed}");
            let printed: Vec<_> = printed.split_whitespace().map(str::to_owned).collect();
            let [id, size, url] = printed.as_slice() else {
                panic!("{program}: {printed:?}")
            };
            assert_eq!(size.parse::<usize>().unwrap(), content.len());
            assert!(
                id.starts_with("file-") && url.ends_with(id.as_str()),
                "{url}"
            );
            assert_eq!(*first.get_or_insert_with(|| id.clone()), *id);
        }
        let mut streaming = StreamingServiceClient::new(server.channel().await);
        let request = DownloadFileRequest {
            file_id: first.unwrap(),
            ..DownloadFileRequest::default()
        };
        let mut chunks = streaming.download_file(request).await.unwrap().into_inner();
        let mut downloaded = Vec::new();
        while let Some(chunk) = chunks.message().await.unwrap() {
            if let Some(file_chunk::Data::Chunk(bytes)) = chunk.data {
                downloaded.extend_from_slice(&bytes);
            }
        }
        assert!(downloaded == content, "{program}: the content differs");
    }
}

#[tokio::test]
async fn the_examples_give_feedback_and_hear_the_reply() {
    let server = TestServer::start().await;
    let address = server.grpc().to_string();
    let mut desk = FeedbackDeskClient::new(server.channel().await);
    let watch = WatchFeedbackRequest::default();
    let mut given = desk.watch_feedback(watch).await.unwrap().into_inner();
    for (program, args) in [
        (
            "python",
            vec!["examples/python/feedback.py", "ann", "--address", &address],
        ),
        ("node", vec!["examples/node/feedback.js", "ann", &address]),
        (
            "go-feedback",
            vec!["-consumer", "ann", "-address", &address],
        ),
    ] {
        let mut process = start(program, &args);
        let mut lines = lines(&mut process);
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(b"good\n").await.unwrap();
        assert_eq!(
            next_line(program, &mut lines).await,
            "Thank you for your feedback, ann!"
        );
        let item = soon("the feedback", given.message())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            (item.consumer_id.as_str(), item.feedback.as_str()),
            ("ann", "good")
        );
        let reply = ReplyToFeedbackRequest {
            feedback_id: item.feedback_id,
            author: "eve".into(),
            message: "thanks".into(),
            ..ReplyToFeedbackRequest::default()
        };
        desk.reply_to_feedback(reply).await.unwrap();
        assert_eq!(next_line(program, &mut lines).await, "eve: thanks");
        drop(stdin);
        let status = soon(program, process.wait()).await.unwrap();
        assert!(status.success(), "{program}: {status}");
    }
}
