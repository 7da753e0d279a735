//! `FeedbackService`, `weir.v1.FeedbackDesk` and `weir.v1.Feedback` over real sockets.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;
use weir::proto::{
    feedback::{
        FeedbackRequest, FeedbackResponse, FeedbackResponseKind,
        feedback_service_client::FeedbackServiceClient,
    },
    weir::v1::{
        FeedbackFilter, FeedbackItem, ListFeedbackRequest, ReplyToFeedbackRequest, StaffReply,
        SubmitFeedbackRequest, WatchFeedbackRequest, WatchRepliesRequest,
        feedback_client::FeedbackClient, feedback_desk_client::FeedbackDeskClient,
    },
};

use crate::support::{
    TestServer, end,
    errors::{assert_ended, assert_invalid, info},
    next, soon,
};

struct Consumer {
    say: mpsc::Sender<FeedbackRequest>,
    hear: Streaming<FeedbackResponse>,
}

impl Consumer {
    async fn open(server: &TestServer) -> Self {
        Self::with(server, None).await.unwrap()
    }

    async fn with(server: &TestServer, after: Option<&str>) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(100);
        let mut request = Request::new(ReceiverStream::new(said));
        if let Some(after) = after {
            let value = after.parse().unwrap();
            request.metadata_mut().insert("after-sequence", value);
        }
        let mut client = FeedbackServiceClient::new(server.channel().await);
        let hear = soon("a response", client.send_feedback(request)).await?;
        let hear = hear.into_inner();
        Ok(Self { say, hear })
    }

    async fn say(&self, consumer: &str, text: &str) {
        self.say.send(feedback(consumer, text)).await.unwrap();
    }

    async fn hear(&mut self) -> FeedbackResponse {
        next(&mut self.hear).await
    }

    /// Gives feedback and takes its thank-you, which must come next; returns the feedback's id.
    async fn thanked(&mut self, consumer: &str, text: &str) -> String {
        self.say(consumer, text).await;
        let heard = self.hear().await;
        assert_eq!(
            heard.kind(),
            FeedbackResponseKind::Acknowledgement,
            "{heard:?}"
        );
        heard.feedback_id
    }

    /// Closes its side and hears the stream out.
    async fn close(mut self) -> Vec<FeedbackResponse> {
        drop(self.say);
        let mut rest = Vec::new();
        while let Some(heard) = soon("the end", self.hear.message()).await.unwrap() {
            rest.push(heard);
        }
        rest
    }
}

fn feedback(consumer: &str, text: &str) -> FeedbackRequest {
    FeedbackRequest {
        consumer_id: consumer.into(),
        feedback: text.into(),
        ..FeedbackRequest::default()
    }
}

async fn desk(server: &TestServer) -> FeedbackDeskClient<Channel> {
    FeedbackDeskClient::new(server.channel().await)
}

fn answer(feedback_id: &str, message: &str) -> ReplyToFeedbackRequest {
    ReplyToFeedbackRequest {
        feedback_id: feedback_id.into(),
        author: "staff".into(),
        message: message.into(),
        idempotency_key: String::new(),
    }
}

async fn reply(server: &TestServer, feedback_id: &str, message: &str) -> u64 {
    let answer = answer(feedback_id, message);
    let stored = desk(server).await.reply_to_feedback(answer).await.unwrap();
    stored.into_inner().sequence
}

async fn submit(server: &TestServer, consumer: &str, text: &str, rating: i32) -> String {
    let request = SubmitFeedbackRequest {
        consumer_id: consumer.into(),
        feedback: text.into(),
        rating,
        idempotency_key: String::new(),
    };
    let mut client = FeedbackClient::new(server.channel().await);
    let stored = client.submit(request).await.unwrap().into_inner();
    assert_eq!(
        stored.response_message,
        format!("Thank you for your feedback, {consumer}!")
    );
    assert_eq!(stored.feedback_id, format!("feedback-{}", stored.sequence));
    stored.feedback_id
}

