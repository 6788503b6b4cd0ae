//! The metrics page of a node, as Prometheus reads it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The lines of the page by name and labels.
pub async fn page(address: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(5), socket.read_to_string(&mut text)).await??;
    ensure!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
    ensure!(text.trim_end().ends_with("# EOF"), "{text}");
    let body = text.split_once("\r\n\r\n").context("no body")?.1;
    let line = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Ok(body.lines().filter(|l| !l.starts_with('#')).filter_map(line).collect())
}

/// All lines together whose name and labels begin so.
pub fn sum(page: &BTreeMap<String, f64>, begin: &str) -> f64 {
    page.iter().filter(|(name, _)| name.starts_with(begin)).map(|(_, value)| value).sum()
}
