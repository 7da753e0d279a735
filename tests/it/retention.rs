//! Retention, seen through the service: what is dropped is said, and how to go on.

use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::{Settings, TestServer, eventually, follow, next, send};

const MESSAGES: u64 = 300;

#[tokio::test]
async fn resuming_behind_retention_names_the_first_message_that_is_left() {
    let settings = Settings::default()
        .set("log.retention.room.bytes", "32KiB")
        .set("log.retention_interval", "100ms");
    let server = TestServer::with(settings).await;
    let mut chat = server.chat().await;
    let filler = "x".repeat(1000);
    let mut last = 0;
    for number in 0..MESSAGES {
        let content = format!("{number} {filler}");
        let sent = chat
            .send_message(send("old", "ann", &content))
            .await
            .unwrap();
        last = sent.into_inner().sequence;
    }

    // The newest message came before the last trim once the next one finds nothing to drop.
    let trimmed_first = |after| {
        let mut chat = chat.clone();
        async move {
            let refused = chat
                .subscribe_messages(follow("old", Some(after)))
                .await
                .err()?;
            assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
            let info = refused.get_details_error_info().expect("an ErrorInfo");
            assert_eq!(info.reason, "POSITION_TRIMMED");
            let first: u64 = info.metadata["first_sequence"].parse().unwrap();
            (first > MESSAGES - 40).then_some(first)
        }
    };
    let first = eventually("retention to drop old messages", || trimmed_first(1)).await;
    assert!(first <= last, "retention keeps the newest message");
    assert_eq!(
        trimmed_first(first - 2).await,
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
        for sequence in first..=last {
            assert_eq!(next(&mut stream).await.sequence, sequence);
        }
    }
    println!(
        "retention: {} of {MESSAGES} messages left",
        last + 1 - first
    );
}
