//! Core NATS, as far as a fan-out needs it: its text protocol straight on TCP.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{
    fleet::shares,
    grpc::{PATIENCE, Target},
    message::Template,
    round::{Progress, Round},
};

const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"1\",\"protocol\":0}\r\n";
/// A control line longer than this is taken for a broken stream; `INFO` is the longest.
const LINE_MAX_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 256 * 1024;

/// What a chunk of the server's stream brought.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Arrivals {
    messages: u64,
    pings: u64,
    pongs: u64,
}

/// Follows the server's stream, whatever way it is cut into chunks.
#[derive(Debug, Default)]
struct Parser {
    /// A control line whose end has not come.
    line: Vec<u8>,
    /// Bytes of a payload, with its line end, that are still to come.
    payload_left: usize,
}

impl Parser {
    fn feed(&mut self, mut chunk: &[u8]) -> Result<Arrivals> {
        let mut arrivals = Arrivals::default();
        while !chunk.is_empty() {
            if self.payload_left > 0 {
                let skipped = self.payload_left.min(chunk.len());
                self.payload_left -= skipped;
                arrivals.messages += u64::from(self.payload_left == 0);
                chunk = &chunk[skipped..];
            } else if let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
                self.line.extend_from_slice(&chunk[..end]);
                chunk = &chunk[end + 1..];
                self.control(&mut arrivals)?;
                self.line.clear();
            } else {
                self.line.extend_from_slice(chunk);
                ensure!(
                    self.line.len() <= LINE_MAX_BYTES,
                    "NATS sent an endless line"
                );
                break;
            }
        }
        Ok(arrivals)
    }

    fn control(&mut self, arrivals: &mut Arrivals) -> Result<()> {
        let line = std::str::from_utf8(&self.line).context("NATS sent a line that is not text")?;
        let line = line.trim_end_matches('\r');
        if line.starts_with("MSG ") {
            let length = line.rsplit(' ').next().and_then(|text| text.parse().ok());
            let length: usize = length.context("NATS sent a message without its length")?;
            self.payload_left = length + 2;
        } else if line == "PING" {
            arrivals.pings += 1;
        } else if line == "PONG" {
            arrivals.pongs += 1;
        } else if line.starts_with("-ERR") {
            bail!("NATS refuses: {line}");
        }
        Ok(())
    }
}

/// A connection that has introduced itself.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    parser: Parser,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects, sends the commands and waits until the server has worked them off.
    async fn open(target: &Target, commands: &str) -> Result<Self> {
        let mut stream = target.dial().await?;
        let hello = format!("{CONNECT}{commands}PING\r\n");
        stream.write_all(hello.as_bytes()).await?;
        let mut connection = Self {
            stream,
            parser: Parser::default(),
            buffer: vec![0; READ_BYTES],
        };
        let confirmed = timeout(PATIENCE, connection.confirmation()).await;
        confirmed.map_err(|_| anyhow!("{target} does not speak NATS"))??;
        Ok(connection)
    }

    async fn confirmation(&mut self) -> Result<()> {
        while self.read().await?.pongs == 0 {}
        Ok(())
    }

    async fn read(&mut self) -> Result<Arrivals> {
        let length = self.stream.read(&mut self.buffer).await?;
        ensure!(length > 0, "NATS closed the connection");
        let arrivals = self.parser.feed(&self.buffer[..length])?;
        for _ in 0..arrivals.pings {
            self.stream.write_all(b"PONG\r\n").await?;
        }
        Ok(arrivals)
    }
}

/// Open subscriptions to one subject. Dropping it closes them.
#[derive(Debug)]
pub(super) struct NatsFleet {
    round: Arc<Round>,
    tasks: JoinSet<()>,
}

