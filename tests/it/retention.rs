//! Retention, seen through the service: what is dropped is said, and how to go on.

use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{Settings, TestServer, eventually, follow, next, send};

const MESSAGES: u64 = 300;
/// Messages of a thousand bytes that 32 KiB have room for.
const MOST: usize = 32;

#[tokio::test]
async fn resuming_behind_retention_names_the_first_message_that_is_left() {
    let settings = Settings::default()
        .set("log.retention.room.bytes", "32KiB")
        .set("log.retention_interval", "100ms");
    let server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let filler = "x".repeat(1000);
    let mut sent = Vec::new();
    for number in 0..MESSAGES {
        let message = send("old", "ann", &format!("{number} {filler}"));
        let stored = chat.send_message(message).await.unwrap();
        sent.push(stored.into_inner().sequence);
    }

    // Other topics have sequences in between: where the topic begins is no message's sequence by itself.
    let begins = |after| {
        let mut chat = chat.clone();
        async move {
            let refused = chat
                .subscribe_messages(follow("old", Some(after)))
                .await
                .err()?;
            assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
            let info = refused.get_details_error_info().expect("an ErrorInfo");
            assert_eq!(info.reason, "POSITION_TRIMMED");
            Some(info.metadata["first_sequence"].parse::<u64>().unwrap())
        }
    };
    let left = |first: u64| &sent[sent.partition_point(|sequence| *sequence < first)..];
    let first = eventually("retention to drop old messages", || async {
        begins(1).await.filter(|first| left(*first).len() <= MOST)
    })
    .await;
    let left = left(first);
    assert!(!left.is_empty(), "retention keeps the newest message");
    assert_eq!(
        begins(first - 2).await,
        Some(first),
        "retention has settled"
    );

    for after in [first - 1, 0] {
        let mut stream = chat
            .subscribe_messages(follow("old", Some(after)))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(next(&mut stream).await.id, "system");
        for sequence in left {
            assert_eq!(next(&mut stream).await.sequence, *sequence);
        }
    }
    println!("retention: {} of {MESSAGES} messages left", left.len());
}
