//! The client's connection, as far as a reply needs it: how fast the client takes bytes, and a shorter way for small ones.
//!
//! The connection layer owns the socket. It announces the connection with each request that it forwards, and the number
//! goes with the request in a header. The reply finds the connection by its number, asks the kernel about it, and holds it
//! only while it asks or sends: when the connection layer closes the socket, it is closed.
//!
//! While nothing else waits for the end of a small request, the connection layer offers that its reply goes to the client at
//! once. So it need not be woken for it: it looks when the client sends the next request, or a second later. Only a reply with
//! status 200 does that which is sent in one piece, to a client that has taken everything before.

use std::io::Write;
use std::net::{Shutdown, TcpStream};
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
    offer: Mutex<Offer>,
}

/// Whether a reply may go to the client without the connection layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It may not.
    None,
    /// That of the request with this number may.
    Open(u64),
    /// It did.
    Used,
}

/// The longest reply that goes to the client like this. An empty socket takes more at once: 16 KiB, unless somebody has set
/// that lower.
const MAX_OFFERED_BYTES: usize = 8 << 10;

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
        Arc::new(ClientLink { socket, speed: Mutex::default(), offer: Mutex::new(Offer::None) })
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Makes the connection known to the reply of one request. Returns its number for that request. With `offers` the reply may
    /// go to the client without the connection layer.
    pub fn announce(self: &Arc<ClientLink>, offers: bool) -> u64 {
        let number = {
            let mut announced = lock(&ANNOUNCED);
            let Announced { last, links } = &mut *announced;
            if links.len() == MAX_ANNOUNCED {
                links.remove(0);
            }
            *last += 1;
            links.push((*last, Arc::downgrade(self)));
            *last
        };
        *lock(&self.offer) = if offers { Offer::Open(number) } else { Offer::None };
        number
    }

    /// What has become of the offer.
    pub fn offer(&self) -> Offer {
        *lock(&self.offer)
    }

    /// Takes the offer back, if it was not used. Returns what it was.
    pub fn withdraw_offer(&self) -> Offer {
        std::mem::replace(&mut *lock(&self.offer), Offer::None)
    }
}

/// A connection that a reply goes to. It may have been closed meanwhile.
#[derive(Clone)]
pub struct ReplyLink {
    number: u64,
    link: Weak<ClientLink>,
}

impl ReplyLink {
    /// The connection that was announced with this number; for one reply.
    pub fn of(number: u64) -> Option<ReplyLink> {
        let links = &mut lock(&ANNOUNCED).links;
        let at = links.iter().position(|(own, _)| *own == number)?;
        let (number, link) = links.remove(at);
        Some(ReplyLink { number, link })
    }

    /// Sends a whole reply to the client, if that was offered: `head` and `body` with `between` between them. Returns whether it is
    /// done: if not, nothing was sent.
    pub fn send_whole(&self, head: &[u8], between: &[u8], body: &[u8]) -> bool {
        let bytes = head.len() + between.len() + body.len();
        let Some(link) = self.link.upgrade().filter(|_| bytes <= MAX_OFFERED_BYTES) else {
            return false;
        };
        // Held while the socket takes the bytes, for which it has room.
        let mut offer = lock(&link.offer);
        if *offer != Offer::Open(self.number) || !os::is_all_acknowledged(&link.socket) {
            return false;
        }
        match (&link.socket).write(&[head, between, body].concat()) {
            Ok(sent) => {
                if sent < bytes {
                    // It had not, because the kernel is out of memory. A client must not take the reply for whole.
                    os::reset_on_close(&link.socket);
                    let _ = link.socket.shutdown(Shutdown::Both);
                }
                *offer = Offer::Used;
                true
            }
            // The connection layer waits until the socket takes it, or finds that the client is gone.
            Err(_) => false,
        }
    }
}

impl Link for ReplyLink {
    fn progress(&self) -> Option<TcpProgress> {
        os::tcp_progress(&self.link.upgrade()?.socket)
    }

    fn with_speed(&self, work: &mut dyn FnMut(&mut LinkSpeed)) {
        if let Some(link) = self.link.upgrade() {
            work(&mut lock(&link.speed));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_reply_sees_what_its_client_has_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = ClientLink::new(listener.accept().unwrap().0);
        let reply = ReplyLink::of(link.announce(false)).unwrap();
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
        let first = link.announce(false);
        assert!(ReplyLink::of(first).is_some());
        assert!(ReplyLink::of(first).is_none());
    }
    #[test]
    fn only_the_request_that_it_was_offered_to_may_send_its_reply_and_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = ClientLink::new(listener.accept().unwrap().0);
        let reply = |offers| ReplyLink::of(link.announce(offers)).unwrap();
        let sends = |link: &ReplyLink, text: &[u8]| link.send_whole(text, b" ", b"body");
        assert!(!sends(&reply(false), b"not offered"));
        let old = reply(true);
        let new = reply(true);
        assert!(!sends(&old, b"of the request before"));
        assert!(!sends(&new, &[b'x'; MAX_OFFERED_BYTES - 4]));
        assert!(matches!(link.offer(), Offer::Open(_)));
        assert!(sends(&new, b"head") && !sends(&new, b"again"));
        assert_eq!(link.offer(), Offer::Used);
        let withdrawn = reply(true);
        assert!(matches!(link.withdraw_offer(), Offer::Open(_)) && !sends(&withdrawn, b"late"));
        let gone = reply(true);
        drop(link);
        assert!(!sends(&gone, b"nobody is there"));
        let mut got = String::new();
        client.read_to_string(&mut got).unwrap();
        assert_eq!(got, "head body");
    }

    /// A client that sends one request after the other and reads no reply loses none.
    #[test]
    fn a_reply_is_sent_whole_or_not_at_all_while_the_client_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = ClientLink::new(listener.accept().unwrap().0);
        link.socket().set_nonblocking(true).unwrap();
        let reply = [b'x'; 300];
        let mut sent = 0;
        while sent < 1_000_000
            && ReplyLink::of(link.announce(true)).unwrap().send_whole(&reply, &reply, &reply)
        {
            sent += 1;
        }
        assert!(sent < 1_000_000, "the kernel's buffers are larger than that");
        drop(link);
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), sent * 900);
    }
}
