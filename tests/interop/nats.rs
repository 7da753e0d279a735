//! NATS servers of a test's own: the real ones, on free ports, with their files in a temporary directory.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{support::server::lasting_address, tools::tool};

/// Settings of a server that takes any record.
pub(crate) const SETTINGS: &str = "max_payload: 16MB\njetstream { store_dir: \"DIR\" }\n";

/// A running server, or a cluster, with JetStream. Dropping it ends the processes and removes their files.
pub(crate) struct Nats {
    nodes: Vec<Node>,
    _dir: TempDir,
}

struct Node {
    host: String,
    port: u16,
    settings: PathBuf,
    process: Option<Child>,
}

impl Nats {
    /// Starts one and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::with(SETTINGS)
    }

    /// Starts one with these settings; `DIR` stands for its directory.
    pub(crate) fn with(settings: &str) -> Self {
        Self::nodes("127.0.0.1", &[settings.to_owned()])
    }

    /// Starts one that listens on this address.
    pub(crate) fn on(host: &str) -> Self {
        Self::nodes(host, &[SETTINGS.to_owned()])
    }

    /// Starts a cluster of three.
    pub(crate) fn cluster() -> Self {
        let ports = [(); 3].map(|()| lasting_address().port());
        let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\""));
        let routes = routes.join(", ");
        let settings = |(index, port): (usize, u16)| {
            format!(
                "{SETTINGS}server_name: n{index}\n\
                 cluster {{ name: weir, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
            )
        };
        let settings: Vec<_> = ports.into_iter().enumerate().map(settings).collect();
        Self::nodes("127.0.0.1", &settings)
    }

    fn nodes(host: &str, settings: &[String]) -> Self {
        let dir = TempDir::new().unwrap();
        let node = |(index, settings): (usize, &String)| {
            let own = dir.path().join(index.to_string());
            fs::create_dir(&own).unwrap();
            let file = own.join("nats.conf");
            fs::write(&file, settings.replace("DIR", own.to_str().unwrap())).unwrap();
            Node {
                host: host.to_owned(),
                port: lasting_address().port(),
                settings: file,
                process: None,
            }
        };
        let mut nodes: Vec<_> = settings.iter().enumerate().map(node).collect();
        nodes.iter_mut().for_each(Node::start);
        Self { nodes, _dir: dir }
    }

    pub(crate) fn url(&self) -> String {
        let urls = (0..self.nodes.len()).map(|node| self.url_of(node));
        urls.collect::<Vec<_>>().join(",")
    }

    /// Ends a process at once, as `kill -9` does.
    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    /// Starts the process again, on the same port and files.
    pub(crate) fn resume(&mut self, node: usize) {
        self.nodes[node].start();
    }

    /// Stops all processes: their connections stand and nobody answers.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Has all processes go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        for process in self.nodes.iter().filter_map(|node| node.process.as_ref()) {
            kill_process(Pid::from_child(process), signal).unwrap();
        }
    }

    /// The address of one of the servers.
    pub(crate) fn url_of(&self, node: usize) -> String {
        let Node { host, port, .. } = &self.nodes[node];
        format!("nats://{host}:{port}")
    }

    /// Which server leads the stream, once all three copies of it are up to date; none before.
    pub(crate) async fn leader(&self) -> Option<usize> {
        let urls = self.url();
        let client = async_nats::connect(urls.split(',').collect::<Vec<_>>());
        let stream = async_nats::jetstream::new(client.await.ok()?)
            .get_stream("weir")
            .await
            .ok()?;
        let cluster = stream.cached_info().cluster.as_ref()?;
        let current = cluster.replicas.iter().filter(|replica| replica.current);
        match current.count() {
            2 => cluster.leader.as_ref()?.strip_prefix('n')?.parse().ok(),
            _ => None,
        }
    }

    /// Has the stream's leader hand over to another.
    pub(crate) async fn move_leader(&self) {
        let urls = self.url();
        let client = async_nats::connect(urls.split(',').collect::<Vec<_>>());
        let answer = client
            .await
            .unwrap()
            .request("$JS.API.STREAM.LEADER.STEPDOWN.weir", "".into())
            .await;
        let answer = answer.unwrap().payload;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("\"success\":true"), "{answer}");
    }
}

impl Node {
    fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let mut process = Command::new(tool("nats-server"))
            .args(["-a", &self.host, "-p", &self.port.to_string(), "-c"])
            .arg(&self.settings)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut told = Vec::new();
        while !told
            .last()
            .is_some_and(|line: &String| line.contains("Server is ready"))
        {
            match lines.next() {
                Some(Ok(line)) => told.push(line),
                _ => panic!("nats-server ended: {}", told.join("\n")),
            }
        }
        // Whoever writes to a pipe that nobody reads stops.
        thread::spawn(move || lines.for_each(drop));
        self.process = Some(process);
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
