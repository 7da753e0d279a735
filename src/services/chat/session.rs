//! One `Chat` stream: what comes in, what is echoed, and what others say in its rooms.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tonic::{Status, Streaming};

use super::convert;
use crate::{
    call::{Call, into_status},
    core::{
        Error, Pipeline,
        appender::Appended,
        hub::{Records, Start, Subscription},
        rooms::Post,
    },
    log::{Record, Sequence, Topic, TraceContext},
    proto::chat::{Message, MessageType},
    services::{Core, incoming::Incoming},
    telemetry::trace,
};

/// How often the stream hears that the server is alive.
const ALIVE: Duration = Duration::from_secs(5);
/// Users one stream may speak as.
const USERS_PER_STREAM: usize = 64;

/// The stream's state. It holds at most one batch of messages to send: nothing new is taken before that is gone.
pub(super) struct Session {
    core: Core,
    call: Option<Call>,
    /// The trace the stream was opened in; what it says belongs to it.
    trace: Option<TraceContext>,
    incoming: Incoming<Message>,
    is_open: bool,
    /// What ends the stream once everything stored before is echoed.
    failed: Option<Status>,
    resume: Option<Sequence>,
    pipeline: Pipeline,
    /// What was appended and not acknowledged yet, batch by batch like the pipeline.
    pending: VecDeque<Vec<Said>>,
    /// Rooms it speaks in; each is followed once something it said there is stored.
    entered: HashSet<Topic>,
    rooms: Vec<Room>,
    /// The room that is listened to first, so that all get their turn.
    turn: usize,
    users: HashSet<Box<str>>,
    outgoing: VecDeque<Message>,
    alive: Interval,
}

/// One message of this stream, on its way into the log.
struct Said {
    id: String,
    content: String,
    room: Topic,
}

/// A room this stream has posted to.
struct Room {
    subscription: Subscription<Records>,
}

/// A room, and what was said in it.
type News = (Topic, Vec<Arc<Record>>);

/// What happened next.
enum Event {
    Incoming(Option<Vec<Message>>),
    Stored(Result<Vec<Result<Appended, Error>>, Error>),
    Heard(Topic, Vec<Arc<Record>>),
    Alive,
}

impl Session {
    pub(super) fn new(
        core: &Core,
        incoming: Streaming<Message>,
        resume: Option<Sequence>,
        call: Option<Call>,
    ) -> Self {
        let mut alive = interval_at(tokio::time::Instant::now() + ALIVE, ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            core: core.clone(),
            call,
            trace: trace::current(),
            incoming: Incoming::new(incoming),
            is_open: true,
            failed: None,
            resume,
            pipeline: core.rooms.pipeline(),
            pending: VecDeque::new(),
            entered: HashSet::new(),
            rooms: Vec::new(),
            turn: 0,
            users: HashSet::new(),
            outgoing: VecDeque::new(),
            alive,
        }
    }

    /// The next message to send; `None` when the client is done and everything it said is stored and echoed. What goes wrong
    /// with a message comes after the echoes of those before it.
    pub(super) async fn next(&mut self) -> Option<Result<Message, Status>> {
        loop {
            if let Some(message) = self.outgoing.pop_front() {
                return Some(Ok(message));
            }
            if !self.is_open && self.pipeline.is_idle() {
                return self.failed.take().map(Err);
            }
            if let Err(status) = self.step().await {
                self.is_open = false;
                self.rooms.clear();
                self.failed.get_or_insert(status);
            }
        }
    }

    async fn step(&mut self) -> Result<(), Status> {
        match self.event().await? {
            Event::Incoming(None) => self.is_open = false,
            Event::Incoming(Some(batch)) => self.said(batch).await?,
            Event::Stored(outcomes) => {
                if let Err(error) = self.stored(outcomes).await {
                    // The echoes end here: what is under way may be stored, but is not acknowledged.
                    self.pipeline = self.core.rooms.pipeline();
                    self.pending.clear();
                    return Err(into_status(error));
                }
            }
            Event::Heard(room, records) => self.heard(&room, &records),
            Event::Alive => self.outgoing.push_back(alive()),
        }
        Ok(())
    }

    /// Waits for whatever comes first. Every branch is cancel-safe; none goes before another, so that a busy room does not
    /// keep the client from speaking.
    async fn event(&mut self) -> Result<Event, Status> {
        let Self {
            incoming,
            pipeline,
            rooms,
            turn,
            alive,
            ..
        } = self;
        let listens = self.is_open && pipeline.has_room();
        tokio::select! {
            outcomes = pipeline.next() => Ok(Event::Stored(outcomes)),
            heard = std::future::poll_fn(|cx| poll_rooms(rooms, turn, cx)) => {
                heard.map(|(room, records)| Event::Heard(room, records)).map_err(into_status)
            }
            batch = incoming.next_batch(), if listens => batch.map(Event::Incoming),
            _ = alive.tick() => Ok(Event::Alive),
        }
    }

