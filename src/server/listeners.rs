//! Listening sockets: bound from the settings, or passed in by systemd or an inetd-like program.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use crate::config::{Address, Config};
use crate::error::{Error, Result};
use crate::files::remove_if_there;
use crate::os;
use crate::server::connections::Listener;

/// Whether binding `::` failed because the kernel was built without IPv6, or has it switched off.
fn is_no_ipv6(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::AddrNotAvailable || os::is_unknown_address_family(err)
}

/// Bound sockets.
pub struct Listeners {
    /// For the connection layer.
    pub sockets: Vec<Listener>,
    /// Their addresses, for the log: `http://0.0.0.0:8080/`, `unix:/run/ankipi.sock`.
    pub names: Vec<String>,
    /// Socket files that we made; the stop deletes them.
    pub made: Vec<PathBuf>,
}

impl Listeners {
    /// Uses the sockets that were passed in (sd_listen_fds(3)). If there are none, binds the addresses of the settings.
    pub fn open(config: &Config) -> Result<Listeners> {
        let mut listeners = Listeners { sockets: Vec::new(), names: Vec::new(), made: Vec::new() };
        let handed_over = os::handed_over_sockets();
        if !handed_over.is_empty() {
            handed_over.into_iter().try_for_each(|fd| listeners.take_over(fd))?;
            return Ok(listeners);
        }
        for address in &config.host {
            match address {
                Address::Ip(ip) => listeners.bind(*ip, config.port)?,
                Address::Unix(path) => listeners.bind_unix(path)?,
            }
        }
        Ok(listeners)
    }

    fn bind(&mut self, ip: IpAddr, port: u16) -> Result<()> {
        let address = SocketAddr::new(ip, port);
        let bound = TcpListener::bind(address).or_else(|err| {
            if ip == Ipv6Addr::UNSPECIFIED && is_no_ipv6(&err) {
                log::warn!("{address}: this machine has no IPv6 ({err}), listening on IPv4 only");
                return TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
            }
            Err(err)
        });
        let listener = bound.map_err(|err| {
            let advice = match err.kind() {
                io::ErrorKind::AddrInUse if self.names.is_empty() => {
                    ": another program has this port; choose one with --port"
                }
                io::ErrorKind::AddrInUse => {
                    ": another program has this port, or SYNC_HOST has `::`, which listens on IPv4 too"
                }
                io::ErrorKind::PermissionDenied => ": ports below 1024 need root or the capability CAP_NET_BIND_SERVICE; choose another with --port, or \
                     under systemd: `systemctl edit ankipi` with the lines [Service], \
                     AmbientCapabilities=CAP_NET_BIND_SERVICE, CapabilityBoundingSet=CAP_NET_BIND_SERVICE, \
                     PrivateUsers=no",
                io::ErrorKind::AddrNotAvailable => ": this machine does not have that address; see --host",
                _ => "",
            };
            Error::Broken(format!("cannot listen on {address}{advice} ({err})"))
        })?;
        self.add_tcp(listener)
    }

    fn add_tcp(&mut self, listener: TcpListener) -> Result<()> {
        let address = listener.local_addr().map_err(|err| Error::Broken(format!("listening: {err}")))?;
        self.names.push(format!("http://{address}/"));
        self.sockets.push(Listener::Tcp(listener));
        Ok(())
    }

    fn bind_unix(&mut self, path: &Path) -> Result<()> {
        // A killed server leaves its socket file behind. If nobody accepts on it, it may be deleted.
        let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
        if is_socket && UnixStream::connect(path).is_err() {
            remove_if_there(path)?;
        }
        let listener = UnixListener::bind(path).map_err(|err| {
            let advice = match err.kind() {
                io::ErrorKind::AddrInUse => ": something is there already",
                io::ErrorKind::NotFound => ": its folder does not exist",
                _ => "",
            };
            Error::Broken(format!("cannot listen on unix:{}{advice} ({err})", path.display()))
        })?;
        self.made.push(path.to_owned());
        // Every local user may connect, as to a TCP port: the proxy runs as another user. The mode of the folder can
        // restrict that.
        fs::set_permissions(path, fs::Permissions::from_mode(0o666))
            .map_err(Error::io("opening up", path))?;
        self.names.push(format!("unix:{}", path.display()));
        self.sockets.push(Listener::Unix(listener));
        Ok(())
    }

    fn take_over(&mut self, fd: std::os::fd::OwnedFd) -> Result<()> {
        let listener = TcpListener::from(fd);
        // `local_addr` fails if the socket is not TCP.
        if listener.local_addr().is_ok() {
            return self.add_tcp(listener);
        }
        let listener = UnixListener::from(std::os::fd::OwnedFd::from(listener));
        let address = listener.local_addr().map_err(|err| {
            Error::Broken(format!(
                "a socket that was handed over (LISTEN_FDS) is neither TCP nor Unix: {err}"
            ))
        })?;
        let path = address.as_pathname().unwrap_or(Path::new("(nameless)"));
        self.names.push(format!("unix:{}", path.display()));
        self.sockets.push(Listener::Unix(listener));
        Ok(())
    }
}
