//! Row 137: more than anybody needs, over the links between nodes and at the admin service.

use std::{fs, net::SocketAddr, path::Path, pin::Pin, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use futures::future::join_all;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Request, body::Frame};
use proto::{
    admin::{KickSessionRequest, admin_client::AdminClient},
    membership::{SubmitRequest, membership_client::MembershipClient},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::{Code, body::Body, transport::Channel};
use tower::ServiceExt;

use super::cluster::{Cluster, row};

const MIB: usize = 1 << 20;
/// What a process may grow by: less than any one of these would take that were let in.
const GROWTH: u64 = 64 * MIB as u64;
/// A bound for each answer.
const SOON: Duration = Duration::from_secs(60);
/// Calls of a flood.
const MANY: u32 = 10_000;

const SUBMIT: &str = "/rookery.membership.v1.Membership/Submit";
const STATE: &str = "/rookery.admin.v1.Admin/GetCluster";

/// Input: messages of 64 MiB; calls that announce 31 MiB each and send a part of it; bytes under `gzip` that swell a
/// thousandfold; ten thousand calls at once on one connection; ten thousand calls that are taken back at once. At the
/// links between nodes, with a node's certificate, and at the admin service.
///
/// Outcome: `RESOURCE_EXHAUSTED` (`OUT_OF_RANGE` at the admin service) at the announced length, before its bytes are
/// read; nothing is ever unpacked (`UNIMPLEMENTED`); calls beyond the bound are refused, and the connection ends by
/// `GOAWAY`. Memory is bounded, and the node serves on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_137_more_than_anybody_needs_is_refused_within_bounded_memory() -> Result<()> {
    row("", async |cluster| {
        let before = memory(cluster)?;
        let channel = cluster.link_of(1).await?;
        let admin_at = cluster.nodes.nodes[0].admin;
        let admin = Channel::from_shared(format!("http://{admin_at}"))?.connect().await?;
        too_long(cluster, &channel, &admin).await.context("messages of 64 MiB")?;
        cluster.grown("size", 1.0).await?;
        within(cluster, before, "messages of 64 MiB")?;
        half_sent(&cluster.link_of(1).await?).await.context("calls that are half sent")?;
        within(cluster, before, "calls that are half sent")?;
        for (at, path) in [(&channel, SUBMIT), (&admin, STATE)] {
            let status = call(at, path, Some("gzip"), vec![packed(&bomb())], true).await?;
            ensure!(status == Code::Unimplemented, "a bomb at {path}: {status:?}");
        }
        within(cluster, before, "packed bytes")?;
        for taken_back in [false, true] {
            let link = raw_link(cluster, 1).await?;
            flood(link, SUBMIT, taken_back).await.with_context(|| format!("links, {taken_back}"))?;
            let plain = TcpStream::connect(admin_at).await?;
            flood(plain, STATE, taken_back).await.with_context(|| format!("admin, {taken_back}"))?;
        }
        within(cluster, before, "floods")?;
        // Both still answer, also those who were there before.
        cluster.state().await?;
        cluster.link_of(1).await?;
        let status = call(&channel, SUBMIT, None, vec![framed(0, &[])], true).await?;
        ensure!(status == Code::PermissionDenied, "an empty call: {status:?}");
        Ok(())
    })
    .await
}

async fn too_long(cluster: &Cluster, channel: &Channel, admin: &Channel) -> Result<()> {
    let cluster_id = Cluster::cluster_id(&cluster.state().await?)?;
    let mut membership = MembershipClient::new(channel.clone());
    for _ in 0..3 {
        let commands = vec![vec![7; 64 * MIB].into()];
        let request = SubmitRequest { cluster: cluster_id.clone(), commands, timeout_ms: 1000 };
        let status = timeout(SOON, membership.submit(request)).await?.err().context("it was taken")?;
        ensure!(status.code() == Code::ResourceExhausted, "{status:?}");
        ensure!(status.message().contains("at most 33554432 are taken"), "{status:?}");
        let request = KickSessionRequest { jid: "a".repeat(64 * MIB) };
        let kick = AdminClient::new(admin.clone()).kick_session(request).await;
        let status = kick.err().context("it was taken")?;
        ensure!(status.code() == Code::OutOfRange, "{status:?}");
    }
    Ok(())
}

