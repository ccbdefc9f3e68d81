//! What the kernel still has to send of a connection.
//!
//! It takes megabytes at once and sends them as slowly as the link is, and only when a good part
//! has gone does it take more. Meanwhile nothing moves above it. How much is left it tells in
//! `/proc/net/tcp` for every connection; elsewhere than on Linux nobody does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How many bytes of this connection aren't acknowledged by the other end, if that can be told.
pub(super) async fn unacknowledged(local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    let table = if local.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let table = tokio::fs::read_to_string(table).await.ok()?;
    in_table(&table, local, remote)
}

/// The number in a table with a line for each connection: its number, both addresses, its state, and
/// what is queued, `SEND:RECEIVE`.
fn in_table(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let here = address(fields.next()?)? == without_scope(local)
            && address(fields.next()?)? == without_scope(remote);
        let queues = fields.nth(1)?;
        let (send, _) = queues.split_once(':')?;
        here.then(|| u64::from_str_radix(send, 16).ok())?
    })
}

fn without_scope(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

/// An address as the kernel writes it: words of 32 bits as this machine has them, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// The number once it stays the same, and another than `not`.
    async fn settled(ends: (SocketAddr, SocketAddr), not: Option<u64>) -> u64 {
        let mut before = None;
        loop {
            let now = unacknowledged(ends.0, ends.1).await.expect("a number");
            if Some(now) == before && Some(now) != not {
                return now;
            }
            before = Some(now);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }

    async fn is_seen(listen: &str) {
        let listener = TcpListener::bind(listen).expect("listen");
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).expect("connect");
        let (mut server, _) = listener.accept().expect("accept");
        let ends = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        assert_eq!(unacknowledged(ends.0, ends.1).await, Some(0));
        client.set_nonblocking(true).expect("set");
        let piece = [7; 64 << 10];
        let mut sent = 0;
        while let Ok(len) = client.write(&piece) {
            sent += len as u64;
        }
        // Nobody reads, so in the end nothing moves; then somebody does.
        let full = settled(ends, None).await;
        assert!(full > 0 && full <= sent, "{full} of {sent}");
        let mut read = vec![0; sent as usize];
        server.read_exact(&mut read).expect("read");
        assert_eq!(settled(ends, Some(full)).await, 0);
        assert_eq!(unacknowledged(ends.1, SocketAddr::from(([127, 0, 0, 1], 1))).await, None);
    }

    #[tokio::test]
    async fn what_is_queued_is_seen() {
        is_seen("127.0.0.1:0").await;
    }

    #[tokio::test]
    async fn what_is_queued_is_seen_over_ipv6_too() {
        if TcpListener::bind("[::1]:0").is_ok() {
            is_seen("[::1]:0").await;
        }
    }

    #[test]
    fn addresses_are_read_as_the_kernel_writes_them() {
        let v4 = u32::from_ne_bytes([127, 0, 0, 1]);
        assert_eq!(address(&format!("{v4:08X}:1F90")), Some(([127, 0, 0, 1], 8080).into()));
        let last = u32::from_ne_bytes([0, 0, 0, 1]);
        let v6 = format!("{:024X}{last:08X}:0050", 0);
        assert_eq!(address(&v6), Some("[::1]:80".parse().unwrap()));
        for bad in ["", "0100007F", "0100:0050", "0100007F:X", "zz00007F:0050"] {
            assert_eq!(address(bad), None, "{bad}");
        }
    }
}
