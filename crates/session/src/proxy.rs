//! The PROXY protocol, versions 1 and 2: a proxy's word about whom a connection is from (HAProxy, proxy-protocol.txt).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What begins a header of version 2 (2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// What begins a header of version 1 (2.1).
const WORD: &[u8] = b"PROXY ";
/// The longest header of version 1, with its line end (2.1), and the shortest.
const LINE: (usize, usize) = (107, b"PROXY UNKNOWN\r\n".len());
/// Bytes of a header of version 2 before those that it announces (2.2).
const FIXED: usize = 16;
/// Bytes that a header of version 2 may announce: addresses take 36, what a proxy tells of TLS some hundred more.
const ANNOUNCED_MAX: usize = 4_096;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A client that connected to the proxy from there.
    Client(SocketAddr),
    /// The proxy itself, or somebody that it cannot name: who the socket is from stands.
    Itself,
}

/// What the bytes so far are.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The beginning of a header, which has at least this many bytes more.
    Part(usize),
    /// A header.
    Whole(Origin),
    /// No header.
    Garbage,
}

/// Reads the header that a proxy begins a connection with, and nothing behind it; `None` where none comes in time.
pub(crate) async fn origin(socket: &mut TcpStream, limit: Duration) -> Option<Origin> {
    timeout(limit, read(socket)).await.ok().flatten()
}

async fn read(socket: &mut TcpStream) -> Option<Origin> {
    let mut header = Vec::with_capacity(LINE.0);
    loop {
        match look(&header) {
            Seen::Whole(origin) => return Some(origin),
            Seen::Garbage => return None,
            Seen::Part(missing) => {
                let from = header.len();
                header.resize(from + missing, 0);
                let read = socket.read(header.get_mut(from..)?).await.ok()?;
                header.truncate(from + read);
                if read == 0 {
                    return None;
                }
            }
        }
    }
}

fn look(header: &[u8]) -> Seen {
    let begins = |with: &[u8]| header.iter().zip(with).all(|(a, b)| a == b);
    match header.first() {
        None => Seen::Part(LINE.1),
        Some(_) if begins(WORD) => line(header),
        Some(_) if begins(&SIGNATURE) => binary(header),
        Some(_) => Seen::Garbage,
    }
}

/// Version 1: `PROXY TCP4 192.0.2.1 198.51.100.1 56324 5222\r\n`.
fn line(header: &[u8]) -> Seen {
    let Some(end) = header.iter().position(|byte| *byte == b'\n') else {
        return match header.len() {
            length if length >= LINE.0 => Seen::Garbage,
            // Never further than its end may be: what is behind it is the client's.
            length => Seen::Part(LINE.1.saturating_sub(length).max(1)),
        };
    };
    let text = std::str::from_utf8(&header[..=end]).ok().and_then(|text| text.strip_suffix("\r\n"));
    let Some(text) = text else { return Seen::Garbage };
    let fields: Vec<&str> = text.split(' ').collect();
    let origin = match fields[..] {
        // 2.1: whatever stands behind it is ignored.
        ["PROXY", "UNKNOWN", ..] => Some(Origin::Itself),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, target, source_port, target_port] => {
            let address = |text: &str| {
                let address: IpAddr = text.parse().ok()?;
                (address.is_ipv4() == (family == "TCP4")).then_some(address)
            };
            let both = address(source).zip(address(target));
            let ports = port(source_port).zip(port(target_port));
            both.zip(ports).map(|((source, _), (port, _))| Origin::Client((source, port).into()))
        }
        _ => None,
    };
    origin.map_or(Seen::Garbage, Seen::Whole)
}

