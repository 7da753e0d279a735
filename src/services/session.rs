//! A chat over one bidirectional stream, in whatever words its service has: what comes in is stored, what others say in its
//! rooms goes out, and who speaks in a room is its member.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{
    Stream, StreamExt as _,
    stream::{self, SelectAll},
};
use tokio::time::{Interval, MissedTickBehavior, interval_at};
use tonic::{Request, Response, Status, Streaming};

use super::{
    Core, Responses,
    duplex::{Duplex, duplex, resume_position},
};
use crate::{
    call::{Call, into_status},
    core::{
        Error, Name, Pipeline,
        appender::Appended,
        hub::{Merged, Start},
        presence::Stay,
        rooms::Post,
        signals::{Listener, Sender, Signal, SignalKind},
    },
    log::{Record, Sequence, Topic, TraceContext},
    telemetry::trace,
};

/// Users one stream may speak as.
pub(super) const USERS_PER_STREAM: usize = 64;

/// How one service speaks.
pub(super) trait Dialect: Send + 'static {
    /// What the client sends.
    type In: prost::Message + Default + 'static;
    /// What the client gets.
    type Out: Send + 'static;

    /// The service's full name.
    const SERVICE: &'static str;
    /// Whether rooms are told that a user of this stream comes and goes, and whether it hears others from then on. Otherwise
    /// users come silently, and the stream hears what is said after its first message to a room.
    const ANNOUNCES: bool;
    /// Whether the client hears who is typing.
    const HEARS_TYPING: bool = false;
    /// How often the client gets [`Self::alive`].
    const ALIVE: Option<Duration> = None;

    /// What the client says by `message`.
    fn read(&mut self, message: Self::In) -> Result<Said, Error>;

    /// Whether a message by which its user comes to a room is stored too.
    fn says(&self, _entering: &Post) -> bool {
        true
    }

    /// A record of a room.
    fn message(&self, room: &Topic, record: &Record) -> Self::Out;

    /// What a user hears who came to a room; `joined` is the message that told the room, if it had to be told.
    fn welcome(&self, _room: &Topic, _user: &str, _joined: Option<Appended>) -> Option<Self::Out> {
        None
    }

    /// What the sender of a stored message hears.
    fn stored(&self, _stored: Stored) -> Option<Self::Out> {
        None
    }

    /// Somebody is typing.
    fn typing(&self, _room: &Topic, _user: &str) -> Option<Self::Out> {
        None
    }

    /// That the server is alive.
    fn alive(&self) -> Option<Self::Out> {
        None
    }
}

/// What a client says.
pub(super) enum Said {
    /// A message for a room.
    Message(Post),
    /// The user comes to the room, and says nothing.
    Entry(Topic, Name),
    /// The user is typing.
    Typing(Topic, Name),
}

impl Said {
    /// Where it is said, and by whom.
    fn place(&self) -> (&Topic, &str) {
        match self {
            Self::Message(post) => (&post.room, post.user.as_str()),
            Self::Entry(room, user) | Self::Typing(room, user) => (room, user.as_str()),
        }
    }
}

/// A message that is stored.
pub(super) struct Stored {
    pub(super) room: Topic,
    /// The id its sender gave it.
    pub(super) id: Option<Name>,
    pub(super) content: Bytes,
    sequence: Sequence,
}

/// The answer to a chat's call.
pub(super) fn chat<D: Dialect>(
    core: &Core,
    request: Request<Streaming<D::In>>,
    dialect: D,
) -> Result<Response<Responses<D::Out>>, Status> {
    let resume = resume_position(&request)?;
    let call = request.extensions().get::<Call>().cloned();
    let session = Session::new(core, dialect, resume, call);
    Ok(Response::new(duplex(request.into_inner(), session)))
}

type Typing = Pin<Box<dyn Stream<Item = (Topic, Arc<Signal>)> + Send>>;

/// The stream's state.
struct Session<D> {
    core: Core,
    dialect: D,
    call: Option<Call>,
    /// The trace the stream was opened in; what it says belongs to it.
    trace: Option<TraceContext>,
    resume: Option<Sequence>,
    pipeline: Pipeline,
    /// What was appended and not acknowledged yet, batch by batch like the pipeline.
    pending: VecDeque<Vec<Stored>>,
    /// Rooms it speaks in, and as whom.
    entered: HashMap<Topic, HashMap<Box<str>, Stay>>,
    rooms: Merged,
    typing: SelectAll<Typing>,
    sender: Sender,
    is_failed: bool,
    users: HashSet<Box<str>>,
    alive: Option<Interval>,
}

