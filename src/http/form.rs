//! Streaming parser of multipart/form-data, as clients of protocols 8 to 10 send it (sync-protocol.md 3).
//!
//! Parts come in any order. All are small texts, except `data`, which is read as a stream. Only one block and one text
//! are in memory.

use std::io::{self, Read};

use memchr::memmem::Finder;

use crate::limits_and_timeouts::{FORM_BOUNDARY_BYTES, FORM_HEADER_BYTES, FORM_PARTS, FORM_TEXT_BYTES};

/// Size of the read buffer.
const BLOCK_BYTES: usize = 32 * 1024;

/// The boundary that the Content-Type of a form names.
pub fn boundary(content_type: &str) -> Option<String> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parameter(parameters, "boundary").filter(|boundary| (1..=FORM_BOUNDARY_BYTES).contains(&boundary.len()))
}

/// The value of a parameter in `a=b; c="d"`.
fn parameter(mut list: &str, wanted: &str) -> Option<String> {
    while let Some((name, tail)) = list.split_once('=') {
        let name = name.trim_matches(|c: char| c == ';' || c.is_ascii_whitespace());
        let (value, rest) = value_of(tail.trim_start());
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        list = rest;
    }
    None
}

/// The value at the start of a parameter list, which may be quoted, and the rest of the list.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim_end().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => break,
            '\\' => value.extend(chars.next()),
            other => value.push(other),
        }
    }
    (value, chars.as_str())
}

/// The fields of a form, without its data.
#[derive(Default)]
pub struct Fields {
    /// `k`, or `sk` of media methods: the host key.
    pub hkey: Option<String>,
    /// `s`: the session key.
    pub skey: Option<String>,
    /// `v`: the client's version.
    pub client: Option<String>,
    /// `c`: whether the data are gzip. Every value but 0 means yes.
    pub is_gzip: Option<bool>,
}

