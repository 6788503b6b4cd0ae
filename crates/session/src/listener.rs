//! Accepts client sockets on the arbiter that will own them: one listener per arbiter and address.

use std::io;
use std::net::{SocketAddr, TcpListener as Unpolled};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
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

/// The kernel waits for no longer before it asks whether a peer lives (`MAX_TCP_KEEPIDLE`).
const LONGEST_QUIET: Duration = Duration::from_secs(32_767);

/// Binds `copies` sockets to one address, which the kernel then shares new connections among.
///
/// # Errors
/// Fails where the address cannot be bound, `AddrInUse` also where another process of the same user
/// listens there with `SO_REUSEPORT`, which the kernel would have allowed.
pub(crate) fn bind(address: SocketAddr, copies: usize, limits: &Limits) -> io::Result<Vec<Unpolled>> {
    // Without `SO_REUSEPORT` first: that tells a port in use from one that would silently be shared.
    let probe = open(address, false, limits)?;
    let address = probe.local_addr()?;
    drop(probe);
    (0..copies).map(|_| open(address, true, limits)).collect()
}

fn open(address: SocketAddr, shared: bool, limits: &Limits) -> io::Result<Unpolled> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        // The two families are listed apart in the config: `[::]` must not take the port of `0.0.0.0`.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    tune(&socket, limits)?;
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
                        admit(Guest { socket, peer, door, proxied, permit });
                    }
                    Err(why) => refuse(&world, peer, why),
                }
                if let Some(pause) = world.gate.pause(Instant::now()) {
                    world.counters.accept_pauses.add(1);
                    tokio::time::sleep(pause).await;
                }
                if world.admission.is_full() {
                    world.counters.accept_pauses.add(1);
                    tokio::select! {
                        biased;
                        _ = open.wait_for(|open| !open) => return Ok(()),
                        () = world.admission.room() => {}
                    }
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

/// Small writes leave at once; the kernel finds out about peers that vanished. Whatever is accepted inherits this
/// (tcp(7)), which saves five calls for each client.
fn tune(socket: &Socket, limits: &Limits) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    if limits.peer_timeout_s > 0 {
        let whole = Duration::from_secs(limits.peer_timeout_s);
        let step = (whole / 10).max(Duration::from_secs(1));
        let quiet = (whole / 2 + step).min(LONGEST_QUIET);
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(quiet).with_interval(step))?;
        socket.set_tcp_user_timeout(Some(whole))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;

    use super::*;

    #[test]
    fn a_port_in_use_is_an_error_and_copies_share_one() {
        let limits = Limits::default();
        let sockets = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 3, &limits).unwrap();
        let address = sockets[0].local_addr().unwrap();
        assert!(sockets.iter().all(|s| s.local_addr().unwrap() == address));
        assert_eq!(bind(address, 1, &limits).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn the_longest_timeout_is_one_that_the_kernel_takes() {
        let limits = Limits { peer_timeout_s: 86_400, ..Limits::default() };
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1, &limits).unwrap().remove(0);
        assert_eq!(SockRef::from(&listener).tcp_user_timeout().unwrap(), Some(Duration::from_secs(86_400)));
    }

    #[tokio::test]
    async fn what_is_accepted_has_the_options_of_the_listener() {
        let limits = Limits { peer_timeout_s: 40, ..Limits::default() };
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1, &limits).unwrap().remove(0);
        let address = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (_client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (accepted, _) = accepted.unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(24));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(4));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(40)));
    }

    #[test]
    fn too_many_files_are_no_matter_of_one_peer() {
        assert!(!is_about_one_peer(&io::Error::from_raw_os_error(libc::EMFILE)));
        assert!(!is_about_one_peer(&io::Error::from_raw_os_error(libc::ENFILE)));
        assert!(is_about_one_peer(&io::Error::from_raw_os_error(libc::ECONNABORTED)));
    }
}
