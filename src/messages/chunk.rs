//! JSON of cards, notes and reviews (collection-format.md 11): positional arrays in
//! `{"done":bool,"revlog":[..],"cards":[..],"notes":[..]}`.

use std::fmt;
use std::io::{self, Write};

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::Result;
use crate::messages::integers::{Int, Text};
use crate::messages::json_stream::{
    Context, Elements, Envelope, Keys, Parsed, Source, Value, end_of_row, parse, required, required_seed,
};

/// The number of integer columns of a card. Their order is the same in JSON and in the table.
pub const CARD_INTS: usize = 17;

/// Characters of the longest integer, -9223372036854775808.
const I64_CHARS: usize = 20;

/// A row of `cards`: 17 integers (id, nid, did, ord, mod, usn, type, queue, due, ivl, factor, reps, lapses, left,
/// odue, odid, flags) and the data text. The integers are in the range of their column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// The integer columns.
    pub ints: [i64; CARD_INTS],
    /// The `data` column, unchanged.
    pub data: String,
}

impl Card {
    /// Position of `id` in `ints`.
    pub const ID: usize = 0;
    /// Position of `mod` in `ints`.
    pub const MODIFIED: usize = 4;
    /// Position of `usn` in `ints`.
    pub const USN: usize = 5;

    /// Changes numbers that are out of range for clients. Where the official server accepts such a number, the result
    /// is the same (due dates keep their low 32 bits). Where it refuses, the nearest valid number is used.
    pub fn fit(ints: [i64; CARD_INTS]) -> [i64; CARD_INTS] {
        let [
            id,
            nid,
            did,
            ord,
            modified,
            usn,
            kind,
            queue,
            due,
            ivl,
            factor,
            reps,
            lapses,
            left,
            odue,
            odid,
            flags,
        ] = ints;
        [
            id,
            nid,
            did,
            ord.clamp(0, u16::MAX.into()),
            modified,
            fit_i32(usn),
            kind.clamp(0, 3),
            queue.clamp(-3, 4),
            low_i32(due),
            low_u32(ivl),
            factor.clamp(0, u16::MAX.into()),
            fit_u32(reps),
            fit_u32(lapses),
            fit_u32(left),
            low_i32(odue),
            odid,
            flags.clamp(0, u8::MAX.into()),
        ]
    }
}

/// A row of `revlog`: id, cid, usn, ease, ivl, lastIvl, factor, time, type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revlog {
    /// The columns, each in its range.
    pub ints: [i64; 9],
}

impl Revlog {
    /// Position of `usn` in `ints`.
    pub const USN: usize = 2;

    /// Like `Card::fit`.
    pub fn fit(ints: [i64; 9]) -> [i64; 9] {
        let [id, cid, usn, ease, ivl, last_ivl, factor, time, kind] = ints;
        [
            id,
            cid,
            fit_i32(usn),
            ease.clamp(0, u8::MAX.into()),
            low_i32(ivl),
            low_i32(last_ivl),
            low_u32(factor),
            low_u32(time),
            if (0..=5).contains(&kind) { kind } else { 0 },
        ]
    }
}

/// A row of `notes` without the columns that the receiver computes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Note id.
    pub id: i64,
    /// Globally unique id.
    pub guid: String,
    /// Notetype id.
    pub notetype_id: i64,
    /// Modified stamp, seconds.
    pub modified: i64,
    /// Update sequence number.
    pub usn: i64,
    /// Tags, separated by spaces.
    pub tags: String,
    /// Fields, separated by U+001F.
    pub fields: String,
}

fn fit_i32(value: i64) -> i64 {
    value.clamp(i32::MIN.into(), i32::MAX.into())
}

fn fit_u32(value: i64) -> i64 {
    value.clamp(0, u32::MAX.into())
}

fn low_i32(value: i64) -> i64 {
    i64::from(value as i32)
}

fn low_u32(value: i64) -> i64 {
    i64::from(value.max(0) as u32)
}

/// Receives the rows of a chunk as they are parsed, in the order of the client.
pub trait RowSink {
    /// A review.
    fn revlog(&mut self, row: &Revlog) -> Result<()>;
    /// A card.
    fn card(&mut self, row: &Card) -> Result<()>;
    /// A note.
    fn note(&mut self, row: &Note) -> Result<()>;
}

/// Counts the rows, and discards them.
struct RowCounter(usize);

impl RowSink for RowCounter {
    fn revlog(&mut self, _: &Revlog) -> Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn card(&mut self, _: &Card) -> Result<()> {
        self.0 += 1;
        Ok(())
    }

    fn note(&mut self, _: &Note) -> Result<()> {
        self.0 += 1;
        Ok(())
    }
}

/// Checks that the body of `applyChunk` is well-formed, and returns how many rows it has. Errors as `read`.
pub fn check<'s>(input: impl Into<Source<'s>>, max_row_bytes: u64) -> Result<usize> {
    let mut counter = RowCounter(0);
    read(input, max_row_bytes, &mut counter)?;
    Ok(counter.0)
}

