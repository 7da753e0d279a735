//! `weir notify`: notifications, sent and followed.

use std::io::{self, Write as _};

use clap::Args;
use serde::Serialize;

use super::{
    Failure, Persistence, Target,
    events::JsonAny,
    follow::FollowArgs,
    format::{plain, to_seconds},
};
use crate::proto::{
    streaming::v1::{Notification, SubscribeRequest},
    weir::v1::PublishNotificationRequest,
};

const AFTER_HELP: &str = "\
Examples:
  weir notify --user ann --title Backup 'done in 5 min'   to ann
  weir notify --title 'We move at noon'                   to all users
  weir notify --follow ann                                what ann gets from now on
  weir notify --follow ann --category work --after 0 --json

Sending prints the notification's sequence. Columns when following: sequence, time (UTC), user or `*` for all, category,
title, text. A broken connection is repaired and continues after the last notification.";

/// Send a notification to a user or to all, or follow a user's.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct NotifyArgs {
    /// Its text.
    #[arg(
        default_value = "",
        hide_default_value = true,
        conflicts_with = "follow_user"
    )]
    body: String,
    /// Whom it is for [default: all users].
    #[arg(long, value_name = "NAME", conflicts_with = "follow_user")]
    user: Option<String>,
    /// Its title.
    #[arg(
        long,
        required_unless_present = "follow_user",
        conflicts_with = "follow_user"
    )]
    title: Option<String>,
    /// How urgent it is: larger is more.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_hyphen_values = true
    )]
    priority: i32,
    /// A key under which repeating the command is harmless.
    #[arg(long, value_name = "KEY", conflicts_with = "follow_user")]
    key: Option<String>,
    /// Its category; when following, the categories to get [default: all].
    #[arg(long, value_name = "NAME")]
    category: Vec<String>,
    /// Follow this user's notifications, and those for all, instead.
    #[arg(long = "follow", value_name = "USER")]
    follow_user: Option<String>,
    #[command(flatten)]
    follow: FollowArgs,
    #[command(flatten)]
    server: Target,
    #[command(flatten)]
    persistence: Persistence,
}

pub(super) async fn run(args: NotifyArgs) -> Result<(), Failure> {
    let client = args.persistence.connect(&args.server).await?;
    let addr = &args.server.addr;
    if let Some(user_id) = args.follow_user {
        let notifications = client.notifications(SubscribeRequest {
            user_id,
            categories: args.category,
            after_sequence: args.follow.after,
        });
        let columns = |one: &Notification| vec![columns(one)];
        let json = |one: &Notification| Ok(vec![json(one)?]);
        return args.follow.print(notifications, addr, columns, json).await;
    }
    if args.category.len() > 1 {
        return Err(Failure::usage("a notification has one category"));
    }
    let request = PublishNotificationRequest {
        user_id: args.user.unwrap_or_default(),
        title: args.title.unwrap_or_default(),
        body: args.body,
        category: args.category.into_iter().next().unwrap_or_default(),
        priority: args.priority,
        idempotency_key: args.key.unwrap_or_default(),
        ..PublishNotificationRequest::default()
    };
    let published = client.publish_notification(request).await;
    let published = published.map_err(|status| Failure::status(addr, &status))?;
    Ok(writeln!(io::stdout(), "{}", published.sequence)?)
}

fn columns(one: &Notification) -> String {
    let user = match one.user_id.as_str() {
        "" => "*".into(),
        user => plain(user),
    };
    let (time, category) = (to_seconds(one.timestamp), plain(&one.category));
    let (title, body) = (plain(&one.title), plain(&one.body));
    format!(
        "{}\t{time}\t{user}\t{category}\t{title}\t{body}",
        one.sequence
    )
}

/// A notification as one line of JSON.
#[derive(Serialize)]
struct JsonNotification<'a> {
    sequence: u64,
    id: &'a str,
    user: &'a str,
    title: &'a str,
    body: &'a str,
    category: &'a str,
    priority: i32,
    /// RFC 3339, UTC.
    timestamp: Option<String>,
    data: Option<JsonAny<'a>>,
}

fn json(one: &Notification) -> serde_json::Result<String> {
    serde_json::to_string(&JsonNotification {
        sequence: one.sequence,
        id: &one.id,
        user: &one.user_id,
        title: &one.title,
        body: &one.body,
        category: &one.category,
        priority: one.priority,
        timestamp: one.timestamp.map(|time| time.to_string()),
        data: one.data.as_ref().map(Into::into),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_is_one_line() {
        let one = Notification {
            title: "a\nb".into(),
            category: "work".into(),
            priority: -1,
            sequence: 4,
            ..Notification::default()
        };
        assert_eq!(columns(&one), "4\t-\t*\twork\ta\\nb\t");
        let line: serde_json::Value = serde_json::from_str(&json(&one).unwrap()).unwrap();
        assert_eq!(
            (&line["title"], &line["priority"]),
            (&"a\nb".into(), &(-1).into())
        );
    }
}
