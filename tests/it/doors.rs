//! The ways into a room: every chat stream, and the unary calls beside them.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use weir::proto::{
    chat::{Message, chat_service_client::ChatServiceClient},
    streaming::v1::{
        ChatMessage, ChatMessageType, streaming_service_client::StreamingServiceClient,
    },
    streaming::{self, data_service_client::DataServiceClient},
    weir::v1::{
        GetHistoryRequest, JoinRequest, ListMembersRequest, Member, RoomEvent, RoomMessage,
        RoomMessageKind, SendRequest, room_event::Event, rooms_client::RoomsClient,
    },
};

use crate::support::{TestServer, eventually, next, soon};

/// One open conversation.
pub(crate) struct Talk<M> {
    pub(crate) say: mpsc::Sender<M>,
    pub(crate) hear: Streaming<M>,
}

impl<M> Talk<M> {
    pub(crate) async fn say(&self, message: M) {
        self.say.send(message).await.expect("the stream is open");
    }

    pub(crate) async fn hear(&mut self) -> M {
        next(&mut self.hear).await
    }
}

fn spoken<M>(after: Option<&str>) -> (mpsc::Sender<M>, Request<ReceiverStream<M>>) {
    let (say, said) = mpsc::channel(100);
    let mut request = Request::new(ReceiverStream::new(said));
    if let Some(after) = after {
        let value = after.parse().unwrap();
        request.metadata_mut().insert("after-sequence", value);
    }
    (say, request)
}

async fn opened<M>(
    say: mpsc::Sender<M>,
    answer: impl Future<Output = Result<Response<Streaming<M>>, Status>>,
) -> Result<Talk<M>, Status> {
    let hear = soon("a response", answer).await?.into_inner();
    Ok(Talk { say, hear })
}

/// `streaming.v1.StreamingService/Chat`.
pub(crate) async fn v1(channel: Channel, after: Option<&str>) -> Result<Talk<ChatMessage>, Status> {
    let (say, request) = spoken(after);
    let mut client = StreamingServiceClient::new(channel);
    opened(say, client.chat(request)).await
}

/// `streaming.DataService/Chat`.
pub(crate) async fn lobby(
    channel: Channel,
    after: Option<&str>,
) -> Result<Talk<streaming::ChatMessage>, Status> {
    let (say, request) = spoken(after);
    let mut client = DataServiceClient::new(channel);
    opened(say, client.chat(request)).await
}

/// `chat.ChatService/Chat`.
pub(crate) async fn chat(channel: Channel) -> Talk<Message> {
    let (say, request) = spoken(None);
    let mut client = ChatServiceClient::new(channel);
    opened(say, client.chat(request)).await.unwrap()
}

/// `weir.v1.Rooms/Join`.
pub(crate) async fn join(
    channel: Channel,
    room: &str,
    user: &str,
    after_sequence: Option<u64>,
) -> Result<Streaming<RoomEvent>, Status> {
    let request = JoinRequest {
        room: room.into(),
        user: user.into(),
        after_sequence,
    };
    let mut client = RoomsClient::new(channel);
    let joined = soon("a response", client.join(request)).await?;
    Ok(joined.into_inner())
}

/// The next event, which must be a message.
pub(crate) async fn room_message(events: &mut Streaming<RoomEvent>) -> RoomMessage {
    match next(events).await.event {
        Some(Event::Message(message)) => message,
        other => panic!("{other:?} is no message"),
    }
}

/// A text of `streaming.v1`.
pub(crate) fn text(room: &str, user: &str, content: &str) -> ChatMessage {
    ChatMessage {
        user_id: user.into(),
        room_id: room.into(),
        content: content.into(),
        r#type: ChatMessageType::Text.into(),
        ..ChatMessage::default()
    }
}

/// A message of `streaming`.
pub(crate) fn point(user: &str, content: &str) -> streaming::ChatMessage {
    streaming::ChatMessage {
        user_id: user.into(),
        content: content.into(),
        ..streaming::ChatMessage::default()
    }
}

/// A message of `weir.v1`.
pub(crate) fn line(room: &str, user: &str, content: &str) -> SendRequest {
    SendRequest {
        room: room.into(),
        user: user.into(),
        content: content.into(),
        ..SendRequest::default()
    }
}

/// Everything in a room: user, content and kind.
pub(crate) async fn history(
    server: &TestServer,
    room: &str,
) -> Vec<(String, String, RoomMessageKind)> {
    let mut client = RoomsClient::new(server.channel().await);
    let request = GetHistoryRequest {
        room: room.into(),
        page_size: 1000,
        ..GetHistoryRequest::default()
    };
    let page = client.get_history(request).await.unwrap().into_inner();
    assert!(page.is_end);
    let messages = page.messages.into_iter();
    messages
        .map(|message| {
            let kind = message.kind();
            (message.user, message.content, kind)
        })
        .collect()
}

/// The kinds of everything in a room, with their users.
pub(crate) async fn kinds(server: &TestServer, room: &str) -> Vec<(String, RoomMessageKind)> {
    let all = history(server, room).await.into_iter();
    all.map(|(user, _, kind)| (user, kind)).collect()
}

/// Who is in a room.
pub(crate) async fn members(server: &TestServer, room: &str) -> Vec<Member> {
    let mut client = RoomsClient::new(server.channel().await);
    let request = ListMembersRequest { room: room.into() };
    let listed = client.list_members(request).await.unwrap();
    listed.into_inner().members
}

/// Waits until exactly these users are in the room.
pub(crate) async fn has_members(server: &TestServer, room: &str, users: &[&str]) {
    eventually("the members", || async {
        let members = members(server, room).await;
        let found: Vec<_> = members.iter().map(|member| member.user.as_str()).collect();
        (found == users).then_some(())
    })
    .await;
}