/// Two hundred calls that announce much and send half a MiB of it: more than a few are refused at once. Where most of that
/// half comes behind its refusal, the link itself is given up, and all calls with it.
async fn half_sent(channel: &Channel) -> Result<()> {
    const CALLS: usize = 200;
    let part = [&[0][..], &(31 * MIB as u32).to_be_bytes(), &vec![1; MIB / 2]].concat();
    let calls = (0..CALLS).map(|_| {
        let part = part.clone();
        async move {
            match timeout(Duration::from_secs(5), call(channel, SUBMIT, None, vec![part], false)).await {
                Err(_) => Ok(Half::Waiting),
                Ok(Ok(Code::ResourceExhausted)) => Ok(Half::Refused),
                Ok(Err(error)) if error.is::<tonic::transport::Error>() => Ok(Half::GivenUp),
                Ok(other) => other.map(Half::Else),
            }
        }
    });
    let ends: Vec<Half> = join_all(calls).await.into_iter().collect::<Result<_>>()?;
    let count = |end: Half| ends.iter().filter(|one| **one == end).count();
    let (refused, waiting, given_up) = (count(Half::Refused), count(Half::Waiting), count(Half::GivenUp));
    ensure!(refused + waiting + given_up == CALLS, "{ends:?}");
    // 128 MiB is room for four of them.
    ensure!(waiting <= 4, "{waiting} calls of 31 MiB were waited for");
    Ok(())
}

/// What becomes of a call that is half sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    Refused,
    Waiting,
    GivenUp,
    Else(Code),
}

