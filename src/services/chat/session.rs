//! One `Chat` stream: what comes in, what is echoed, and what others say in its rooms.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tonic::Status;

use super::convert;
use crate::{
    call::{Call, into_status},
    core::{
        Error, Pipeline,
        appender::Appended,
        hub::{Merged, Start},
        rooms::Post,
    },
    log::{Record, Sequence, Topic, TraceContext},
    proto::chat::{Message, MessageType},
    services::{Core, check::now, duplex::Duplex},
    telemetry::trace,
};

/// How often the stream hears that the server is alive.
const ALIVE: Duration = Duration::from_secs(5);
/// Users one stream may speak as.
const USERS_PER_STREAM: usize = 64;

/// The stream's state.
pub(super) struct Session {
    core: Core,
    call: Option<Call>,
    /// The trace the stream was opened in; what it says belongs to it.
    trace: Option<TraceContext>,
    resume: Option<Sequence>,
    pipeline: Pipeline,
    /// What was appended and not acknowledged yet, batch by batch like the pipeline.
    pending: VecDeque<Vec<Said>>,
    /// Rooms it speaks in; each is followed once something it said there is stored.
    entered: HashSet<Topic>,
    rooms: Merged,
    is_failed: bool,
    users: HashSet<Box<str>>,
    alive: Interval,
}

/// One message of this stream, on its way into the log.
struct Said {
    id: String,
    content: String,
    room: Topic,
}

/// What happens besides the client's messages.
pub(super) enum Event {
    Stored(Result<Vec<Result<Appended, Error>>, Error>),
    Heard(Vec<(Topic, Arc<Record>)>),
    Alive,
}

impl Duplex for Session {
    type In = Message;
    type Out = Message;
    type Event = Event;

    async fn take(&mut self, batch: Vec<Message>, _: &mut VecDeque<Message>) -> Result<(), Status> {
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

    async fn event(&mut self) -> Result<Event, Error> {
        tokio::select! {
            outcomes = self.pipeline.next() => Ok(Event::Stored(outcomes)),
            heard = self.rooms.next() => Ok(Event::Heard(heard?)),
            _ = self.alive.tick() => Ok(Event::Alive),
        }
    }

    async fn handle(&mut self, event: Event, out: &mut VecDeque<Message>) -> Result<(), Error> {
        match event {
            Event::Stored(outcomes) => {
                if let Err(error) = self.stored(outcomes, out).await {
                    // The echoes end here: what is under way may be stored, but is not acknowledged.
                    self.pipeline = self.core.rooms.pipeline();
                    self.pending.clear();
                    return Err(error);
                }
            }
            Event::Heard(records) => self.heard(&records, out),
            Event::Alive => out.push_back(alive()),
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.pipeline.has_room()
    }

    fn is_settled(&self) -> bool {
        self.pipeline.is_idle()
    }

    fn fail(&mut self) {
        self.is_failed = true;
        self.rooms.clear();
    }
}

impl Session {
    pub(super) fn new(core: &Core, resume: Option<Sequence>, call: Option<Call>) -> Self {
        let mut alive = interval_at(tokio::time::Instant::now() + ALIVE, ALIVE);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            core: core.clone(),
            call,
            trace: trace::current(),
            resume,
            pipeline: core.rooms.pipeline(),
            pending: VecDeque::new(),
            entered: HashSet::new(),
            rooms: core.topics.merged(),
            is_failed: false,
            users: HashSet::new(),
            alive,
        }
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
        if let Some(after) = self.resume {
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
        out: &mut VecDeque<Message>,
    ) -> Result<(), Error> {
        let said = self.pending.pop_front().unwrap_or_default();
        for (said, outcome) in said.into_iter().zip(outcomes?) {
            let appended = outcome?;
            if !self.is_failed {
                // What others say from the moment of the first post on.
                self.follow(&said.room, appended.sequence).await?;
            }
            out.push_back(echo(said));
        }
        Ok(())
    }

    async fn follow(&mut self, room: &Topic, after: Sequence) -> Result<(), Error> {
        self.rooms.add(room, Start::After(after)).await?;
        self.moved();
        Ok(())
    }

    fn heard(&mut self, records: &[(Topic, Arc<Record>)], out: &mut VecDeque<Message>) {
        let others = records
            .iter()
            .filter(|(_, record)| !self.users.contains(&record.publisher));
        out.extend(others.map(|(room, record)| convert::message(room, record)));
        self.moved();
    }

    /// Tells the call where a client would resume, in every room.
    fn moved(&self) {
        if let Some(call) = &self.call {
            call.resume_after(Sequence(self.rooms.cursor().0.saturating_sub(1)));
        }
    }
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
    let now = now();
    Message {
        id: format!("server_{}", now.seconds),
        content: "Server is alive!".into(),
        ..server_message()
    }
}

fn server_message() -> Message {
    Message {
        user: "Server".into(),
        timestamp: Some(now()),
        r#type: MessageType::System.into(),
        ..Message::default()
    }
}
