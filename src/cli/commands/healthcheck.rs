//! `ankipi --healthcheck`: asks the server with the same settings for `/health`, as Anki's own server does with this
//! option. A container that holds nothing but this program has no other HTTP client.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{Address, Config};
use crate::error::{Error, Result};

/// How long to wait for the connection, and for each part of the response.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Ends with 0 if the server is well. An error tells why it is not.
pub fn run(config: &Config) -> Result<ExitCode> {
    let address = config.host.first().ok_or_else(|| Error::Broken("SYNC_HOST is empty".to_owned()))?;
    let status = ask(address, config).map_err(|err| {
        Error::Broken(format!("no server answers at {address}, port {}: {err}", config.port))
    })?;
    match status.get(9..12) {
        // A server that does not serve this address (SYNC_ALLOW) responds with 404.
        Some("200" | "404") => Ok(ExitCode::SUCCESS),
        _ => Err(Error::Broken(format!("the server is not well: {status}"))),
    }
}

/// The status line of the response.
fn ask(address: &Address, config: &Config) -> io::Result<String> {
    match address {
        Address::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            talk(socket, &config.base_path)
        }
        Address::Ip(address) => {
            let address = match address {
                IpAddr::V4(any) if any.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(any) if any.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
                other => *other,
            };
            let socket = TcpStream::connect_timeout(&SocketAddr::new(address, config.port), TIMEOUT)?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            talk(socket, &config.base_path)
        }
    }
}

fn talk(mut socket: impl Read + Write, base_path: &str) -> io::Result<String> {
    let prefix = if base_path.is_empty() { String::new() } else { format!("/{base_path}") };
    write!(socket, "GET {prefix}/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut start = String::new();
    socket.take(100).read_to_string(&mut start)?;
    start.lines().next().map(str::to_owned).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}
