//! Runs the connection layer's parsers on bytes, without a socket. For the fuzz targets (tests/fuzz).

use std::net::{IpAddr, Ipv4Addr};

use crate::http::request_head;
use crate::http::request_head::{ForwardedBody, Scan, complete_head};
use crate::limits_and_timeouts::Limits;

/// A request that the connection layer would forward.
#[derive(Debug, PartialEq, Eq)]
pub struct Probed {
    /// The head for the backend.
    pub forward: Vec<u8>,
    /// The part of its body that was in the input.
    pub body: Vec<u8>,
    /// Whether the body is complete.
    pub is_whole: bool,
    /// How many bytes of the input belong to the request.
    pub taken: usize,
}

/// Parses the first request of `input`, as if it arrived in pieces of `piece` bytes. `None` if the head is incomplete.
///
/// Errors: the HTTP status of the refusal.
pub fn probe(input: &[u8], piece: usize) -> Result<Option<Probed>, u16> {
    let limits = Limits::default();
    let (mut scan, mut arrived) = (Scan::default(), 0_usize);
    let (start, end) = loop {
        arrived = arrived.saturating_add(piece.max(1)).min(input.len());
        let head = scan.advance(&input[..arrived], limits.max_head_bytes, limits.max_headers);
        match head.map_err(|refusal| refusal.status)? {
            Some(found) => break found,
            None if arrived == input.len() => return Ok(None),
            None => (),
        }
    };
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut request =
        request_head::parse_request(&input[start..end], peer).map_err(|refusal| refusal.status)?;
    let (mut decoder, mut body, mut taken) = (request.body, Vec::new(), end);
    for part in input[end..].chunks(piece.max(1)) {
        let count = decoder.decode(part, &mut |part| body.extend_from_slice(part)).map_err(|_| 400_u16)?;
        taken += count;
        if count < part.len() {
            break;
        }
    }
    let body_kind = if decoder.is_done() { ForwardedBody::Whole(body.len()) } else { ForwardedBody::Chunks };
    complete_head(&mut request.forward, body_kind, None, false);
    Ok(Some(Probed { forward: request.forward, body, is_whole: decoder.is_done(), taken }))
}
