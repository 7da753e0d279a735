//! Changing an object only if nobody else did.

use bytes::Bytes;
use object_store::{ObjectStoreExt as _, PutMode, PutPayload, PutResult, UpdateVersion};

use super::{Access, Error, Store, present};

/// What an object was when it was read or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(Kind);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// A directory has one process, which does not get in its own way.
    Local,
    Tag(UpdateVersion),
    Sequence(u64),
}

impl Version {
    const fn tag(e_tag: Option<String>, version: Option<String>) -> Self {
        Self(Kind::Tag(UpdateVersion { e_tag, version }))
    }

    const fn sequence(&self) -> Option<u64> {
        match self.0 {
            Kind::Sequence(sequence) => Some(sequence),
            Kind::Local | Kind::Tag(_) => None,
        }
    }
}

impl Store {
    /// Reads a small object, and what to name to change it.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn get_version(&self, key: &str) -> Result<Option<(Bytes, Version)>, Error> {
        let objects = match self.access().await? {
            Access::Objects(objects) => objects,
            Access::Jetstream(jetstream) => {
                let found = jetstream.get(key).await?;
                return Ok(
                    found.map(|(bytes, sequence)| (bytes, Version(Kind::Sequence(sequence))))
                );
            }
        };
        let Some(got) = present(objects.store.get(&objects.key(key)).await)? else {
            return Ok(None);
        };
        let version = match objects.remote {
            None => Version(Kind::Local),
            Some(_) => Version::tag(got.meta.e_tag.clone(), got.meta.version.clone()),
        };
        Ok(Some((got.bytes().await?, version)))
    }

    /// Writes an object as [`Self::put`] does, if it still has the version `expected`, or if there is still none. On a
    /// directory always. Whether an S3 server keeps to it is the server's: one that does not know such writes needs
    /// `AWS_CONDITIONAL_PUT=disabled`, and the last to write wins there.
    ///
    /// # Errors
    /// [`Error::Conflict`], or what the storage reports.
    pub async fn put_version(
        &self,
        key: &str,
        bytes: Vec<u8>,
        expected: Option<&Version>,
    ) -> Result<Version, Error> {
        let objects = match self.access().await? {
            Access::Objects(objects) => objects,
            Access::Jetstream(jetstream) => {
                let expected = expected.and_then(Version::sequence).unwrap_or(0);
                let sequence = jetstream.put(key, bytes.into(), Some(expected)).await?;
                return Ok(Version(Kind::Sequence(sequence)));
            }
        };
        let (key, payload) = (objects.key(key), PutPayload::from(bytes));
        if objects.remote.is_none() {
            objects.store.put(&key, payload).await?;
            return Ok(Version(Kind::Local));
        }
        let mode = match expected {
            Some(Version(Kind::Tag(tag))) => PutMode::Update(tag.clone()),
            _ => PutMode::Create,
        };
        let put = objects
            .store
            .put_opts(&key, payload.clone(), mode.into())
            .await;
        let PutResult { e_tag, version, .. } = match put {
            Err(object_store::Error::NotImplemented { .. }) => {
                objects.store.put(&key, payload).await?
            }
            Err(
                object_store::Error::Precondition { .. }
                | object_store::Error::AlreadyExists { .. }
                | object_store::Error::NotFound { .. },
            ) => return Err(Error::Conflict),
            put => put?,
        };
        Ok(Version::tag(e_tag, version))
    }

    /// Deletes an object that still has this version. On S3 somebody may change it between the look and the deletion.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it has another or is gone, or what the storage reports.
    pub async fn delete_version(&self, key: &str, expected: &Version) -> Result<(), Error> {
        let objects = match self.access().await? {
            Access::Objects(objects) => objects,
            Access::Jetstream(jetstream) => {
                return match jetstream.delete(key, expected.sequence()).await? {
                    true => Ok(()),
                    false => Err(Error::Conflict),
                };
            }
        };
        if objects.remote.is_some() {
            let found = present(objects.store.head(&objects.key(key)).await)?;
            let found = found.map(|found| Version::tag(found.e_tag, found.version));
            if found.as_ref() != Some(expected) {
                return Err(Error::Conflict);
            }
        }
        // It takes a slot of its own.
        drop(objects);
        self.delete(key).await
    }
}
