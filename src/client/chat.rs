//! The calls of `chat.ChatService`.

use std::time::Duration;

use futures::{Stream, stream};
use tonic::{Request, Status, transport::Channel};
use uuid::Uuid;

use super::{Client, ENVELOPE_BYTES, MAX_MESSAGE_BYTES, Sequenced, Subscription};
use crate::proto::chat::{
    Message, MessageType, SendMessageRequest, SendMessageResponse, SubscribeRequest,
    chat_service_client::ChatServiceClient,
};

/// Time for one try of a single message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for one try of a batch.
pub(super) const UPLOAD_TIMEOUT: Duration = Duration::from_secs(60);

impl Sequenced for Message {
    fn sequence(&self) -> u64 {
        self.sequence
    }

    fn is_greeting(&self) -> bool {
        self.sequence == 0 && self.id == "system" && self.r#type() == MessageType::System
    }
}

impl Client {
    /// Follows a room as `user`: a welcome, then its messages after the sequence `after`, or live from now.
    pub fn subscribe(&self, room: &str, user: &str, after: Option<u64>) -> Subscription<Message> {
        let chat = self.chat();
        let request = SubscribeRequest {
            room: room.to_owned(),
            user: user.to_owned(),
            after_sequence: None,
        };
        self.resumable(Subscription::new(after, move |resume| {
            let mut chat = chat.clone();
            let request = SubscribeRequest {
                after_sequence: resume.after_sequence,
                ..request.clone()
            };
            let request = resume.request(request);
            async move { chat.subscribe_messages(request).await }
        }))
    }

    /// Says `content` in a room and returns once it is durable. Failed tries are repeated under one idempotency key, so
    /// the message is stored once; an empty `idempotency_key` stands for a new one. A try takes ten seconds at most.
    ///
    /// # Errors
    /// A permanent status, or the last one when the repetitions are used up: whether the message is stored is then
    /// unknown, unless the code is permanent.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown whether the message is stored.
    pub async fn send(
        &self,
        user: &str,
        room: &str,
        content: &str,
        idempotency_key: &str,
    ) -> Result<SendMessageResponse, Status> {
        let message = SendMessageRequest {
            user: user.to_owned(),
            content: content.to_owned(),
            room: room.to_owned(),
            idempotency_key: key_or_new(idempotency_key),
        };
        let call = || {
            let (mut chat, request) = (self.chat(), timed(message.clone(), SEND_TIMEOUT));
            async move { chat.send_message(request).await }
        };
        Ok(self.publish_retry().run(call).await?.into_inner())
    }

    /// Stores `messages` and returns their count once all are durable. Failed tries are repeated as a whole; every
    /// message without an idempotency key gets one, so none is stored twice. A try takes a minute at most.
    ///
    /// # Errors
    /// As [`Client::send`]; after `INVALID_ARGUMENT` the messages before the bad one are stored.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown which messages are stored.
    pub async fn upload_all(&self, messages: Vec<Message>) -> Result<u64, Status> {
        let messages: Vec<_> = messages.into_iter().map(keyed).collect();
        let call = || {
            let (mut chat, request) = (
                self.chat(),
                timed(stream::iter(messages.clone()), UPLOAD_TIMEOUT),
            );
            async move { chat.upload_messages(request).await }
        };
        Ok(count(
            self.publish_retry()
                .run(call)
                .await?
                .into_inner()
                .message_count,
        ))
    }

    /// Stores a stream of messages in one call and returns their count once all are durable. A stream cannot be sent
    /// again, so nothing is repeated here; messages with idempotency keys make it safe for the caller to.
    ///
    /// # Errors
    /// Any status; the messages before the failure may be stored.
    ///
    /// # Cancellation
    /// Dropping the future leaves it unknown which messages are stored.
    pub async fn upload(
        &self,
        messages: impl Stream<Item = Message> + Send + 'static,
    ) -> Result<u64, Status> {
        let response = self.chat().upload_messages(messages).await?;
        Ok(count(response.into_inner().message_count))
    }

    fn chat(&self) -> ChatServiceClient<Channel> {
        ChatServiceClient::new(self.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES + ENVELOPE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

/// The message with an idempotency key: its own, or else a new one.
pub fn keyed(message: Message) -> Message {
    Message {
        idempotency_key: key_or_new(&message.idempotency_key),
        ..message
    }
}

pub(super) fn key_or_new(key: &str) -> String {
    match key {
        "" => Uuid::now_v7().to_string(),
        key => key.to_owned(),
    }
}

pub(super) fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn count(message_count: i32) -> u64 {
    u64::try_from(message_count).unwrap_or_default()
}
