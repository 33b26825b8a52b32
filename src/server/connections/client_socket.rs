//! Client sockets of both kinds: TCP, and Unix for a proxy on the same machine.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use crate::http::client_link::ClientLink;
use crate::os;

/// A listening socket.
pub enum Listener {
    /// From the network.
    Tcp(TcpListener),
    /// From this machine.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Listener {
        Listener::Tcp(listener)
    }
}

impl Listener {
    /// Makes `accept` return at once if no client waits.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Listener::Tcp(listener) => listener.set_nonblocking(true),
            Listener::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// The file descriptor, for poll.
    pub fn fd(&self) -> RawFd {
        match self {
            Listener::Tcp(listener) => listener.as_raw_fd(),
            Listener::Unix(listener) => listener.as_raw_fd(),
        }
    }

    /// Accepts the next client; returns its socket and address. A client of a Unix socket has the address 127.0.0.1.
    pub fn accept(&self) -> io::Result<(Socket, IpAddr)> {
        match self {
            Listener::Tcp(listener) => {
                let (socket, peer) = listener.accept()?;
                Ok((Socket::Tcp(ClientLink::new(socket)), peer.ip().to_canonical()))
            }
            Listener::Unix(listener) => Ok((Socket::Unix(listener.accept()?.0), Ipv4Addr::LOCALHOST.into())),
        }
    }
}

/// A client's socket.
pub enum Socket {
    /// From the network.
    Tcp(Arc<ClientLink>),
    /// From this machine.
    Unix(UnixStream),
}

impl Socket {
    /// Prepares an accepted socket: nonblocking, and TCP_NODELAY so that small replies are sent at once.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(link) => {
                link.socket().set_nonblocking(true).and_then(|()| link.socket().set_nodelay(true))
            }
            Socket::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    /// The file descriptor, for poll.
    pub fn fd(&self) -> RawFd {
        match self {
            Socket::Tcp(link) => link.socket().as_raw_fd(),
            Socket::Unix(socket) => socket.as_raw_fd(),
        }
    }

    /// Shuts down our direction: the client sees the end of the stream.
    pub fn end_output(&self) {
        // Fails if the client is gone, which does not matter.
        let _ = match self {
            Socket::Tcp(link) => link.socket().shutdown(Shutdown::Write),
            Socket::Unix(socket) => socket.shutdown(Shutdown::Write),
        };
    }

    /// Makes the close a reset, which the client sees as an error. Unix sockets have no reset: there only the framing of
    /// the reply shows that it is incomplete. HTTP/1.0 has no such framing (so set `proxy_http_version 1.1` in nginx).
    pub fn reset_on_close(&self) {
        if let Socket::Tcp(link) = self {
            os::reset_on_close(link.socket());
        }
    }

    /// The connection for replies (`http::client_link`), if it is one whose speed the kernel knows.
    pub fn link(&self) -> Option<&Arc<ClientLink>> {
        match self {
            Socket::Tcp(link) => Some(link),
            Socket::Unix(_) => None,
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(link) => (&mut link.socket()).read(buf),
            Socket::Unix(socket) => (&mut &*socket).read(buf),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(link) => (&mut link.socket()).write(data),
            Socket::Unix(socket) => (&mut &*socket).write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
