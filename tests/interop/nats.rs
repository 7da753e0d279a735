//! NATS servers of a test's own: the real ones, on free ports, with their files in a temporary directory.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

use super::tools::tool;

/// Settings of a server that takes any record.
pub(crate) const SETTINGS: &str = "max_payload: 16MB\njetstream { store_dir: \"DIR\" }\n";

/// A running server, or a cluster, with JetStream. Dropping it ends the processes and removes their files.
pub(crate) struct Nats {
    nodes: Vec<Node>,
    _dir: TempDir,
}

struct Node {
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
        Self::nodes(&[settings.to_owned()])
    }

    /// Starts a cluster of three.
    pub(crate) fn cluster() -> Self {
        let ports = [(); 3].map(|()| free_port());
        let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\""));
        let routes = routes.join(", ");
        let settings = ports.map(|port| {
            format!(
                "{SETTINGS}server_name: n{port}\n\
                 cluster {{ name: weir, listen: \"127.0.0.1:{port}\", routes: [{routes}] }}\n"
            )
        });
        Self::nodes(&settings)
    }

    fn nodes(settings: &[String]) -> Self {
        let dir = TempDir::new().unwrap();
        let node = |(index, settings): (usize, &String)| {
            let own = dir.path().join(index.to_string());
            fs::create_dir(&own).unwrap();
            let file = own.join("nats.conf");
            fs::write(&file, settings.replace("DIR", own.to_str().unwrap())).unwrap();
            Node {
                port: free_port(),
                settings: file,
                process: None,
            }
        };
        let mut nodes: Vec<_> = settings.iter().enumerate().map(node).collect();
        nodes.iter_mut().for_each(Node::start);
        Self { nodes, _dir: dir }
    }

    pub(crate) fn url(&self) -> String {
        let urls = self
            .nodes
            .iter()
            .map(|node| format!("nats://127.0.0.1:{}", node.port));
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
}

impl Node {
    fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let mut process = Command::new(tool("nats-server"))
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-c"])
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

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
