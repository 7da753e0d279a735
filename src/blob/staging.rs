//! A blob on its way in.

use bytes::Bytes;
use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use serde::{Deserialize, Serialize};
use sha2::{
    Digest as _, Sha256,
    digest::common::hazmat::{DeserializeStateError, SerializableState as _},
};

use super::{
    Error,
    jetstream::{JetstreamStaging, Run},
    local::LocalStaging,
    remote::RemoteStaging,
};

/// How far a staging is durable, and all that is needed to go on from there, in another process too.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Bytes that are durable.
    pub committed: u64,
    /// The state of the SHA-256 over them, in hexadecimal; empty: nothing is hashed.
    pub(super) hash: String,
    /// Where S3 keeps the parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) multipart: Option<Multipart>,
    /// Who wrote which chunks on JetStream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) runs: Vec<Run>,
}

/// A multipart upload of S3.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Multipart {
    pub(super) id: String,
    pub(super) parts: Vec<String>,
}

impl Checkpoint {
    pub(super) fn hasher(&self) -> Result<Sha256, Error> {
        let broken = || Error::Corrupt("the state of an upload's hash".into());
        if self.hash.is_empty() {
            return Ok(Sha256::new());
        }
        let bytes = unhex(&self.hash).ok_or_else(broken)?;
        let state = bytes.as_slice().try_into().map_err(|_| broken())?;
        Sha256::deserialize(state).map_err(|_: DeserializeStateError| broken())
    }
}

/// The checkpoint that holds once a part under way is there; more than one may wait for it.
pub(super) type Sending = Shared<BoxFuture<'static, Result<Checkpoint, Error>>>;

/// Sends a part, whether or not somebody waits for it.
pub(super) fn sending(
    part: impl Future<Output = Result<Checkpoint, Error>> + Send + 'static,
) -> Sending {
    let sent = tokio::spawn(part);
    let checkpoint = async {
        let failed = |error: tokio::task::JoinError| Error::Unavailable(error.to_string());
        sent.await.map_err(failed)?
    };
    checkpoint.boxed().shared()
}

pub(super) fn saved(hasher: &Sha256) -> String {
    hex(&hasher.serialize())
}

/// The bytes in lower-case hexadecimal.
#[must_use]
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
        }
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

/// A blob that is being written. Nobody can read it before it is published; dropping it leaves what is staged where it is.
pub struct Staging(Kind);

enum Kind {
    Local(LocalStaging),
    Remote(RemoteStaging),
    Jetstream(Box<JetstreamStaging>),
}

impl From<LocalStaging> for Staging {
    fn from(staging: LocalStaging) -> Self {
        Self(Kind::Local(staging))
    }
}

impl From<RemoteStaging> for Staging {
    fn from(staging: RemoteStaging) -> Self {
        Self(Kind::Remote(staging))
    }
}

impl From<JetstreamStaging> for Staging {
    fn from(staging: JetstreamStaging) -> Self {
        Self(Kind::Jetstream(Box::new(staging)))
    }
}

impl Staging {
    /// Appends `pieces` and hashes them, off the runtime's workers. Not cancel-safe: a staging whose write was dropped must
    /// not be used further.
    ///
    /// # Errors
    /// What the storage reports; the staging must not be used further.
    pub async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Error> {
        match &mut self.0 {
            Kind::Local(staging) => staging.write(pieces).await,
            Kind::Remote(staging) => staging.write(pieces).await,
            Kind::Jetstream(staging) => staging.write(pieces).await,
        }
    }

    /// When enough was written since the last call that gave one: a future that makes it durable, beside further writes.
    pub fn checkpoint_due(&mut self) -> Option<BoxFuture<'static, Result<Checkpoint, Error>>> {
        match &mut self.0 {
            Kind::Local(staging) => staging.checkpoint_due(),
            Kind::Remote(staging) => staging.checkpoint_due(),
            Kind::Jetstream(staging) => staging.checkpoint_due(),
        }
    }

    /// Makes durable what can be: everything on a directory, whole parts elsewhere.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        match &mut self.0 {
            Kind::Local(staging) => staging.checkpoint().await,
            Kind::Remote(staging) => staging.checkpoint().await,
            Kind::Jetstream(staging) => staging.checkpoint().await,
        }
    }

    /// The SHA-256 of all that was written, in hexadecimal.
    #[must_use]
    pub fn digest(&self) -> String {
        let hasher = match &self.0 {
            Kind::Local(staging) => staging.hasher(),
            Kind::Remote(staging) => staging.hasher(),
            Kind::Jetstream(staging) => staging.hasher(),
        };
        hex(&hasher.clone().finalize())
    }

    /// Bytes that were written, those before the last resume included.
    #[must_use]
    pub const fn written(&self) -> u64 {
        match &self.0 {
            Kind::Local(staging) => staging.written(),
            Kind::Remote(staging) => staging.written(),
            Kind::Jetstream(staging) => staging.written(),
        }
    }

    /// Makes durable all that was written. Nothing can be written behind it: the checkpoint is to be published or discarded.
    ///
    /// # Errors
    /// What the storage reports.
    pub async fn seal(self) -> Result<Checkpoint, Error> {
        match self.0 {
            Kind::Local(staging) => staging.seal().await,
            Kind::Remote(staging) => staging.seal().await,
            Kind::Jetstream(staging) => staging.seal().await,
        }
    }

    /// Drops what is staged.
    ///
    /// # Errors
    /// What the storage reports; some of it may stay.
    pub async fn discard(self) -> Result<(), Error> {
        match self.0 {
            Kind::Local(staging) => staging.discard().await,
            Kind::Remote(staging) => staging.discard().await,
            Kind::Jetstream(staging) => staging.discard().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_goes_on_from_its_saved_state() {
        let whole = Sha256::digest(b"hello, world");
        for cut in 0..12 {
            let mut first = Sha256::new();
            first.update(&b"hello, world"[..cut]);
            let checkpoint = Checkpoint {
                hash: saved(&first),
                ..Checkpoint::default()
            };
            let mut second = checkpoint.hasher().unwrap();
            second.update(&b"hello, world"[cut..]);
            assert_eq!(second.finalize(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn a_broken_state_is_told() {
        for hash in ["0", "zz", "00"] {
            let checkpoint = Checkpoint {
                hash: hash.into(),
                ..Checkpoint::default()
            };
            assert!(checkpoint.hasher().is_err(), "{hash}");
        }
    }
}