/// A port without signs or leading zeros.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// Version 2: the signature, version and command, family and transport, a length, addresses, then TLVs.
fn binary(header: &[u8]) -> Seen {
    let Some(fixed) = header.first_chunk::<FIXED>() else { return Seen::Part(FIXED - header.len()) };
    let announced = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if announced > ANNOUNCED_MAX {
        return Seen::Garbage;
    }
    let rest = &header[FIXED..];
    if rest.len() < announced {
        return Seen::Part(announced - rest.len());
    }
    // What follows the addresses are TLVs, of which none is needed here.
    match (fixed[12], fixed[13]) {
        // LOCAL: a health check, say; the family is to be ignored.
        (0x20, _) => Seen::Whole(Origin::Itself),
        // PROXY, over a family that the proxy does not name, or a local socket.
        (0x21, 0x00 | 0x31 | 0x32) => Seen::Whole(Origin::Itself),
        // Source and target address, source and target port.
        (0x21, 0x11) => match rest.first_chunk::<12>() {
            Some(&[a, b, c, d, _, _, _, _, high, low, _, _]) => {
                Seen::Whole(Origin::Client(([a, b, c, d], u16::from_be_bytes([high, low])).into()))
            }
            None => Seen::Garbage,
        },
        (0x21, 0x21) => match (rest.first_chunk::<16>(), rest.get(32..36)) {
            (Some(&source), Some(&[high, low, _, _])) => {
                Seen::Whole(Origin::Client((source, u16::from_be_bytes([high, low])).into()))
            }
            _ => Seen::Garbage,
        },
        // Datagrams, and what no version says.
        _ => Seen::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> Seen {
        Seen::Whole(Origin::Client(text.parse().unwrap()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend((rest.len() as u16).to_be_bytes());
        header.extend(rest);
        header
    }

    #[test]
    fn lines_of_version_1() {
        let itself = || Seen::Whole(Origin::Itself);
        for (text, seen) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 5222\r\n", client("192.0.2.1:56324")),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 56324 5222\r\n", client("[2001:db8::1]:56324")),
            ("PROXY UNKNOWN\r\n", itself()),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", itself()),
            ("PROXY TCP4 2001:db8::1 198.51.100.1 56324 5222\r\n", Seen::Garbage),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 65536 5222\r\n", Seen::Garbage),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 056 5222\r\n", Seen::Garbage),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 +56 5222\r\n", Seen::Garbage),
            ("PROXY TCP4 192.0.2.1  198.51.100.1 56324 5222\r\n", Seen::Garbage),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n", Seen::Garbage),
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 5222\n", Seen::Garbage),
            ("PROXY UDP4 192.0.2.1 198.51.100.1 56324 5222\r\n", Seen::Garbage),
            ("proxy TCP4 192.0.2.1 198.51.100.1 56324 5222\r\n", Seen::Garbage),
            ("<?xml version='1.0'?>", Seen::Garbage),
            ("\x16\x03\x01", Seen::Garbage),
        ] {
            assert_eq!(look(text.as_bytes()), seen, "{text}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(look(&endless.as_bytes()[..LINE.0]), Seen::Garbage);
    }

    #[test]
    fn headers_of_version_2() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 0x14, 0x66];
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        six[15] = 1;
        six[32..].copy_from_slice(&[0xdc, 0x04, 0x14, 0x66]);
        let with_tlv = [&four[..], &[0x01, 0, 3, b'a', b'b', b'c']].concat();
        for (command, family, rest, seen) in [
            (0x21, 0x11, &four[..], client("192.0.2.1:56324")),
            (0x21, 0x11, &with_tlv, client("192.0.2.1:56324")),
            (0x21, 0x21, &six, client("[2001:db8::1]:56324")),
            (0x20, 0x00, &[], Seen::Whole(Origin::Itself)),
            (0x20, 0x11, &four, Seen::Whole(Origin::Itself)),
            (0x21, 0x00, &[], Seen::Whole(Origin::Itself)),
            (0x21, 0x31, &[0; 216], Seen::Whole(Origin::Itself)),
            (0x21, 0x12, &four, Seen::Garbage),
            (0x21, 0x11, &four[..11], Seen::Garbage),
            (0x21, 0x21, &four, Seen::Garbage),
            (0x22, 0x11, &four, Seen::Garbage),
            (0x11, 0x11, &four, Seen::Garbage),
            (0x21, 0x11, &[0; ANNOUNCED_MAX + 1], Seen::Garbage),
        ] {
            assert_eq!(look(&v2(command, family, rest)), seen, "{command:x} {family:x} {}", rest.len());
        }
    }

    #[test]
    fn never_is_more_asked_for_than_a_header_has() {
        let headers = [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 5222\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            v2(0x21, 0x11, &[0; 40]),
            v2(0x20, 0x00, &[]),
        ];
        for header in headers {
            for cut in 0..header.len() {
                let Seen::Part(missing) = look(&header[..cut]) else { panic!("{cut} of {header:?}") };
                assert!(missing > 0 && cut + missing <= header.len(), "{cut} of {header:?}");
            }
            assert!(matches!(look(&header), Seen::Whole(_)), "{header:?}");
        }
    }
}