/// What happens besides the client's messages.
enum Event {
    Stored(Result<Vec<Result<Appended, Error>>, Error>),
    Heard(Vec<(Topic, Arc<Record>)>),
    Typing(Topic, Arc<Signal>),
    Alive,
}

impl<D: Dialect> Duplex for Session<D> {
    type In = D::In;
    type Out = D::Out;
    type Event = Event;

    async fn take(&mut self, batch: Vec<D::In>, out: &mut VecDeque<D::Out>) -> Result<(), Status> {
        let mut posts = Vec::with_capacity(batch.len());
        let mut refused = Ok(());
        for message in batch {
            match self.admit(message, &mut posts, out).await {
                Ok(()) => {}
                Err(error) => {
                    refused = Err(into_status(error));
                    break;
                }
            }
        }
        self.push(posts, out).await.map_err(into_status)?;
        refused
    }

    async fn event(&mut self) -> Result<Event, Error> {
        // Everything before was handed over: nothing is waited for while something is to be sent.
        self.moved();
        tokio::select! {
            outcomes = self.pipeline.next() => Ok(Event::Stored(outcomes)),
            heard = self.rooms.next() => Ok(Event::Heard(heard?)),
            Some((room, signal)) = self.typing.next() => Ok(Event::Typing(room, signal)),
            () = tick(&mut self.alive) => Ok(Event::Alive),
        }
    }

    async fn handle(&mut self, event: Event, out: &mut VecDeque<D::Out>) -> Result<(), Error> {
        match event {
            Event::Stored(outcomes) => {
                self.settle(outcomes, out).await?;
            }
            Event::Heard(records) => self.heard(&records, out),
            Event::Typing(room, signal) => {
                if signal.kind == SignalKind::Typing && !self.users.contains(&signal.user) {
                    out.extend(self.dialect.typing(&room, &signal.user));
                }
            }
            Event::Alive => out.extend(self.dialect.alive()),
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.pipeline.has_room()
    }

    fn is_settled(&self) -> bool {
        self.pipeline.is_idle()
    }

    /// The client is done: its users leave.
    fn closed(&mut self) {
        for (_, users) in self.entered.drain() {
            users.into_values().for_each(Stay::leave);
        }
    }

    /// Its users hold a lease: whoever meets an error comes back.
    fn fail(&mut self) {
        self.is_failed = true;
        self.rooms.clear();
        self.typing.clear();
    }
}

impl<D: Dialect> Session<D> {
    fn new(core: &Core, dialect: D, resume: Option<Sequence>, call: Option<Call>) -> Self {
        let alive = D::ALIVE.map(|every| {
            let mut alive = interval_at(tokio::time::Instant::now() + every, every);
            alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
            alive
        });
        Self {
            core: core.clone(),
            dialect,
            call,
            trace: trace::current(),
            resume,
            pipeline: core.rooms.pipeline(),
            pending: VecDeque::new(),
            entered: HashMap::new(),
            rooms: core.topics.merged(),
            typing: SelectAll::new(),
            sender: Sender::new(),
            is_failed: false,
            users: HashSet::new(),
            alive,
        }
    }

    /// Checks a message and this stream's limits, before anything of it is stored; then its user comes to its room.
    async fn admit(
        &mut self,
        message: D::In,
        posts: &mut Vec<Post>,
        out: &mut VecDeque<D::Out>,
    ) -> Result<(), Error> {
        let said = self.dialect.read(message)?;
        if D::ANNOUNCES && !self.is_in(said.place()) {
            // What was said before stands before the news that somebody came.
            self.push(std::mem::take(posts), out).await?;
        }
        match said {
            Said::Message(post) => {
                let enters = self.enter(&post.room, &post.user, out).await?;
                if !enters || self.dialect.says(&post) {
                    posts.push(post);
                }
            }
            Said::Entry(room, user) => {
                self.enter(&room, &user, out).await?;
            }
            Said::Typing(room, user) => {
                self.enter(&room, &user, out).await?;
                let signal = Signal {
                    sender: self.sender,
                    user: user.into(),
                    kind: SignalKind::Typing,
                    payload: Bytes::new(),
                };
                self.core.signals.send(&room, signal);
            }
        }
        Ok(())
    }

