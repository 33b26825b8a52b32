//! Streaming JSON parser: list elements are passed to a closure one by one, and each element has a size limit.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufReader, Read};
use std::marker::PhantomData;
use std::rc::Rc;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess,
    Unexpected, Visitor,
};

use crate::error::{Error, Result};
use crate::limits_and_timeouts::LARGE_ELEMENT_BYTES;
use crate::limits_and_timeouts::at_most::{AtMost, Permit};

/// Shared by the seeds of one parse: the size limit of one element (only one element is in memory), and the error of a
/// sink, which is kept here while serde returns an error of its own type.
#[derive(Clone)]
pub struct Context {
    left: Rc<Cell<u64>>,
    max_element_bytes: u64,
    large: Rc<Cell<Option<Permit>>>,
    error: Rc<Cell<Option<Error>>>,
}

/// Held while an element of more than `LARGE_ELEMENT_BYTES` is in memory.
static LARGE_ELEMENT: AtMost = AtMost::new(1);

impl Context {
    /// Call after each element: resets the limit for the next one.
    pub fn element_done(&self) {
        self.left.set(self.max_element_bytes);
        self.large.take();
    }

    /// Stops the parser with the error of a sink, if there is one.
    pub fn check<T, E: serde::de::Error>(&self, result: Result<T>) -> std::result::Result<T, E> {
        result.map_err(|err| {
            let text = err.to_string();
            self.error.set(Some(err));
            E::custom(text)
        })
    }
}

struct LimitedReader<R> {
    inner: R,
    context: Context,
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        let Context { left, large, max_element_bytes, .. } = &self.context;
        let now_left = left.get().checked_sub(count as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        left.set(now_left);
        if max_element_bytes - now_left > LARGE_ELEMENT_BYTES {
            // Those who hold it wait for no client, and for none of our locks.
            large.set(Some(large.take().unwrap_or_else(|| LARGE_ELEMENT.take())));
        }
        Ok(count)
    }
}

/// The input of the parser.
pub enum Source<'s> {
    /// The whole JSON in memory. Several times faster than `Stream`, which serde_json reads byte by byte.
    Memory(&'s str),
    /// JSON that is read in blocks.
    Stream(Box<dyn Read + 's>),
}

impl<'s> From<&'s str> for Source<'s> {
    fn from(text: &'s str) -> Source<'s> {
        Source::Memory(text)
    }
}

/// Parses all of `input`, one JSON object.
///
/// Errors: `BadRequest` for JSON of another shape, `TooLarge` for an element over the limit, and the errors of the
/// sink.
pub fn parse<'s>(input: Source<'s>, max_element_bytes: u64, keys: &mut impl Keys) -> Result<()> {
    let context = Context {
        left: Rc::new(Cell::new(max_element_bytes)),
        max_element_bytes,
        large: Rc::default(),
        error: Rc::default(),
    };
    let object = Object { context: &context, keys };
    let parsed = match input {
        // The whole text is within the limit, so each of its elements is.
        Source::Memory(text) if text.len() as u64 <= max_element_bytes => {
            let mut json = serde_json::Deserializer::from_str(text);
            object.deserialize(&mut json).and_then(|()| json.end())
        }
        source => {
            let inner: Box<dyn Read + 's> = match source {
                Source::Memory(text) => Box::new(text.as_bytes()),
                Source::Stream(reader) => reader,
            };
            let reader = BufReader::new(LimitedReader { inner, context: context.clone() });
            let mut json = serde_json::Deserializer::from_reader(reader);
            object.deserialize(&mut json).and_then(|()| json.end())
        }
    };
    parsed.map_err(|err| match context.error.take() {
        Some(err) => err,
        None if err.io_error_kind() == Some(io::ErrorKind::FileTooLarge) => Error::TooLarge(format!(
            "one element is over the limit of {max_element_bytes} bytes; MAX_SYNC_ROW_MEGS raises it"
        )),
        None if err.is_io() => Error::Io("reading", "spooled request".into(), err.into()),
        None => super::shape_error(&err),
    })
}

/// The result of a step of the parser.
pub type Parsed<T, E> = std::result::Result<T, E>;

/// The value of a key, which was not read yet.
pub struct Value<'p, A> {
    context: &'p Context,
    map: &'p mut A,
}

impl<'de, 'p, A: MapAccess<'de>> Value<'p, A> {
    /// Reads a small value.
    pub fn read<T: serde::Deserialize<'de>>(self) -> Parsed<T, A::Error> {
        self.map.next_value()
    }

    /// Reads a value and passes it to `each`.
    pub fn pass<T: serde::Deserialize<'de>>(
        self,
        each: impl FnOnce(T) -> Result<()>,
    ) -> Parsed<(), A::Error> {
        let value = self.map.next_value()?;
        self.context.check(each(value))
    }

    /// Reads an object by its keys.
    pub fn object(self, keys: &mut impl Keys) -> Parsed<(), A::Error> {
        self.map.next_value_seed(Object { context: self.context, keys })
    }

    /// Reads a list and passes each element to `each`.
    pub fn list<T: DeserializeOwned>(self, each: impl FnMut(T) -> Result<()>) -> Parsed<(), A::Error> {
        self.elements(Each::new(each))
    }

    /// Reads a list.
    pub fn elements(self, elements: impl Elements) -> Parsed<(), A::Error> {
        self.map.next_value_seed(List::new(self.context, elements))
    }

    /// Reads the value with a seed that `seed` makes.
    pub fn seeded<S: DeserializeSeed<'de>>(
        self,
        seed: impl FnOnce(&'p Context) -> S,
    ) -> Parsed<S::Value, A::Error> {
        self.map.next_value_seed(seed(self.context))
    }
}

