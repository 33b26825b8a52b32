//! The HTTP server: what stands between the network and the handlers.

pub mod guard;
