//! Reading an archive back into a directory.

use std::{
    io::{self, Read},
    path::Path,
};

use tar::{Archive, Entry};

use super::{
    Error, FORMAT, MANIFEST, Manifest, SUMMARY, SUMMARY_BYTES, Summary, digest::Lag,
    digest::Lagging, files, item,
};
use crate::log::{
    self, Sequence,
    embedded::{Import, Restoring},
};

/// The manifest is small, and an entry of pieces little larger than its bound and the largest message.
const MANIFEST_BYTES: u64 = 64 * 1024;
const CHUNK_BYTES: u64 = 2 * 1024 * 1024 * 1024;
/// What an archive ends with.
const END_BYTES: usize = 1024;

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// What the archive says of itself.
    pub manifest: Manifest,
    /// What it held.
    pub summary: Summary,
}

/// Restores the archive `from` into `dir`, which must not exist or be empty. Everything is durable and in its place when this
/// returns; before, and after an error, no log opens in `dir` that was not there. Blocks.
///
/// # Errors
/// [`Error::Damaged`] or [`Error::Format`] by the archive, [`Error::Open`] by the directory, or what reading and writing report.
pub fn restore(dir: &Path, from: impl Read) -> Result<Restored, Error> {
    let restoring = Restoring::begin(dir)?;
    let (reader, lag) = Lagging::new(from);
    let mut archive = Archive::new(reader);
    let mut restore = Restore {
        target: files::Target::new(restoring.path().join("files")),
        manifest: None,
        import: None,
        summary: Summary::default(),
        lag,
    };
    restore.entries(&mut archive, &restoring)?;
    check_end(archive.into_inner())?;
    let Restore {
        target,
        manifest: Some(manifest),
        import: Some(import),
        summary,
        ..
    } = restore
    else {
        return Err(Error::damaged("it has no manifest"));
    };
    import.finish()?;
    target.finish()?;
    restoring.commit()?;
    Ok(Restored { manifest, summary })
}

struct Restore {
    target: files::Target,
    manifest: Option<Manifest>,
    import: Option<Import>,
    summary: Summary,
    lag: Lag,
}

impl Restore {
    /// Takes every entry up to the summary, and compares that.
    fn entries<R: Read>(
        &mut self,
        archive: &mut Archive<R>,
        restoring: &Restoring,
    ) -> Result<(), Error> {
        let mut chunks = 0_u64;
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = String::from_utf8(entry.path_bytes().into_owned())
                .map_err(|_| Error::damaged("a name is not ours"))?;
            match name.split_once('/') {
                None if name == MANIFEST && self.manifest.is_none() => {
                    self.manifest(&mut entry, restoring)?;
                }
                None if name == SUMMARY => return self.compare(&mut entry),
                Some(("log", number)) if number == format!("{chunks:08}") => {
                    chunks += 1;
                    self.chunk(&mut entry)?;
                }
                Some(("files", name)) if self.manifest.is_some() => {
                    let size = entry.size();
                    if self.target.write(name, size, &mut entry)? {
                        self.summary.files += 1;
                    }
                }
                _ => return Err(Error::damaged(format!("{name:?} is not in its place"))),
            }
        }
        Err(Error::damaged("it ends early"))
    }

    fn manifest<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        restoring: &Restoring,
    ) -> Result<(), Error> {
        let bytes = whole(entry, MANIFEST_BYTES)?;
        let broken = |error: serde_json::Error| Error::damaged(format!("its manifest: {error}"));
        // A later format may have another manifest, but that.
        let format: Format = serde_json::from_slice(&bytes).map_err(broken)?;
        if format.format != FORMAT {
            return Err(Error::Format(format.format));
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(broken)?;
        self.summary.tail = manifest.tail;
        let tail = Sequence(manifest.tail);
        self.import = Some(Import::create(&restoring.path(), tail)?);
        self.manifest = Some(manifest);
        Ok(())
    }

    fn chunk<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Error> {
        let Some(import) = &mut self.import else {
            return Err(Error::damaged("it does not begin with a manifest"));
        };
        let bytes = whole(entry, CHUNK_BYTES)?;
        let mut rest = bytes.as_slice();
        while let Some(item) = item::decode(&mut rest)? {
            self.summary.count(&item);
            import.add(item).map_err(|error| match error {
                log::Error::Corrupt(what) => Error::Damaged(what),
                error => error.into(),
            })?;
        }
        Ok(())
    }

    /// Compares the summary with what came before it.
    fn compare<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Error> {
        let (bytes, sha256) = self.lag.state();
        self.summary.bytes = bytes;
        let found = whole(entry, SUMMARY_BYTES as u64)?;
        match found == self.summary.seal(&sha256) {
            true => Ok(()),
            false => Err(Error::damaged("its checksum is not that of its content")),
        }
    }
}

#[derive(serde::Deserialize)]
struct Format {
    format: u32,
}

/// The content of an entry that is at most `limit` bytes.
fn whole<R: Read>(entry: &mut Entry<'_, R>, limit: u64) -> Result<Vec<u8>, Error> {
    let size = entry.size();
    if size > limit {
        return Err(Error::damaged("an entry is too large"));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(damaged)?;
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(Error::damaged("it ends early")),
    }
}

/// Nothing follows the summary but the end of the archive.
fn check_end(rest: impl Read) -> Result<(), Error> {
    let mut end = Vec::new();
    let read = rest.take(END_BYTES as u64 + 1).read_to_end(&mut end);
    read.map_err(Error::Archive)?;
    match end == [0; END_BYTES] {
        true => Ok(()),
        false => Err(Error::damaged("it does not end where it should")),
    }
}

/// An error of the archive's reader: its own, or that of what it reads.
fn damaged(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
            Error::Damaged(error.to_string())
        }
        _ => Error::Archive(error),
    }
}
