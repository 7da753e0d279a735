//! `weir chat`: talk in a room, line by line.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, sleep_until},
};
use tonic::Status;

use super::{
    Failure, Target,
    format::{self, Paint},
    input::{self, Batch},
    interrupt, notices,
};
use crate::{
    client::{Client, Subscription},
    proto::chat::{Message, SendMessageResponse},
};

/// How long to wait, at the end of the input, for the last line sent to be shown.
const FAREWELL: Duration = Duration::from_secs(5);

const AFTER_HELP: &str = "\
Examples:
  weir chat --user ann                      join the room `general`
  weir chat --user ann --room lobby --after 0   with everything said before
  echo 'back in 5' | weir chat --user ann   say one line and leave

Type a line and press Enter to say it; Ctrl-D or Ctrl-C leaves. Times are UTC. When the connection breaks, it is
repaired, what was said meanwhile is shown, and a line on its way is sent again but stored once.";

/// Talk in a room.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ChatArgs {
    /// Who you are.
    #[arg(long, value_name = "NAME")]
    user: String,
    /// The room.
    #[arg(long, default_value = "general")]
    room: String,
    /// Show what was said after this sequence, 0 being the first retained message [default: from now on].
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    #[command(flatten)]
    server: Target,
}

pub(super) async fn run(args: ChatArgs) -> Result<(), Failure> {
    let client = args.server.connect().await?;
    let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal();
    let lines = input::stdin()?;
    let mut session = Session {
        subscription: client
            .subscribe(&args.room, &args.user, args.after)
            .with_observer(notices::observer(&args.server.addr)),
        outgoing: Outgoing::new(&args, client),
        typed: is_interactive.then(Typed::default),
        lines: Some(lines),
        is_welcome: false,
        paint: Paint::for_stdout(),
        args,
    };
    tokio::select! {
        outcome = session.converse() => outcome,
        _ = interrupt() => session.leave(),
    }
}

struct Session {
    args: ChatArgs,
    subscription: Subscription<Message>,
    outgoing: Outgoing,
    /// Present if the terminal shows what is typed.
    typed: Option<Typed>,
    /// Absent after the end of the input.
    lines: Option<Receiver<Result<Batch, Failure>>>,
    /// Nothing is sent before the room answers: it would not be shown.
    is_welcome: bool,
    paint: Paint,
}

impl Session {
    /// Talks until the input has ended and what was said is shown. The room's answer is waited for even if there is nothing
    /// to say: it may be a refusal.
    async fn converse(&mut self) -> Result<(), Failure> {
        while self.lines.is_some()
            || !self.is_welcome
            || !self.outgoing.is_done(self.subscription.position())
        {
            let farewell = self.outgoing.since + FAREWELL;
            let is_leaving = self.lines.is_none() && !self.outgoing.is_busy();
            let wants_lines = self.outgoing.lines.is_empty();
            tokio::select! {
                message = self.subscription.next() => self.show(message)?,
                sent = self.outgoing.next(), if self.is_welcome => self.sent(sent)?,
                batch = read(&mut self.lines), if wants_lines => self.read(batch)?,
                () = sleep_until(farewell), if is_leaving => return Ok(()),
            }
        }
        Ok(())
    }

    /// Leaves at Ctrl-C; what is not acknowledged is told.
    fn leave(&self) -> Result<(), Failure> {
        if self.outgoing.is_busy() {
            notices::say("left before everything was acknowledged");
        }
        Ok(())
    }

    fn show(&mut self, message: Option<Result<Message, Status>>) -> Result<(), Failure> {
        let message = message.ok_or_else(|| Failure::failed("the subscription has ended"))?;
        let message = message.map_err(|status| Failure::status(&self.args.server.addr, &status))?;
        self.is_welcome = true;
        let typed = self.typed.as_mut();
        if typed.is_some_and(|typed| typed.is_seen(&self.args.user, &message)) {
            return Ok(());
        }
        Ok(writeln!(
            io::stdout(),
            "{}",
            format::spoken(&message, self.paint)
        )?)
    }

    fn read(&mut self, batch: Option<Result<Batch, Failure>>) -> Result<(), Failure> {
        match batch.transpose()? {
            Some(batch) => self.said(batch.lines),
            None => {
                self.lines = None;
                self.outgoing.since = Instant::now();
            }
        }
        Ok(())
    }

    fn said(&mut self, lines: Vec<String>) {
        for line in lines.into_iter().filter(|line| !line.is_empty()) {
            if let Some(typed) = &mut self.typed {
                typed.0.push_back(line.clone());
            }
            self.outgoing.lines.push_back(line);
        }
    }