/// Reads the body of `applyChunk`: `{"chunk": chunk}`. One row at a time is in memory, of at most `max_row_bytes`.
pub fn read<'s>(input: impl Into<Source<'s>>, max_row_bytes: u64, sink: &mut dyn RowSink) -> Result<()> {
    parse(input.into(), max_row_bytes, &mut Envelope::new("chunk", &mut Chunk { sink }))
}

struct Chunk<'s> {
    sink: &'s mut dyn RowSink,
}

impl Keys for Chunk<'_> {
    const WHAT: &'static str = "an object with lists of reviews, cards and notes";

    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error> {
        let sink = &mut *self.sink;
        match key {
            "revlog" => value.elements(Rows::new(|row| sink.revlog(row)))?,
            "cards" => value.elements(Rows::new(|row| sink.card(row)))?,
            "notes" => value.elements(Rows::new(|row| sink.note(row)))?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Rows that are all read into one buffer, so that each row does not allocate and free its texts.
struct Rows<R, F> {
    row: R,
    each: F,
}

impl<R: Row, F: FnMut(&R) -> Result<()>> Rows<R, F> {
    fn new(each: F) -> Rows<R, F> {
        Rows { row: R::default(), each }
    }
}

impl<R: Row, F: FnMut(&R) -> Result<()>> Elements for Rows<R, F> {
    fn next<'de, A: SeqAccess<'de>>(&mut self, context: &Context, list: &mut A) -> Parsed<bool, A::Error> {
        match list.next_element_seed(Next(&mut self.row))? {
            Some(()) => context.check((self.each)(&self.row)).map(|()| true),
            None => Ok(false),
        }
    }
}

/// A row type that can be read into the buffer of the row before.
trait Row: Default {
    const WHAT: &'static str;

    fn read<'de, A: SeqAccess<'de>>(&mut self, row: &mut A) -> Parsed<(), A::Error>;
}

/// The seed for the next row of a list.
struct Next<'r, R>(&'r mut R);

impl<'de, R: Row> DeserializeSeed<'de> for Next<'_, R> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, R: Row> Visitor<'de> for Next<'_, R> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(R::WHAT)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut row: A) -> Parsed<(), A::Error> {
        self.0.read(&mut row)?;
        end_of_row(&mut row)
    }
}

fn ints<'de, const N: usize, A: SeqAccess<'de>>(row: &mut A) -> std::result::Result<[i64; N], A::Error> {
    let mut ints = [0; N];
    for int in &mut ints {
        *int = required::<Int, A>(row)?.0;
    }
    Ok(ints)
}

impl Row for Card {
    const WHAT: &'static str = "the row of a card";

    fn read<'de, A: SeqAccess<'de>>(&mut self, row: &mut A) -> Parsed<(), A::Error> {
        self.ints = Card::fit(ints(row)?);
        required_seed(row, Text(&mut self.data))
    }
}

impl Row for Revlog {
    const WHAT: &'static str = "the row of a review";

    fn read<'de, A: SeqAccess<'de>>(&mut self, row: &mut A) -> Parsed<(), A::Error> {
        let [id, cid, usn, ease, ivl, last_ivl, factor, time] = ints(row)?;
        let kind = row.next_element::<Int>()?.unwrap_or_default().0;
        self.ints = Revlog::fit([id, cid, usn, ease, ivl, last_ivl, factor, time, kind]);
        Ok(())
    }
}

impl Row for Note {
    const WHAT: &'static str = "the row of a note";

    fn read<'de, A: SeqAccess<'de>>(&mut self, row: &mut A) -> Parsed<(), A::Error> {
        self.id = required::<Int, A>(row)?.0;
        required_seed(row, Text(&mut self.guid))?;
        self.notetype_id = required::<Int, A>(row)?.0;
        self.modified = required::<Int, A>(row)?.0;
        self.usn = fit_i32(required::<Int, A>(row)?.0);
        required_seed(row, Text(&mut self.tags))?;
        required_seed(row, Text(&mut self.fields))?;
        for _computed_by_the_receiver in ["sfld", "csum", "flags", "data"] {
            required::<IgnoredAny, A>(row)?;
        }
        Ok(())
    }
}

/// Writes a JSON list of numbers, with a text as last element if there is one. The numbers are formatted in a buffer
/// and written at once, because many short writes to a spool are slow.
fn write_ints(out: &mut impl Write, ints: &[i64], text: Option<&str>) -> io::Result<()> {
    let mut line = [0; 2 + CARD_INTS * (I64_CHARS + 1)];
    let mut rest = &mut line[..];
    serde_json::to_writer(&mut rest, ints)?;
    let unused = rest.len();
    let line = &line[..line.len() - unused];
    let Some(text) = text else {
        return out.write_all(line);
    };
    out.write_all(&line[..line.len() - 1])?;
    out.write_all(b",")?;
    serde_json::to_writer(&mut *out, text)?;
    out.write_all(b"]")
}

