//! `chat.ChatService`.

mod convert;
mod metrics;
mod session;

use bytes::BytesMut;
use tonic::{Request, Response, Status, Streaming};

use self::{convert::ChatMessages, session::Echoes};
use super::{
    Core, ENVELOPE_BYTES, Responses,
    incoming::Incoming,
    live::{Attended, Live, WithLive, frame},
    message_limit, session as chats,
};
use crate::{
    call::into_status,
    core::{
        Error,
        hub::{Encoded, Subscription},
        rooms::Post,
    },
    proto::chat::{
        Message, Metric, MetricsRequest, SendMessageRequest, SendMessageResponse, SubscribeRequest,
        UploadResponse,
        chat_service_server::{ChatService, ChatServiceServer},
    },
};

/// The service's full name.
const SERVICE: &str = "chat.ChatService";

/// The service with its hot subscription.
pub(super) fn routes(core: &Core) -> WithLive<ChatServiceServer<Chat>> {
    let limit = message_limit(&core.limits);
    let chat = Chat { core: core.clone() };
    let subscribing = chat.clone();
    let generated = ChatServiceServer::new(chat)
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES));
    WithLive::new(generated, limit, core.metrics.clone()).method(
        "/chat.ChatService/SubscribeMessages",
        move |request| {
            let chat = subscribing.clone();
            async move { chat.subscribe(request).await.map_err(into_status) }
        },
    )
}

/// The service.
#[derive(Clone)]
pub(super) struct Chat {
    core: Core,
}

impl Chat {
    async fn subscribe(
        &self,
        request: SubscribeRequest,
    ) -> Result<Live<Attended<Subscription<Encoded<ChatMessages>>>>, Error> {
        let welcome = convert::welcome(&request);
        let subscribe = convert::Subscribe::try_from(request)?;
        let mut first = BytesMut::new();
        frame(&welcome, &mut first);
        let (room, user) = (subscribe.room, subscribe.user);
        let rooms = &self.core.rooms;
        let source = rooms
            .subscribe(&room, subscribe.start, Encoded::default())
            .await?;
        let stay = self.core.presence.attend(&room, user.as_str(), SERVICE);
        Ok(Live {
            source: Attended {
                source,
                stay: Some(stay),
            },
            first: first.freeze(),
        })
    }

    async fn upload(&self, messages: Streaming<Message>) -> Result<UploadResponse, Status> {
        let mut messages = Incoming::new(messages);
        let mut pipeline = self.core.rooms.pipeline();
        let mut index = 0;
        while let Some(batch) = messages.next_batch().await? {
            let (records, refused) = self.records(batch, &mut index);
            pipeline.push(records).await.map_err(into_status)?;
            if let Some(refused) = refused {
                pipeline.finish().await.map_err(into_status)?;
                return Err(into_status(refused));
            }
        }
        let stored = pipeline.finish().await.map_err(into_status)?;
        Ok(UploadResponse {
            message_count: i32::try_from(stored).unwrap_or(i32::MAX),
            success: true,
        })
    }

    /// The records of a batch up to the first bad message, and what is wrong with that.
    fn records(
        &self,
        batch: Vec<Message>,
        index: &mut usize,
    ) -> (Vec<crate::log::NewRecord>, Option<Error>) {
        let mut records = Vec::with_capacity(batch.len());
        for message in batch {
            match convert::post(message, &format_args!("messages[{index}].")) {
                Ok(post) => records.push(self.core.rooms.record(post)),
                Err(error) => return (records, Some(error)),
            }
            *index += 1;
        }
        (records, None)
    }
}

#[tonic::async_trait]
impl ChatService for Chat {
    type SubscribeMessagesStream = Responses<Message>;
    type ChatStream = Responses<Message>;
    type StreamMetricsStream = Responses<Metric>;

    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let post = Post::try_from(request.into_inner()).map_err(into_status)?;
        let posted = self.core.rooms.post(post).await.map_err(into_status)?;
        Ok(Response::new(posted.into()))
    }

    /// Never called: [`routes`] serves this method from shared bytes.
    async fn subscribe_messages(
        &self,
        _: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeMessagesStream>, Status> {
        Err(Status::unimplemented("served as a live subscription"))
    }

    async fn upload_messages(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<UploadResponse>, Status> {
        self.upload(request.into_inner()).await.map(Response::new)
    }

    async fn chat(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Self::ChatStream>, Status> {
        chats::chat(&self.core, request, Echoes)
    }

    async fn stream_metrics(
        &self,
        request: Request<MetricsRequest>,
    ) -> Result<Response<Self::StreamMetricsStream>, Status> {
        let measured = metrics::stream(&self.core, request.into_inner()).await;
        measured.map(Response::new).map_err(into_status)
    }
}
