//! The metrics page of a node, as Prometheus reads it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What is answered at a path: the status, and the text.
pub async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(5), socket.read_to_string(&mut text)).await??;
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("no status")?;
    let status = status.parse()?;
    Ok((status, text.split_once("\r\n\r\n").context("no body")?.1.to_owned()))
}

/// The lines of the page by name and labels.
pub async fn page(address: SocketAddr) -> Result<BTreeMap<String, f64>> {
    let (status, body) = get(address, "/metrics").await?;
    ensure!(status == 200 && body.trim_end().ends_with("# EOF"), "{status}: {body}");
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
