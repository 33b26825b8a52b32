//! A slow link: a proxy on the loopback interface that passes replies on at so many bytes a second.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;

/// Bytes that pass at once.
const PIECE_BYTES: usize = 16 * 1024;

/// What is behind by more than this is not made up for.
const MOST_LATE: Duration = Duration::from_millis(50);

/// Starts a proxy before `server`; returns its address. Requests pass at once. It ends with the process.
pub fn slow(server: SocketAddr, megabytes_per_sec: f64) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A server that has ended refuses; so does the proxy.
            if let Ok(upstream) = TcpStream::connect(server) {
                let _ = join(client, upstream, megabytes_per_sec * 1e6);
            }
        }
    });
    Ok(address)
}

fn join(client: TcpStream, server: TcpStream, bytes_per_sec: f64) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (requests, up) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || pass(requests, up, f64::INFINITY));
    thread::spawn(move || pass(server, client, bytes_per_sec));
    Ok(())
}

/// Passes bytes until either side ends.
fn pass(mut from: TcpStream, mut to: TcpStream, bytes_per_sec: f64) {
    let mut piece = vec![0; PIECE_BYTES];
    let (mut since, mut passed) = (Instant::now(), 0.0);
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
        passed += count as f64;
        let due = Duration::from_secs_f64(passed / bytes_per_sec);
        let took = since.elapsed();
        if due > took {
            thread::sleep(due - took);
        } else if took - due > MOST_LATE {
            (since, passed) = (Instant::now(), 0.0);
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
