//! The files of the repository, read once, without what builds leave behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders that no commit holds.
const LEFT_BEHIND: &[&str] = &["target", ".git", "node_modules", "__pycache__", "data"];

/// One text file, by its path below the top level.
pub struct File {
    pub path: String,
    pub text: String,
}

impl File {
    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The crate that the file belongs to, if it is one of `crates/*`.
    pub fn crate_name(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }

    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(n, line)| (n + 1, line))
    }
}

/// All text files, sorted by path.
pub struct Tree {
    pub root: PathBuf,
    pub files: Vec<File>,
}

impl Tree {
    pub fn read() -> Tree {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in a folder").to_owned();
        let mut files = Vec::new();
        let mut open = vec![root.clone()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder).expect("a folder of the repository can be read") {
                let path = entry.expect("an entry can be read").path();
                let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                if path.is_symlink() || LEFT_BEHIND.contains(&name) {
                    continue;
                }
                if path.is_dir() {
                    open.push(path);
                } else if let Ok(text) = fs::read_to_string(&path) {
                    let below = path.strip_prefix(&root).expect("found below the root");
                    files.push(File { path: below.to_string_lossy().replace('\\', "/"), text });
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Tree { root, files }
    }

    pub fn rust(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|f| f.is_rust())
    }

    pub fn file(&self, path: &str) -> Option<&File> {
        self.files.iter().find(|f| f.path == path)
    }
}
