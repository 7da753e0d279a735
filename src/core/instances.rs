//! The instances of the service: this one and its peers.

use std::sync::Arc;

use super::Error;
use crate::peers::{self, Counters, Description, Local, Peers};

/// Names of instances that an error lists at most.
const NAMED: usize = 16;

/// All instances. Cheap to clone.
#[derive(Clone)]
pub struct Instances {
    local: Arc<dyn Local>,
    peers: Peers,
}

impl Instances {
    /// The instance that `local` is, and its peers.
    #[must_use]
    pub fn new(local: Arc<dyn Local>, peers: Peers) -> Self {
        Self { local, peers }
    }

    /// This instance.
    #[must_use]
    pub fn own(&self) -> Description {
        self.local.describe()
    }

    /// Every instance that answers within a short while, this one included, by name.
    ///
    /// # Errors
    /// [`Error::Instance`]: the others cannot be asked.
    pub async fn list(&self) -> Result<Vec<Description>, Error> {
        let mut all = self.peers.others().await.map_err(unavailable)?;
        all.push(self.own());
        all.sort_by(|one, other| (&one.id, one.started).cmp(&(&other.id, other.started)));
        Ok(all)
    }

    /// What the other instance called `id` has counted up to now.
    ///
    /// # Errors
    /// [`Error::UnknownInstance`]: there is none. [`Error::Instance`]: it does not answer.
    pub async fn counters(&self, id: &str) -> Result<Counters, Error> {
        match self.peers.counters(id).await {
            Ok(counters) => Ok(counters),
            Err(peers::Error::Unknown) => Err(self.unknown(id).await),
            Err(error) => Err(unavailable(error)),
        }
    }

    async fn unknown(&self, id: &str) -> Error {
        let all = match self.list().await {
            Ok(all) => all,
            Err(error) => return error,
        };
        let mut known: Vec<_> = all.into_iter().map(|one| one.id).collect();
        known.dedup();
        let more = known.len().saturating_sub(NAMED);
        known.truncate(NAMED);
        Error::UnknownInstance {
            name: id.to_owned(),
            known,
            more,
        }
    }
}

fn unavailable(error: peers::Error) -> Error {
    Error::Instance(error.to_string())
}
