//! The connection layer: one poll(2) thread that owns every client socket and forwards checked requests to tiny_http.
//!
//! tiny_http alone is not safe on a network. Measured on 0.12:
//!
//! - A Content-Length of 100 GB aborts the process, because unread bodies are drained through one allocation. A
//!   negative, oversized or repeated Content-Length allows request smuggling. The connection layer checks lengths, and forwards
//!   every body that has not arrived whole as chunks, which tiny_http never drains.
//! - A client that stops sending or reading holds a worker forever: there are no timeouts. The connection layer forwards a
//!   request when it can make progress, and every wait for a client has a timeout.
//! - One failed accept() or dup() ends its accept loop for good, silently. The connection layer accepts itself, survives every
//!   accept error, and forwards nothing without spare file descriptors. If the loop has ended nevertheless, because workers
//!   took the spare ones, the connection layer stops the server with an error, so that the init system starts a new one.
//! - `HTTP/2.0` in a request line deadlocks a thread for good. The connection layer refuses it.
//! - Each connection, even an idle one, holds a thread, and a burst of them starves busy ones. In the connection layer an idle
//!   connection takes a few hundred bytes. Backend connections belong to no client: `kept_backends` uses some of them for
//!   the small requests of all, others are closed after one request.
//! - Request heads and pipelined requests are read without a limit. The connection layer limits the head, and reads the next
//!   request after the last reply.
//! - `Connection: upgrade`, which many nginx configurations send with every request, makes it hand over the raw
//!   socket. The connection layer drops hop-by-hop headers.
//! - A truncated body looks complete: always with a Content-Length, and in chunked encoding if it ends inside a chunk.
//!   The connection layer ends a truncated body between two chunks, which tiny_http reports as an error.
//! - A reply whose source fails looks complete, or leaves the client waiting. The connection layer resets the client's connection
//!   unless the reply was complete.
//! - It does not set TCP_NODELAY, so small chunked replies take 44 ms. The connection layer sets it.
//!
//! A connection is, in turn, idle, *gathering* a request's body, *waiting* for a slot, *active* (a backend connection
//! is open), and idle again or *closing*. Invariants:
//!
//! - The backend sees one checked request at a time on a connection. Another one follows only if the last was sent whole and
//!   answered whole. There are at most `max_active` connections with a request.
//! - Neither side ever takes a truncated body for a complete one.
//! - A worker never waits for the bytes of one client while another client waits for a worker: small bodies are received
//!   whole before a worker gets them, small replies are buffered, and longer transfers have slots of their own and make
//!   way when they are slow (`crate::limits_and_timeouts`).
//! - While no request waits for a slot, most small replies of a sync go from the worker to the client, and the poll thread is
//!   not woken (`crate::http::client_link`). It finds the request ended when it next wakes, within a second.
//! - What one client does costs itself: `queue` lets clients take turns, `shares_and_eviction` gives each a part of the workers, the
//!   connections and the memory.
//! - Memory per connection is bounded: the head while it arrives, 64 KiB of a small body or 8 KiB of a large one until a
//!   worker gets it, 32 KiB of the body and 96 KiB of the reply while it is active, nothing while it is idle; and that of
//!   all connections by `max_buffered_bytes`.
//! - Every wait for a client has a deadline, and poll sleeps until the nearest one: an idle server does not wake up.
//! - Nothing that a client sends can panic this thread, and none of it is logged.
//!
//! Not here: paths, authentication, and the content of bodies.

mod backend_connection;
mod buffered_socket;
mod client_socket;
mod connection;
mod forwarding;
#[doc(hidden)]
pub mod fuzz_entry;
mod kept_backends;
mod pace;
mod policy;
mod poll_loop;
mod queue;
mod shares_and_eviction;

pub use client_socket::Listener;
pub use policy::{Client, Policy};
pub use poll_loop::PollLoop;
pub(crate) use poll_loop::Shared;
