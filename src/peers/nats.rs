//! Peers over NATS: core messages, which are delivered now or not at all.
//!
//! ```text
//!   {prefix}.peers.signal       what is told, to all or to one run
//!   {prefix}.peers.ask          a question to everyone
//!   {prefix}.peers.ask.{id}     a question to one instance; its name is escaped as that of a topic
//! ```
//!
//! An instance has these three subscriptions, whatever its clients do, and one more while it asks everyone, which it does
//! once at a time. They come back by themselves after NATS was away.
//!
//! Bounds: [`OUTGOING`] signals wait to be sent, and none while the connection is broken, because a signal is about now; the
//! library holds what arrives faster than it is taken in (16,384 messages of each subscription), and what it drops beyond
//! that nobody counts. Of everyone's answers [`INSTANCES`] are taken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, RequestErrorKind, Subscriber, client::Request};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Error, Local,
    message::{Answer, Asked, Description, Run, Signal, Told, What, decode, encode},
};
use crate::{
    log::OpenError,
    nats::{Attempt, Nats, token::escape},
    telemetry::Metrics,
};

/// Signals that wait to be sent.
const OUTGOING: usize = 1024;
/// How long everyone is waited for.
const GATHERING: Duration = Duration::from_millis(300);
/// Answers of everyone that are taken.
const INSTANCES: usize = 1000;
/// How long what was told last may take to be sent.
const FAREWELL: Duration = Duration::from_secs(1);

/// This instance's way to the others.
pub(super) struct Link {
    client: Client,
    subjects: Subjects,
    run: Run,
    timeout: Duration,
    connected: watch::Receiver<bool>,
    outgoing: mpsc::Sender<Bytes>,
    /// What everyone answered last, and since when they were asked: whoever waited meanwhile shares it.
    gathered: Mutex<Option<(Instant, Vec<Description>)>>,
    metrics: Metrics,
    is_warned: AtomicBool,
    closed: CancellationToken,
    tasks: TaskTracker,
}

/// What makes this instance a peer of the others, once it runs.
pub struct Task {
    link: Arc<Link>,
    outgoing: mpsc::Receiver<Bytes>,
    signals: Subscriber,
    /// Questions to everyone and to this instance.
    questions: [Subscriber; 2],
}

struct Subjects {
    prefix: Box<str>,
}

impl Subjects {
    fn signal(&self) -> String {
        format!("{}.peers.signal", self.prefix)
    }

    fn everyone(&self) -> String {
        format!("{}.peers.ask", self.prefix)
    }

    fn one(&self, id: &str) -> String {
        let mut subject = format!("{}.peers.ask.", self.prefix);
        escape(id, '%', &mut subject);
        subject
    }
}

pub(super) async fn connect(
    nats: &Nats,
    id: &str,
    metrics: Metrics,
) -> Result<(Arc<Link>, Task), OpenError> {
    let (outgoing, waiting) = mpsc::channel(OUTGOING);
    let link = Arc::new(Link {
        client: nats.client.clone(),
        subjects: Subjects {
            prefix: nats.settings.prefix.as_str().into(),
        },
        run: Run::new(),
        timeout: nats.settings.timeout,
        connected: nats.connected.clone(),
        outgoing,
        gathered: Mutex::default(),
        metrics,
        is_warned: AtomicBool::new(false),
        closed: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });
    link.warn_of_namesake(id).await;
    let subscribe = async |subject| {
        let subscribed = link.client.subscribe(subject).await;
        subscribed.map_err(|error| Attempt::Later(nats.error(error.to_string())))
    };
    let task = nats
        .prepare(async || {
            Ok((
                subscribe(link.subjects.signal()).await?,
                subscribe(link.subjects.everyone()).await?,
                subscribe(link.subjects.one(id)).await?,
            ))
        })
        .await;
    let (signals, everyone, one) = task?;
    let task = Task {
        link: link.clone(),
        outgoing: waiting,
        signals,
        questions: [everyone, one],
    };
    Ok((link, task))
}

impl Link {
    /// Two instances of one name are asked as one and share a canary. A replacement that starts while the one before drains
    /// is not to be refused, so this is no more than a warning.
    async fn warn_of_namesake(&self, id: &str) {
        let asked = timeout(GATHERING, self.ask(id, What::Description)).await;
        let Ok(Ok(answer)) = asked else {
            return;
        };
        match answer.description {
            Some(other) if other.is_draining => {
                tracing::info!(id, "an instance of the same name is draining");
            }
            _ => tracing::warn!(
                id,
                "another instance on this NATS has the same name: give each its own server.instance_id"
            ),
        }
    }

    pub(super) fn tell(&self, to: Option<Run>, signal: Signal) {
        let told = encode(&Told::new(self.run, to, signal));
        if !*self.connected.borrow() || self.outgoing.try_send(told).is_err() {
            self.dropped();
        }
    }

    fn dropped(&self) {
        let dropped = &self.metrics.signals_dropped;
        dropped.with_label_values(&["peers"]).inc();
    }

    pub(super) async fn ask(&self, id: &str, what: What) -> Result<Answer, Error> {
        let silent = |why: &dyn std::fmt::Display| {
            Error::Unavailable(format!("instance {id} does not answer: {why}"))
        };
        let late = || {
            let time = humantime::format_duration(self.timeout);
            silent(&format_args!("nothing came within {time}"))
        };
        self.check_connected()?;
        let request = Request::new()
            .payload(encode(&self.question(what)))
            .timeout(Some(self.timeout));
        // The library's time begins when the request was handed over.
        let answer = self.client.send_request(self.subjects.one(id), request);
        let answer = match timeout(self.timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => {
                return Err(Error::Unknown);
            }
            Ok(Err(error)) if error.kind() == RequestErrorKind::TimedOut => return Err(late()),
            Ok(Err(error)) => return Err(silent(&error)),
            Err(_) => return Err(late()),
        };
        decode(&answer.payload).ok_or_else(|| silent(&"what it said is not understood"))
    }

