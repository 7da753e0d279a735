//! Writing an archive.

use std::{
    io::{self, Read, Write},
    ops::ControlFlow,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use tar::{Builder, Header};

use super::{Error, FORMAT, MANIFEST, Manifest, SUMMARY, Summary, digest::Hashing, files, item};
use crate::log::export::{Export, Item};

/// Bytes of an entry of the log's pieces, beyond the last piece.
const CHUNK_BYTES: usize = 4 * 1024 * 1024;

/// What goes into an archive.
pub struct Contents {
    /// The log.
    pub log: Box<dyn Export>,
    /// The directory of the files, where they are in one.
    pub files: Option<PathBuf>,
}

impl Contents {
    /// What the archive will begin with.
    ///
    /// # Errors
    /// What reading reports.
    pub fn manifest(&self) -> Result<Manifest, Error> {
        let size = self.log.size()?;
        let files = self.files.as_deref().map(files::size).transpose()?;
        Ok(Manifest {
            format: FORMAT,
            weir: env!("CARGO_PKG_VERSION").to_owned(),
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            tail: self.log.tail().0,
            topics: size.topics,
            log_bytes: size.bytes,
            file_bytes: files.unwrap_or_default(),
        })
    }
}

/// Writes the archive to `out` and flushes that. Blocks.
///
/// # Errors
/// What reading reports, or the first error of `out`; what was written is then no archive.
pub fn write<W: Write>(
    contents: &Contents,
    manifest: &Manifest,
    out: W,
) -> Result<(Summary, W), Error> {
    let mut archive = Archive {
        builder: Builder::new(Hashing::new(out)),
        summary: Summary {
            tail: contents.log.tail().0,
            ..Summary::default()
        },
        modified: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        chunk: Vec::new(),
        chunks: 0,
    };
    let manifest = serde_json::to_vec_pretty(manifest)
        .map_err(|error| Error::Archive(io::Error::other(error)))?;
    archive.put(MANIFEST, &manifest)?;
    archive.log(&*contents.log)?;
    archive.end_chunk()?;
    if let Some(root) = &contents.files {
        files::visit(root, |stored| archive.file(stored))?;
    }
    archive.finish()
}

struct Archive<W: Write> {
    builder: Builder<Hashing<W>>,
    summary: Summary,
    modified: u64,
    chunk: Vec<u8>,
    chunks: u64,
}

impl<W: Write> Archive<W> {
    fn log(&mut self, log: &dyn Export) -> Result<(), Error> {
        let mut added = Ok(());
        log.visit(&mut |item| {
            added = self.add(&item);
            if added.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        added
    }

    fn add(&mut self, item: &Item<'_>) -> Result<(), Error> {
        self.summary.count(item);
        item::encode(item, &mut self.chunk);
        match self.chunk.len() >= CHUNK_BYTES {
            true => self.end_chunk(),
            false => Ok(()),
        }
    }

    fn end_chunk(&mut self) -> Result<(), Error> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.chunk);
        self.put(&format!("log/{:08}", self.chunks), &chunk)?;
        self.chunks += 1;
        self.chunk = chunk;
        self.chunk.clear();
        Ok(())
    }

    fn file(&mut self, stored: files::Stored) -> Result<(), Error> {
        self.summary.files += 1;
        self.put(&format!("files/{}", stored.meta_name), &stored.meta)?;
        let content = Exactly {
            inner: stored.blob,
            left: stored.size,
            failed: None,
        };
        let name = format!("files/{}", stored.blob_name);
        self.entry(&name, stored.size, content)
            .map_err(|failure| match failure {
                Failure::Content(cause) => Error::file(stored.path)(cause),
                Failure::Out(error) => error,
            })
    }

    fn put(&mut self, name: &str, content: &[u8]) -> Result<(), Error> {
        let content_bytes = content.len() as u64;
        let content = Exactly {
            inner: content,
            left: content_bytes,
            failed: None,
        };
        self.entry(name, content_bytes, content)
            .map_err(|failure| match failure {
                Failure::Content(error) => Error::Archive(error),
                Failure::Out(error) => error,
            })
    }

    fn entry<R: Read>(
        &mut self,
        name: &str,
        size: u64,
        mut content: Exactly<R>,
    ) -> Result<(), Failure> {
        let mut header = Header::new_gnu();
        header.set_size(size);
        header.set_mode(0o600);
        header.set_mtime(self.modified);
        let written = self.builder.append_data(&mut header, name, &mut content);
        match (written, content.failed) {
            (Ok(()), _) => Ok(()),
            (Err(error), Some(kind)) => Err(Failure::Content(io::Error::new(kind, error))),
            (Err(error), None) => Err(Failure::Out(Error::Archive(error))),
        }
    }

    fn finish(mut self) -> Result<(Summary, W), Error> {
        // The summary says how long the archive is up to the summary; what follows has one length.
        let (bytes, sha256) = self.builder.get_mut().state();
        self.summary.bytes = bytes;
        let sealed = self.summary.seal(&sha256);
        self.put(SUMMARY, &sealed)?;
        let mut out = self.builder.into_inner().map_err(Error::Archive)?;
        out.flush().map_err(Error::Archive)?;
        Ok((self.summary, out.into_inner()))
    }
}

/// What failed while an entry was written.
enum Failure {
    Content(io::Error),
    Out(Error),
}

/// Reads just as many bytes as the entry's header says; less is an error.
struct Exactly<R> {
    inner: R,
    left: u64,
    failed: Option<io::ErrorKind>,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let read = match self.inner.read(&mut buf[..most]) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file is shorter than it was",
            )),
            read => read,
        };
        match read {
            Ok(read) => {
                self.left -= read as u64;
                Ok(read)
            }
            Err(error) => {
                // The archive's writer tries again by itself.
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(error.kind());
                }
                Err(error)
            }
        }
    }
}