/// Writes a card's row.
pub fn write_card(out: &mut impl Write, ints: &[i64; CARD_INTS], data: &str) -> io::Result<()> {
    write_ints(out, ints, Some(data))
}

/// Writes a review's row.
pub fn write_revlog(out: &mut impl Write, row: &Revlog) -> io::Result<()> {
    write_ints(out, &row.ints, None)
}

/// Writes a note's row. Sort field and checksum are always sent empty.
pub fn write_note(
    out: &mut impl Write,
    [id, notetype_id, modified, usn]: [i64; 4],
    [guid, tags, fields]: [&str; 3],
) -> io::Result<()> {
    Ok(serde_json::to_writer(out, &(id, guid, notetype_id, modified, usn, tags, fields, "", "", 0, ""))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<String>);

    impl RowSink for Seen {
        fn revlog(&mut self, row: &Revlog) -> Result<()> {
            let mut out = Vec::new();
            write_revlog(&mut out, row).unwrap();
            self.0.push(String::from_utf8(out).unwrap());
            Ok(())
        }
        fn card(&mut self, row: &Card) -> Result<()> {
            let mut out = Vec::new();
            write_card(&mut out, &row.ints, &row.data).unwrap();
            self.0.push(String::from_utf8(out).unwrap());
            Ok(())
        }
        fn note(&mut self, row: &Note) -> Result<()> {
            let mut out = Vec::new();
            let ints = [row.id, row.notetype_id, row.modified, row.usn];
            write_note(&mut out, ints, [&row.guid, &row.tags, &row.fields]).unwrap();
            self.0.push(String::from_utf8(out).unwrap());
            Ok(())
        }
    }

    fn seen(body: &str) -> Result<Vec<String>> {
        let mut sink = Seen::default();
        read(body, 1 << 20, &mut sink)?;
        Ok(sink.0)
    }

    const CARD: &str = r#"[1,2,3,0,4,5,2,1,6,7,0,1,0,1,0,0,0,"{\"pos\":2}"]"#;
    const REVLOG: &str = "[1,2,2,3,-600,0,0,0,0]";
    const NOTE: &str = r#"[1,"A^Tw",2,3,4," t2 ","a\u001fb","","",0,""]"#;

    #[test]
    fn rows_survive_unchanged() {
        let body =
            format!(r#"{{"chunk":{{"done":true,"revlog":[{REVLOG}],"cards":[{CARD}],"notes":[{NOTE}]}}}}"#);
        assert_eq!(seen(&body).unwrap(), [REVLOG, CARD, NOTE]);
    }

    #[test]
    fn the_longest_numbers_have_room() {
        let mut out = Vec::new();
        write_card(&mut out, &[i64::MIN; CARD_INTS], "x").unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!("[{}\"x\"]", format!("{},", i64::MIN).repeat(CARD_INTS))
        );
    }

    #[test]
    fn numbers_of_old_clients_are_understood_and_brought_into_range() {
        let card = r#"["1",2,3,70000,4.9,5,9,-9,99999999999,-1,-5,null,0,1,0,0,300,null]"#;
        let body = format!(r#"{{"chunk":{{"cards":[{card}],"revlog":[[1,2,3,4,5,6,7.5,-8]]}}}}"#);
        let expected = [r#"[1,2,3,65535,4,5,3,-3,1215752191,0,0,0,0,1,0,0,255,""]"#, "[1,2,3,4,5,6,7,0,0]"];
        assert_eq!(seen(&body).unwrap(), expected);
    }

    #[test]
    fn other_shapes_are_bad_requests() {
        for body in [
            "",
            "null",
            "{}",
            r#"{"chunk":[]}"#,
            r#"{"chunk":{"cards":{}}}"#,
            r#"{"chunk":{"cards":[[1,2,3]]}}"#,
            r#"{"chunk":{"cards":[[1,2,3,0,4,5,2,1,6,7,0,1,0,1,0,0,0,"",1]]}}"#,
            r#"{"chunk":{"cards":[[1,2,3,0,4,5,2,1,6,7,0,1,0,1,0,0,0,{}]]}}"#,
            r#"{"chunk":{"revlog":[[1,2,2,3,-600,0,0,0,0,0]]}}"#,
            r#"{"chunk":{"notes":[[1,"A",2,3,4,"",5,"","",0,""]]}}"#,
            r#"{"chunk":{"notes":[[1,"A",2,3,4,"","f","","",0,""]"#,
        ] {
            assert_eq!(seen(body).unwrap_err().status(), 400, "{body}");
        }
    }

    #[test]
    fn a_row_over_the_limit_is_refused() {
        let long = "x".repeat(2 << 20);
        let body = format!(r#"{{"chunk":{{"notes":[[1,"A",2,3,4,"","{long}","","",0,""]]}}}}"#);
        assert_eq!(seen(&body).unwrap_err().status(), 413);
    }
}
