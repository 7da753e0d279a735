//! Directories for data: what clients say and store is nobody's business but the owner's.

use std::{fs::DirBuilder, io, os::unix::fs::DirBuilderExt as _, path::Path};

/// Permissions of a directory that only its owner may enter.
const PRIVATE: u32 = 0o700;

/// Makes `dir` and the directories above it that are missing, open to their owner alone. One that is there keeps its permissions.
///
/// # Errors
/// What the file system says.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(dir)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    use super::*;

    fn mode(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_made_is_private_and_what_is_there_stays_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        let inner = root.path().join("outer/inner");
        make_private(&inner).unwrap();
        make_private(&inner).unwrap();
        assert_eq!(mode(&inner), PRIVATE);
        assert_eq!(mode(&root.path().join("outer")), PRIVATE);
        assert_eq!(mode(root.path()), 0o755);
    }
}
