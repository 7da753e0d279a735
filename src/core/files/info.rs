//! What is known of a file.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::{blob, core::Error, log::Timestamp};

/// Every file id begins with it.
const PREFIX: &str = "file-";
/// The ending of a description's name.
const ENDING: &str = ".json";

/// The id of a file: `file-` and 32 hexadecimal digits that grow with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileId(u128);

impl FileId {
    pub(super) fn new() -> Self {
        Self(Uuid::now_v7().as_u128())
    }

    /// The id that `text` spells; `None`: no file has it. Nothing but an id of ours ever gets into a path.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        digits(text.strip_prefix(PREFIX)?).map(Self)
    }

    /// Where the description is. Names are turned around, so that they sort newest first.
    pub(crate) fn meta_key(self) -> String {
        format!("meta/{:032x}{ENDING}", !self.0)
    }

    pub(crate) fn of_meta_name(name: &str) -> Option<Self> {
        digits(name.strip_suffix(ENDING)?).map(|turned| Self(!turned))
    }

    /// Where the content is.
    pub(crate) fn blob_key(self) -> String {
        format!("blobs/{self}")
    }
}

fn digits(text: &str) -> Option<u128> {
    let is_ours = |c: char| matches!(c, '0'..='9' | 'a'..='f');
    (text.len() == 32 && text.chars().all(is_ours))
        .then(|| u128::from_str_radix(text, 16).ok())
        .flatten()
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{:032x}", self.0)
    }
}

impl From<FileId> for String {
    fn from(id: FileId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for FileId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("no file id")
    }
}

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its id.
    pub id: FileId,
    /// Its name, as its uploader gave it: to show, never a path.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its media type.
    pub content_type: String,
    /// The SHA-256 of its content in lower-case hexadecimal.
    pub sha256: String,
    /// When it was stored.
    #[serde(with = "nanos")]
    pub created: Timestamp,
    /// The id of its upload, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_id: Option<String>,
}

/// What a client says of a file before it sends it. Checked by whoever makes it: the texts are short and clean, the checksum
/// is lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFile {
    /// Its name.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// Its size, if declared.
    pub size: Option<u64>,
    /// Its SHA-256, if it is to be checked.
    pub sha256: Option<String>,
    /// Names the upload.
    pub upload_id: Option<String>,
}

pub(super) mod nanos {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::log::Timestamp;

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
    pub(in crate::core::files) fn serialize<S: Serializer>(
        time: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(time.0)
    }

    pub(in crate::core::files) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        u64::deserialize(deserializer).map(Timestamp)
    }
}

pub(super) fn decode<T: DeserializeOwned>(object: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(object).map_err(|error| blob::Error::Corrupt(error.to_string()).into())
}

pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>, blob::Error> {
    serde_json::to_vec(value).map_err(|error| blob::Error::Corrupt(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_sorts_newest_first() {
        let (first, second) = (FileId::new(), FileId::new());
        assert_eq!(FileId::parse(&first.to_string()), Some(first));
        assert!(second.meta_key() < first.meta_key());
        let key = first.meta_key();
        let name = key.strip_prefix("meta/").unwrap();
        assert_eq!(FileId::of_meta_name(name), Some(first));
    }

    #[test]
    fn nothing_else_is_an_id() {
        let digits = "0".repeat(32);
        for text in [
            "",
            "file-",
            "file-../../etc/passwd",
            &digits,
            &format!("file-{}", "G".repeat(32)),
            &format!("file-{}", "A".repeat(32)),
            &format!("file-+{}", "0".repeat(31)),
            &format!("file-{digits}/"),
        ] {
            assert_eq!(FileId::parse(text), None, "{text}");
        }
    }
}