impl NatsFleet {
    /// Opens every subscription.
    pub(super) async fn open(
        target: &Target,
        subject: &str,
        subscribers: usize,
        connections: usize,
    ) -> Result<Self> {
        let round = Arc::new(Round::default());
        let mut tasks = JoinSet::new();
        for share in shares(subscribers, connections) {
            let connection = Connection::open(target, &subscriptions(subject, share)).await?;
            tasks.spawn(follow(connection, share as u64, Arc::clone(&round)));
        }
        Ok(Self { round, tasks })
    }

    /// Where publisher and subscribers meet.
    pub(super) fn round(&self) -> Arc<Round> {
        Arc::clone(&self.round)
    }

    /// Connections that take part in a round.
    pub(super) fn connections(&self) -> usize {
        self.tasks.len()
    }
}

fn subscriptions(subject: &str, count: usize) -> String {
    (1..=count)
        .map(|sid| format!("SUB {subject} {sid}\r\n"))
        .collect()
}

async fn follow(mut connection: Connection, subscribers: u64, round: Arc<Round>) {
    let mut progress = Progress::default();
    let mut target = 0;
    loop {
        let arrivals = match connection.read().await {
            Ok(arrivals) => arrivals,
            Err(error) => return round.fail(&error),
        };
        let wanted = round.target() * subscribers;
        if wanted != target {
            progress.give_up(target);
            target = wanted;
        }
        let was_behind = !progress.has_reached(target);
        progress.advance(arrivals.messages);
        round.count(arrivals.messages, 0);
        if was_behind && progress.has_reached(target) {
            round.connection_complete();
        }
    }
}

/// Publishes on a connection of its own.
#[derive(Debug)]
pub(super) struct NatsPublisher {
    connection: Connection,
    header: String,
    template: Template,
    sent: u64,
}

impl NatsPublisher {
    /// Every message's payload is what gRPC would carry: the template's frame.
    pub(super) async fn open(target: &Target, subject: &str, template: Template) -> Result<Self> {
        Ok(Self {
            connection: Connection::open(target, "").await?,
            header: format!("PUB {subject} {}\r\n", template.frame_bytes()),
            template,
            sent: 0,
        })
    }

    /// Sends so many messages together.
    pub(super) async fn send(&mut self, messages: u64) -> Result<()> {
        let mut commands = Vec::new();
        for stamp in self.sent..self.sent + messages {
            commands.extend_from_slice(self.header.as_bytes());
            self.template.append(stamp, &mut commands);
            commands.extend_from_slice(b"\r\n");
        }
        self.sent += messages;
        timeout(PATIENCE, self.connection.stream.write_all(&commands))
            .await
            .map_err(|_| anyhow!("NATS does not read what is published"))?
            .context("publishing to NATS failed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"INFO {\"max_payload\":1048576}\r\nPONG\r\n\
        MSG room 1 5\r\nhello\r\nPING\r\nMSG room 2 reply 4\r\n\r\n\r\n\r\nMSG room 3 0\r\n\r\n";

    #[test]
    fn messages_are_counted_whatever_the_cut() {
        let expected = Arrivals {
            messages: 3,
            pings: 1,
            pongs: 1,
        };
        for cut in 0..=STREAM.len() {
            let mut parser = Parser::default();
            let first = parser.feed(&STREAM[..cut]).unwrap();
            let second = parser.feed(&STREAM[cut..]).unwrap();
            let both = Arrivals {
                messages: first.messages + second.messages,
                pings: first.pings + second.pings,
                pongs: first.pongs + second.pongs,
            };
            assert_eq!(both, expected, "cut at {cut}");
        }
    }

    #[test]
    fn refusals_and_nonsense_end_the_stream() {
        let feed = |bytes: &[u8]| Parser::default().feed(bytes);
        assert!(feed(b"-ERR 'Authorization Violation'\r\n").is_err());
        assert!(feed(b"MSG room 1 many\r\n").is_err());
        assert!(feed(&[b'x'; LINE_MAX_BYTES + 1]).is_err());
    }

    #[test]
    fn every_subscription_has_its_own_id() {
        assert_eq!(subscriptions("a", 2), "SUB a 1\r\nSUB a 2\r\n");
    }
}