    fn question(&self, what: What) -> Asked {
        Asked {
            from: self.run.0,
            what: what.into(),
        }
    }

    fn check_connected(&self) -> Result<(), Error> {
        match *self.connected.borrow() {
            true => Ok(()),
            false => Err(Error::Unavailable(
                "the other instances cannot be asked: the connection to NATS broke".into(),
            )),
        }
    }

    pub(super) async fn others(&self) -> Result<Vec<Description>, Error> {
        let wanted = Instant::now();
        let mut gathered = self.gathered.lock().await;
        if let Some((since, others)) = &*gathered
            && *since >= wanted
        {
            return Ok(others.clone());
        }
        self.check_connected()?;
        let since = Instant::now();
        let others = self.gather().await;
        let others = others.map_err(|error| Error::Unavailable(error.to_string()))?;
        *gathered = Some((since, others.clone()));
        Ok(others)
    }

    async fn gather(&self) -> Result<Vec<Description>, async_nats::Error> {
        let until = Instant::now() + GATHERING;
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await?;
        let question = encode(&self.question(What::Description));
        let everyone = self.subjects.everyone();
        self.client
            .publish_with_reply(everyone, inbox, question)
            .await?;
        let mut others = Vec::new();
        while others.len() < INSTANCES
            && let Ok(Some(message)) = timeout_at(until, answers.next()).await
        {
            match decode::<Answer>(&message.payload) {
                Some(answer) => others.extend(answer.description),
                None => self.unreadable(),
            }
        }
        Ok(others)
    }

    /// Somebody else, or a later version, publishes here.
    fn unreadable(&self) {
        let dropped = &self.metrics.signals_dropped;
        dropped.with_label_values(&["unreadable"]).inc();
        if !self.is_warned.swap(true, Ordering::Relaxed) {
            tracing::debug!(
                "a message of another instance is not understood; further ones are counted only"
            );
        }
    }

    pub(super) async fn close(&self) {
        self.closed.cancel();
        self.tasks.close();
        let _ = timeout(FAREWELL, self.tasks.wait()).await;
    }
}

impl Task {
    /// Begins: `local` hears and answers from here on, until the link is closed.
    pub fn serve(self, local: &Arc<dyn Local>) {
        let Self {
            link,
            outgoing,
            signals,
            questions,
        } = self;
        link.tasks.spawn(send(link.clone(), outgoing));
        let closed = link.closed.clone().cancelled_owned();
        let hearing = hear(link.clone(), signals, local.clone());
        link.tasks.spawn(async move {
            tokio::select! {
                () = closed => {}
                () = hearing => {}
            }
        });
        let [everyone, one] = questions;
        let closed = link.closed.clone().cancelled_owned();
        let answering = answer(link.clone(), everyone, one, local.clone());
        link.tasks.spawn(async move {
            tokio::select! {
                () = closed => {}
                () = answering => {}
            }
        });
    }
}

/// Publishes what is told; at the end what was told before.
async fn send(link: Arc<Link>, mut outgoing: mpsc::Receiver<Bytes>) {
    let subject = link.subjects.signal();
    loop {
        let told = tokio::select! {
            told = outgoing.recv() => told,
            () = link.closed.cancelled() => {
                outgoing.close();
                outgoing.recv().await
            }
        };
        let Some(told) = told else {
            let _ = link.client.flush().await;
            return;
        };
        let sent =
            *link.connected.borrow() && link.client.publish(subject.clone(), told).await.is_ok();
        if !sent {
            link.dropped();
        }
    }
}

/// Passes the signals of others on.
async fn hear(link: Arc<Link>, mut signals: Subscriber, local: Arc<dyn Local>) {
    while let Some(message) = signals.next().await {
        let Some(told) = decode::<Told>(&message.payload) else {
            link.unreadable();
            continue;
        };
        let is_for_others = told.from == link.run.0 || (told.to != 0 && told.to != link.run.0);
        if is_for_others {
            continue;
        }
        let from = Run(told.from);
        match told.signal() {
            Some(signal) => local.hear(from, signal),
            None => link.unreadable(),
        }
    }
}

/// Answers questions, one after the other.
async fn answer(
    link: Arc<Link>,
    mut everyone: Subscriber,
    mut one: Subscriber,
    local: Arc<dyn Local>,
) {
    loop {
        let message = tokio::select! {
            message = everyone.next() => message,
            message = one.next() => message,
        };
        let Some(message) = message else {
            return;
        };
        let (Some(reply), Some(asked)) = (message.reply, decode::<Asked>(&message.payload)) else {
            link.unreadable();
            continue;
        };
        // What this instance knows of itself it does not ask.
        if asked.from == link.run.0 {
            continue;
        }
        let mut answer = Answer {
            from: link.run.0,
            ..Answer::default()
        };
        match asked.what() {
            What::Description => answer.description = Some(local.describe()),
            What::Counters => answer.counters = Some(local.counters()),
            // A later version asks; it learns that this one does not know.
            What::Unknown => {}
        }
        // Who asked waits no longer than for an answer that was lost.
        let _ = link.client.publish(reply, encode(&answer)).await;
    }
}
