//! Telling systemd how a service is (`sd_notify(3)`): a datagram to the socket that it names.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// The variable that names the socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// A way to systemd, if there is one.
#[derive(Debug)]
pub struct Notify(Option<(UnixDatagram, SocketAddr)>);

impl Notify {
    /// As the environment says. Outside a service of type `notify` nothing is sent.
    pub fn from_environment() -> Self {
        Notify(env::var_os(VARIABLE).and_then(|name| Notify::to(name.as_bytes())))
    }

    fn to(name: &[u8]) -> Option<(UnixDatagram, SocketAddr)> {
        let address = match name {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
        };
        let socket = UnixDatagram::unbound().ok()?;
        // Who waits for nothing isn't held up by it.
        socket.set_nonblocking(true).ok()?;
        Some((socket, address.ok()?))
    }

    /// The service does its work.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// How it is, in a line.
    pub fn status(&self, text: &str) {
        self.send(&format!("STATUS={text}"));
    }

    /// It ends.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        let Some((socket, address)) = &self.0 else { return };
        if let Err(e) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::debug!("tell systemd {message}: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_hears_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify(Notify::to(path.as_os_str().as_bytes()));
        notify.ready();
        notify.status("streaming");
        let mut buffer = [0; 64];
        let mut heard = || {
            let len = manager.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        };
        assert_eq!([heard(), heard()], ["READY=1", "STATUS=streaming"]);
        Notify(None).stopping();
    }
}
