//! `weir.v1.Rooms`: lists, members, history, and a chat as a server stream beside unary calls.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use futures::stream;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    call::{Call, into_status},
    core::{
        Error, Name,
        hub::{Records, Subscription},
        presence::{Seen, Stay},
        rooms::{Kind, Post, RoomInfo},
        signals::{Listener, Sender, Signal, SignalKind},
    },
    log::{Record, Sequence, Space, Topic},
    proto::weir::v1::{
        self, GetHistoryRequest, GetHistoryResponse, JoinRequest, ListMembersRequest,
        ListMembersResponse, ListRoomsRequest, ListRoomsResponse, Member, RoomEvent, RoomMessage,
        RoomMessageKind, SendRequest, SendResponse, TypingRequest, TypingResponse,
        room_event::Event,
        rooms_server::{Rooms, RoomsServer},
    },
    services::{
        Core, ENVELOPE_BYTES, Responses,
        check::{Check, start, timestamp},
        live::positioned,
        message_limit,
    },
};

/// The service's full name.
const SERVICE: &str = "weir.v1.Rooms";

/// Adds the service.
pub(super) fn add(routes: Routes, core: &Core) -> Routes {
    let limit = message_limit(&core.limits);
    routes.add_service(
        RoomsServer::new(Service { core: core.clone() })
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit.saturating_add(ENVELOPE_BYTES)),
    )
}

struct Service {
    core: Core,
}

#[tonic::async_trait]
impl Rooms for Service {
    type JoinStream = Responses<RoomEvent>;

    async fn list_rooms(
        &self,
        request: Request<ListRoomsRequest>,
    ) -> Result<Response<ListRoomsResponse>, Status> {
        let (after, size) = list_request(request.into_inner()).map_err(into_status)?;
        let listed = self.core.rooms.list(after.as_ref(), size).await;
        let rooms = listed.map_err(into_status)?;
        let last = rooms.last().map(|info| info.room.name().to_owned());
        Ok(Response::new(ListRoomsResponse {
            next_page_token: last.filter(|_| rooms.len() == size).unwrap_or_default(),
            rooms: rooms.into_iter().map(|info| self.info(&info)).collect(),
        }))
    }

    async fn list_members(
        &self,
        request: Request<ListMembersRequest>,
    ) -> Result<Response<ListMembersResponse>, Status> {
        let room = room(&request.get_ref().room).map_err(into_status)?;
        let members = self.core.presence.members(&room).await;
        let members = members.map_err(into_status)?;
        Ok(Response::new(ListMembersResponse {
            members: members.into_iter().map(Member::from).collect(),
        }))
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        let (room, after, size) = history_request(request.get_ref()).map_err(into_status)?;
        let page = self.core.rooms.history(&room, after, size).await;
        let page = page.map_err(into_status)?;
        let messages = page.records.iter().map(|record| message(record));
        Ok(Response::new(GetHistoryResponse {
            messages: messages.collect(),
            next_after_sequence: page.next.0.saturating_sub(1),
            is_end: page.next >= page.tail,
        }))
    }

    async fn join(
        &self,
        request: Request<JoinRequest>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let call = request.extensions().get::<Call>().cloned();
        let visit = self.visit(request.into_inner(), call).await;
        let visit = visit.map_err(into_status)?;
        let cursor = visit.records.cursor();
        let events = stream::unfold(Some(visit), |visit| async move {
            let mut visit = visit?;
            match visit.next().await {
                Ok(event) => Some((Ok(event), Some(visit))),
                Err(error) => Some((Err(into_status(error)), None)),
            }
        });
        Ok(positioned(Box::pin(events), cursor))
    }

    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendResponse>, Status> {
        let post = Post::try_from(request.into_inner()).map_err(into_status)?;
        let posted = self.core.rooms.post(post).await.map_err(into_status)?;
        Ok(Response::new(SendResponse {
            id: posted.id.into(),
            sequence: posted.sequence.0,
        }))
    }

    async fn typing(
        &self,
        request: Request<TypingRequest>,
    ) -> Result<Response<TypingResponse>, Status> {
        let request = request.into_inner();
        let (room, user) = place(&request.room, request.user).map_err(into_status)?;
        let signal = Signal {
            sender: Sender::default(),
            user: user.into(),
            kind: SignalKind::Typing,
            payload: Bytes::new(),
        };
        self.core.signals.send(&room, signal);
        Ok(Response::new(TypingResponse {}))
    }
}

impl Service {
    fn info(&self, info: &RoomInfo) -> v1::RoomInfo {
        let members = self.core.presence.count(&info.room);
        v1::RoomInfo {
            room: info.room.name().to_owned(),
            first_sequence: info.first.0,
            last_sequence: info.last.0,
            members: i32::try_from(members).unwrap_or(i32::MAX),
        }
    }

