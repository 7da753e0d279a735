//! The binary's commands, run as a shell runs them: arguments and pipes in, lines and exit codes out.

use std::{process::Stdio, time::Instant};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
};
use weir::proto::chat::Message;

use crate::support::{
    OWN_ADDRESS, Settings, TestServer, eventually, follow, message, next, send, server::binary,
    soon,
};

/// One running command.
pub(crate) struct Run {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Lines<BufReader<ChildStdout>>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

/// How a command ended, and what it had not been asked for before.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<String>,
    pub(crate) err: Vec<String>,
}

impl Run {
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut child = Command::new(binary())
            .args(args)
            .env_remove("WEIR_ADDR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary starts");
        Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(|out| BufReader::new(out).lines()),
            stderr: BufReader::new(child.stderr.take().expect("stderr is piped")).lines(),
            child,
        }
    }

    /// Runs a command on `server`.
    pub(crate) fn on(server: &TestServer, args: &[&str]) -> Self {
        let url = server.url();
        Self::start(&[args, &["--addr", &url]].concat())
    }

    /// Writes a line to stdin.
    pub(crate) async fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        soon(
            "stdin to take a line",
            stdin.write_all(format!("{line}\n").as_bytes()),
        )
        .await
        .expect("the command reads");
    }

    /// The next line of stdout.
    pub(crate) async fn line(&mut self) -> String {
        let stdout = self.stdout.as_mut().expect("stdout is open");
        soon("a line of stdout", stdout.next_line())
            .await
            .expect("text")
            .expect("a line")
    }

    /// The first line of stderr from here on that contains `text`.
    pub(crate) async fn notice(&mut self, text: &str) -> String {
        loop {
            let line = soon(text, self.stderr.next_line()).await.expect("text");
            let line = line.unwrap_or_else(|| panic!("stderr ended without {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().expect("the process runs").cast_signed();
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("a signal");
    }

    /// Closes stdin and waits for the end.
    pub(crate) async fn end(mut self) -> Ended {
        drop(self.stdin.take());
        let out = async {
            match &mut self.stdout {
                Some(out) => rest(out).await,
                None => Vec::new(),
            }
        };
        let (out, err) = soon("the command's output", async {
            tokio::join!(out, rest(&mut self.stderr))
        })
        .await;
        let status = soon("the command's end", self.child.wait())
            .await
            .expect("a status");
        Ended {
            code: status.code(),
            out,
            err,
        }
    }
}

async fn rest<R: tokio::io::AsyncBufRead + Unpin>(lines: &mut Lines<R>) -> Vec<String> {
    let mut rest = Vec::new();
    while let Some(line) = lines.next_line().await.expect("text") {
        rest.push(line);
    }
    rest
}

/// A chat over pipes that was welcomed, so that it hears everything from here on.
async fn chatting(server: &TestServer, user: &str) -> Run {
    let mut run = Run::on(server, &["chat", "--user", user]);
    let welcome = run.line().await;
    assert!(
        welcome.ends_with(&format!("* Welcome to room general, {user}!")),
        "{welcome}"
    );
    run
}

/// What was said, without when.
fn spoken(line: &str) -> &str {
    line.split_once(' ').map_or("", |(_, spoken)| spoken)
}

/// A server whose port survives it.
pub(crate) async fn restartable() -> TestServer {
    TestServer::with(Settings::default().set("server.grpc", OWN_ADDRESS)).await
}

/// Stores `contents` in the room `general`; returns their sequences.
async fn stored(server: &TestServer, contents: &[&str]) -> Vec<u64> {
    let mut chat = server.chat().await;
    let mut sequences = Vec::new();
    for content in contents {
        let reply = chat
            .send_message(send("general", "ann", content))
            .await
            .unwrap();
        sequences.push(reply.into_inner().sequence);
    }
    sequences
}

/// The room's retained messages up to the one that says `last`.
async fn room(server: &TestServer, room: &str, last: &str) -> Vec<Message> {
    let mut stream = server
        .chat()
        .await
        .subscribe_messages(follow(room, Some(0)))
        .await
        .unwrap()
        .into_inner();
    next(&mut stream).await;
    let mut messages = Vec::new();
    loop {
        messages.push(next(&mut stream).await);
        if messages
            .last()
            .is_some_and(|message| message.content == last)
        {
            return messages;
        }
    }
}

#[tokio::test]
async fn two_people_talk_over_pipes() {
    let server = TestServer::start().await;
    let mut ann = chatting(&server, "ann").await;
    let mut bob = chatting(&server, "bob").await;
    for (is_ann, text) in [(true, "hello"), (false, "hi ann"), (true, "how are you?")] {
        let (speaker, name) = if is_ann {
            (&mut ann, "ann")
        } else {
            (&mut bob, "bob")
        };
        speaker.say(text).await;
        let expected = format!("{name}: {text}");
        assert_eq!(spoken(&ann.line().await), expected);
        assert_eq!(spoken(&bob.line().await), expected);
    }
    for run in [ann, bob] {
        let ended = run.end().await;
        assert_eq!(
            (ended.code, ended.out.len(), ended.err.len()),
            (Some(0), 0, 0),
            "{ended:?}"
        );
    }
}

#[tokio::test]
async fn a_chat_goes_on_across_kill_9_with_nothing_lost_or_repeated() {
    let mut server = restartable().await;
    let mut ann = chatting(&server, "ann").await;
    let mut bob = chatting(&server, "bob").await;
    ann.say("before").await;
    assert_eq!(spoken(&ann.line().await), "ann: before");
    assert_eq!(spoken(&bob.line().await), "ann: before");

    server.kill().await;
    let notice = bob.notice("next attempt in").await;
    assert!(!notice.contains("is `weir serve` running?"), "{notice}");
    ann.say("meanwhile").await;
    let server = server.restart_in_place().await;
    bob.notice("connected again, continuing after").await;
    assert_eq!(spoken(&ann.line().await), "ann: meanwhile");
    assert_eq!(spoken(&bob.line().await), "ann: meanwhile");

    bob.say("after").await;
    assert_eq!(spoken(&ann.line().await), "bob: after");
    assert_eq!(spoken(&bob.line().await), "bob: after");
    for run in [ann, bob] {
        let ended = run.end().await;
        assert_eq!((ended.code, ended.out), (Some(0), vec![]));
    }
    let said: Vec<_> = room(&server, "general", "after")
        .await
        .into_iter()
        .map(|said| said.content)
        .collect();
    assert_eq!(said, ["before", "meanwhile", "after"]);
}

#[tokio::test]
async fn subscribe_prints_as_many_as_asked_for_after_the_position() {
    let server = TestServer::start().await;
    let sequences = stored(&server, &["one", "two", "three", "four"]).await;
    let after = sequences[0].to_string();
    let args = [
        "subscribe",
        "general",
        "--after",
        &after,
        "--count",
        "2",
        "--json",
    ];
    let ended = Run::on(&server, &args).end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines: Vec<serde_json::Value> = ended
        .out
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let printed: Vec<_> = lines
        .iter()
        .map(|line| (line["sequence"].as_u64().unwrap(), &line["content"]))
        .collect();
    assert_eq!(
        printed,
        [
            (sequences[1], &"two".into()),
            (sequences[2], &"three".into())
        ]
    );

    let ended = Run::on(
        &server,
        &["subscribe", "general", "--after", "0", "--count", "1"],
    )
    .end()
    .await;
    let columns: Vec<_> = ended.out[0].split('\t').collect();
    assert_eq!(
        (columns[0], columns[2], columns[3]),
        (sequences[0].to_string().as_str(), "ann", "one")
    );
}

#[tokio::test]
async fn what_subscribe_writes_publish_copies_into_the_room_it_is_told() {
    let server = TestServer::start().await;
    stored(&server, &["one", "two"]).await;
    let lines = Run::on(
        &server,
        &[
            "subscribe",
            "general",
            "--after",
            "0",
            "--count",
            "2",
            "--json",
        ],
    )
    .end()
    .await
    .out;
    let mut publish = Run::on(&server, &["publish", "copy", "--user", "copier", "--json"]);
    for line in lines {
        publish.say(&line).await;
    }
    let ended = publish.end().await;
    assert_eq!((ended.code, ended.out), (Some(0), vec!["2".to_owned()]));
    let copied = room(&server, "copy", "two").await;
    let copied: Vec<_> = copied
        .iter()
        .map(|copied| (copied.user.as_str(), copied.content.as_str()))
        .collect();
    assert_eq!(copied, [("ann", "one"), ("ann", "two")]);
}

#[tokio::test]
async fn publish_stores_ten_thousand_lines_in_order() {
    let server = TestServer::start().await;
    let lines: Vec<_> = (0..10_000).map(|number| format!("line {number}")).collect();
    let began = Instant::now();
    let mut publish = Run::on(&server, &["publish", "bulk", "--user", "ann"]);
    publish.say(&lines.join("\n")).await;
    let ended = publish.end().await;
    println!("10,000 lines published in {:?}", began.elapsed());
    assert_eq!(
        (ended.code, &ended.out[..]),
        (Some(0), &["10000".to_owned()][..]),
        "{:?}",
        ended.err
    );
    let read: Vec<_> = room(&server, "bulk", "line 9999")
        .await
        .into_iter()
        .map(|message| message.content)
        .collect();
    assert_eq!(read, lines);
}

#[tokio::test]
async fn publish_stores_each_line_once_across_kill_9() {
    const LINES: usize = 20_000;
    let mut server = restartable().await;
    let mut watched = server
        .chat()
        .await
        .subscribe_messages(follow("bulk", Some(0)))
        .await
        .unwrap()
        .into_inner();
    let lines: Vec<_> = (0..LINES).map(|number| format!("line {number}")).collect();
    let mut publish = Run::on(
        &server,
        &["publish", "bulk", "--user", "ann", "--retries", "50"],
    );
    let mut stdin = publish.stdin.take().unwrap();
    let text = lines.join("\n");
    let writing = tokio::spawn(async move { stdin.write_all(text.as_bytes()).await });
    while next(&mut watched).await.content != "line 2500" {}
    server.kill().await;
    let server = server.restart_in_place().await;
    let ended = publish.end().await;
    writing.await.unwrap().unwrap();
    assert_eq!(
        (ended.code, &ended.out[..]),
        (Some(0), &[LINES.to_string()][..]),
        "{:?}",
        ended.err
    );
    let last = format!("line {}", LINES - 1);
    let read: Vec<_> = room(&server, "bulk", &last)
        .await
        .into_iter()
        .map(|message| message.content)
        .collect();
    assert_eq!(read.len(), LINES);
    assert_eq!(read, lines);
}

#[tokio::test]
async fn a_bad_line_of_json_is_named_and_those_before_it_are_stored() {
    let server = TestServer::start().await;
    let mut publish = Run::on(&server, &["publish", "general", "--user", "ann", "--json"]);
    publish
        .say("{\"content\":\"good\"}\n{\"contents\":\"bad\"}")
        .await;
    let ended = publish.end().await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ended.err[0].starts_with("weir: 1 stored: line 2: unknown field `contents`"),
        "{ended:?}"
    );
    assert_eq!(room(&server, "general", "good").await.len(), 1);
}

#[tokio::test]
async fn retries_cover_the_first_connection() {
    let mut server = restartable().await;
    stored(&server, &["one"]).await;
    server.kill().await;
    let args = [
        "subscribe",
        "general",
        "--after",
        "0",
        "--count",
        "1",
        "--retries",
        "50",
    ];
    let mut subscribe = Run::on(&server, &args);
    let mut publish = Run::on(
        &server,
        &["publish", "general", "--user", "ann", "--retries", "50"],
    );
    publish.say("two").await;
    subscribe.notice("next attempt in").await;
    let server = server.restart_in_place().await;
    let (subscribed, published) = (subscribe.end().await, publish.end().await);
    assert_eq!(
        (subscribed.code, subscribed.out.len()),
        (Some(0), 1),
        "{subscribed:?}"
    );
    assert_eq!(
        (published.code, &published.out[..]),
        (Some(0), &["1".to_owned()][..]),
        "{published:?}"
    );
    assert_eq!(room(&server, "general", "two").await.len(), 2);
}

#[tokio::test]
async fn health_is_an_exit_code() {
    let settings = Settings::default()
        .set("drain.delay", "30s")
        .set("drain.timeout", "40s");
    let mut server = TestServer::with(settings).await;
    for (args, code, out) in [
        (&["health"][..], 0, &["SERVING"][..]),
        (
            &["health", "--service", "chat.ChatService"],
            0,
            &["SERVING"],
        ),
        (&["health", "--service", "no.Such"], 4, &[]),
    ] {
        let ended = Run::on(&server, args).end().await;
        assert_eq!(
            (ended.code, &ended.out[..]),
            (
                Some(code),
                &out.iter().map(ToString::to_string).collect::<Vec<_>>()[..]
            )
        );
    }
    server.terminate();
    eventually("a draining server not to serve", || async {
        let ended = Run::on(&server, &["health"]).end().await;
        (ended.code == Some(1) && ended.out == ["NOT_SERVING"]).then_some(())
    })
    .await;
    server.kill().await;
    assert_eq!(Run::on(&server, &["health"]).end().await.code, Some(3));
}

#[tokio::test]
async fn nobody_listening_is_three_and_says_what_to_do() {
    let mut server = restartable().await;
    server.kill().await;
    for args in [
        &["subscribe", "general"][..],
        &["subscribe", "general", "--retries", "1"],
        &["publish", "general", "--user", "ann"],
        &["publish", "general", "--user", "ann", "--retries", "0"],
        &["chat", "--user", "ann"],
        &["health"],
    ] {
        let mut run = Run::on(&server, args);
        if args[0] == "publish" {
            // It may be gone before it reads.
            let _ = run.stdin.as_mut().unwrap().write_all(b"hello\n").await;
        }
        let ended = run.end().await;
        assert_eq!(ended.code, Some(3), "{args:?}: {ended:?}");
        let last = ended.err.last().unwrap();
        assert!(
            last.ends_with("connection refused; is `weir serve` running?"),
            "{args:?}: {last}"
        );
    }
}

#[tokio::test]
async fn a_refusal_is_four_and_names_the_field() {
    let server = TestServer::start().await;
    for args in [
        &["subscribe", " "][..],
        &["publish", " ", "--user", "ann"],
        &["chat", "--room", " ", "--user", "ann"],
    ] {
        let mut run = Run::on(&server, args);
        if args[0] == "publish" {
            run.say("hello").await;
        }
        let ended = run.end().await;
        assert_eq!(ended.code, Some(4), "{args:?}: {ended:?}");
        let last = ended.err.last().unwrap();
        assert!(
            last.contains("room: room is required") || last.contains("room (messages[0].room"),
            "{args:?}: {last}"
        );
    }
}

#[tokio::test]
async fn wrong_usage_is_two() {
    for args in [
        &["subscribe"][..],
        &["chat"],
        &["publish", "general"],
        &["subscribe", "general", "--count", "0"],
        &["subscribe", "general", "--addr", "nowhere"],
        &["serve", "--set", "no.such=1"],
    ] {
        let ended = Run::start(args).end().await;
        assert_eq!(ended.code, Some(2), "{args:?}: {ended:?}");
        assert!(!ended.err.is_empty(), "{args:?}");
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_a_subscription_in_peace() {
    let server = TestServer::start().await;
    let mut chat = server.chat().await;
    let text = "x".repeat(200);
    // More than a pipe and the command's own buffer hold.
    let messages = futures::stream::iter((0..2000).map(move |_| message("general", "ann", &text)));
    chat.upload_messages(messages).await.unwrap();
    let mut subscribe = Run::on(&server, &["subscribe", "general", "--after", "0"]);
    subscribe.line().await;
    drop(subscribe.stdout.take());
    let ended = subscribe.end().await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(
        ended.err.iter().all(|line| line.starts_with("-- Welcome")),
        "{ended:?}"
    );
}

#[tokio::test]
async fn ctrl_c_is_130_but_leaves_a_chat_as_asked() {
    let server = TestServer::start().await;
    let mut subscribe = Run::on(&server, &["subscribe", "general"]);
    subscribe.notice("Welcome to room general").await;
    subscribe.interrupt();
    assert_eq!(subscribe.end().await.code, Some(130));

    let mut watch = Run::on(&server, &["health", "--watch"]);
    assert_eq!(watch.line().await, "SERVING");
    watch.interrupt();
    assert_eq!(watch.end().await.code, Some(130));

    let ann = chatting(&server, "ann").await;
    ann.interrupt();
    assert_eq!(ann.end().await.code, Some(0));
}

#[tokio::test]
async fn sigterm_is_143() {
    let server = TestServer::start().await;
    let mut subscribe = Run::on(&server, &["subscribe", "general"]);
    subscribe.notice("Welcome to room general").await;
    subscribe.signal(rustix::process::Signal::TERM);
    assert_eq!(subscribe.end().await.code, Some(143));
}

#[tokio::test]
async fn config_prints_what_is_in_effect_and_reports_every_mistake() {
    let ended = Run::start(&["config", "print", "--set", "server.instance_id=node-7"])
        .end()
        .await;
    assert_eq!(ended.code, Some(0));
    assert!(
        ended.out.contains(&"instance_id = \"node-7\"".to_owned()),
        "{ended:?}"
    );

    let ended = Run::start(&[
        "config",
        "check",
        "--set",
        "drain.timeout=never",
        "--set",
        "log.engine=tape",
    ])
    .end()
    .await;
    assert_eq!(ended.code, Some(1));
    assert!(
        ["drain.timeout", "log.engine"]
            .iter()
            .all(|key| ended.err.iter().any(|line| line.contains(key))),
        "{ended:?}"
    );
}

#[tokio::test]
async fn help_shows_examples() {
    for command in [
        "serve",
        "chat",
        "subscribe",
        "publish",
        "events",
        "notify",
        "data",
        "health",
        "config",
    ] {
        let ended = Run::start(&[command, "--help"]).end().await;
        assert_eq!((ended.code, ended.err.len()), (Some(0), 0));
        let example = format!("  weir {command}");
        let lines = ended.out.iter().skip_while(|line| *line != "Examples:");
        assert!(
            lines
                .into_iter()
                .any(|line| line.contains(example.trim_start())),
            "{command}"
        );
    }
    let ended = Run::start(&["--help"]).end().await;
    assert!(
        ended.out.iter().any(|line| line == "Exit codes:"),
        "{ended:?}"
    );
}
