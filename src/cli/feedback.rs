//! `weir feedback`: what consumers say, and what the business answers.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use prost_types::Timestamp;

use super::{Failure, Persistence, Target, format::plain, notices};
use crate::{
    client::{Client, Sequenced, Subscription},
    proto::weir::v1::{
        FeedbackFilter, FeedbackItem, ListFeedbackRequest, ReplyToFeedbackRequest, StaffReply,
        SubmitFeedbackRequest,
    },
};

const AFTER_HELP: &str = "\
Examples:
  weir feedback send --consumer ann --rating 5 \"Great product!\"
  weir feedback watch --max-rating 2                 what displeases, from now on
  weir feedback list --unanswered
  weir feedback reply feedback-17 --author staff \"We are on it.\"
  weir feedback watch --consumer ann                 the replies to ann

Columns of feedback: id, time (UTC), consumer, rating (- for none), text; lists end with whether it is answered. Columns
of replies: id of the feedback, time, author, text. Control characters are written out.";

/// Give feedback, watch it come in, and answer it.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct FeedbackArgs {
    #[command(subcommand)]
    command: FeedbackCommand,
}

#[derive(Debug, Subcommand)]
enum FeedbackCommand {
    Send(Send),
    Watch(Watch),
    Reply(Reply),
    List(List),
}

/// Give one feedback; prints its id.
#[derive(Debug, Args)]
struct Send {
    /// What is said.
    text: String,
    /// Who says it.
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// From 1 (bad) to 5 (good) [default: none].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=5))]
    rating: Option<i32>,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

/// Print feedback as it comes, or the replies to one consumer.
#[derive(Debug, Args)]
struct Watch {
    /// Print the staff's replies to this consumer instead; those that wait for it come first.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["min_rating", "max_rating"])]
    consumer: Option<String>,
    /// The lowest rating; feedback without one is left out then.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=5))]
    min_rating: Option<i32>,
    /// The highest rating.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..=5))]
    max_rating: Option<i32>,
    /// Start after this sequence, 0 being the first retained [default: from now on].
    #[arg(long, value_name = "SEQUENCE")]
    after: Option<u64>,
    /// Stop after so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

/// Answer a feedback.
#[derive(Debug, Args)]
struct Reply {
    /// The feedback's id.
    id: String,
    /// The answer.
    text: String,
    /// Who answers.
    #[arg(long, value_name = "NAME")]
    author: String,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

/// Print the feedback there is, oldest first.
#[derive(Debug, Args)]
struct List {
    /// Only of this consumer.
    #[arg(long, value_name = "NAME", default_value = "")]
    consumer: String,
    /// Only what is answered.
    #[arg(long, conflicts_with = "unanswered")]
    answered: bool,
    /// Only what is not answered.
    #[arg(long)]
    unanswered: bool,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: FeedbackArgs) -> Result<(), Failure> {
    match args.command {
        FeedbackCommand::Send(args) => send(args).await,
        FeedbackCommand::Watch(args) => watch(args).await,
        FeedbackCommand::Reply(args) => reply(args).await,
        FeedbackCommand::List(args) => list(args).await,
    }
}

async fn send(args: Send) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let feedback = SubmitFeedbackRequest {
        consumer_id: args.consumer,
        feedback: args.text,
        rating: args.rating.unwrap_or_default(),
        idempotency_key: String::new(),
    };
    let stored = client.submit_feedback(feedback).await;
    let stored = stored.map_err(|status| Failure::status(&args.server.addr, &status))?;
    notices::say(plain(&stored.response_message));
    Ok(writeln!(io::stdout(), "{}", stored.feedback_id)?)
}

async fn reply(args: Reply) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let reply = ReplyToFeedbackRequest {
        feedback_id: args.id,
        author: args.author,
        message: args.text,
        idempotency_key: String::new(),
    };
    let stored = client.reply_to_feedback(reply).await;
    let stored = stored.map_err(|status| Failure::status(&args.server.addr, &status))?;
    Ok(writeln!(io::stdout(), "{}", stored.sequence)?)
}

async fn watch(args: Watch) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    match &args.consumer {
        Some(consumer) => {
            let replies = client.watch_replies(consumer, args.after);
            print(replies, &args, reply_columns).await
        }
        None => {
            let (min, max) = (args.min_rating, args.max_rating);
            let all =
                client.watch_feedback(min.unwrap_or_default(), max.unwrap_or_default(), args.after);
            print(all, &args, item_columns).await
        }
    }
}

async fn print<T: Sequenced + 'static>(
    items: Subscription<T>,
    args: &Watch,
    columns: fn(&T) -> String,
) -> Result<(), Failure> {
    let mut items = items.with_observer(notices::observer(&args.server.addr));
    let mut left = args.count;
    while left != Some(0) {
        let Some(item) = futures::StreamExt::next(&mut items).await else {
            return Err(Failure::failed("the subscription has ended"));
        };
        let item = item.map_err(|status| Failure::status(&args.server.addr, &status))?;
        writeln!(io::stdout(), "{}", columns(&item))?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

async fn list(args: List) -> Result<(), Failure> {
    let client: Client = args.persistence.connect(&args.server).await?;
    let filter = match (args.answered, args.unanswered) {
        (true, _) => FeedbackFilter::Answered,
        (_, true) => FeedbackFilter::Unanswered,
        _ => FeedbackFilter::Unspecified,
    };
    let mut request = ListFeedbackRequest {
        consumer_id: args.consumer,
        filter: filter.into(),
        ..ListFeedbackRequest::default()
    };
    loop {
        let page = client.list_feedback(request.clone()).await;
        let page = page.map_err(|status| Failure::status(&args.server.addr, &status))?;
        for item in &page.items {
            let answered = if item.answered { "answered" } else { "-" };
            writeln!(io::stdout(), "{}\t{answered}", item_columns(item))?;
        }
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        request.page_token = page.next_page_token;
    }
}

fn item_columns(item: &FeedbackItem) -> String {
    let rating = match item.rating {
        0 => "-".to_owned(),
        rating => rating.to_string(),
    };
    let (consumer, text) = (plain(&item.consumer_id), plain(&item.feedback));
    let (id, time) = (&item.feedback_id, time(item.timestamp));
    format!("{id}\t{time}\t{consumer}\t{rating}\t{text}")
}

fn reply_columns(reply: &StaffReply) -> String {
    let (author, text) = (plain(&reply.author), plain(&reply.message));
    let (id, time) = (&reply.feedback_id, time(reply.timestamp));
    format!("{id}\t{time}\t{author}\t{text}")
}

/// To the second; `-` when there is none.
fn time(time: Option<Timestamp>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| {
            let seconds = time.normalized().seconds;
            Timestamp { seconds, nanos: 0 }.to_string()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_many_whatever_is_said() {
        let item = FeedbackItem {
            feedback_id: "feedback-1".into(),
            consumer_id: "a\tb".into(),
            feedback: "line\nline".into(),
            ..FeedbackItem::default()
        };
        assert_eq!(item_columns(&item), "feedback-1\t-\ta\\tb\t-\tline\\nline");
        let reply = StaffReply {
            feedback_id: "feedback-1".into(),
            author: "staff".into(),
            message: "a\tb".into(),
            timestamp: Some(Timestamp {
                seconds: 0,
                nanos: 5,
            }),
            sequence: 7,
        };
        assert_eq!(
            reply_columns(&reply),
            "feedback-1\t1970-01-01T00:00:00Z\tstaff\ta\\tb"
        );
    }
}
