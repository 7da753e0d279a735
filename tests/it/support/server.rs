//! Starting, killing and restarting the real binary.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        LazyLock,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tonic::transport::{Channel, Endpoint};
use weir::proto::chat::chat_service_client::ChatServiceClient;

use super::{SOON, soon};

/// A free port of a loopback address that no connection starts from: while the server is away, its port stays free.
pub const OWN_ADDRESS: &str = "127.0.0.2:0";

/// Settings of a server under test, as environment variables, and where it runs.
#[derive(Debug, Clone)]
pub struct Settings {
    variables: BTreeMap<String, String>,
    network: Option<u32>,
    descriptors: Option<[usize; 2]>,
}

impl Default for Settings {
    /// Free ports, a quiet log.
    fn default() -> Self {
        let free = "127.0.0.1:0";
        Self {
            variables: BTreeMap::new(),
            network: None,
            descriptors: None,
        }
        .set("server.grpc", free)
        .set("server.http", free)
        .set("server.admin", free)
        .set("telemetry.log_level", "warn")
    }
}

impl Settings {
    /// Sets `key`, written as in the file: `section.key`.
    #[must_use]
    pub fn set(self, key: &str, value: impl ToString) -> Self {
        let name = format!("WEIR__{}", key.replace('.', "__").to_uppercase());
        self.env(&name, &value.to_string())
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Lets it have so many descriptors: its soft and its hard limit.
    #[allow(dead_code, reason = "foreign tools test other things")]
    #[must_use]
    pub fn descriptors(mut self, soft: usize, hard: usize) -> Self {
        self.descriptors = Some([soft, hard]);
        self
    }

    /// Runs it in the network namespace of the process `pid`.
    #[allow(dead_code, reason = "only tests with foreign tools make networks")]
    #[must_use]
    pub fn in_network_of(mut self, pid: u32) -> Self {
        self.network = Some(pid);
        self
    }
}

/// A running server. Dropping it kills the process.
pub struct TestServer {
    child: Child,
    settings: Settings,
    dir: TempDir,
    grpc: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
}

impl TestServer {
    /// A server on a directory of its own.
    pub async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    /// A server with these settings.
    pub async fn with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        Self::on(dir, settings).await
    }

    async fn on(dir: TempDir, settings: Settings) -> Self {
        let server = Self::starting(dir, settings, Stdio::inherit()).await;
        server.ready().await;
        server
    }

    /// A server that listens but may not be ready yet; its log lines go to `log`.
    pub async fn starting(dir: TempDir, settings: Settings, log: Stdio) -> Self {
        let mut child = command(dir.path(), &settings)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let line = soon("the start-up line", lines.next_line()).await;
        let line = line.expect("stdout reads").expect("a start-up line");
        Self {
            grpc: address(&line, "gRPC "),
            http: address(&line, "HTTP "),
            admin: address(&line, "admin "),
            child,
            settings,
            dir,
        }
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&self) {
        super::eventually("readiness", || async {
            self.admin_get("/readyz")
                .await
                .starts_with("HTTP/1.1 200")
                .then_some(())
        })
        .await;
    }

