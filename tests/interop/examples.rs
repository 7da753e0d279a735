//! The clients of `examples/`, talking to each other.

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use crate::{
    support::{OWN_ADDRESS, Settings, TestServer, soon},
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
