//! From a client's stream to a stored file.

use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::{
    call::into_status,
    core::{
        Error,
        feeds::Happening,
        files::{Begun, FileInfo, NewFile, Upload},
    },
    services::{Core, check::Check},
};

/// A text of a file's metadata in bytes at most, as identifiers are limited.
const MAX_TEXT_BYTES: usize = 256;
/// The media type of a file that has none.
const OCTETS: &str = "application/octet-stream";
/// A SHA-256 in hexadecimal.
const CHECKSUM_DIGITS: usize = 64;

/// A message of an upload.
pub(in crate::services) enum Part {
    /// What is uploaded.
    Meta(Meta),
    /// The next bytes.
    Chunk {
        bytes: Bytes,
        /// Where they begin, if the client said so.
        offset: Option<i64>,
        /// How many they are; 0: not said.
        size: i64,
    },
}

/// What a client says of a file, unchecked.
#[derive(Debug, Default)]
pub(in crate::services) struct Meta {
    pub(in crate::services) filename: String,
    pub(in crate::services) content_type: String,
    /// 0: not declared.
    pub(in crate::services) total_size: i64,
    pub(in crate::services) checksum: String,
    pub(in crate::services) upload_id: String,
    /// Where the content goes on, for messages that carry no offset.
    pub(in crate::services) offset: Option<i64>,
}

impl TryFrom<Meta> for NewFile {
    type Error = Error;

    fn try_from(meta: Meta) -> Result<Self, Error> {
        let mut check = Check::new(&"metadata.");
        text(&mut check, "filename", &meta.filename);
        if meta.filename.trim().is_empty() {
            check.refuse("filename", "filename is required");
        }
        text(&mut check, "content_type", &meta.content_type);
        let size = u64::try_from(meta.total_size);
        if size.is_err() {
            check.refuse("total_size", "total_size must not be negative");
        }
        let is_hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !(meta.checksum.is_empty()
            || meta.checksum.len() == CHECKSUM_DIGITS && is_hex(&meta.checksum))
        {
            check.refuse("checksum", "checksum must be a SHA-256 in hexadecimal");
        }
        let upload_id = check.optional("upload_id", meta.upload_id);
        check.finish(Some(Self {
            name: meta.filename,
            content_type: match meta.content_type {
                empty if empty.is_empty() => OCTETS.to_owned(),
                given => given,
            },
            size: size.ok().filter(|size| *size > 0),
            sha256: (!meta.checksum.is_empty()).then(|| meta.checksum.to_ascii_lowercase()),
            upload_id: upload_id.map(|id| id.as_str().to_owned()),
        }))
    }
}

/// A text to show: any characters but those that control a terminal or end a string.
fn text(check: &mut Check<'_>, field: &str, text: &str) {
    if text.len() > MAX_TEXT_BYTES {
        check.refuse(
            field,
            format!("{field} must be at most {MAX_TEXT_BYTES} bytes"),
        );
    }
    if text.contains(char::is_control) {
        check.refuse(
            field,
            format!("{field} must not contain control characters"),
        );
    }
}

/// What became of an upload.
pub(in crate::services) struct Stored {
    /// The file.
    pub(in crate::services) info: FileInfo,
    /// A checksum was given and matched.
    pub(in crate::services) is_verified: bool,
}

/// Stores what a client streams. Dropping the future leaves a named upload to go on later and removes any other.
pub(in crate::services) async fn receive<T>(
    core: &Core,
    mut stream: Streaming<T>,
    part: impl Fn(T) -> Option<Part>,
) -> Result<Stored, Status> {
    let first = stream.message().await?.and_then(&part);
    let Some(Part::Meta(meta)) = first else {
        return Err(into_status(Error::invalid(
            "metadata",
            "File metadata must be sent first",
        )));
    };
    let begins_at = meta.offset;
    let new = NewFile::try_from(meta).map_err(into_status)?;
    let is_named = new.upload_id.is_some();
    let is_verified = new.sha256.is_some();
    let mut upload = match core.files.begin(new).await.map_err(into_status)? {
        Begun::Upload(upload) => upload,
        Begun::Done(info) => return Ok(Stored { info, is_verified }),
    };
    check_offset(&upload, begins_at, is_named).map_err(into_status)?;
    loop {
        let message = tokio::select! {
            biased;
            message = stream.message() => message?,
            error = upload.ended() => return Err(into_status(error)),
        };
        match message.map(&part) {
            Some(Some(Part::Chunk {
                bytes,
                offset,
                size,
            })) => {
                check_offset(&upload, offset, is_named)
                    .and_then(|()| check_size(&bytes, size))
                    .map_err(into_status)?;
                upload.write(bytes).await.map_err(into_status)?;
            }
            Some(Some(Part::Meta(_))) => {
                return Err(into_status(Error::invalid(
                    "metadata",
                    "File metadata was sent already",
                )));
            }
            // A message that holds nothing adds nothing.
            Some(None) => {}
            None => {
                let info = upload.finish().await.map_err(into_status)?;
                let labels = [("file", info.id.to_string()), ("name", info.name.clone())];
                let labels = labels.each_ref().map(|(name, text)| (*name, text.as_str()));
                core.feeds.event(Happening::Uploaded, &labels);
                return Ok(Stored { info, is_verified });
            }
        }
    }
}

/// A named upload goes on exactly where it is; in any other an offset may be left out.
fn check_offset(upload: &Upload, offset: Option<i64>, is_named: bool) -> Result<(), Error> {
    let expected = upload.offset();
    let is_right = match offset {
        None => true,
        Some(0) if !is_named => true,
        Some(offset) => u64::try_from(offset) == Ok(expected),
    };
    match is_right {
        true => Ok(()),
        false => Err(Error::invalid(
            "offset",
            format!("offset must be {expected}"),
        )),
    }
}

fn check_size(bytes: &Bytes, size: i64) -> Result<(), Error> {
    match size == 0 || usize::try_from(size) == Ok(bytes.len()) {
        true => Ok(()),
        false => Err(Error::invalid(
            "size",
            format!("size must be {}, the chunk's length", bytes.len()),
        )),
    }
}
