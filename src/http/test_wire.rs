//! For tests: what a client would get of a reply.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use crate::http::response::Responder;

/// Keeps what is sent. Clones are the same wire.
#[derive(Clone, Default)]
pub struct Wire(Arc<Mutex<Vec<u8>>>);

impl Wire {
    /// Answers a request that came over it.
    pub fn responder(&self) -> Responder {
        Responder::new(Box::new(self.clone()), false, String::new())
    }

    /// What was sent so far.
    pub fn sent(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }

    /// As `sent`, for replies that are text.
    pub fn text(&self) -> String {
        String::from_utf8(self.sent()).unwrap()
    }
}

impl Write for Wire {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
