//! What nobody will go on with: found after a restart and swept when its time is over.

use std::{
    collections::HashSet,
    time::{Duration, Instant, SystemTime},
};

use futures::TryStreamExt as _;

use super::{
    Error, FileId, Files,
    shelf::Ticket,
    state::{Ended, Key},
};
use crate::log::Timestamp;

/// How often is swept, at most and at least.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// How often at least a store that others use is counted.
const RECOUNT: Duration = Duration::from_secs(60 * 60);

impl Files {
    /// Finds what an earlier process stored and left: counts the files, puts uploads back, removes content without an
    /// upload or a description. Holds 16 bytes a file while it runs. May be repeated.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn recover(&self) -> Result<(), Error> {
        // In this order whatever another process does meanwhile is found: a state comes before its content, and goes after
        // the description.
        let staged = self.0.store.staged("staging").await?;
        let mut wanted = self.uploads().await?;
        wanted.extend(self.described().await?);
        self.strays(&staged, &wanted).await?;
        self.blobs(&wanted).await?;
        self.show();
        Ok(())
    }

    /// Sweeps until the process ends. Recovers first while that has not succeeded, and on a store that others use now and
    /// then again: what they stored, deleted or left is found so. One task for all uploads.
    pub async fn keep(self, is_recovered: bool) {
        let ttl = self.0.settings.upload_ttl;
        let pause = (ttl / 10).clamp(PAUSES.0, PAUSES.1);
        let mut recovered = is_recovered.then(Instant::now);
        loop {
            tokio::time::sleep(pause).await;
            let is_old = |then: Instant| then.elapsed() >= ttl.min(RECOUNT);
            if recovered.is_none_or(|then| self.0.store.is_shared() && is_old(then)) {
                match self.recover().await {
                    Ok(()) => recovered = Some(Instant::now()),
                    Err(error) => tracing::warn!(%error, "the files are not counted"),
                }
            }
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "expired uploads could not be swept");
            }
        }
    }

    async fn described(&self) -> Result<HashSet<FileId>, Error> {
        let names = self.0.store.names("meta", None);
        let ids =
            names.try_filter_map(|name| futures::future::ready(Ok(FileId::of_meta_name(&name))));
        Ok(ids.try_collect().await?)
    }

    /// The files that uploads under way will become.
    async fn uploads(&self) -> Result<HashSet<FileId>, Error> {
        let ttl = self.0.settings.upload_ttl;
        let (mut ids, mut keys) = (HashSet::new(), HashSet::new());
        let names: Vec<_> = self.0.store.names("uploads", None).try_collect().await?;
        for name in names {
            let key = Key::of_name(&name);
            let Some((state, _)) = self.stored(&key).await? else {
                continue;
            };
            ids.insert(state.id);
            let reserved = state.new.size.unwrap_or(0).max(state.checkpoint.committed);
            self.0
                .shelf
                .found(key.clone(), reserved, state.expires(ttl));
            keys.insert(key);
        }
        self.0.shelf.retain(&keys);
        Ok(ids)
    }

    /// Removes staged bytes without an upload or a file.
    async fn strays(&self, staged: &[String], wanted: &HashSet<FileId>) -> Result<(), Error> {
        for name in staged {
            let is_wanted = FileId::parse(name).is_some_and(|id| wanted.contains(&id));
            if !is_wanted && !self.0.shelf.knows(name) {
                let key = Key::of_name(name).scratch();
                self.0.store.drop_staged(&key).await?;
            }
        }
        Ok(())
    }

    /// Counts content that `wanted` names; removes other content that is old enough not to be an upload's last step.
    async fn blobs(&self, wanted: &HashSet<FileId>) -> Result<(), Error> {
        let mut blobs = self.0.store.blobs("blobs");
        let mut stored = 0;
        while let Some(blob) = blobs.try_next().await? {
            let Some(id) = FileId::parse(&blob.name) else {
                continue;
            };
            if wanted.contains(&id) {
                stored += blob.size;
            } else if is_over(blob.modified, self.0.settings.upload_ttl) {
                self.0.store.delete_blob(&id.blob_key()).await?;
            }
        }
        self.0.shelf.counted(stored);
        Ok(())
    }

    /// Removes broken uploads and outcomes whose time is over.
    async fn sweep(&self) -> Result<(), Error> {
        if self.0.store.is_shared() {
            self.uploads().await?;
        }
        for ticket in self.0.shelf.expired(Timestamp::now()) {
            match self.expire(ticket).await {
                // Somebody went on with it in time.
                Ok(()) | Err(Error::Superseded) => {}
                // The others are to be swept nevertheless.
                Err(error) => tracing::warn!(%error, "an expired upload could not be swept"),
            }
        }
        let ttl = self.0.settings.upload_ttl;
        let mut done = self.0.store.list("done");
        while let Some(outcome) = done.try_next().await? {
            if is_over(outcome.modified, ttl) {
                self.0
                    .store
                    .delete(&Key::of_name(&outcome.name).done())
                    .await?;
            }
        }
        self.show();
        Ok(())
    }

    async fn expire(&self, mut ticket: Ticket) -> Result<(), Error> {
        let turn = ticket.turn().await?;
        let outcome = match self.end(ticket.key()).await? {
            Ended::Alive(expires) => {
                ticket.keep_until(expires);
                return Ok(());
            }
            Ended::Gone => None,
            Ended::Stored => Some("stored"),
            Ended::Expired => Some("expired"),
        };
        if let Some(outcome) = outcome {
            let ended = &self.0.metrics.uploads_ended;
            ended.with_label_values(&[outcome]).inc();
        }
        ticket.forget();
        drop(ticket);
        drop(turn);
        Ok(())
    }
}

fn is_over(modified: SystemTime, ttl: Duration) -> bool {
    modified.elapsed().is_ok_and(|age| age >= ttl)
}