    /// Appends messages; a stream that brings more users than batches go at once waits here for earlier ones.
    async fn push(&mut self, posts: Vec<Post>, out: &mut VecDeque<D::Out>) -> Result<(), Error> {
        if posts.is_empty() {
            return Ok(());
        }
        while !self.pipeline.has_room() {
            let outcomes = self.pipeline.next().await;
            self.settle(outcomes, out).await?;
        }
        let stored = posts.iter().map(|post| Stored {
            room: post.room.clone(),
            id: post.id.clone(),
            content: post.content.clone(),
            sequence: Sequence::default(),
        });
        let stored = stored.collect();
        let records = posts.into_iter().map(|post| {
            let mut record = self.core.rooms.record(post);
            record.trace = self.trace;
            record
        });
        self.pipeline.push(records.collect()).await?;
        self.pending.push_back(stored);
        Ok(())
    }

    /// A user of this stream comes to a room; returns whether that is new to this stream.
    async fn enter(
        &mut self,
        room: &Topic,
        user: &Name,
        out: &mut VecDeque<D::Out>,
    ) -> Result<bool, Error> {
        let user = user.as_str();
        self.speaks_as(user)?;
        self.opens(room).await?;
        if self.is_in((room, user)) {
            return Ok(false);
        }
        let stay = match D::ANNOUNCES {
            true => self.announce(room, user, out).await?,
            false => self.core.presence.attend(room, user, D::SERVICE),
        };
        let users = self.entered.entry(room.clone()).or_default();
        users.insert(user.into(), stay);
        Ok(true)
    }

    /// The room is told that a user came, unless it never left; what others say is heard from here on.
    async fn announce(
        &mut self,
        room: &Topic,
        user: &str,
        out: &mut VecDeque<D::Out>,
    ) -> Result<Stay, Error> {
        let entered = self.core.presence.enter(room, user, D::SERVICE).await?;
        let start = match entered.joined {
            Some(joined) => Start::After(joined.sequence),
            None => Start::Live,
        };
        self.rooms.add(room, start).await?;
        // Who says where it was and never left knows that it is there.
        if entered.joined.is_some() || self.resume.is_none() {
            out.extend(self.dialect.welcome(room, user, entered.joined));
        }
        Ok(entered.stay)
    }

    /// A room that is new to this stream: within the limit, and followed from where the client was.
    async fn opens(&mut self, room: &Topic) -> Result<(), Error> {
        if self.entered.contains_key(room) {
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
            self.rooms.add(room, Start::After(after)).await?;
        }
        self.entered.insert(room.clone(), HashMap::new());
        if D::HEARS_TYPING {
            let listener = self.core.signals.listen(room, self.sender);
            self.typing.push(heard_typing(listener));
        }
        Ok(())
    }

    fn is_in(&self, (room, user): (&Topic, &str)) -> bool {
        let users = self.entered.get(room);
        users.is_some_and(|users| users.contains_key(user))
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

    async fn settle(
        &mut self,
        outcomes: Result<Vec<Result<Appended, Error>>, Error>,
        out: &mut VecDeque<D::Out>,
    ) -> Result<(), Error> {
        let settled = self.stored(outcomes, out).await;
        if settled.is_err() {
            // The answers end here: what is under way may be stored, but is not acknowledged.
            self.pipeline = self.core.rooms.pipeline();
            self.pending.clear();
        }
        settled
    }

    /// Answers what is stored, and follows rooms that are new to this stream.
    async fn stored(
        &mut self,
        outcomes: Result<Vec<Result<Appended, Error>>, Error>,
        out: &mut VecDeque<D::Out>,
    ) -> Result<(), Error> {
        let stored = self.pending.pop_front().unwrap_or_default();
        for (mut stored, outcome) in stored.into_iter().zip(outcomes?) {
            stored.sequence = outcome?.sequence;
            if !self.is_failed {
                // What others say from the moment of the first post on.
                let start = Start::After(stored.sequence);
                self.rooms.add(&stored.room, start).await?;
            }
            out.extend(self.dialect.stored(stored));
        }
        Ok(())
    }

    fn heard(&mut self, records: &[(Topic, Arc<Record>)], out: &mut VecDeque<D::Out>) {
        let others = records
            .iter()
            .filter(|(_, record)| !self.users.contains(&record.publisher));
        out.extend(others.map(|(room, record)| self.dialect.message(room, record)));
    }

    /// Tells the call where a client would resume, in every room.
    fn moved(&self) {
        if let Some(call) = &self.call
            && self.rooms.topics() > 0
        {
            call.resume_after(Sequence(self.rooms.cursor().0.saturating_sub(1)));
        }
    }
}

fn heard_typing(listener: Listener) -> Typing {
    Box::pin(stream::unfold(listener, |mut listener| async move {
        let signal = listener.next().await;
        Some(((listener.topic().clone(), signal), listener))
    }))
}

async fn tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => {
            interval.tick().await;
        }
        None => std::future::pending().await,
    }
}
