//! Reading the whole log as it was at one position, for a backup.
//!
//! What lies before the tail cannot change while nothing is dropped, so nothing is while an export runs ([`Hold`]); what is sealed or
//! written once more meanwhile is the same records in another file.

use std::{collections::BTreeMap, ops::ControlFlow, path::Path, sync::Arc};

use super::{
    Ground, Opened,
    disk::DirLock,
    files::{DIR, identity_path},
    index::{FileKind, Place},
    keys, lock, read,
    seal::known_of,
    shared::Shared,
};
use crate::{
    config,
    log::{
        Error, Health, OpenError, Sequence, Space, Topic,
        dedupe::Known,
        export::{Export, Exporter, Item, Size},
    },
    telemetry::Metrics,
};

/// Topics looked up at a time.
const TOPICS_PAGE: usize = 256;

/// Starts exports of a running log.
pub(super) struct Running(pub(super) Arc<Shared>);

impl Exporter for Running {
    fn begin(&self) -> Result<Box<dyn Export>, Error> {
        self.0.check_reads()?;
        if *self.0.health.borrow() == Health::Full {
            return Err(Error::Full);
        }
        Ok(Box::new(Whole::of(self.0.clone())))
    }
}

/// The log in `dir`, which no process has open; it stays closed to others until the export is dropped.
///
/// # Errors
/// See [`OpenError`]; [`OpenError::InUse`] when a process has it open.
pub fn open(dir: &Path) -> Result<Box<dyn Export>, OpenError> {
    if !identity_path(&dir.join(DIR)).exists() {
        super::check_restored(dir)?;
        super::recover::check_former(dir)?;
        return Err(OpenError::Missing { path: dir.into() });
    }
    let lock = DirLock::acquire(dir)?;
    let config = config::Log {
        dir: dir.into(),
        ..config::Log::default()
    };
    let opened = Opened::open(&config, Metrics::new(), Ground::default(), lock)?;
    Ok(Box::new(Whole::of(opened.shared)))
}

/// While it lives, nothing is dropped.
struct Hold(Arc<Shared>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// The log at one position.
struct Whole {
    hold: Hold,
    tail: Sequence,
}

impl Whole {
    fn of(shared: Arc<Shared>) -> Self {
        // A trim under way ends first: what it drops is not part of this.
        let trimming = lock(&shared.trimming);
        shared.hold();
        let tail = lock(&shared.index).tail;
        drop(trimming);
        Self {
            hold: Hold(shared),
            tail,
        }
    }

    fn shared(&self) -> Result<&Shared, Error> {
        let shared = &*self.hold.0;
        shared.check_reads()?;
        if *shared.health.borrow() == Health::Full {
            return Err(Error::Full);
        }
        Ok(shared)
    }

    /// Every topic that had a record before the tail.
    fn each_topic(
        &self,
        mut show: impl FnMut(&Topic) -> Result<ControlFlow<()>, Error>,
    ) -> Result<(), Error> {
        for space in Space::ALL {
            let mut after: Option<Topic> = None;
            loop {
                let shared = self.shared()?;
                let page = lock(&shared.index).topics(space, after.as_ref(), TOPICS_PAGE);
                let Some(last) = page.last().cloned() else {
                    break;
                };
                for topic in page {
                    if self.is_part(&topic)? && show(&topic)?.is_break() {
                        return Ok(());
                    }
                }
                after = Some(last);
            }
        }
        Ok(())
    }

    /// Topics that came later are not part of it.
    fn is_part(&self, topic: &Topic) -> Result<bool, Error> {
        let index = lock(&self.shared()?.index);
        let state = index.find(topic);
        Ok(state.is_some_and(|state| match state.oldest() {
            Some(oldest) => oldest < self.tail,
            None => state.first.sequence <= self.tail,
        }))
    }

    fn topic(
        &self,
        topic: &Topic,
        show: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let first = lock(&self.shared()?.index).first_of(topic).sequence;
        let shown = show(Item::Topic {
            space: topic.space(),
            name: topic.name(),
            first,
        });
        if shown.is_break() {
            return Ok(shown);
        }
        let mut at = first;
        loop {
            let shared = self.shared()?;
            let mut flow = ControlFlow::Continue(());
            let next = read::stored(shared, topic, at, self.tail, |sequence, stored| {
                flow = show(Item::Record { sequence, stored });
                flow.is_continue()
            })?;
            if flow.is_break() {
                return Ok(flow);
            }
            match next {
                Some(next) => at = next,
                None => return self.keys(topic, show),
            }
        }
    }

    fn keys(
        &self,
        topic: &Topic,
        show: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        for (hash, known) in keys_of(self.shared()?, topic)? {
            // Used since; whatever it was used for before had expired.
            if known.sequence >= self.tail {
                continue;
            }
            let shown = show(Item::Key {
                hash,
                sequence: known.sequence,
                time: known.time,
                content: known.content,
            });
            if shown.is_break() {
                return Ok(shown);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl Export for Whole {
    fn tail(&self) -> Sequence {
        self.tail
    }

    fn size(&self) -> Result<Size, Error> {
        let mut size = Size::default();
        self.each_topic(|topic| {
            size.topics += 1;
            let index = lock(&self.shared()?.index);
            size.bytes += index.find(topic).map_or(0, |state| state.bytes);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(size)
    }

    fn visit(&self, show: &mut dyn FnMut(Item<'_>) -> ControlFlow<()>) -> Result<(), Error> {
        self.each_topic(|topic| self.topic(topic, show))
    }
}

/// The newest use of each of a topic's idempotency keys.
fn keys_of(shared: &Shared, topic: &Topic) -> Result<BTreeMap<[u8; 16], Known>, Error> {
    let unreadable = |error: std::io::Error| Error::Unavailable(error.to_string());
    let mut all = BTreeMap::new();
    let index = lock(&shared.index);
    let places = index.find(topic).map(|state| state.places.clone());
    let mut journals = Vec::new();
    let mut segments = Vec::new();
    for place in places.unwrap_or_default() {
        let file = index.files.get(&place.slot()).map(|file| &file.kind);
        match (file, place) {
            (Some(FileKind::Journal { file, keys, .. }), Place::Journal { tag, .. }) => {
                journals.push((file.clone(), keys.of_tag(tag)));
            }
            (Some(FileKind::Segment { file, .. }), Place::Segment { place, .. }) => {
                segments.push((file.clone(), place));
            }
            _ => {}
        }
    }
    drop(index);
    for (file, place) in segments {
        let file = file.open().map_err(unreadable)?;
        all.extend(keys::read(&*file, &place)?);
    }
    for (file, offsets) in journals {
        for (key, offset) in offsets {
            let bytes = read::entry_at(&*file, u64::from(offset)).map_err(unreadable)?;
            if let Some(known) = known_of(&bytes) {
                all.insert(key, known);
            }
        }
    }
    Ok(all)
}
