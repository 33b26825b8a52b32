//! The client's connection, as far as the encoder of a reply needs it: how fast the client takes bytes.
//!
//! The connection layer owns the socket. It announces the connection with each request that it forwards, and the number
//! goes with the request in a header. The reply finds the connection by its number, asks the kernel about it, and holds it
//! only while it asks: when the connection layer closes the socket, it is closed.

use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::compression::zstd_encoder::Link;
use crate::compression::zstd_encoder::link_speed::LinkSpeed;
use crate::os::{self, TcpProgress};

/// The header in which the connection layer passes the number of the connection.
pub const LINK_HEADER: &str = "x-ankipi-link";

/// Announcements that are kept: more than there are requests at once. Older ones are of requests that ended early.
const MAX_ANNOUNCED: usize = 32;

/// A client's TCP connection and the estimate of its speed.
pub struct ClientLink {
    socket: TcpStream,
    speed: Mutex<LinkSpeed>,
}

/// Connections whose requests were forwarded and not yet answered.
struct Announced {
    /// The number of the last one.
    last: u64,
    /// Each with its number.
    links: Vec<(u64, Weak<ClientLink>)>,
}

static ANNOUNCED: Mutex<Announced> = Mutex::new(Announced { last: 0, links: Vec::new() });

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientLink {
    /// Takes the socket.
    pub fn new(socket: TcpStream) -> Arc<ClientLink> {
        Arc::new(ClientLink { socket, speed: Mutex::default() })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Makes the connection known to the reply of one request. Returns its number for that request.
    pub fn announce(self: &Arc<ClientLink>) -> u64 {
        let mut announced = lock(&ANNOUNCED);
        let Announced { last, links } = &mut *announced;
        if links.len() == MAX_ANNOUNCED {
            links.remove(0);
        }
        *last += 1;
        links.push((*last, Arc::downgrade(self)));
        *last
    }
}

/// A connection that a reply goes to. It may have been closed meanwhile.
pub struct ReplyLink(Weak<ClientLink>);

impl ReplyLink {
    /// The connection that was announced with this number; for one reply.
    pub fn of(number: u64) -> Option<ReplyLink> {
        let links = &mut lock(&ANNOUNCED).links;
        let at = links.iter().position(|(own, _)| *own == number)?;
        Some(ReplyLink(links.remove(at).1))
    }
}

impl Link for ReplyLink {
    fn progress(&self) -> Option<TcpProgress> {
        os::tcp_progress(&self.0.upgrade()?.socket)
    }

    fn with_speed(&self, work: &mut dyn FnMut(&mut LinkSpeed)) {
        if let Some(link) = self.0.upgrade() {
            work(&mut lock(&link.speed));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reply_sees_what_its_client_has_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = ClientLink::new(listener.accept().unwrap().0);
        let reply = ReplyLink::of(link.announce()).unwrap();
        let Some(before) = reply.progress() else { return }; // A kernel (or emulator) that does not tell.
        assert_eq!((before.acknowledged, before.busy_micros), (0, 0));
        link.socket().set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(count) = link.socket().write(&[0; 65536]) {
            written += count as u64;
        }
        // Bytes are acknowledged once the client's kernel has them. After the buffers are full, some are left.
        let after = reply.progress().unwrap();
        assert!((1..written).contains(&after.acknowledged), "{after:?} of {written}");
        std::thread::sleep(Duration::from_millis(50));
        let later = reply.progress().unwrap();
        assert!(later.busy_micros >= after.busy_micros + 20_000, "{after:?}, 50 ms later {later:?}");
        drop((link, client));
        assert!(reply.progress().is_none());
    }

    #[test]
    fn a_number_is_for_one_reply_and_old_ones_are_dropped() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = ClientLink::new(listener.accept().unwrap().0);
        let first = link.announce();
        assert!(ReplyLink::of(first).is_some());
        assert!(ReplyLink::of(first).is_none());
    }
}