    /// Kills it as `kill -9` does and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the process is killed");
    }

    /// Starts it again on the same directory, on new ports.
    pub async fn restart(mut self) -> Self {
        let _ = self.child.kill().await;
        let Self { settings, dir, .. } = self;
        Self::on(dir, settings).await
    }

    /// Starts it again on the same directory and the same gRPC port; it may be dead already. For a server on an address
    /// of its own ([`OWN_ADDRESS`]), so that nothing else takes the port in between.
    pub async fn restart_in_place(mut self) -> Self {
        let _ = self.child.kill().await;
        let Self {
            settings,
            dir,
            grpc,
            ..
        } = self;
        Self::on(dir, settings.set("server.grpc", grpc)).await
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.pid().cast_signed()).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
    }

    /// Starts a second process on the same directory and settings and ends it, as by `kill -9`, after `life`.
    pub async fn start_and_kill(&self, life: Duration) {
        let mut child = command(self.dir.path(), &self.settings)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        tokio::time::sleep(life).await;
        child.kill().await.expect("the process is killed");
    }

    /// Waits for its end; returns the exit code.
    pub async fn exit_code(&mut self) -> Option<i32> {
        soon("the process to end", self.child.wait())
            .await
            .expect("a status")
            .code()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process runs")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    pub fn http(&self) -> SocketAddr {
        self.http
    }

    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(self.url())
            .expect("an address")
            .connect_timeout(SOON)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(64 << 20)
            .connect()
            .await
            .expect("the server accepts")
    }

    /// A chat client on a connection of its own.
    pub async fn chat(&self) -> ChatServiceClient<Channel> {
        ChatServiceClient::new(self.channel().await)
            .max_decoding_message_size(64 << 20)
            .max_encoding_message_size(64 << 20)
    }

    /// The whole HTTP/1.1 response of the admin port.
    pub async fn admin_get(&self, path: &str) -> String {
        http_get(self.admin, path).await
    }

    /// The value of a metric line that starts with `series`; zero when there is none.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.admin_get("/metrics").await;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.trim().parse().expect("a number"))
    }

    /// Topics with a tail, once the canary has its own.
    pub async fn tails(&self) -> f64 {
        super::eventually("the canary", || async {
            (self.metric("weir_canary_up").await == 1.0).then_some(())
        })
        .await;
        self.metric("weir_tails").await
    }

    /// The server's resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).expect("statm");
        let pages: u64 = statm
            .split(' ')
            .nth(1)
            .and_then(|text| text.parse().ok())
            .expect("pages");
        pages * rustix::param::page_size() as u64
    }
}

/// The binary's command line with `settings` and nothing else of this environment's settings.
pub fn command(dir: &Path, settings: &Settings) -> Command {
    let mut command = match (settings.network, settings.descriptors) {
        (Some(pid), _) => {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net=/proc/{pid}/ns/net"))
                .arg(binary());
            command
        }
        (None, Some([soft, hard])) => {
            let mut command = Command::new("sh");
            command
                .arg("-c")
                .arg(format!(
                    "ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\""
                ))
                .arg(binary());
            command
        }
        (None, None) => Command::new(binary()),
    };
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WEIR__")) {
        command.env_remove(name);
    }
    command
        .arg("serve")
        .current_dir(dir)
        .env("WEIR__LOG__DIR", dir.join("data"))
        .envs(&settings.variables)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// The binary under test.
pub fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_weir").into()
}

/// An address that stays free while nobody listens on it: the kernel gives ports of this range to nobody by itself, and this
/// gives each only once.
pub fn lasting_address() -> SocketAddr {
    const PORTS: std::ops::Range<u16> = 12_000..30_000;
    static FIRST: LazyLock<u16> = LazyLock::new(|| rand::random_range(0..PORTS.len() as u16));
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let next = |_| {
        let at = (u32::from(*FIRST) + u32::from(GIVEN.fetch_add(1, Ordering::Relaxed)))
            % PORTS.len() as u32;
        SocketAddr::from(([127, 0, 0, 1], PORTS.start + at as u16))
    };
    (0..1000)
        .map(next)
        .find(|address| std::net::TcpListener::bind(address).is_ok())
        .expect("a free port")
}

/// The first address behind `label` in the start-up line.
fn address(line: &str, label: &str) -> SocketAddr {
    let rest = line
        .split_once(label)
        .unwrap_or_else(|| panic!("no {label:?} in {line:?}"))
        .1;
    let text = rest.split([',', ' ', ';', ')']).next().unwrap_or_default();
    text.parse()
        .unwrap_or_else(|_| panic!("no address behind {label:?} in {line:?}"))
}

/// One HTTP/1.1 request on a connection of its own; empty when nobody answers.
pub async fn http_get(address: SocketAddr, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    String::from_utf8_lossy(&exchange(address, request.as_bytes()).await).into_owned()
}

/// Sends the bytes of a request and reads until the server closes; empty when nobody listens.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut response = Vec::new();
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return response;
    };
    let exchange = async {
        stream.write_all(request).await?;
        stream.read_to_end(&mut response).await
    };
    let _ = tokio::time::timeout(SOON, exchange).await;
    response
}
