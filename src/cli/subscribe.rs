//! `weir subscribe`: a room's messages on stdout.

use clap::Args;

use super::{Failure, Persistence, Target, follow::FollowArgs, format, notices};
use crate::{client::Sequenced as _, proto::chat::Message};

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
    #[command(flatten)]
    follow: FollowArgs,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: SubscribeArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let messages = client.subscribe(&args.room, &args.user, args.follow.after);
    let columns = |message: &Message| records(message, format::columns);
    let json = |message: &Message| records(message, format::json).into_iter().collect();
    let addr = &args.server.addr;
    args.follow.print(messages, addr, columns, json).await
}

/// The line of a record; what is not a record is told on stderr and does not count.
fn records<L>(message: &Message, line: impl Fn(&Message) -> L) -> Vec<L> {
    if message.sequence() == 0 {
        notices::say(format::plain(&message.content));
        return Vec::new();
    }
    vec![line(message)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_records_are_lines() {
        let message = |sequence| Message {
            sequence,
            user: "ann".into(),
            content: "hi".into(),
            ..Message::default()
        };
        assert!(records(&message(0), format::columns).is_empty());
        assert_eq!(records(&message(4), format::columns), ["4\t-\tann\thi"]);
    }
}
