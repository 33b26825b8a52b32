//! Text rules that clients and server must apply identically, to the bit, because the results are stored and compared.
//!
//! Sort field, tags, media references, entities, the collation. Pure functions: no SQL, no I/O, no imports of ours. Rules and
//! vectors are in the spec, collection-format.md 2.1, 10 and 12.4. `hex` and `counted` are for messages and the names of files.

pub mod counted;
pub mod hex;
pub mod note;
pub mod tag;
pub mod unicase;

mod caseless;
mod entities;
mod markup;
mod media_tags;
