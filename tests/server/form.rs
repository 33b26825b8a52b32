//! A scripted client of protocols 8 to 10.

use std::net::SocketAddr;

use serde_json::Value;

use crate::client::{Framed, Reply, Wire, post};
use crate::harness::{KEY, TestServer};

/// The boundary of all clients that are not written in Rust.
pub const BOUNDARY: &str = "Anki-sync-boundary";

/// Packs a body as clients do.
pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let deflated = miniz_oxide::deflate::compress_to_vec(plain, 6);
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    [&head[..], &deflated, &crc32fast::hash(plain).to_le_bytes(), &(plain.len() as u32).to_le_bytes()]
        .concat()
}

/// Parts of a form by their names.
pub type Parts<'p> = [(&'p str, &'p [u8])];

/// A form without its end.
pub fn open_form(parts: &Parts) -> Vec<u8> {
    let mut form = Vec::new();
    for (name, content) in parts {
        let file = if *name == "data" { "; filename=\"data\"" } else { "" };
        form.extend_from_slice(
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n")
                .as_bytes(),
        );
        form.extend_from_slice(content);
        form.extend_from_slice(b"\r\n");
    }
    form
}

/// A whole form.
pub fn form(parts: &Parts) -> Vec<u8> {
    [&open_form(parts)[..], b"--", BOUNDARY.as_bytes(), b"--\r\n"].concat()
}

/// The header line of a form.
pub fn form_header() -> String {
    format!("Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n")
}

/// The bytes of a request with this form.
pub fn request(path: &str, form: &[u8]) -> Vec<u8> {
    post(path, &form_header(), Framed::Length(form))
}

/// In which order a generation of clients sends its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Desktop up to 2.1.27 and AnkiDroid up to 2.15.
    KeyFirst,
    /// Desktop of 2.1.28 to 2.1.56.
    DataFirst,
}

/// A device of the first account.
pub struct OldDevice {
    pub address: SocketAddr,
    pub generation: Generation,
}

impl OldDevice {
    pub fn of(server: &TestServer, generation: Generation) -> OldDevice {
        OldDevice { address: server.address, generation }
    }

    /// Sends a request to this path.
    pub fn send(&self, path: &str, parts: &Parts) -> Reply {
        let mut wire = Wire::open(self.address);
        wire.send(&request(path, &form(parts)));
        wire.reply()
    }

    /// Sends a step of a collection sync.
    pub fn call(&self, method: &str, json: &str) -> Reply {
        self.send_packed(method, &gzip(json.as_bytes()))
    }

    /// Sends a request of the collection whose data are these bytes, said to be gzip.
    pub fn send_packed(&self, method: &str, packed: &[u8]) -> Reply {
        let (data, c, key) = (("data", packed), ("c", &b"1"[..]), ("k", KEY.as_bytes()));
        let skey = ("s", &b"d(|Y0A_#+V"[..]);
        let path = format!("/sync/{method}");
        match self.generation {
            Generation::KeyFirst => self.send(&path, &[key, skey, c, data]),
            Generation::DataFirst => self.send(&path, &[data, c, key, skey]),
        }
    }

    /// Sends a request of media sync.
    pub fn media(&self, path: &str, raw: &[u8]) -> Reply {
        let key = ("sk", KEY.as_bytes());
        match self.generation {
            Generation::KeyFirst => self.send(path, &[key, ("c", b"0"), ("data", raw)]),
            Generation::DataFirst => self.send(path, &[("data", raw), key]),
        }
    }

    pub fn meta(&self, version: u32) -> Value {
        json(&self.call("meta", &format!(r#"{{"v":{version},"cv":"ankidroid,2.15.6,android:11:Pixel"}}"#)))
    }
}

/// The body of a 200, which must be as old clients want it.
#[track_caller]
pub fn plain(reply: &Reply) -> &str {
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    assert_eq!(reply.header("anki-original-size"), None);
    assert_eq!(reply.header("content-length"), Some(reply.body.len().to_string().as_str()));
    reply.text()
}

/// The JSON of a 200.
#[track_caller]
pub fn json(reply: &Reply) -> Value {
    serde_json::from_str(plain(reply)).unwrap()
}
