//! What nobody will go on with: found after a restart and swept when its time is over.

use std::{
    collections::HashSet,
    time::{Duration, SystemTime},
};

use futures::TryStreamExt as _;

use super::{
    Error, FileId, Files, info,
    shelf::Ticket,
    upload::{Key, State},
};
use crate::log::Timestamp;

/// How often is swept, at most and at least.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

impl Files {
    /// Finds what an earlier process stored and left: counts the files, puts named uploads back, removes nameless ones and
    /// content without a description. Holds 16 bytes a file while it runs. May be repeated.
    ///
    /// # Errors
    /// What the store reports.
    pub async fn recover(&self) -> Result<(), Error> {
        let described = self.described().await?;
        let mut uploaded = self.uploads().await?;
        self.strays().await?;
        uploaded.extend(described);
        self.blobs(&uploaded).await?;
        self.show();
        Ok(())
    }

    /// Sweeps until the process ends; recovers first while that has not succeeded. One task for all uploads.
    pub async fn keep(self, mut is_recovered: bool) {
        let pause = (self.0.settings.upload_ttl / 10).clamp(PAUSES.0, PAUSES.1);
        loop {
            tokio::time::sleep(pause).await;
            if !is_recovered {
                match self.recover().await {
                    Ok(()) => is_recovered = true,
                    Err(error) => tracing::warn!(%error, "the files are not counted yet"),
                }
            }
            if let Err(error) = self.sweep().await {
                tracing::warn!(%error, "expired uploads could not be swept");
            }
        }
    }

    async fn described(&self) -> Result<HashSet<FileId>, Error> {
        let listed = self.0.store.list("meta", None);
        let ids = listed.try_filter_map(|listed| {
            futures::future::ready(Ok(FileId::of_meta_name(&listed.name)))
        });
        Ok(ids.try_collect().await?)
    }

    /// The files that uploads under way will become.
    async fn uploads(&self) -> Result<HashSet<FileId>, Error> {
        let ttl = self.0.settings.upload_ttl;
        let mut ids = HashSet::new();
        let names: Vec<_> = self.0.store.list("uploads", None).try_collect().await?;
        for listed in names {
            let key = Key::of_name(&listed.name);
            let Some(object) = self.0.store.get(&key.state()).await? else {
                continue;
            };
            let state: State = info::decode(&object)?;
            ids.insert(state.id);
            let reserved = state.new.size.unwrap_or(0).max(state.checkpoint.committed);
            let expires = match state.new.upload_id {
                Some(_) => state.expires(ttl),
                // Nobody can go on with it.
                None => Timestamp(1),
            };
            self.0.shelf.found(key, reserved, expires);
        }
        Ok(ids)
    }

    /// Removes staged bytes without an upload.
    async fn strays(&self) -> Result<(), Error> {
        let staged: Vec<_> = self.0.store.list("staging", None).try_collect().await?;
        for listed in staged {
            if !self.0.shelf.knows(&listed.name) {
                self.0
                    .store
                    .delete(&Key::of_name(&listed.name).scratch())
                    .await?;
            }
        }
        Ok(())
    }

    /// Counts content that `wanted` names; removes other content that is old enough not to be an upload's last step.
    async fn blobs(&self, wanted: &HashSet<FileId>) -> Result<(), Error> {
        let mut blobs = self.0.store.list("blobs", None);
        let mut stored = 0;
        while let Some(blob) = blobs.try_next().await? {
            let Some(id) = FileId::parse(&blob.name) else {
                continue;
            };
            if wanted.contains(&id) {
                stored += blob.size;
            } else if is_over(blob.modified, self.0.settings.upload_ttl) {
                self.0.store.delete(&id.blob_key()).await?;
            }
        }
        self.0.shelf.counted(stored);
        Ok(())
    }

    /// Removes broken uploads and outcomes whose time is over.
    async fn sweep(&self) -> Result<(), Error> {
        for ticket in self.0.shelf.expired(Timestamp::now()) {
            match self.expire(ticket).await {
                // Somebody went on with it in time.
                Ok(()) | Err(Error::Superseded) => {}
                Err(error) => return Err(error),
            }
        }
        let ttl = self.0.settings.upload_ttl;
        let mut done = self.0.store.list("done", None);
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
        let key = ticket.key().clone();
        if let Some(object) = self.0.store.get(&key.state()).await? {
            let state: State = info::decode(&object)?;
            let (blob, scratch) = (state.id.blob_key(), key.scratch());
            // What does not open any more is not there any more.
            match self.0.store.resume(&blob, &scratch, state.checkpoint).await {
                Ok(staging) => staging.discard().await?,
                Err(error) => tracing::debug!(%error, "an expired upload is gone already"),
            }
            self.0.store.delete(&key.state()).await?;
        }
        self.0
            .metrics
            .uploads_ended
            .with_label_values(&["expired"])
            .inc();
        ticket.forget();
        drop(ticket);
        drop(turn);
        Ok(())
    }
}

fn is_over(modified: SystemTime, ttl: Duration) -> bool {
    modified.elapsed().is_ok_and(|age| age >= ttl)
}