impl Fields {
    /// Stores a field. Returns false if the form has it twice.
    fn take(&mut self, name: &str, value: String) -> bool {
        match name {
            "k" | "sk" => self.hkey.replace(value).is_none(),
            "s" => self.skey.replace(value).is_none(),
            "v" => self.client.replace(value).is_none(),
            "c" => self.is_gzip.replace(value != "0").is_none(),
            _ => true,
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A form that is being read.
pub struct Form<R> {
    source: R,
    buffer: Vec<u8>,
    /// The part of the buffer that was not consumed yet.
    unread: std::ops::Range<usize>,
    source_is_done: bool,
    /// What separates parts: CRLF, two hyphens, the boundary.
    delimiter: Finder<'static>,
    state: State,
    parts: usize,
    had_data: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Start,
    /// In the contents of a part. The next `clear` bytes contain no delimiter.
    Contents { clear: usize },
    /// After a delimiter.
    Delimiter,
    /// After the last delimiter.
    End,
}

impl<R: Read> Form<R> {
    /// A form of which nothing is read yet.
    pub fn new(source: R, boundary: &str) -> Form<R> {
        Form {
            source,
            buffer: vec![0; BLOCK_BYTES],
            unread: 0..0,
            source_is_done: false,
            delimiter: Finder::new(&format!("\r\n--{boundary}")).into_owned(),
            state: State::Start,
            parts: 0,
            had_data: false,
        }
    }

    /// Reads fields up to the data part or the end of the form. Returns whether there is a data part: `read` then returns
    /// its contents. Unknown fields are skipped.
    pub fn read_fields(&mut self, fields: &mut Fields) -> io::Result<bool> {
        while let Some(name) = self.next_part()? {
            match name.as_str() {
                "data" if self.had_data => return Err(bad("the form has data twice")),
                "data" => {
                    self.had_data = true;
                    return Ok(true);
                }
                "k" | "sk" | "s" | "v" | "c" => {
                    let value = self.text()?;
                    if !fields.take(&name, value) {
                        return Err(bad("the form has a field twice"));
                    }
                }
                _ => {}
            }
        }
        Ok(false)
    }

    /// Skips the rest of this part and goes to the next; returns its name, or `None` at the end of the form.
    fn next_part(&mut self) -> io::Result<Option<String>> {
        while let State::Contents { .. } = self.state {
            let mut skipped = [0; 512];
            while self.read(&mut skipped)? > 0 {}
        }
        match self.state {
            State::End => return Ok(None),
            State::Start => {
                // The first delimiter has no line break before it.
                let first = self.delimiter.needle()[2..].to_vec();
                if !self.take_if_next(&first)? {
                    return Err(bad("the form does not begin with its boundary"));
                }
            }
            State::Contents { .. } | State::Delimiter => {}
        }
        if self.take_if_next(b"--")? {
            self.state = State::End;
            // What follows the last boundary is ignored.
            io::copy(&mut self.source, &mut io::sink())?;
            return Ok(None);
        }
        if !self.take_line(&mut 0)?.is_empty() {
            return Err(bad("something follows a boundary of the form"));
        }
        self.parts += 1;
        if self.parts > FORM_PARTS {
            return Err(bad("the form has too many parts"));
        }
        self.read_headers().map(Some)
    }

    /// Reads the headers of a part; returns its name.
    fn read_headers(&mut self) -> io::Result<String> {
        let (mut name, mut bytes) = (None, 0);
        loop {
            let line = self.take_line(&mut bytes)?;
            if line.is_empty() {
                self.state = State::Contents { clear: 0 };
                return name.ok_or_else(|| bad("a part of the form has no name"));
            }
            if let Some((field, value)) = line.split_once(':')
                && field.trim().eq_ignore_ascii_case("content-disposition")
            {
                let parameters = value.split_once(';').map_or("", |(_, parameters)| parameters);
                name = parameter(parameters, "name");
            }
        }
    }

    /// Reads the contents of a text part. The last text may lack the boundary after it: clients 2.0.x request a download
    /// that way.
    fn text(&mut self) -> io::Result<String> {
        let mut text = Vec::new();
        let mut block = [0; 512];
        loop {
            let count = match self.read(&mut block) {
                Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
                    let rest = &self.buffer[self.unread.clone()];
                    text.extend_from_slice(rest.strip_suffix(b"\r\n").unwrap_or(rest));
                    self.unread.start = self.unread.end;
                    self.state = State::End;
                    0
                }
                other => other?,
            };
            text.extend_from_slice(&block[..count]);
            if text.len() > FORM_TEXT_BYTES {
                return Err(bad("a field of the form is too long"));
            }
            if count == 0 {
                let text = String::from_utf8(text).map_err(|_| bad("a field of the form is not UTF-8"))?;
                // A line break means a truncated boundary, or something that no client sends.
                return if text.contains("\r\n") {
                    Err(bad("a field of the form has lines"))
                } else {
                    Ok(text)
                };
            }
        }
    }

    /// Consumes these bytes if they come next; returns whether they did.
    fn take_if_next(&mut self, expected: &[u8]) -> io::Result<bool> {
        while self.unread.len() < expected.len() && self.fill()? {}
        let is_next = self.buffer[self.unread.clone()].starts_with(expected);
        if is_next {
            self.unread.start += expected.len();
        }
        Ok(is_next)
    }

    /// Consumes a line; returns it without its line break. Errors once `bytes` would exceed `FORM_HEADER_BYTES`.
    fn take_line(&mut self, bytes: &mut usize) -> io::Result<String> {
        loop {
            let unread = &self.buffer[self.unread.clone()];
            let searched = unread.len().min(FORM_HEADER_BYTES - *bytes);
            if let Some(end) = memchr::memmem::find(&unread[..searched], b"\r\n") {
                let line = str::from_utf8(&unread[..end]).map(str::to_owned);
                *bytes += end + 2;
                self.unread.start += end + 2;
                return line.map_err(|_| bad("a header in the form is not UTF-8"));
            }
            if searched < unread.len() || searched == FORM_HEADER_BYTES - *bytes {
                return Err(bad("the headers in the form are too long"));
            }
            if !self.fill()? {
                return Err(bad("the form is cut off"));
            }
        }
    }

    /// Reads more from the source. Returns false at its end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.source_is_done {
            return Ok(false);
        }
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let count = loop {
            match self.source.read(&mut self.buffer[self.unread.end..]) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.unread.end += count;
        self.source_is_done = count == 0;
        Ok(count > 0)
    }

    /// How many of the next bytes are contents for sure; 0 if a delimiter is next.
    fn clear_bytes(&mut self) -> io::Result<usize> {
        loop {
            let unread = &self.buffer[self.unread.clone()];
            if let Some(at) = self.delimiter.find(unread) {
                return Ok(at);
            }
            // The buffer may end with the start of a delimiter.
            let clear = (unread.len() + 1).saturating_sub(self.delimiter.needle().len());
            if clear > 0 {
                return Ok(clear);
            }
            if !self.fill()? {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the form is cut off"));
            }
        }
    }
}

/// The contents of the current part. Ends at the part's end; fails if the form ends before it does.
impl<R: Read> Read for Form<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let State::Contents { mut clear } = self.state else {
            return Ok(0);
        };
        if clear == 0 {
            clear = self.clear_bytes()?;
            if clear == 0 {
                self.unread.start += self.delimiter.needle().len();
                self.state = State::Delimiter;
                return Ok(0);
            }
        }
        let count = clear.min(buf.len());
        buf[..count].copy_from_slice(&self.buffer[self.unread.start..][..count]);
        self.unread.start += count;
        self.state = State::Contents { clear: clear - count };
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives so many bytes at a time.
    struct Pieces<'d>(&'d [u8], usize);

    impl Read for Pieces<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buf.len()).min(self.0.len());
            buf[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }

    /// What a form held, as `name=value` in the order of `Fields`, and the data.
    type Parsed = (String, Option<Vec<u8>>);

    fn parse_by(form: &[u8], boundary: &str, piece_bytes: usize) -> Result<Parsed, String> {
        let mut form = Form::new(Pieces(form, piece_bytes), boundary);
        let mut fields = Fields::default();
        let mut read = || {
            let mut data = None;
            if form.read_fields(&mut fields)? {
                let mut contents = Vec::new();
                form.read_to_end(&mut contents)?;
                data = Some(contents);
                form.read_fields(&mut fields)?;
            }
            Ok(data)
        };
        let data = read().map_err(|err: io::Error| err.to_string())?;
        let Fields { hkey, skey, client, is_gzip } = fields;
        let is_gzip = is_gzip.map(|is_gzip| is_gzip.to_string());
        let fields = [("k", hkey), ("s", skey), ("v", client), ("c", is_gzip)];
        let said = fields.into_iter().filter_map(|(name, value)| Some(format!("{name}={} ", value?)));
        Ok((said.collect(), data))
    }

    fn parse(form: &[u8], boundary: &str) -> Result<Parsed, String> {
        let whole = parse_by(form, boundary, usize::MAX);
        for piece_bytes in [1, 2, 3, 19, 64] {
            assert_eq!(parse_by(form, boundary, piece_bytes), whole, "by {piece_bytes}");
        }
        whole
    }

    /// A form of these parts, each with its header lines beside the name.
    fn form(boundary: &str, parts: &[(&str, &[u8])], end: &str) -> Vec<u8> {
        let mut form = Vec::new();
        for (name, contents) in parts {
            let file = match *name {
                "data" => "; filename=\"data\"\r\nContent-Type: application/octet-stream",
                _ => "",
            };
            form.extend_from_slice(
                format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n")
                    .as_bytes(),
            );
            form.extend_from_slice(contents);
            form.extend_from_slice(b"\r\n");
        }
        form.extend_from_slice(end.as_bytes());
        form
    }

    const PYTHON: &str = "Anki-sync-boundary";
    const RUST: &str = "7bd1437e7cb02c73-f37523cd864475f6-dc113439299534f5-a118f7cceae88ef8";

    #[test]
    fn every_generations_layout_is_read() {
        let data = &b"\r\n\r\n--\r\n--Anki-sync-boundar\r\n--7bd1437e\r"[..];
        type Case<'c> = (&'c str, &'c [(&'c str, &'c [u8])], &'c str, Option<&'c [u8]>);
        let cases: [Case; 12] = [
            (PYTHON, &[("c", b"1"), ("data", data)], "c=true ", Some(data)),
            (
                PYTHON,
                &[("c", b"1"), ("s", b"8149753b"), ("k", b"5233"), ("data", data)],
                "k=5233 s=8149753b c=true ",
                Some(data),
            ),
            (
                PYTHON,
                &[("k", b"5233"), ("s", b"1"), ("c", b"1"), ("data", data)],
                "k=5233 s=1 c=true ",
                Some(data),
            ),
            (
                PYTHON,
                &[("k", b"5233"), ("v", b"ankidesktop,2.1.15,lin"), ("c", b"1"), ("data", data)],
                "k=5233 v=ankidesktop,2.1.15,lin c=true ",
                Some(data),
            ),
            (PYTHON, &[("k", b"5233"), ("v", b"x"), ("c", b"1")], "k=5233 v=x c=true ", None),
            (PYTHON, &[("sk", b"5233"), ("c", b"0"), ("data", data)], "k=5233 c=false ", Some(data)),
            (
                RUST,
                &[("data", data), ("c", b"1"), ("k", b"5233"), ("s", b"QAy0Z:xu9V")],
                "k=5233 s=QAy0Z:xu9V c=true ",
                Some(data),
            ),
            (RUST, &[("data", data), ("c", b"1")], "c=true ", Some(data)),
            (RUST, &[("data", data), ("sk", b"5233")], "k=5233 ", Some(data)),
            (
                RUST,
                &[("data", b""), ("s", b"`9SJQ;e"), ("k", b"d(|Y0A_#+V")],
                "k=d(|Y0A_#+V s=`9SJQ;e ",
                Some(b""),
            ),
            ("a", &[("new", data), ("s", "ü".as_bytes()), ("", b"")], "s=ü ", None),
            ("-", &[], "", None),
        ];
        for (boundary, parts, said, data) in cases {
            for end in
                [format!("--{boundary}--\r\n"), format!("--{boundary}--"), format!("--{boundary}--\r\nmore")]
            {
                let parsed = parse(&form(boundary, parts, &end), boundary);
                assert_eq!(parsed, Ok((said.to_owned(), data.map(<[u8]>::to_vec))), "{said}");
            }
        }
    }

    #[test]
    fn a_form_may_end_with_a_text_but_not_within_its_data() {
        let texts = form(PYTHON, &[("k", b"key"), ("v", b"ankidesktop,2.0.52")], "");
        let expected = Ok(("k=key v=ankidesktop,2.0.52 ".to_owned(), None));
        assert_eq!(parse(&texts, PYTHON), expected);
        assert_eq!(parse(&texts[..texts.len() - 2], PYTHON), expected);
        let whole =
            form(PYTHON, &[("k", b"key"), ("c", b"1"), ("data", b"contents")], "--Anki-sync-boundary--");
        let last_text =
            whole.windows(1).enumerate().filter(|(at, _)| whole[*at..].starts_with(b"1\r\n")).count();
        assert_eq!(last_text, 1);
        for end in 0..whole.len() {
            if let Ok((said, data)) = parse(&whole[..end], PYTHON) {
                // Truncated inside a text value, which cannot be detected.
                assert!(data.is_none() && "k=key c=true ".starts_with(said.trim_end()), "{end}: {said}");
            }
        }
    }

    #[test]
    fn data_may_be_anything_but_the_delimiter() {
        let mut data = Vec::new();
        for almost in [
            "\r\n--Anki-sync-boundar",
            "\r\n-Anki-sync-boundary",
            "\n--Anki-sync-boundary",
            "\r\r\n--",
            "\r\n",
        ] {
            data.extend_from_slice(almost.as_bytes());
        }
        // Delimiters at every place of a block.
        for filler in (0..200).chain(BLOCK_BYTES - 200..BLOCK_BYTES + 200) {
            let contents = [&vec![b'\r'; filler][..], &data].concat();
            let form = form(PYTHON, &[("data", &contents), ("c", b"0")], "--Anki-sync-boundary--");
            let parsed = parse_by(&form, PYTHON, usize::MAX).unwrap();
            assert!(parsed == ("c=false ".to_owned(), Some(contents)), "{filler}");
        }
    }

    #[test]
    fn headers_are_read_as_other_clients_would_write_them() {
        let form = b"--x\r\ncontent-type: a/b; name=\"s\"\r\nCONTENT-DISPOSITION:form-data;filename=\"name=s\"; Name=k\r\n\r\n\
            key\r\n--x\r\nContent-Disposition: form-data; name=\"\\v\"\r\n\r\nversion\r\n--x--\r\n";
        assert_eq!(parse(form, "x"), Ok(("k=key v=version ".to_owned(), None)));
    }

    #[test]
    fn forms_of_another_shape_are_refused() {
        let long = "x".repeat(5000);
        let cases = [
            (String::new(), "does not begin"),
            ("\r\n--x--".to_owned(), "does not begin"),
            ("--y--".to_owned(), "does not begin"),
            ("--x".to_owned(), "cut off"),
            ("--xy\r\n".to_owned(), "follows a boundary"),
            ("--x\r\n\r\n".to_owned(), "no name"),
            ("--x\r\nContent-Disposition: form-data\r\n\r\n\r\n--x--".to_owned(), "no name"),
            ("--x\r\nContent-Disposition: form-data; name=\"k\"\r\n".to_owned(), "cut off"),
            ("--x\r\nContent-Disposition: form-data; filename=\"data\"\r\n\r\n".to_owned(), "no name"),
            (format!("--x\r\n{long}"), "too long"),
            (format!("--x\r\n{long}\r\n\r\n"), "too long"),
            (format!("--x\r\nContent-Disposition: form-data; name=k\r\n\r\n{long}\r\n--x--"), "too long"),
            (format!("--x\r\nContent-Disposition: form-data; name=k\r\n\r\n{long}"), "too long"),
            (
                "--x\r\nContent-Disposition: form-data; name=data\r\n\r\n1\r\n".repeat(2) + "--x--",
                "data twice",
            ),
            (
                "--x\r\nContent-Disposition: form-data; name=sk\r\n\r\n1\r\n".repeat(2) + "--x--",
                "field twice",
            ),
            ("--x\r\nContent-Disposition: form-data; name=y\r\n\r\n1\r\n".repeat(33) + "--x--", "too many"),
        ];
        for (form, reason) in cases {
            let outcome = parse(form.as_bytes(), "x");
            assert!(outcome.as_ref().is_err_and(|err| err.contains(reason)), "{reason}: {outcome:?}");
        }
        assert!(parse(b"--x\r\nContent-Disposition: form-data; name=k\r\n\r\n\xff\r\n--x--", "x").is_err());
    }

    #[test]
    fn spoilt_forms_are_read_alike_in_pieces_of_any_size() {
        let whole = form(
            PYTHON,
            &[("data", b"\r\n--Anki\r\n"), ("c", b"1"), ("k", b"key")],
            "--Anki-sync-boundary--\r\n",
        );
        let mut random = fastrand::Rng::with_seed(1);
        let mut below = |bound: usize| random.usize(..bound);
        let mut read = 0;
        for _ in 0..20_000 {
            let mut spoilt = whole.clone();
            for _ in 0..=below(3) {
                let (at, to) = (below(spoilt.len()), below(spoilt.len()));
                match below(4) {
                    0 => spoilt[at] = b"\r\n-\";=:A"[below(8)],
                    1 => spoilt.truncate(at + 1),
                    2 => drop(spoilt.drain(at.min(to)..at.max(to).max(1))),
                    _ => spoilt.extend_from_within(at.min(to)..at.max(to)),
                }
                if spoilt.is_empty() {
                    spoilt.push(b'-');
                }
            }
            read += usize::from(parse(&spoilt, PYTHON).is_ok());
        }
        assert!(read > 1000, "{read}");
    }

    #[test]
    fn boundaries_come_bare_or_quoted() {
        let longest = "b".repeat(70);
        let cases = [
            ("multipart/form-data; boundary=Anki-sync-boundary".to_owned(), Some("Anki-sync-boundary")),
            ("Multipart/Form-Data;charset=utf-8 ; Boundary=\"a b;c\" ; x=y".to_owned(), Some("a b;c")),
            (format!("multipart/form-data; boundary={longest}"), Some(longest.as_str())),
            (format!("multipart/form-data; boundary={longest}b"), None),
            ("multipart/form-data; boundary=".to_owned(), None),
            ("multipart/form-data; boundary=\"\"".to_owned(), None),
            ("multipart/form-data".to_owned(), None),
            ("multipart/form-data; xboundary=a".to_owned(), None),
            ("multipart/mixed; boundary=a".to_owned(), None),
            ("application/octet-stream".to_owned(), None),
            (String::new(), None),
        ];
        for (content_type, expected) in cases {
            assert_eq!(boundary(&content_type).as_deref(), expected, "{content_type}");
        }
    }
}