    /// Notes the outcome of a line; one that failed ends the program unless somebody is there to read it.
    fn sent(&mut self, (line, outcome): Sent) -> Result<(), Failure> {
        let status = match outcome {
            Ok(response) => {
                self.outgoing.acknowledged(response.sequence);
                return Ok(());
            }
            Err(status) => status,
        };
        let failure = Failure::status(&self.args.server.addr, &status);
        let Some(typed) = &mut self.typed else {
            return Err(failure);
        };
        typed.forget(&line);
        notices::say(format_args!(
            "not sent: {failure}: {}",
            format::plain(&line)
        ));
        Ok(())
    }
}

/// The next lines typed; never, after the end of the input.
async fn read(
    lines: &mut Option<Receiver<Result<Batch, Failure>>>,
) -> Option<Result<Batch, Failure>> {
    match lines {
        Some(lines) => lines.recv().await,
        None => std::future::pending().await,
    }
}

type Sent = (String, Result<SendMessageResponse, Status>);

/// Lines on their way to the room, one at a time and in order.
struct Outgoing {
    user: String,
    room: String,
    client: Client,
    lines: VecDeque<String>,
    sending: Option<BoxFuture<'static, Sent>>,
    acknowledged: Option<u64>,
    since: Instant,
}

impl Outgoing {
    fn new(args: &ChatArgs, client: Client) -> Self {
        Self {
            user: args.user.clone(),
            room: args.room.clone(),
            client,
            lines: VecDeque::new(),
            sending: None,
            acknowledged: None,
            since: Instant::now(),
        }
    }

    /// The outcome of the line on its way, or of the next one; never, if there is none. May be dropped and called again.
    async fn next(&mut self) -> Sent {
        if self.sending.is_none() {
            self.sending = self.lines.pop_front().map(|line| self.send(line));
        }
        let Some(sending) = &mut self.sending else {
            return std::future::pending().await;
        };
        let sent = sending.await;
        self.sending = None;
        sent
    }

    fn send(&self, line: String) -> BoxFuture<'static, Sent> {
        let (client, user, room) = (self.client.clone(), self.user.clone(), self.room.clone());
        async move {
            let outcome = client.send(&user, &room, &line, "").await;
            (line, outcome)
        }
        .boxed()
    }

    fn acknowledged(&mut self, sequence: u64) {
        self.acknowledged = self.acknowledged.max(Some(sequence));
        self.since = Instant::now();
    }

    /// Whether lines are waiting or on their way.
    fn is_busy(&self) -> bool {
        self.sending.is_some() || !self.lines.is_empty()
    }

    /// Whether everything was stored, and shown by a subscription that is at `position`.
    fn is_done(&self, position: Option<u64>) -> bool {
        !self.is_busy() && self.acknowledged <= position
    }
}

/// Lines that the terminal shows already because they were typed there: the room's copy is not shown again.
#[derive(Debug, Default)]
struct Typed(VecDeque<String>);

impl Typed {
    /// Whether `message` is the copy of a typed line; the line is then forgotten.
    fn is_seen(&mut self, user: &str, message: &Message) -> bool {
        message.user == user && self.forget(&message.content)
    }

    fn forget(&mut self, line: &str) -> bool {
        let place = self.0.iter().position(|typed| typed == line);
        place.and_then(|place| self.0.remove(place)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(user: &str, content: &str) -> Message {
        Message {
            user: user.into(),
            content: content.into(),
            ..Message::default()
        }
    }

    #[test]
    fn a_typed_line_hides_one_copy_of_ones_own() {
        let mut typed = Typed(["hi".into(), "ho".into()].into());
        assert!(!typed.is_seen("ann", &said("bob", "hi")));
        assert!(typed.is_seen("ann", &said("ann", "hi")));
        assert!(!typed.is_seen("ann", &said("ann", "hi")));
        assert!(typed.forget("ho"));
        assert!(!typed.is_seen("ann", &said("ann", "ho")));
    }

    #[tokio::test]
    async fn done_means_acknowledged_and_shown() {
        use clap::Parser as _;
        let cli = crate::cli::Cli::try_parse_from(["weir", "chat", "--user", "ann"]).unwrap();
        let crate::cli::Command::Chat(args) = cli.command else {
            panic!("not the chat");
        };
        let mut outgoing =
            Outgoing::new(&args, Client::connect_lazy("http://127.0.0.1:1").unwrap());
        assert!(outgoing.is_done(None));
        outgoing.lines.push_back("hi".into());
        assert!(!outgoing.is_done(None));
        outgoing.lines.clear();
        outgoing.acknowledged(5);
        assert!(!outgoing.is_done(None) && !outgoing.is_done(Some(4)));
        assert!(outgoing.is_done(Some(5)));
    }
}
