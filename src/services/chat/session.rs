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
    resume: Option<Sequence>,
    pipeline: Pipeline,
    /// What was appended and not acknowledged yet, batch by batch like the pipeline.
    pending: VecDeque<Vec<Said>>,
    rooms: Vec<Room>,
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
    Stored(Vec<Result<Appended, Error>>),
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
            resume,
            pipeline: core.rooms.pipeline(),
            pending: VecDeque::new(),
            rooms: Vec::new(),
            users: HashSet::new(),
            outgoing: VecDeque::new(),
            alive,
        }
    }

    /// The next message to send; `None` when the client is done and everything it said is stored and echoed.
    pub(super) async fn next(&mut self) -> Option<Result<Message, Status>> {
        loop {
            if let Some(message) = self.outgoing.pop_front() {
                return Some(Ok(message));
            }
            if !self.is_open && self.pipeline.is_idle() {
                return None;
            }
            if let Err(status) = self.step().await {
                // An ended unfold is not polled again, so what is left ends with it.
                self.is_open = false;
                self.pipeline = self.core.rooms.pipeline();
                return Some(Err(status));
            }
        }
    }

    async fn step(&mut self) -> Result<(), Status> {
        match self.event().await? {
            Event::Incoming(None) => self.is_open = false,
            Event::Incoming(Some(batch)) => self.said(batch).await?,
            Event::Stored(outcomes) => self.stored(outcomes).await.map_err(into_status)?,
            Event::Heard(room, records) => self.heard(&room, &records),
            Event::Alive => self.outgoing.push_back(alive()),
        }
        Ok(())
    }

    /// Waits for whatever comes first. Every branch is cancel-safe.
    async fn event(&mut self) -> Result<Event, Status> {
        let Self {
            incoming,
            pipeline,
            rooms,
            alive,
            ..
        } = self;
        let listens = self.is_open && pipeline.has_room();
        tokio::select! {
            biased;
            outcomes = pipeline.next() => outcomes.map(Event::Stored).map_err(into_status),
            heard = std::future::poll_fn(|cx| poll_rooms(rooms, cx)) => {
                heard.map(|(room, records)| Event::Heard(room, records)).map_err(into_status)
            }
            batch = incoming.next_batch(), if listens => batch.map(Event::Incoming),
            _ = alive.tick() => Ok(Event::Alive),
        }
    }

    async fn said(&mut self, batch: Vec<Message>) -> Result<(), Status> {
        let mut said = Vec::with_capacity(batch.len());
        let mut records = Vec::with_capacity(batch.len());
        for message in batch {
            let (id, content) = (message.id.clone(), message.content.clone());
            let post = convert::post(message, &"").map_err(into_status)?;
            self.speaks_as(post.user.as_str()).map_err(into_status)?;
            let room = post.room.clone();
            let mut record = self.core.rooms.record(post);
            record.trace = self.trace;
            records.push(record);
            said.push(Said { id, content, room });
        }
        self.pipeline.push(records).await.map_err(into_status)?;
        self.pending.push_back(said);
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
    async fn stored(&mut self, outcomes: Vec<Result<Appended, Error>>) -> Result<(), Error> {
        let said = self.pending.pop_front().unwrap_or_default();
        for (said, outcome) in said.into_iter().zip(outcomes) {
            let appended = outcome?;
            self.follow(&said.room, appended.sequence).await?;
            self.outgoing.push_back(echo(said));
        }
        Ok(())
    }

    async fn follow(&mut self, room: &Topic, posted: Sequence) -> Result<(), Error> {
        if self
            .rooms
            .iter()
            .any(|known| known.subscription.topic() == room)
        {
            return Ok(());
        }
        let limit = self.core.limits.rooms_per_stream;
        if self.rooms.len() >= limit {
            return Err(Error::Limit {
                what: "rooms of one stream",
                limit,
            });
        }
        // What others say from the moment of the first post on; a resuming client says where it was.
        let after = self.resume.take().unwrap_or(posted);
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
fn poll_rooms(rooms: &mut [Room], cx: &mut Context<'_>) -> Poll<Result<News, Error>> {
    for index in 0..rooms.len() {
        let subscription = &mut rooms[index].subscription;
        if let Poll::Ready(batch) = subscription.poll_next(cx) {
            let topic = subscription.topic().clone();
            // The first room keeps its place: it is the one a client resumes in.
            if index > 0 {
                rooms[1..].rotate_left(index);
            }
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
