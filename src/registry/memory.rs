//! A registry in memory, for tests of the core: one table, and a link of each instance that can be cut.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{Change, Changes, Error, Key, Member, Registry, Revision};

type Teller = mpsc::UnboundedSender<Result<Change, Error>>;

/// The table. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    last: u64,
    of_members: usize,
    /// The newest change of each key, by its text.
    keys: BTreeMap<String, Change>,
    /// Each of an instance.
    watches: Vec<(Box<str>, Teller)>,
}

/// One instance's way to it.
pub(crate) struct Link {
    memory: Memory,
    me: Box<str>,
    lease: Duration,
    connected: watch::Sender<bool>,
}

impl Memory {
    pub(crate) fn link(&self, me: &str, lease: Duration) -> Arc<Link> {
        Arc::new(Link {
            memory: self.clone(),
            me: me.into(),
            lease,
            connected: watch::Sender::new(true),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap()
    }

    /// How many changes of members there were.
    pub(crate) fn changes(&self) -> usize {
        self.lock().of_members
    }
}

impl Table {
    fn newest(&self, key: &Key) -> Revision {
        let newest = self.keys.get(&format!("{key:?}"));
        newest.map_or(Revision::default(), |change| change.revision)
    }

    fn change(&mut self, key: Key, value: Option<Bytes>) -> Revision {
        self.last += 1;
        self.of_members += usize::from(matches!(key, Key::Member(_)));
        let revision = Revision(self.last);
        let change = Change {
            key,
            value,
            revision,
        };
        self.watches
            .retain(|(_, watch)| watch.send(Ok(change.clone())).is_ok());
        self.keys.insert(format!("{:?}", change.key), change);
        revision
    }
}

impl Link {
    /// Nothing goes through any more, and what watches ends.
    pub(crate) fn cut(&self) {
        self.connected.send_replace(false);
        let mut table = self.memory.lock();
        table.watches.retain(|(of, _)| *of != self.me);
    }

    pub(crate) fn mend(&self) {
        self.connected.send_replace(true);
    }

    fn check(&self) -> Result<(), Error> {
        match *self.connected.borrow() {
            true => Ok(()),
            false => Err(Error("cut".into())),
        }
    }
}

#[async_trait]
impl Registry for Link {
    fn me(&self) -> &str {
        &self.me
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn recovery(&self) -> Duration {
        self.lease
    }

    fn pace(&self) -> Duration {
        self.lease / 3
    }

    fn connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    async fn beat(&self) -> Result<Revision, Error> {
        self.check()?;
        let key = Key::Instance(self.me.clone());
        let revision = self.memory.lock().change(key.clone(), Some(Bytes::new()));
        let (memory, lives) = (self.memory.clone(), self.lease + self.pace());
        tokio::spawn(async move {
            tokio::time::sleep(lives).await;
            let mut table = memory.lock();
            if table.newest(&key) == revision {
                table.change(key, None);
            }
        });
        Ok(revision)
    }

    async fn read(&self, member: &Member) -> Result<(Option<Bytes>, Revision), Error> {
        self.check()?;
        let key = format!("{:?}", Key::Member(member.clone()));
        let table = self.memory.lock();
        let change = table.keys.get(&key);
        Ok(change.map_or_else(Default::default, |change| {
            (change.value.clone(), change.revision)
        }))
    }

    async fn write(
        &self,
        member: &Member,
        value: Option<Bytes>,
        last: Revision,
    ) -> Result<Option<Revision>, Error> {
        self.check()?;
        // Others get their turn between a decision and its change.
        tokio::task::yield_now().await;
        let key = Key::Member(member.clone());
        let mut table = self.memory.lock();
        if table.newest(&key) != last {
            return Ok(None);
        }
        Ok(Some(table.change(key, value)))
    }

    async fn watch(&self) -> Result<Changes, Error> {
        self.check()?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut table = self.memory.lock();
        let mut newest: Vec<_> = table.keys.values().cloned().collect();
        newest.sort_by_key(|change| change.revision);
        for change in newest {
            sender.send(Ok(change)).unwrap();
        }
        table.watches.push((self.me.clone(), sender));
        Ok(UnboundedReceiverStream::new(receiver).boxed())
    }
}