    async fn said(&mut self, batch: Vec<Message>) -> Result<(), Status> {
        let mut said = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        let mut refused = Ok(());
        for message in batch {
            let (id, content) = (message.id.clone(), message.content.clone());
            let post = match self.admit(message).await {
                Ok(post) => post,
                Err(error) => {
                    refused = Err(into_status(error));
                    break;
                }
            };
            let room = post.room.clone();
            let mut record = self.core.rooms.record(post);
            record.trace = self.trace;
            records.push(record);
            said.push(Said { id, content, room });
        }
        if !records.is_empty() {
            self.pipeline.push(records).await.map_err(into_status)?;
            self.pending.push_back(said);
        }
        refused
    }

    /// Checks a message and this stream's limits, before anything of it is stored.
    async fn admit(&mut self, message: Message) -> Result<Post, Error> {
        let post = convert::post(message, &"")?;
        self.speaks_as(post.user.as_str())?;
        self.enter(&post.room).await?;
        Ok(post)
    }

    async fn enter(&mut self, room: &Topic) -> Result<(), Error> {
        if self.entered.contains(room) {
            return Ok(());
        }
        let limit = self.core.limits.rooms_per_stream;
        if self.entered.len() >= limit {
            return Err(Error::Limit {
                what: "rooms of one stream",
                limit,
            });
        }
        // A resuming client says where it was; whether it can go on there shows before it speaks.
        if let Some(after) = self.resume.take() {
            self.follow(room, after).await?;
        }
        self.entered.insert(room.clone());
        Ok(())
    }

    fn speaks_as(&mut self, user: &str) -> Result<(), Error> {
        if self.users.contains(user) {
            return Ok(());
        }
        if self.users.len() >= USERS_PER_STREAM {
            return Err(Error::Limit {
                what: "users of one stream",
                limit: USERS_PER_STREAM,
            });
        }
        self.users.insert(user.into());
        Ok(())
    }

    /// Echoes what is stored now, and follows rooms that are new to this stream.
    async fn stored(
        &mut self,
        outcomes: Result<Vec<Result<Appended, Error>>, Error>,
    ) -> Result<(), Error> {
        let said = self.pending.pop_front().unwrap_or_default();
        for (said, outcome) in said.into_iter().zip(outcomes?) {
            let appended = outcome?;
            if self.failed.is_none() {
                // What others say from the moment of the first post on.
                self.follow(&said.room, appended.sequence).await?;
            }
            self.outgoing.push_back(echo(said));
        }
        Ok(())
    }

    async fn follow(&mut self, room: &Topic, after: Sequence) -> Result<(), Error> {
        if self
            .rooms
            .iter()
            .any(|known| known.subscription.topic() == room)
        {
            return Ok(());
        }
        let start = Start::After(after);
        let subscription = self.core.rooms.subscribe(room, start, Records).await?;
        self.rooms.push(Room { subscription });
        self.moved();
        Ok(())
    }

    fn heard(&mut self, room: &Topic, records: &[Arc<Record>]) {
        let others = records
            .iter()
            .filter(|record| !self.users.contains(&record.publisher));
        let messages: Vec<_> = others
            .map(|record| convert::message(room, record))
            .collect();
        self.outgoing.extend(messages);
        self.moved();
    }

    /// Tells the call where a client would resume: in the first room.
    fn moved(&self) {
        if let (Some(call), Some(room)) = (&self.call, self.rooms.first()) {
            call.resume_after(Sequence(room.subscription.cursor().0.saturating_sub(1)));
        }
    }
}

/// News of any room; rooms take turns so that a busy one does not silence the others.
fn poll_rooms(
    rooms: &mut [Room],
    turn: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<News, Error>> {
    for step in 0..rooms.len() {
        let index = (*turn + step) % rooms.len();
        let subscription = &mut rooms[index].subscription;
        if let Poll::Ready(batch) = subscription.poll_next(cx) {
            let topic = subscription.topic().clone();
            *turn = index + 1;
            return Poll::Ready(batch.map(|batch| (topic, batch.data)).map_err(Error::from));
        }
    }
    Poll::Pending
}

fn echo(said: Said) -> Message {
    Message {
        id: format!("echo_{}", said.id),
        content: format!("Echo: {}", said.content),
        room: said.room.name().to_owned(),
        ..server_message()
    }
}

fn alive() -> Message {
    let now = convert::now();
    Message {
        id: format!("server_{}", now.seconds),
        content: "Server is alive!".into(),
        ..server_message()
    }
}

fn server_message() -> Message {
    Message {
        user: "Server".into(),
        timestamp: Some(convert::now()),
        r#type: MessageType::System.into(),
        ..Message::default()
    }
}
