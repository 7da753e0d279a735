//! A network of a test's own, in which packets can be lost without a word.
//!
//! ```text
//!  this process, clients  .1 ─┐
//!                             ├─ .2 router .5 ── .6 replica
//!  NATS                   .9 ─┘
//! ```

use std::process::Stdio;

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::{support::soon, tools::tool};

/// Two network namespaces and their links. They go when it is dropped, or with this process.
pub(super) struct Network {
    /// First three bytes of every address: of the range that is set aside for measurements.
    prefix: String,
    router: Child,
    replica: Child,
}

impl Network {
    pub(super) async fn new() -> Self {
        let number: u8 = rand::random();
        let network = Self {
            prefix: format!("198.18.{number}"),
            router: namespace().await,
            replica: namespace().await,
        };
        let [router, replica] = [&network.router, &network.replica].map(pid);
        let net = &network.prefix;
        let here = format!("weir{number}");
        network
            .run(
                None,
                &format!(
                    "$IP link add {here} type veth peer name outer netns {router}
                     $IP addr add {net}.1/30 dev {here}
                     $IP addr add {net}.9/32 dev {here}
                     $IP link set {here} up"
                ),
            )
            .await;
        network
            .run(
                Some(router),
                &format!(
                    "$IP addr add {net}.2/30 dev outer
                     $IP link set outer up
                     $IP link add inner type veth peer name eth0 netns {replica}
                     $IP addr add {net}.5/30 dev inner
                     $IP link set inner up
                     $IP route add {net}.9/32 via {net}.1
                     echo 1 > /proc/sys/net/ipv4/ip_forward"
                ),
            )
            .await;
        network
            .run(
                Some(replica),
                &format!(
                    "$IP link set lo up
                     $IP addr add {net}.6/30 dev eth0
                     $IP link set eth0 up
                     $IP route add default via {net}.5"
                ),
            )
            .await;
        let route = format!("$IP route add {net}.4/30 via {net}.2");
        network.run(None, &route).await;
        network
    }

    /// The address of NATS.
    pub(super) fn nats(&self) -> String {
        format!("{}.9", self.prefix)
    }

    /// The address of the replica.
    pub(super) fn replica(&self) -> String {
        format!("{}.6", self.prefix)
    }

    /// The process whose namespace is the replica's.
    pub(super) fn pid(&self) -> u32 {
        pid(&self.replica)
    }

    /// Loses every packet between the replica and NATS, both ways; clients reach the replica.
    pub(super) async fn cut(&self) {
        let nats = self.nats();
        let lose = format!(
            "$IP route replace blackhole {nats}/32
             $IP rule add from {nats} blackhole"
        );
        self.run(Some(pid(&self.router)), &lose).await;
    }

    /// Loses nothing any more.
    pub(super) async fn mend(&self) {
        let (nats, net) = (self.nats(), &self.prefix);
        let pass = format!(
            "$IP rule del from {nats} blackhole
             $IP route replace {nats}/32 via {net}.1"
        );
        self.run(Some(pid(&self.router)), &pass).await;
    }

    /// Runs commands in the namespace of a process, or here.
    async fn run(&self, namespace: Option<u32>, commands: &str) {
        let mut command = match namespace {
            Some(pid) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{pid}/ns/net")).arg("sh");
                command
            }
            None => Command::new("sh"),
        };
        command.args(["-ec", commands]).env("IP", tool("ip"));
        let done = soon("the network", command.output()).await.unwrap();
        assert!(done.status.success(), "{}", refusal(&done.stderr));
    }
}

fn pid(process: &Child) -> u32 {
    process.id().expect("it lives")
}

/// A process in a network namespace of its own, which lives until its input ends, so not longer than this process.
async fn namespace() -> Child {
    let mut keeper = Command::new("unshare")
        .args(["--net", "sh", "-c", "echo there && exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(keeper.stdout.take().unwrap()).lines();
    let line = soon("a namespace", lines.next_line()).await.unwrap();
    if line.as_deref() != Some("there") {
        let ended = keeper.wait_with_output().await.unwrap();
        panic!("{}", refusal(&ended.stderr));
    }
    keeper
}

fn refusal(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    format!(
        "this test needs root and network namespaces with veth links: {}",
        text.trim()
    )
}