    /// Follows the room, then comes to it: so the stream begins with the user's own coming, if that was news.
    async fn visit(&self, request: JoinRequest, call: Option<Call>) -> Result<Visit, Error> {
        let start = start(request.after_sequence);
        let (room, user) = place(&request.room, request.user)?;
        let records = self.core.rooms.subscribe(&room, start, Records).await?;
        let typing = self.core.signals.listen(&room, Sender::new());
        let entered = self.core.presence.enter(&room, user.as_str(), SERVICE);
        let stay = entered.await?.stay;
        Ok(Visit {
            user,
            records,
            waiting: VecDeque::new(),
            typing,
            stay: Some(stay),
            call,
        })
    }
}

/// One user in one room, for as long as the stream lasts.
struct Visit {
    user: Name,
    records: Subscription<Records>,
    /// What was read and not sent yet: one page at most.
    waiting: VecDeque<Arc<Record>>,
    typing: Listener,
    stay: Option<Stay>,
    call: Option<Call>,
}

impl Visit {
    async fn next(&mut self) -> Result<RoomEvent, Error> {
        loop {
            if let Some(record) = self.waiting.pop_front() {
                self.moved(record.sequence);
                return Ok(event(Event::Message(message(&record))));
            }
            self.moved(Sequence(self.records.cursor().0.saturating_sub(1)));
            tokio::select! {
                batch = self.records.next() => self.waiting.extend(batch?.data),
                signal = self.typing.next() => {
                    if signal.kind == SignalKind::Typing && *signal.user != *self.user.as_str() {
                        return Ok(event(Event::Typing(signal.user.to_string())));
                    }
                }
            }
        }
    }

    fn moved(&self, sequence: Sequence) {
        if let Some(call) = &self.call {
            call.resume_after(sequence);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let is_cancelled = self.call.as_ref().is_some_and(Call::is_cancelled_by_client);
        if let (true, Some(stay)) = (is_cancelled, self.stay.take()) {
            stay.leave();
        }
    }
}

const fn event(event: Event) -> RoomEvent {
    RoomEvent { event: Some(event) }
}

fn message(record: &Record) -> RoomMessage {
    RoomMessage {
        id: record.id.to_string(),
        user: record.publisher.to_string(),
        content: String::from_utf8_lossy(&record.payload).into_owned(),
        timestamp: Some(timestamp(record.shown_time())),
        kind: message_kind(Kind::of(record)).into(),
        sequence: record.sequence.0,
    }
}

const fn message_kind(kind: Kind) -> RoomMessageKind {
    match kind {
        Kind::Text => RoomMessageKind::Text,
        Kind::Image => RoomMessageKind::Image,
        Kind::File => RoomMessageKind::File,
        Kind::System => RoomMessageKind::System,
        Kind::Join => RoomMessageKind::Join,
        Kind::Leave => RoomMessageKind::Leave,
    }
}

impl From<Seen> for Member {
    fn from(seen: Seen) -> Self {
        Self {
            user: seen.user.into(),
            since: Some(timestamp(seen.since.into())),
            service: seen.service.into_owned(),
        }
    }
}

fn list_request(request: ListRoomsRequest) -> Result<(Option<Topic>, usize), Error> {
    let mut check = Check::new(&"");
    let size = check.page_size(request.page_size);
    let after = match request.page_token.is_empty() {
        true => Some(None),
        false => check
            .topic(Space::Room, "page_token", &request.page_token)
            .map(Some),
    };
    check.finish(after.zip(size))
}

fn history_request(request: &GetHistoryRequest) -> Result<(Topic, Sequence, usize), Error> {
    let mut check = Check::new(&"");
    let room = check.topic(Space::Room, "room", &request.room);
    let size = check.page_size(request.page_size);
    let whole = room.zip(size);
    check.finish(whole.map(|(room, size)| (room, Sequence(request.after_sequence), size)))
}

fn room(name: &str) -> Result<Topic, Error> {
    let mut check = Check::new(&"");
    let room = check.topic(Space::Room, "room", name);
    check.finish(room)
}

fn place(room: &str, user: String) -> Result<(Topic, Name), Error> {
    let mut check = Check::new(&"");
    let room = check.topic(Space::Room, "room", room);
    let user = check.name("user", user);
    check.finish(room.zip(user))
}

impl TryFrom<SendRequest> for Post {
    type Error = Error;

    fn try_from(request: SendRequest) -> Result<Self, Error> {
        let mut check = Check::new(&"");
        let room = check.topic(Space::Room, "room", &request.room);
        let user = check.name("user", request.user);
        let key = check.optional("idempotency_key", request.idempotency_key);
        let kind = match RoomMessageKind::try_from(request.kind) {
            Ok(RoomMessageKind::Unspecified | RoomMessageKind::Text) => Some(Kind::Text),
            Ok(RoomMessageKind::Image) => Some(Kind::Image),
            Ok(RoomMessageKind::File) => Some(Kind::File),
            Ok(RoomMessageKind::System | RoomMessageKind::Join | RoomMessageKind::Leave)
            | Err(_) => {
                check.refuse("kind", "kind must be TEXT, IMAGE or FILE");
                None
            }
        };
        let whole = room.zip(user).zip(kind);
        check.finish(whole.map(|((room, user), kind)| Self {
            room,
            user,
            id: None,
            kind,
            content: Bytes::from(request.content),
            event_time: None,
            key,
        }))
    }
}