/// Reads the values of an object by key. Unknown keys are skipped.
pub trait Keys {
    /// The object's description in errors.
    const WHAT: &'static str;

    /// Whether the object may be `null`.
    fn may_be_null(&self) -> bool {
        false
    }

    /// Called before the first key.
    fn begin(&mut self) -> Result<()> {
        Ok(())
    }

    /// Reads the value of this key. Returns false, without reading, for an unknown key.
    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error>;

    /// Called after the last key: a required key that was missing.
    fn missing(&self) -> Option<&'static str> {
        None
    }
}

/// The seed for one object.
struct Object<'c, 'k, K> {
    context: &'c Context,
    keys: &'k mut K,
}

impl<'de, K: Keys> DeserializeSeed<'de> for Object<'_, '_, K> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, K: Keys> Visitor<'de> for Object<'_, '_, K> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(K::WHAT)
    }

    fn visit_unit<E: serde::de::Error>(self) -> std::result::Result<(), E> {
        if self.keys.may_be_null() { Ok(()) } else { Err(E::invalid_type(Unexpected::Unit, &self)) }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Parsed<(), A::Error> {
        self.context.check::<(), A::Error>(self.keys.begin())?;
        while let Some(key) = map.next_key::<String>()? {
            if !self.keys.value(&key, Value { context: self.context, map: &mut map })? {
                map.next_value::<IgnoredAny>()?;
            }
            self.context.element_done();
        }
        self.keys.missing().map_or(Ok(()), |key| Err(A::Error::missing_field(key)))
    }
}

/// An object with one required key, whose value is an object. Other keys are skipped.
pub struct Envelope<'k, K> {
    key: &'static str,
    found: bool,
    keys: &'k mut K,
}

impl<'k, K> Envelope<'k, K> {
    /// `{"key": {..}}`
    pub fn new(key: &'static str, keys: &'k mut K) -> Envelope<'k, K> {
        Envelope { key, found: false, keys }
    }
}

impl<K: Keys> Keys for Envelope<'_, K> {
    const WHAT: &'static str = "a JSON object";

    fn value<'de, A: MapAccess<'de>>(&mut self, key: &str, value: Value<'_, A>) -> Parsed<bool, A::Error> {
        if key != self.key {
            return Ok(false);
        }
        self.found = true;
        value.object(self.keys).map(|()| true)
    }

    fn missing(&self) -> Option<&'static str> {
        (!self.found).then_some(self.key)
    }
}

/// The elements of a list, which are read one by one.
pub trait Elements {
    /// Reads the next element and passes it on. Returns false at the end of the list.
    fn next<'de, A: SeqAccess<'de>>(&mut self, context: &Context, list: &mut A) -> Parsed<bool, A::Error>;
}

/// Elements of type T, each of which is passed to `each`.
pub struct Each<T, F> {
    each: F,
    element: PhantomData<T>,
}

impl<T, F: FnMut(T) -> Result<()>> Each<T, F> {
    /// Passes each element to `each`.
    pub fn new(each: F) -> Each<T, F> {
        Each { each, element: PhantomData }
    }
}

impl<T: DeserializeOwned, F: FnMut(T) -> Result<()>> Elements for Each<T, F> {
    fn next<'de, A: SeqAccess<'de>>(&mut self, context: &Context, list: &mut A) -> Parsed<bool, A::Error> {
        match list.next_element()? {
            Some(element) => context.check((self.each)(element)).map(|()| true),
            None => Ok(false),
        }
    }
}

/// The seed for one list. `null` counts as an empty list.
pub struct List<'c, E> {
    context: &'c Context,
    elements: E,
}

impl<'c, E: Elements> List<'c, E> {
    /// The list of these elements.
    pub fn new(context: &'c Context, elements: E) -> List<'c, E> {
        List { context, elements }
    }
}

impl<'de, E: Elements> DeserializeSeed<'de> for List<'_, E> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Parsed<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, E: Elements> Visitor<'de> for List<'_, E> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<X>(self) -> Parsed<(), X> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Parsed<(), A::Error> {
        while self.elements.next(self.context, &mut list)? {
            self.context.element_done();
        }
        Ok(())
    }
}

/// Reads the next element of a row, or fails if there is none.
pub fn required<'de, T: serde::Deserialize<'de>, A: SeqAccess<'de>>(
    row: &mut A,
) -> std::result::Result<T, A::Error> {
    required_seed(row, PhantomData)
}

/// Like `required`, with a seed.
pub fn required_seed<'de, S: DeserializeSeed<'de>, A: SeqAccess<'de>>(
    row: &mut A,
    seed: S,
) -> std::result::Result<S::Value, A::Error> {
    row.next_element_seed(seed)?.ok_or_else(|| A::Error::custom("too few elements in a row"))
}

/// Fails if the row has more elements.
pub fn end_of_row<'de, A: SeqAccess<'de>>(row: &mut A) -> Parsed<(), A::Error> {
    match row.next_element::<IgnoredAny>()? {
        None => Ok(()),
        Some(_) => Err(A::Error::custom("too many elements in a row")),
    }
}
