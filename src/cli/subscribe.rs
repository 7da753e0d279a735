//! `weir subscribe`: a room's messages on stdout.

use std::io::{self, BufWriter, Write};

use clap::Args;
use futures::FutureExt as _;

use super::{Failure, Persistence, Target, format, notices};
use crate::{
    client::{Sequenced as _, Subscription},
    proto::chat::Message,
};

const AFTER_HELP: &str = "\
Examples:
  weir subscribe general                       what is said from now on
  weir subscribe general --after 0             everything retained, then live
  weir subscribe general --after 0 --count 10  the first ten
  weir subscribe general --json | jq .content  one JSON object per line

Columns: sequence, time (UTC), user, content; control characters are written out. A broken connection is repaired and
continues after the last message. The sequence printed last is the --after of the next run.";

/// Print a room's messages as they come.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct SubscribeArgs {
    /// The room to follow.
    room: String,
    /// Who follows it.
    #[arg(long, value_name = "NAME", default_value = "weir-subscribe")]
    user: String,
    /// Start after this sequence, 0 being the first retained message [default: with the next message].
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    /// Stop after this many messages.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print one JSON object per line, with all fields.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: SubscribeArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let mut subscription = client
        .subscribe(&args.room, &args.user, args.after)
        .with_observer(notices::observer(&args.server.addr));
    let mut printer = Printer {
        output: BufWriter::new(io::stdout()),
        is_json: args.json,
        left: args.count,
    };
    while printer.wants_more() {
        let message = next(&mut subscription, &mut printer.output).await?;
        let message = message.map_err(|status| Failure::status(&args.server.addr, &status))?;
        printer.print(&message)?;
    }
    Ok(printer.output.flush()?)
}

/// The next message; the output is flushed before it is waited for.
async fn next(
    subscription: &mut Subscription<Message>,
    output: &mut impl Write,
) -> Result<Result<Message, tonic::Status>, Failure> {
    let ended = || Failure::failed("the subscription has ended");
    if let Some(message) = subscription.next().now_or_never() {
        return message.ok_or_else(ended);
    }
    output.flush()?;
    subscription.next().await.ok_or_else(ended)
}

struct Printer<W> {
    output: W,
    is_json: bool,
    left: Option<u64>,
}

impl<W: Write> Printer<W> {
    fn wants_more(&self) -> bool {
        self.left != Some(0)
    }

    /// Prints a record; what is not a record is told on stderr and does not count.
    fn print(&mut self, message: &Message) -> Result<(), Failure> {
        if message.sequence() == 0 {
            notices::say(format::plain(&message.content));
            return Ok(());
        }
        let line = match self.is_json {
            true => format::json(message).map_err(|error| Failure::failed(error.to_string()))?,
            false => format::columns(message),
        };
        writeln!(self.output, "{line}")?;
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(is_json: bool, left: Option<u64>, sequences: &[u64]) -> (String, bool) {
        let mut printer = Printer {
            output: Vec::new(),
            is_json,
            left,
        };
        for &sequence in sequences {
            let message = Message {
                sequence,
                user: "ann".into(),
                content: "hi".into(),
                ..Message::default()
            };
            printer.print(&message).unwrap();
        }
        let wants_more = printer.wants_more();
        (String::from_utf8(printer.output).unwrap(), wants_more)
    }

    #[test]
    fn only_records_are_printed_and_counted() {
        let (text, wants_more) = printed(false, Some(2), &[0, 4]);
        assert_eq!((text.as_str(), wants_more), ("4\t-\tann\thi\n", true));
        assert!(!printed(false, Some(2), &[0, 4, 5]).1);
        assert!(printed(false, None, &[4, 5]).1);
    }

    #[test]
    fn json_is_one_object_per_line() {
        let (text, _) = printed(true, None, &[1, 2]);
        let sequences: Vec<_> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["sequence"].clone()
            })
            .collect();
        assert_eq!(sequences, [1, 2]);
    }
}
