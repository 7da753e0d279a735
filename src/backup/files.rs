//! Stored files on their way into an archive and out of it: `meta/*.json` and `blobs/*` of the directory that
//! `core::files` keeps. What is staged, and how uploads ended, stays behind.

use std::{
    fs::{self, File, ReadDir},
    io,
    path::{Path, PathBuf},
};

use super::Error;
use crate::{core::files::FileId, dirs};

/// Descriptions are small; a larger one is not ours.
const META_BYTES: u64 = 1024 * 1024;

/// A file that is whole: its description, and its content, open.
pub(super) struct Stored {
    pub(super) meta_name: String,
    pub(super) meta: Vec<u8>,
    pub(super) blob_name: String,
    pub(super) blob: File,
    pub(super) path: PathBuf,
    pub(super) size: u64,
}

/// Bytes of the contents below `root`; about, as files come and go.
pub(super) fn size(root: &Path) -> Result<u64, Error> {
    let dir = root.join("blobs");
    let mut bytes = 0;
    for entry in listed(&dir)?.into_iter().flatten() {
        match entry.and_then(|entry| entry.metadata()) {
            Ok(meta) => bytes += meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file(dir)(error)),
        }
    }
    Ok(bytes)
}

/// Shows every file below `root`, in no order. One that is deleted meanwhile is left out; one that is published meanwhile may
/// be.
pub(super) fn visit(
    root: &Path,
    mut show: impl FnMut(Stored) -> Result<(), Error>,
) -> Result<(), Error> {
    let dir = root.join("meta");
    for entry in listed(&dir)?.into_iter().flatten() {
        let name = entry.map_err(Error::file(&dir))?.file_name();
        // What a description is before it has its name is none.
        let Some(id) = name.to_str().and_then(FileId::of_meta_name) else {
            continue;
        };
        if let Some(stored) = open(root, id)? {
            show(stored)?;
        }
    }
    Ok(())
}

/// The file, if both of its parts are there. An open content stays readable whatever happens to its name.
fn open(root: &Path, id: FileId) -> Result<Option<Stored>, Error> {
    let (meta_name, blob_name) = (id.meta_key(), id.blob_key());
    let path = root.join(&blob_name);
    let Some(blob) = present(&path, File::open(&path))? else {
        return Ok(None);
    };
    let meta_path = root.join(&meta_name);
    let Some(meta) = present(&meta_path, fs::read(&meta_path))? else {
        return Ok(None);
    };
    let size = blob.metadata().map_err(Error::file(&path))?.len();
    Ok(Some(Stored {
        meta_name,
        meta,
        blob_name,
        blob,
        path,
        size,
    }))
}

fn listed(dir: &Path) -> Result<Option<ReadDir>, Error> {
    present(dir, fs::read_dir(dir))
}

fn present<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::file(path)(error)),
    }
}

/// Where files are restored to.
pub(super) struct Target {
    root: PathBuf,
    is_made: bool,
}

impl Target {
    pub(super) const fn new(root: PathBuf) -> Self {
        Self {
            root,
            is_made: false,
        }
    }

    /// Writes the entry `name` of the archive, durable but for its name. True when it is a file's content.
    pub(super) fn write(
        &mut self,
        name: &str,
        size: u64,
        content: &mut impl io::Read,
    ) -> Result<bool, Error> {
        let is_blob = is_blob(name, size)
            .ok_or_else(|| Error::damaged(format!("{name:?} is no file of ours")))?;
        if !self.is_made {
            for dir in ["meta", "blobs"] {
                let path = self.root.join(dir);
                dirs::make_private(&path).map_err(Error::file(&path))?;
            }
            self.is_made = true;
        }
        let path = self.root.join(name);
        let file = File::create_new(&path).map_err(Error::file(&path))?;
        let copied = io::copy(content, &mut &file).map_err(Error::Archive)?;
        if copied != size {
            return Err(Error::damaged("it ends early"));
        }
        file.sync_all().map_err(Error::file(&path))?;
        Ok(is_blob)
    }

    /// Makes the names durable.
    pub(super) fn finish(&self) -> Result<(), Error> {
        if !self.is_made {
            return Ok(());
        }
        for dir in ["meta", "blobs", ""] {
            let path = self.root.join(dir);
            let synced = File::open(&path).and_then(|dir| dir.sync_all());
            synced.map_err(Error::file(path))?;
        }
        Ok(())
    }
}

/// Whether `name` is that of a content or of a description; none: of neither. Nothing else ever becomes a path.
fn is_blob(name: &str, size: u64) -> Option<bool> {
    match name.split_once('/')? {
        ("blobs", id) => FileId::parse(id).map(|_| true),
        ("meta", name) if size <= META_BYTES => FileId::of_meta_name(name).map(|_| false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_become_paths() {
        let digits = "0".repeat(32);
        assert_eq!(is_blob(&format!("blobs/file-{digits}"), 1), Some(true));
        assert_eq!(is_blob(&format!("meta/{digits}.json"), 1), Some(false));
        for name in [
            "blobs",
            "blobs/../../etc/passwd",
            "meta/x.json",
            "/etc/passwd",
            &format!("uploads/{digits}.json"),
            &format!("meta/../{digits}.json"),
        ] {
            assert_eq!(is_blob(name, 1), None, "{name}");
        }
        assert_eq!(is_blob(&format!("meta/{digits}.json"), u64::MAX), None);
    }
}
