//! The disk alone: one write and one flush of so many records, into preallocated files.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Mutex,
};

use rustix::fs::FallocateFlags;

const FILE_BYTES: u64 = 32 * 1024 * 1024;

pub(crate) struct Bare {
    dir: PathBuf,
    place: Mutex<Place>,
}

struct Place {
    file: File,
    at: u64,
    files: u32,
}

impl Bare {
    pub(crate) fn create(dir: &Path) -> Self {
        fs::create_dir_all(dir).unwrap();
        Self {
            dir: dir.into(),
            place: Mutex::new(Place {
                file: preallocated(dir, 0),
                at: 0,
                files: 1,
            }),
        }
    }

    /// Writes the bytes behind the last ones and flushes them. Files but the last one are removed.
    pub(crate) fn write(&self, bytes: &[u8]) {
        let mut place = self.place.lock().unwrap();
        if place.at + bytes.len() as u64 > FILE_BYTES {
            let files = place.files;
            *place = Place {
                file: preallocated(&self.dir, files),
                at: 0,
                files: files + 1,
            };
            fs::remove_file(path(&self.dir, files - 1)).unwrap();
        }
        place.file.write_all_at(bytes, place.at).unwrap();
        place.file.sync_data().unwrap();
        place.at += bytes.len() as u64;
    }
}

fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:08}"))
}

fn preallocated(dir: &Path, number: u32) -> File {
    let file = File::create(path(dir, number)).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, FILE_BYTES).unwrap();
    file.sync_all().unwrap();
    file
}
