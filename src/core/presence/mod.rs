//! Who is in which room.
//!
//! A member is a user with at least one stream in a room. When its last stream was closed by the client it goes at once.
//! When the stream broke or the server ended it, a lease keeps the member for a while: whoever comes back within it never
//! left, so neither a leave nor a join is posted.
//!
//! One instance alone knows all members itself ([`Alone`]); replicas share them in a registry ([`Shared`]).
//!
//! Bounds: `presence.max_members` members, whoever comes beyond it is not listed.

mod alone;
mod shared;

use std::{borrow::Cow, sync::Arc};

pub use alone::Alone;
pub use shared::Shared;

use super::{
    Error,
    appender::Appended,
    feeds::{Happening, own},
};
use crate::log::{Timestamp, Topic};

/// All members of all rooms. Cheap to clone.
#[derive(Clone)]
pub enum Presence {
    /// Of the only instance there is.
    Alone(Alone),
    /// Of all replicas.
    Shared(Shared),
}

/// A member as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The user.
    pub user: Box<str>,
    /// Since when it is there without a break.
    pub since: Timestamp,
    /// The service through which it came first.
    pub service: Cow<'static, str>,
}

/// What entering a room brought.
pub struct Entered {
    /// Keeps the user in the room.
    pub stay: Stay,
    /// The message that tells the room, if it had to be told.
    pub joined: Option<Appended>,
}

/// Keeps a user in a room. Dropping it begins the lease; [`Stay::leave`] ends it at once.
#[must_use]
pub struct Stay {
    /// None when the user is not listed.
    place: Option<(Arc<dyn Home>, Topic, Box<str>)>,
    is_announced: bool,
}

/// Where members are.
trait Home: Send + Sync {
    /// A stream of a member ended: the client left, or may come back.
    fn end(&self, room: &Topic, user: &str, is_announced: bool, has_left: bool);
}

impl Presence {
    /// A user comes to a room and the room is told, unless it knows. Returns when the message is durable. Dropping the
    /// future leaves a lease behind at most.
    ///
    /// # Errors
    /// What the log or the registry reports; the user is not there then.
    pub async fn enter(
        &self,
        room: &Topic,
        user: &str,
        service: &'static str,
    ) -> Result<Entered, Error> {
        match self {
            Self::Alone(alone) => alone.enter(room, user, service).await,
            Self::Shared(shared) => shared.enter(room, user, service).await,
        }
    }

    /// A user comes to a room silently: it is listed, in a moment or when the registry can be reached, and nobody is told.
    pub fn attend(&self, room: &Topic, user: &str, service: &'static str) -> Stay {
        match self {
            Self::Alone(alone) => alone.attend(room, user, service),
            Self::Shared(shared) => shared.attend(room, user, service),
        }
    }

    /// The members of a room, in name order.
    ///
    /// # Errors
    /// The registry cannot be reached, so that nobody knows.
    pub async fn members(&self, room: &Topic) -> Result<Vec<Seen>, Error> {
        match self {
            Self::Alone(alone) => Ok(alone.members(room)),
            Self::Shared(shared) => shared.members(room).await,
        }
    }

    /// How many members a room has, as far as this instance knows.
    #[must_use]
    pub fn count(&self, room: &Topic) -> usize {
        match self {
            Self::Alone(alone) => alone.count(room),
            Self::Shared(shared) => shared.count(room),
        }
    }

    /// Ends leases and keeps what is known of members in order; never returns. One task for all members.
    pub async fn run(self) {
        match self {
            Self::Alone(alone) => alone.run().await,
            Self::Shared(shared) => shared.run().await,
        }
    }
}

impl Stay {
    fn new(home: Arc<dyn Home>, room: &Topic, user: &str, is_announced: bool) -> Self {
        Self {
            place: Some((home, room.clone(), user.into())),
            is_announced,
        }
    }

    /// Of a user for whom there is no place.
    const fn unlisted() -> Self {
        Self {
            place: None,
            is_announced: false,
        }
    }

    /// The user left: no lease.
    pub fn leave(mut self) {
        self.end(true);
    }

    fn end(&mut self, has_left: bool) {
        if let Some((home, room, user)) = self.place.take() {
            home.end(&room, &user, self.is_announced, has_left);
        }
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Tells the topic `events` that a room was told of somebody.
fn tell(events: &own::Sender, happening: Happening, room: &Topic, user: &str, service: &str) {
    let labels = [("room", room.name()), ("user", user), ("service", service)];
    events.event(happening, &labels);
}
