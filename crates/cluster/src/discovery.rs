//! Finds addresses to knock at, and no more: a list, DNS, or a file.

use std::{io, path::PathBuf};

use futures::future::BoxFuture;

use crate::config;

/// How many seeds one source may give; more are left out.
const SEEDS_MAX: usize = 256;

/// A source of `host:port` addresses, asked again and again.
pub trait Discover: Send + Sync + 'static {
    /// The addresses as they are now.
    fn seeds(&self) -> BoxFuture<'_, io::Result<Vec<String>>>;
}

/// The source that the settings name.
pub fn source(config: &config::Discovery) -> Box<dyn Discover> {
    match config {
        config::Discovery::None => Box::new(Fixed(Vec::new())),
        config::Discovery::Static(seeds) => Box::new(Fixed(seeds.clone())),
        config::Discovery::Dns(name) => Box::new(Dns(name.clone())),
        config::Discovery::File(path) => Box::new(Lines(path.clone())),
    }
}

struct Fixed(Vec<String>);

impl Discover for Fixed {
    fn seeds(&self) -> BoxFuture<'_, io::Result<Vec<String>>> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// A name with all of its addresses, as a headless service of Kubernetes gives them.
struct Dns(String);

impl Discover for Dns {
    fn seeds(&self) -> BoxFuture<'_, io::Result<Vec<String>>> {
        Box::pin(async {
            let found = tokio::net::lookup_host(&self.0).await?;
            let mut seeds: Vec<String> = found.map(|address| address.to_string()).take(SEEDS_MAX).collect();
            seeds.sort_unstable();
            seeds.dedup();
            Ok(seeds)
        })
    }
}

/// A file that something else keeps up to date.
struct Lines(PathBuf);

impl Discover for Lines {
    fn seeds(&self) -> BoxFuture<'_, io::Result<Vec<String>>> {
        Box::pin(async { Ok(parse(&tokio::fs::read_to_string(&self.0).await?)) })
    }
}

/// One address per line; `#` begins a comment.
fn parse(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
    lines.filter(|line| !line.is_empty()).take(SEEDS_MAX).map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_an_address_per_line_and_comments() {
        let text = "# the backends\n10.0.0.1:7400\n\n  b.example:7400  # second\n#10.0.0.3:7400\n";
        assert_eq!(parse(text), ["10.0.0.1:7400", "b.example:7400"]);
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        let found = source(&config::Discovery::File(path.clone()));
        assert!(found.seeds().await.is_err());
        for seed in ["127.0.0.1:1", "127.0.0.1:2"] {
            std::fs::write(&path, seed).unwrap();
            assert_eq!(found.seeds().await.unwrap(), [seed]);
        }
    }

    #[tokio::test]
    async fn a_name_gives_its_addresses_once_each() {
        let seeds = source(&config::Discovery::Dns("localhost:7400".into())).seeds().await.unwrap();
        assert!(seeds.contains(&"127.0.0.1:7400".to_string()) || seeds.contains(&"[::1]:7400".to_string()));
    }
}
