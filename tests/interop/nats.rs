//! A NATS server of a test's own: the real one, on a free port, with its files in a temporary directory.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

use super::tools::tool;

/// A running NATS server with JetStream. Dropping it ends the process and removes its files.
pub(crate) struct Nats {
    port: u16,
    dir: TempDir,
    process: Option<Child>,
}

impl Nats {
    /// Starts one and waits until it is ready.
    pub(crate) fn start() -> Self {
        Self::with("max_payload: 16MB\njetstream { store_dir: \"DIR\" }\n")
    }

    /// Starts one with these settings; `DIR` stands for its directory.
    pub(crate) fn with(settings: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let settings = settings.replace("DIR", dir.path().to_str().unwrap());
        fs::write(dir.path().join("nats.conf"), settings).unwrap();
        let mut nats = Self {
            port: free_port(),
            dir,
            process: None,
        };
        nats.resume();
        nats
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends the process at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts the process again, on the same port and files.
    pub(crate) fn resume(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let mut process = Command::new(tool("nats-server"))
            .args(["-a", "127.0.0.1", "-p", &self.port.to_string(), "-c"])
            .arg(self.dir.path().join("nats.conf"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut told = Vec::new();
        loop {
            let Some(Ok(line)) = lines.next() else {
                panic!("nats-server ended: {}", told.join("\n"));
            };
            told.push(line);
            if told.last().unwrap().contains("Server is ready") {
                break;
            }
        }
        // Whoever writes to a pipe that nobody reads stops.
        thread::spawn(move || lines.for_each(drop));
        self.process = Some(process);
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}
