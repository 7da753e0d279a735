//! A member as the registry holds it, and what has to be done about it.
//!
//! ```text
//!            announces             join stored              nobody holds it         leave stored
//!  Silent ─────────────▶ Joining ──────────────▶ Announced ─────────────▶ Leaving ──────────────▶ gone
//!     └────────────────────── nobody holds it: gone ──────────────────────────────────────────────▲
//! ```
//!
//! Each arrow is one change of the registry that only one replica can make. What the room is told stands between two of
//! them, under a key of the membership's own: whoever meets a member in `Joining` or `Leaving` tells the room (again, which
//! stores nothing a second time) and goes on. So a replica that dies in between leaves nothing undone and nothing twice.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{core::rooms::Kind, log::Timestamp};

/// How far the room knows of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    /// It is not told.
    Silent,
    /// It is being told that the member came.
    Joining,
    /// It was told, and will be told that the member went.
    Announced,
    /// It is being told that the member went: nobody is there any more.
    Leaving,
}

/// One membership, from the first stream of a user in a room to the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Its own; a user that left and comes again has another.
    pub(super) id: Box<str>,
    /// When it began, in nanoseconds since the Unix epoch; for people.
    pub(super) since: u64,
    /// The service through which it began.
    pub(super) service: Box<str>,
    pub(super) phase: Phase,
    /// The instances on which the user has a stream or a lease.
    pub(super) holders: Vec<Box<str>>,
}

/// What an instance has of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// Nothing.
    Nothing,
    /// A lease: what was there stays unless the user is on another instance, and nothing begins anew.
    Keep,
    /// Streams; whether one of them announces the member.
    Hold {
        announces: bool,
        service: &'static str,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// All is as it should be.
    Done,
    /// Tell the room, if so said, of this membership, and then change the registry: the new value, or none.
    Change(Option<Kind>, Option<Entry>),
}

/// Who looks at a member.
pub(super) struct Looker<'a> {
    /// This instance.
    pub(super) me: &'a str,
    /// Whether another instance runs, or may run.
    pub(super) is_live: &'a dyn Fn(&str) -> bool,
    /// This instance cares for what instances that run no more have left.
    pub(super) sweeps: bool,
}

impl Looker<'_> {
    /// Whether `instance` is another that runs.
    fn is_other(&self, instance: &str) -> bool {
        instance != self.me && (self.is_live)(instance)
    }
}

impl Entry {
    fn new(me: &str, announces: bool, service: &str) -> Self {
        Self {
            id: Uuid::now_v7().simple().to_string().into(),
            since: Timestamp::now().0,
            service: service.into(),
            phase: if announces {
                Phase::Joining
            } else {
                Phase::Silent
            },
            holders: vec![me.into()],
        }
    }

    /// The idempotency key of what the room is told.
    pub(super) fn key(&self, kind: Kind) -> Box<str> {
        let what = match kind {
            Kind::Leave => "left",
            _ => "joined",
        };
        format!("{}.{what}", self.id).into()
    }

    /// Whether the user counts as there.
    pub(super) fn is_there(&self) -> bool {
        self.phase != Phase::Leaving
    }

    fn is_held_by(&self, instance: &str) -> bool {
        self.holders.iter().any(|holder| **holder == *instance)
    }

    /// The same in another phase, held by those who run and, if so said, by `me`.
    fn with(&self, phase: Phase, looker: &Looker<'_>, holds: bool) -> Self {
        let others = self.holders.iter().filter(|holder| looker.is_other(holder));
        let mut holders: Vec<_> = others.cloned().collect();
        if holds {
            holders.push(looker.me.into());
        }
        Self {
            phase,
            holders,
            ..self.clone()
        }
    }
}

/// The next step of the instance that looks, given what the registry has.
pub(super) fn plan(now: Option<&Entry>, wish: Wish, looker: &Looker<'_>) -> Step {
    let begin = |announces, service| Some(Entry::new(looker.me, announces, service));
    let Some(entry) = now else {
        return match wish {
            Wish::Hold { announces, service } => Step::Change(None, begin(announces, service)),
            Wish::Nothing | Wish::Keep => Step::Done,
        };
    };
    let is_mine = entry.is_held_by(looker.me);
    match (entry.phase, wish) {
        (Phase::Leaving, Wish::Hold { announces, service }) => {
            Step::Change(Some(Kind::Leave), begin(announces, service))
        }
        (Phase::Leaving, _) if is_mine || is_left(entry, looker) => {
            Step::Change(Some(Kind::Leave), None)
        }
        (Phase::Leaving, _) => Step::Done,
        (_, Wish::Hold { announces, .. }) => hold(entry, announces, is_mine, looker),
        (_, Wish::Keep) if is_mine && !has_others(entry, looker) => {
            hold(entry, false, is_mine, looker)
        }
        (_, Wish::Keep | Wish::Nothing) => let_go(entry, is_mine, looker),
    }
}

/// Another instance holds it.
fn has_others(entry: &Entry, looker: &Looker<'_>) -> bool {
    entry.holders.iter().any(|holder| looker.is_other(holder))
}

/// Nobody who runs holds it, and this instance cares.
fn is_left(entry: &Entry, looker: &Looker<'_>) -> bool {
    looker.sweeps && !entry.is_held_by(looker.me) && !has_others(entry, looker)
}

fn hold(entry: &Entry, announces: bool, is_mine: bool, looker: &Looker<'_>) -> Step {
    let is_news = announces && entry.phase == Phase::Silent;
    if is_news || !is_mine {
        let phase = if is_news { Phase::Joining } else { entry.phase };
        Step::Change(None, Some(entry.with(phase, looker, true)))
    } else if entry.phase == Phase::Joining {
        joined(entry, looker)
    } else {
        Step::Done
    }
}

fn joined(entry: &Entry, looker: &Looker<'_>) -> Step {
    let told = entry.with(Phase::Announced, looker, true);
    Step::Change(Some(Kind::Join), Some(told))
}

fn let_go(entry: &Entry, is_mine: bool, looker: &Looker<'_>) -> Step {
    if !is_mine && !is_left(entry, looker) {
        return Step::Done;
    }
    let rest = entry.with(entry.phase, looker, false);
    if !rest.holders.is_empty() {
        return Step::Change(None, Some(rest));
    }
    match entry.phase {
        Phase::Silent => Step::Change(None, None),
        // Perhaps the room knows already: it has to know before it hears of the leave.
        Phase::Joining => joined(entry, looker),
        Phase::Announced | Phase::Leaving => {
            Step::Change(None, Some(entry.with(Phase::Leaving, looker, true)))
        }
    }
}
