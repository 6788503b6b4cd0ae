//! The data folder, locked so that two nodes never share one.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("failed to make the data folder `{path}` (`node.data_dir`): {source}")]
    Make { path: PathBuf, source: io::Error },
    #[error("data folder `{0}` (`node.data_dir`) is in use by another node")]
    Taken(PathBuf),
}

/// Holds the folder until it is dropped, or the process ends in whatever way.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Makes the folder if it is not there, readable by its owner only, and locks it.
    pub fn take(folder: &Path) -> Result<Lock, FolderError> {
        let at = |source| FolderError::Make { path: folder.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
        let file = File::create(folder.join("lock")).map_err(at)?;
        // SAFETY: a system call on a descriptor that is open, without pointers.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Lock { _file: file });
        }
        match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::WouldBlock => Err(FolderError::Taken(folder.to_owned())),
            e => Err(at(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one_node_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        assert!(matches!(Lock::take(folder.path()), Err(FolderError::Taken(_))));
        drop(first);
        assert!(Lock::take(folder.path()).is_ok());
    }
}