async fn watch(server: &TestServer, consumer: &str, after: Option<u64>) -> Streaming<StaffReply> {
    let request = WatchRepliesRequest {
        consumer_id: consumer.into(),
        after_sequence: after,
    };
    let mut client = FeedbackClient::new(server.channel().await);
    client.watch(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn every_feedback_is_thanked_for_once_it_is_stored() {
    let server = TestServer::start().await;
    let mut client = FeedbackServiceClient::new(server.channel().await);
    let said = [
        feedback("consumer123", "Great product!"),
        feedback("consumer123", "Could use some improvements."),
        feedback("other", ""),
    ];
    let mut heard = client
        .send_feedback(tokio_stream::iter(said))
        .await
        .unwrap()
        .into_inner();
    let mut last = 0;
    for consumer in ["consumer123", "consumer123", "other"] {
        let response = next(&mut heard).await;
        assert_eq!(
            response.response_message,
            format!("Thank you for your feedback, {consumer}!")
        );
        assert_eq!(response.kind(), FeedbackResponseKind::Acknowledgement);
        assert!(response.sequence > last);
        last = response.sequence;
        assert_eq!(response.feedback_id, format!("feedback-{last}"));
        assert_eq!(response.author, "");
    }
    assert!(soon("the end", heard.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_reply_reaches_every_open_stream_of_its_consumer() {
    let server = TestServer::start().await;
    let mut first = Consumer::open(&server).await;
    let mut second = Consumer::open(&server).await;
    let mut stranger = Consumer::open(&server).await;
    let id = first.thanked("ann", "slow").await;
    second.thanked("ann", "still slow").await;
    stranger.thanked("bob", "fine").await;
    let mut watching = watch(&server, "ann", None).await;
    let sequence = reply(&server, &id, "We are\nfaster now").await;
    for consumer in [&mut first, &mut second] {
        let heard = consumer.hear().await;
        assert_eq!(heard.kind(), FeedbackResponseKind::StaffReply);
        assert_eq!(heard.response_message, "We are\nfaster now");
        assert_eq!((heard.author.as_str(), &heard.feedback_id), ("staff", &id));
        assert_eq!(heard.sequence, sequence);
    }
    let heard = next(&mut watching).await;
    assert_eq!(
        (heard.message.as_str(), heard.author.as_str()),
        ("We are\nfaster now", "staff")
    );
    assert_eq!((&heard.feedback_id, heard.sequence), (&id, sequence));
    assert!(heard.timestamp.is_some());
    // Nobody else hears it.
    stranger.thanked("bob", "yes").await;
}

#[tokio::test]
async fn replies_wait_for_their_consumer_and_come_first_and_once() {
    let server = TestServer::start().await;
    let mut ann = Consumer::open(&server).await;
    let id = ann.thanked("ann", "one").await;
    assert_eq!(ann.close().await, []);
    for number in 0..3 {
        reply(&server, &id, &number.to_string()).await;
    }
    // Also over a restart.
    let server = server.restart().await;
    let ann = Consumer::open(&server).await;
    ann.say("ann", "two").await;
    let heard = ann.close().await;
    let texts: Vec<_> = heard
        .iter()
        .map(|heard| heard.response_message.as_str())
        .collect();
    assert_eq!(texts, ["0", "1", "2", "Thank you for your feedback, ann!"]);
    // The stream ended well, so they were marked: they do not come again, not even after a restart.
    let server = server.restart().await;
    let mut ann = Consumer::open(&server).await;
    ann.thanked("ann", "three").await;
    reply(&server, &id, "3").await;
    assert_eq!(ann.hear().await.response_message, "3");
    assert_eq!(ann.close().await, []);
    let mut watching = watch(&server, "ann", None).await;
    reply(&server, &id, "4").await;
    assert_eq!(next(&mut watching).await.message, "4");
    // With a position it is the position that counts.
    let mut all = watch(&server, "ann", Some(0)).await;
    for number in 0..5 {
        assert_eq!(next(&mut all).await.message, number.to_string());
    }
}

#[tokio::test]
async fn replies_wait_for_those_who_watch_too() {
    let server = TestServer::start().await;
    let id = submit(&server, "ann", "hello", 0).await;
    reply(&server, &id, "first").await;
    let mut watching = watch(&server, "ann", None).await;
    assert_eq!(next(&mut watching).await.message, "first");
    reply(&server, &id, "second").await;
    // What comes next was asked for, so what came before is marked.
    assert_eq!(next(&mut watching).await.message, "second");
    let mut again = watch(&server, "ann", None).await;
    reply(&server, &id, "third").await;
    let heard = next(&mut again).await.message;
    // The second may have been handed over and not marked yet: at least once.
    assert!(heard == "third" || heard == "second", "{heard}");
}

#[tokio::test]
async fn metadata_resumes_the_replies() {
    let server = TestServer::start().await;
    let id = submit(&server, "ann", "hello", 0).await;
    let first = reply(&server, &id, "first").await;
    reply(&server, &id, "second").await;
    let after = first.to_string();
    let mut ann = Consumer::with(&server, Some(&after)).await.unwrap();
    ann.say("ann", "back").await;
    let mut heard = [
        ann.hear().await.response_message,
        ann.hear().await.response_message,
    ];
    heard.sort();
    assert_eq!(heard, ["Thank you for your feedback, ann!", "second"]);
    let wrong = Consumer::with(&server, Some("x")).await.err().unwrap();
    assert_invalid(
        &wrong,
        "after-sequence must be a decimal number",
        &["after-sequence"],
    );
}

#[tokio::test]
async fn the_desk_watches_all_feedback_by_rating() {
    let server = TestServer::start().await;
    let client = desk(&server).await;
    let watched = |min_rating, max_rating, after_sequence| {
        let mut client = client.clone();
        let request = WatchFeedbackRequest {
            after_sequence,
            min_rating,
            max_rating,
        };
        async move { client.watch_feedback(request).await }
    };
    let mut all = watched(0, 0, None).await.unwrap().into_inner();
    let mut good = watched(4, 5, None).await.unwrap().into_inner();
    for (number, rating) in [0, 1, 4, 5, 3].into_iter().enumerate() {
        submit(&server, "ann", &number.to_string(), rating).await;
    }
    let mut ratings = Vec::new();
    for _ in 0..5 {
        let item = next(&mut all).await;
        assert_eq!(item.consumer_id, "ann");
        assert_eq!(item.feedback_id, format!("feedback-{}", item.sequence));
        assert!(item.timestamp.is_some());
        ratings.push((item.feedback, item.rating));
    }
    let expected = [("0", 0), ("1", 1), ("2", 4), ("3", 5), ("4", 3)];
    assert_eq!(
        ratings,
        expected.map(|(text, rating)| (text.to_owned(), rating))
    );
    assert_eq!(next(&mut good).await.feedback, "2");
    let after = next(&mut good).await.sequence;
    let mut later = watched(0, 0, Some(after)).await.unwrap().into_inner();
    assert_eq!(next(&mut later).await.feedback, "4");

    let status = watched(5, 4, None).await.unwrap_err();
    assert_invalid(
        &status,
        "max_rating must not be below min_rating",
        &["max_rating"],
    );
    let status = watched(6, -1, None).await.unwrap_err();
    assert_invalid(
        &status,
        "min_rating must be 0 to 5; max_rating must be 0 to 5",
        &["min_rating", "max_rating"],
    );
    let status = watched(0, 0, Some(99_999)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    server.terminate();
    let status = end(&mut later).await.unwrap_err();
    assert!(assert_ended(&status, "DRAINING").unwrap() > after);
}

#[tokio::test]
async fn replies_need_a_feedback_and_an_author_and_repeat_by_key() {
    let server = TestServer::start().await;
    let id = submit(&server, "ann", "hello", 0).await;
    let other = submit(&server, "ann", "again", 0).await;
    let mut desk = desk(&server).await;
    for unknown in [
        "feedback-99999",
        "feedback-0",
        "nonsense",
        "feedback-+1",
        "feedback-01",
    ] {
        let status = desk
            .reply_to_feedback(answer(unknown, "hi"))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{unknown}: {status:?}");
        let resource = status.get_details_resource_info().unwrap();
        assert_eq!(
            (
                resource.resource_type.as_str(),
                resource.resource_name.as_str()
            ),
            ("feedback", unknown)
        );
    }
    let nobody = ReplyToFeedbackRequest {
        author: " ".into(),
        ..answer("", "hi")
    };
    let status = desk.reply_to_feedback(nobody).await.unwrap_err();
    assert_invalid(
        &status,
        "feedback_id is required; author is required",
        &["feedback_id", "author"],
    );
    let keyed = |id: &str, message: &str| ReplyToFeedbackRequest {
        idempotency_key: "k".into(),
        ..answer(id, message)
    };
    let first = desk
        .reply_to_feedback(keyed(&id, "hi"))
        .await
        .unwrap()
        .into_inner();
    let again = desk
        .reply_to_feedback(keyed(&id, "hi"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    for other in [keyed(&id, "ho"), keyed(&other, "hi")] {
        let status = desk.reply_to_feedback(other).await.unwrap_err();
        assert_eq!(status.code(), Code::AlreadyExists);
        assert_eq!(info(&status).0, "IDEMPOTENCY_KEY_REUSED");
    }
}

async fn listed(server: &TestServer, request: ListFeedbackRequest) -> Vec<FeedbackItem> {
    let mut desk = desk(server).await;
    let mut request = ListFeedbackRequest {
        page_size: 2,
        ..request
    };
    let mut items = Vec::new();
    loop {
        let page = desk
            .list_feedback(request.clone())
            .await
            .unwrap()
            .into_inner();
        assert!(page.items.len() <= 2);
        items.extend(page.items);
        if page.next_page_token.is_empty() {
            return items;
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn feedback_is_listed_by_consumer_and_by_whether_it_is_answered() {
    let server = TestServer::start().await;
    let mut ids = Vec::new();
    for (consumer, text) in [
        ("ann", "1"),
        ("bob", "2"),
        ("ann", "3"),
        ("ann", "4"),
        ("bob", "5"),
    ] {
        ids.push(submit(&server, consumer, text, 0).await);
    }
    reply(&server, &ids[2], "to 3").await;
    reply(&server, &ids[4], "to 5").await;
    for (consumer, filter, expected) in [
        (
            "",
            FeedbackFilter::Unspecified,
            &["1", "2", "3", "4", "5"][..],
        ),
        ("ann", FeedbackFilter::Unspecified, &["1", "3", "4"]),
        ("", FeedbackFilter::Answered, &["3", "5"]),
        ("", FeedbackFilter::Unanswered, &["1", "2", "4"]),
        ("ann", FeedbackFilter::Answered, &["3"]),
        ("bob", FeedbackFilter::Unanswered, &["2"]),
        ("nobody", FeedbackFilter::Unspecified, &[]),
    ] {
        let request = ListFeedbackRequest {
            consumer_id: consumer.into(),
            filter: filter.into(),
            ..ListFeedbackRequest::default()
        };
        let items = listed(&server, request).await;
        let texts: Vec<_> = items.iter().map(|item| item.feedback.as_str()).collect();
        assert_eq!(texts, expected, "{consumer} {filter:?}");
        let answered = items
            .iter()
            .all(|item| item.answered == ["3", "5"].contains(&item.feedback.as_str()));
        assert!(answered);
    }
    let bad = ListFeedbackRequest {
        consumer_id: "x".repeat(257),
        filter: 9,
        page_size: -1,
        page_token: "x".into(),
    };
    let status = desk(&server).await.list_feedback(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        crate::support::errors::fields(&status),
        ["consumer_id", "page_size", "page_token", "filter"]
    );
}

#[tokio::test]
async fn bad_feedback_ends_the_stream_after_the_thanks_for_what_came_before() {
    let server = TestServer::start().await;
    let bad_rating = FeedbackRequest {
        rating: 6,
        ..feedback("ann", "too good")
    };
    let mut client = FeedbackServiceClient::new(server.channel().await);
    for (bad, text, fields) in [
        (bad_rating, "rating must be 0 to 5", &["rating"][..]),
        (
            feedback(" ", "hi"),
            "consumer_id is required",
            &["consumer_id"],
        ),
    ] {
        let said = tokio_stream::iter([feedback("ann", "fine"), bad, feedback("ann", "after")]);
        let mut heard = client.send_feedback(said).await.unwrap().into_inner();
        assert_eq!(
            next(&mut heard).await.kind(),
            FeedbackResponseKind::Acknowledgement
        );
        let status = end(&mut heard).await.unwrap_err();
        assert_invalid(&status, text, fields);
    }
    let stored = listed(&server, ListFeedbackRequest::default()).await;
    assert!(
        stored.iter().all(|item| item.feedback == "fine"),
        "{stored:?}"
    );
    let keyed = |text: &str, rating| FeedbackRequest {
        idempotency_key: "k".into(),
        rating,
        ..feedback("ann", text)
    };
    let said = tokio_stream::iter([keyed("a", 1), keyed("a", 1), keyed("a", 2)]);
    let mut heard = client.send_feedback(said).await.unwrap().into_inner();
    let (first, again) = (next(&mut heard).await, next(&mut heard).await);
    assert_eq!(first, again);
    let status = end(&mut heard).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert_eq!(info(&status).0, "IDEMPOTENCY_KEY_REUSED");
}

#[tokio::test]
async fn consumers_of_one_stream_are_limited() {
    let server = TestServer::start().await;
    let mut many = Consumer::open(&server).await;
    for number in 0..64 {
        many.thanked(&format!("consumer {number}"), "hi").await;
    }
    many.say("one too many", "hi").await;
    let status = end(&mut many.hear).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "consumers of one stream is limited to 64");
}

#[tokio::test]
async fn a_drain_ends_consumers_streams_with_a_position() {
    let server = TestServer::start().await;
    let mut ann = Consumer::open(&server).await;
    let id = ann.thanked("ann", "hi").await;
    let sequence = reply(&server, &id, "hello").await;
    assert_eq!(ann.hear().await.response_message, "hello");
    let mut watching = watch(&server, "ann", Some(0)).await;
    assert_eq!(next(&mut watching).await.message, "hello");
    server.terminate();
    for status in [
        end(&mut ann.hear).await.unwrap_err(),
        end(&mut watching).await.unwrap_err(),
    ] {
        let after = assert_ended(&status, "DRAINING").expect("a position");
        assert!(after >= sequence, "{after} < {sequence}");
    }
}

/// Runs `weir feedback` to its end; returns its exit code and output.
async fn weir(server: &TestServer, args: &[&str]) -> (Option<i32>, String) {
    let run = tokio::process::Command::new(crate::support::server::binary())
        .arg("feedback")
        .args(args)
        .env("WEIR_ADDR", server.url())
        .kill_on_drop(true)
        .output();
    let output = soon("the command's end", run).await.unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[tokio::test]
async fn the_command_line_gives_lists_answers_and_watches() {
    let server = TestServer::start().await;
    let sent = weir(
        &server,
        &["send", "--consumer", "ann", "--rating", "2", "too slow"],
    );
    let (code, id) = sent.await;
    assert_eq!(code, Some(0));
    let id = id.trim_end();
    let (_, listed) = weir(&server, &["list", "--unanswered"]).await;
    let columns: Vec<_> = listed.trim_end().split('\t').collect();
    assert_eq!(
        (columns[0], &columns[2..]),
        (id, &["ann", "2", "too slow", "-"][..])
    );
    let (code, _) = weir(&server, &["reply", id, "--author", "staff", "on it"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(weir(&server, &["list", "--unanswered"]).await.1, "");
    assert!(
        weir(&server, &["list", "--answered"])
            .await
            .1
            .ends_with("\tanswered\n")
    );
    let (_, watched) = weir(&server, &["watch", "--after", "0", "--count", "1"]).await;
    assert!(
        watched.starts_with(id) && watched.ends_with("\ttoo slow\n"),
        "{watched}"
    );
    let (_, replies) = weir(&server, &["watch", "--consumer", "ann", "--count", "1"]).await;
    assert!(
        replies.starts_with(id) && replies.ends_with("\tstaff\ton it\n"),
        "{replies}"
    );
    let (code, _) = weir(&server, &["reply", "feedback-0", "--author", "staff", "hi"]).await;
    assert_eq!(code, Some(4));
}
