//! The server as a process of its own, and a scripted client of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::binary::binary;
use crate::process_figures::memory_kib;
use crate::zip::{read_zip, zip_of};

pub struct Server {
    pub child: Child,
    pub port: u16,
}

impl Server {
    #[expect(
        clippy::zombie_processes,
        reason = "dropping the server waits for it; a test that fails here ends all"
    )]
    pub fn start(base: &Path) -> Server {
        let mut child = Command::new(binary())
            .env_clear()
            .envs([("SYNC_USER1", "u:p"), ("SYNC_HOST", "127.0.0.1"), ("SYNC_PORT", "0")])
            .env("SYNC_BASE", base)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended at once: {said}");
            said.push_str(&line);
            if let Some((_, rest)) = line.split_once("listens on http://127.0.0.1:") {
                let port = rest.split('/').next().unwrap().parse().unwrap();
                // Keep reading: a full pipe would block the server.
                thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                return Server { child, port };
            }
        }
    }

    /// Kills the server (SIGKILL), as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The most memory that the server ever had, in KiB; not under an emulator.
    pub fn peak_kib(&self) -> u64 {
        memory_kib(self.child.id(), "VmHWM:")
    }

    pub fn client(&self) -> Client {
        Client { port: self.port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Clone, Copy)]
pub struct Client {
    port: u16,
}

impl Client {
    /// None if the connection broke.
    pub fn try_post(&self, method: &str, payload: &[u8]) -> Option<(u16, Vec<u8>)> {
        Client::post_on(TcpStream::connect(("127.0.0.1", self.port)).ok()?, method, payload)
    }

    /// A connection that no later server with the same port can answer.
    pub fn connect(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).unwrap()
    }

    pub fn post_on(mut socket: TcpStream, method: &str, payload: &[u8]) -> Option<(u16, Vec<u8>)> {
        let body = zstd::encode_all(payload, 1).unwrap();
        let key: String = Sha1::digest("u:p").iter().map(|byte| format!("{byte:02x}")).collect();
        let header = json!({"v": 11, "k": key, "c": "test", "s": "x"});
        let head = format!(
            "POST /msync/{method} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nanki-sync: {header}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        socket.write_all(head.as_bytes()).ok()?;
        // A server that refuses early does not read all of it.
        let _ = socket.write_all(&body);
        let mut reply = Vec::new();
        let whole = socket.read_to_end(&mut reply);
        let end = reply.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(reply[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        if status != 200 {
            return Some((status, Vec::new()));
        }
        whole.ok()?;
        let body = dechunk(&reply[end + 4..])?;
        let body = zstd::decode_all(&body[..]).ok()?;
        assert!(
            head.lines().any(|line| line == format!("anki-original-size: {}", body.len())),
            "{head}: {}",
            body.len()
        );
        Some((200, body))
    }

    pub fn post(&self, method: &str, payload: &[u8]) -> (u16, Vec<u8>) {
        self.try_post(method, payload).expect("an answer")
    }

    pub fn json(&self, method: &str, payload: Value) -> Value {
        let (status, body) = self.post(method, payload.to_string().as_bytes());
        assert_eq!(status, 200, "{method}");
        let mut reply: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(reply["err"], "");
        reply["data"].take()
    }

    /// Adds and deletes; returns processed and the last usn.
    pub fn upload(&self, changes: &[(&str, Option<&[u8]>)]) -> Value {
        let (status, body) = self.post("uploadChanges", &zip_of(changes));
        assert_eq!(status, 200);
        serde_json::from_slice::<Value>(&body).unwrap()["data"].take()
    }

    pub fn download(&self, names: &[&str]) -> (u16, BTreeMap<String, Vec<u8>>) {
        let (status, body) = self.post("downloadFiles", json!({ "files": names }).to_string().as_bytes());
        if status != 200 {
            return (status, BTreeMap::new());
        }
        let mut entries = read_zip(&body);
        let meta: BTreeMap<String, String> =
            serde_json::from_slice(&entries.remove("_meta").unwrap()).unwrap();
        assert_eq!(meta.len(), entries.len());
        (status, entries.into_iter().map(|(entry, data)| (meta[&entry].clone(), data)).collect())
    }

    /// All changes from the beginning.
    pub fn changes(&self) -> Vec<(String, i64, String)> {
        let mut all: Vec<(String, i64, String)> = Vec::new();
        loop {
            let last = all.last().map_or(0, |row| row.1);
            let page = self.json("mediaChanges", json!({ "lastUsn": last }));
            let page: Vec<(String, i64, String)> = serde_json::from_value(page).unwrap();
            if page.is_empty() {
                return all;
            }
            assert!(page.len() <= 1000);
            all.extend(page);
        }
    }
}

fn dechunk(mut wire: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = wire.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&wire[..end]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(wire.get(end + 2..end + 2 + size)?);
        wire = wire.get(end + 4 + size..)?;
    }
}

pub fn sha1_hex(data: &[u8]) -> String {
    Sha1::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files in the folder of the one user.
pub fn folder(base: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir: PathBuf = base.join("u/media");
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}
