//! Accepts client sockets on the arbiter that will own them: one listener per arbiter and address.

use std::io;
use std::net::{SocketAddr, TcpListener as Unpolled};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::gate::{Permit, Refused};
use crate::limits::Limits;
use crate::world::World;

/// How a client on this listener begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// In the clear, with STARTTLS offered (RFC 6120, 5).
    StartTls,
    /// With a TLS handshake (XEP-0368).
    DirectTls,
}

/// A socket that was let in.
pub(crate) struct Guest {
    pub socket: TcpStream,
    pub peer: SocketAddr,
    pub door: Door,
    /// It is a proxy, which owes a header.
    pub proxied: bool,
    pub permit: Permit,
}

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// First and longest pause after an `accept` that failed for want of something.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Binds `copies` sockets to one address, which the kernel then shares new connections among.
///
/// # Errors
/// Fails where the address cannot be bound, `AddrInUse` also where another process of the same user
/// listens there with `SO_REUSEPORT`, which the kernel would have allowed.
pub(crate) fn bind(address: SocketAddr, copies: usize) -> io::Result<Vec<Unpolled>> {
    // Without `SO_REUSEPORT` first: that tells a port in use from one that would silently be shared.
    let probe = open(address, false)?;
    let address = probe.local_addr()?;
    drop(probe);
    (0..copies).map(|_| open(address, true)).collect()
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Unpolled> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        // The two families are listed apart in the config: `[::]` must not take the port of `0.0.0.0`.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until `open` turns false; each guest goes to `admit`, which must not wait.
pub(crate) async fn accept(
    listener: Unpolled,
    door: Door,
    world: Arc<World>,
    mut open: watch::Receiver<bool>,
    admit: impl Fn(Guest),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut pause = PAUSE.0;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = open.wait_for(|open| !open) => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, peer)) => {
                pause = PAUSE.0;
                if !world.files.admits(socket.as_raw_fd(), world.gate.open()) {
                    refuse(&world, peer, Refused::Files);
                    continue;
                }
                let proxied = world.config.c2s.proxy_from.iter().any(|network| network.contains(peer.ip()));
                match world.gate.enter((!proxied).then_some(peer.ip()), Instant::now()) {
                    Ok(permit) => {
                        world.counters.accepted.add(1);
                        tune(&socket, &world.config.limits);
                        admit(Guest { socket, peer, door, proxied, permit });
                    }
                    Err(why) => refuse(&world, peer, why),
                }
                if let Some(pause) = world.gate.pause(Instant::now()) {
                    world.counters.accept_pauses.add(1);
                    tokio::time::sleep(pause).await;
                }
            }
            Err(error) if is_about_one_peer(&error) => world.counters.accept_errors.add(1),
            Err(error) => {
                // EMFILE and its kin: the connection stays in the backlog, and asking again at once
                // would only burn the core that must end sessions to free something.
                world.counters.accept_errors.add(1);
                if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) {
                    world.files.meet(world.gate.open());
                } else {
                    let pause_ms = pause.as_millis() as u64;
                    tracing::warn!(%error, pause_ms, "failed to accept a connection");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
        }
    }
}

pub(crate) fn refuse(world: &World, peer: SocketAddr, why: Refused) {
    world.counters.refuse(why.name());
    tracing::debug!(%peer, ?why, "refused a connection");
}

/// Errors that `accept(2)` passes on from the connection that it would have returned.
fn is_about_one_peer(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | ConnectionRefused
            | Interrupted
            | HostUnreachable
            | NetworkUnreachable
    )
}

/// Small writes leave at once; the kernel finds out about peers that vanished.
fn tune(socket: &TcpStream, limits: &Limits) {
    let set = || -> io::Result<()> {
        socket.set_nodelay(true)?;
        if limits.peer_timeout_s > 0 {
            let whole = Duration::from_secs(limits.peer_timeout_s);
            let step = (whole / 10).max(Duration::from_secs(1));
            let socket = SockRef::from(socket);
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(whole / 2 + step).with_interval(step))?;
            socket.set_tcp_user_timeout(Some(whole))?;
        }
        Ok(())
    };
    if let Err(error) = set() {
        // The client is gone already, which the first read will tell.
        tracing::debug!(%error, "failed to set socket options");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_an_error_and_copies_share_one() {
        let sockets = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 3).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
        assert_eq!(bind(address, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn too_many_files_are_no_matter_of_one_peer() {
        assert!(!is_about_one_peer(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_about_one_peer(&io::Error::from_raw_os_error(libc::ENFILE)));
        assert!(is_about_one_peer(&io::Error::from_raw_os_error(libc::ECONNABORTED)));
    }
}