fn memory(cluster: &Cluster) -> Result<u64> {
    let process = cluster.nodes.process(0).context("the node has ended")?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// The most that the process ever had, against what it had at first.
fn within(cluster: &Cluster, before: u64, what: &str) -> Result<()> {
    let now = memory(cluster)?;
    eprintln!("{what}: at most {} MiB, {} before", now >> 20, before >> 20);
    ensure!(now < before + GROWTH, "{what}: memory went from {before} to {now} bytes");
    Ok(())
}

/// A message as gRPC frames it.
fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

fn packed(message: &[u8]) -> Vec<u8> {
    framed(1, message)
}

/// Makes a call of these bytes; its end is never said if it is not `whole`. What the status of the answer is.
async fn call(
    channel: &Channel,
    path: &str,
    encoding: Option<&str>,
    parts: Vec<Vec<u8>>,
    whole: bool,
) -> Result<Code> {
    let parts = parts.into_iter().map(|part| Ok::<_, tonic::Status>(Frame::data(part.into())));
    let parts = futures::stream::iter(parts);
    let body = if whole {
        Body::new(StreamBody::new(parts))
    } else {
        let more = futures::stream::pending();
        Body::new(StreamBody::new(futures::StreamExt::chain(parts, more)))
    };
    let mut request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let answer = channel.clone().oneshot(request.body(body)?).await?;
    let status = match answer.headers().get("grpc-status").cloned() {
        Some(status) => status,
        None => {
            let collected = answer.into_body().collect().await.map_err(|e| anyhow::anyhow!("{e}"))?;
            let trailers = collected.trailers().context("no trailers")?;
            trailers.get("grpc-status").context("no status")?.clone()
        }
    };
    Ok(Code::from_bytes(status.as_bytes()))
}

/// 64 MiB of zeros as gzip: one literal, and then copies of 258 bytes from one byte back, in fixed codes (RFC 1951).
fn bomb() -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let (mut bits, mut held) = (0_u64, 0);
    let mut put = |out: &mut Vec<u8>, value: u64, count: u32| {
        bits |= value << held;
        held += count;
        while held >= 8 {
            out.push(bits as u8);
            bits >>= 8;
            held -= 8;
        }
    };
    // The last block, of fixed codes; codes go out with their first bit first.
    put(&mut out, 0b011, 3);
    put(&mut out, u64::from(0x30_u8.reverse_bits()), 8);
    for _ in 0..64 * MIB / 258 {
        put(&mut out, u64::from(0b1100_0101_u8.reverse_bits()), 8);
        put(&mut out, 0, 5);
    }
    put(&mut out, 0, 7 + 7);
    out.extend([0; 8]);
    out
}

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection to the first node with the certificate of another one, on which anything may be written.
async fn raw_link(cluster: &Cluster, of: usize) -> Result<Pin<Box<dyn Wire>>> {
    let (authority, shown) = (cluster.identity(0), cluster.identity(of));
    let to: SocketAddr = cluster.nodes.nodes[0].cluster;
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        Ok(CertificateDer::pem_file_iter(path)?.collect::<Result<_, _>>()?)
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(&authority.join("ca.pem"))? {
        roots.add(certificate)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(
            certificates(&shown.join("node.pem"))?,
            PrivateKeyDer::from_pem_file(shown.join("node.key"))?,
        )?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(to).await?;
    let name = ServerName::try_from("rookery-cluster")?;
    Ok(Box::pin(TlsConnector::from(Arc::new(config)).connect(name, socket).await?))
}

const DATA_FRAMES: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_HEADERS: u8 = 4;
/// Why a stream or a connection ends: RFC 9113, 7.
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The head of a call, each field as it is (RFC 7541, 6.2.2).
fn head(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

/// Opens ten thousand calls and says nothing more in them, or takes each of them back at once.
async fn flood(link: impl Wire + 'static, path: &str, taken_back: bool) -> Result<()> {
    let (mut read, mut write) = tokio::io::split(link);
    let path = path.to_owned();
    let writing = tokio::spawn(async move {
        let head = head(&path);
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        for stream in (0..MANY).map(|n| 2 * n + 1) {
            bytes.extend(frame(HEADERS, END_HEADERS, stream, &head));
            if taken_back {
                bytes.extend(frame(RESET, 0, stream, &CANCEL.to_be_bytes()));
            }
            // The other side may have gone: what it said is read below.
            if bytes.len() > 64 << 10 && write.write_all(&std::mem::take(&mut bytes)).await.is_err() {
                return;
            }
        }
        let _ = write.write_all(&bytes).await;
        let _ = write.flush().await;
        // Open until the other side is done.
        std::future::pending::<()>().await;
    });
    let judged = timeout(SOON, judge(&mut read, taken_back)).await;
    writing.abort();
    judged.context("the connection goes on")?
}

/// Reads until the connection ends, or what is beyond the bound was refused.
async fn judge(read: &mut (impl AsyncRead + Unpin), taken_back: bool) -> Result<()> {
    let begun = Instant::now();
    let mut refused = 0;
    loop {
        let mut head = [0; 9];
        // A reset of the connection may take its last words with it.
        if let Err(error) = read.read_exact(&mut head).await {
            ensure!(
                taken_back || refused > 0,
                "it ended after {:?} without a word: {error}",
                begun.elapsed()
            );
            return Ok(());
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        read.read_exact(&mut payload).await?;
        let number = |at: usize| -> Result<u32> {
            Ok(u32::from_be_bytes(payload.get(at..at + 4).context("a short frame")?.try_into()?))
        };
        match head[3] {
            GOAWAY => {
                let code = number(4)?;
                ensure!(code == ENHANCE_YOUR_CALM, "it ended by {code}");
                return Ok(());
            }
            RESET => {
                let code = number(0)?;
                refused += u32::from(code == REFUSED_STREAM);
                if !taken_back && refused > MANY / 2 {
                    return Ok(());
                }
            }
            DATA_FRAMES => bail!("a call without a message was answered by bytes"),
            _ => {}
        }
    }
}
