//! One copy of a document: what yrs holds, and the walls around it.
//!
//! yrs may panic on updates that are well-formed and make no sense. A panic is caught, and the copy, which may be half
//! changed, is not used again: its owner reads the log anew. Work runs on threads of its own ([`super::Workshop`]).

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use yrs::{
    Doc, OffsetKind, Options, ReadTxn as _, StateVector, Transact as _, TransactionMut, Update,
    updates::{decoder::Decode as _, encoder::Encode as _},
};

use super::scan;

/// Why an update was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is no update; the copy is unchanged.
    Malformed,
    /// It makes no sense in this document; the copy is not to be used again.
    Senseless,
    /// The document would be too large; the copy is not to be used again.
    TooLarge,
}

impl Refused {
    /// Whether the copy may have changed all the same.
    pub(super) const fn is_spoiling(self) -> bool {
        match self {
            Self::Malformed => false,
            Self::Senseless | Self::TooLarge => true,
        }
    }
}

/// A copy of a document.
pub(super) struct Replica {
    doc: Doc,
    /// The largest state it may have, in bytes.
    limit: usize,
    /// Its state has at most so many bytes.
    at_most: usize,
}

impl Replica {
    /// An empty document.
    pub(super) fn new(limit: usize) -> Self {
        let options = Options {
            offset_kind: OffsetKind::Utf16,
            skip_gc: false,
            // The copy follows the log and changes nothing by itself.
            cleanup_formatting: false,
            ..Options::default()
        };
        Self {
            doc: Doc::with_options(options),
            limit,
            at_most: 2,
        }
    }

    /// Applies an update of a client; returns whether it brought anything new.
    pub(super) fn apply(&mut self, update: &[u8]) -> Result<bool, Refused> {
        let is_new = self.integrate(update)?;
        if is_new {
            self.at_most = self.at_most.saturating_add(update.len());
            if self.at_most > self.limit {
                self.at_most = self.state().ok_or(Refused::Senseless)?.len();
            }
            if self.at_most > self.limit {
                return Err(Refused::TooLarge);
            }
        }
        Ok(is_new)
    }

    /// Applies a stored update, which passed every test when it was stored.
    pub(super) fn replay(&mut self, update: &[u8]) -> Result<(), Refused> {
        if self.integrate(update)? {
            self.at_most = self.at_most.saturating_add(update.len());
        }
        Ok(())
    }

    fn integrate(&self, update: &[u8]) -> Result<bool, Refused> {
        if !scan::is_update(update) {
            return Err(Refused::Malformed);
        }
        let decoded = catch_unwind(|| Update::decode_v1(update).ok());
        let decoded = decoded.ok().flatten().ok_or(Refused::Malformed)?;
        let Ok(mut transaction) = self.doc.try_transact_mut() else {
            return Err(Refused::Senseless);
        };
        let had_pending = transaction.has_missing_updates();
        let applied = catch_unwind(AssertUnwindSafe(|| transaction.apply_update(decoded)));
        let Ok(applied) = applied else {
            tracing::error!("an update of a document broke its copy; the copy is given up");
            // Ending the transaction would go through structures that are half linked.
            std::mem::forget(transaction);
            return Err(Refused::Senseless);
        };
        let is_new = is_changed(&transaction, had_pending);
        let ended = catch_unwind(AssertUnwindSafe(|| drop(transaction)));
        match (applied, ended) {
            (Ok(()), Ok(())) => Ok(is_new),
            _ => Err(Refused::Senseless),
        }
    }

    /// The whole state as one update; `None` when it cannot be told.
    pub(super) fn state(&mut self) -> Option<Bytes> {
        let state = self.encode(&StateVector::default())?;
        self.at_most = state.len();
        Some(state)
    }

    /// What someone with this state vector lacks, as one update; `None` when that is no state vector.
    pub(super) fn missing(&self, state_vector: &[u8]) -> Option<Bytes> {
        if state_vector.is_empty() {
            return self.encode(&StateVector::default());
        }
        if !scan::is_state_vector(state_vector) {
            return None;
        }
        self.encode(&StateVector::decode_v1(state_vector).ok()?)
    }

    fn encode(&self, from: &StateVector) -> Option<Bytes> {
        let encode = || {
            let transaction = self.doc.try_transact().ok()?;
            Some(transaction.encode_state_as_update_v1(from))
        };
        let encoded = catch_unwind(AssertUnwindSafe(encode)).ok().flatten();
        encoded.map(Bytes::from)
    }

    /// The state vector, as Yjs writes it.
    pub(super) fn state_vector(&self) -> Option<Bytes> {
        let transaction = self.doc.try_transact().ok()?;
        Some(transaction.state_vector().encode_v1().into())
    }
}

/// Whether a transaction that is not yet ended brought anything. What waits for updates that are still missing counts as
/// new: it may be.
fn is_changed(transaction: &TransactionMut<'_>, had_pending: bool) -> bool {
    transaction.has_changes() || had_pending || transaction.has_missing_updates()
}
