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

/// Shared by the seeds of one parse: the size limit of one element (only one element is in memory), and the error of a
/// sink, which is kept here while serde returns an error of its own type.
#[derive(Clone)]
pub struct Context {
    left: Rc<Cell<u64>>,
    max_element_bytes: u64,
    error: Rc<Cell<Option<Error>>>,
}

impl Context {
    /// Call after each element: resets the limit for the next one.
    pub fn element_done(&self) {
        self.left.set(self.max_element_bytes);
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
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        let left = self.left.get().checked_sub(count as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        self.left.set(left);
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
    let left = Rc::new(Cell::new(max_element_bytes));
    let context = Context { left: left.clone(), max_element_bytes, error: Rc::default() };
    let object = Object::new(&context, keys);
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
            let reader = BufReader::new(LimitedReader { inner, left });
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

    /// Reads the value of this key from the map. Returns false, without reading, for an unknown key.
    fn value<'de, A: MapAccess<'de>>(
        &mut self,
        context: &Context,
        key: &str,
        map: &mut A,
    ) -> std::result::Result<bool, A::Error>;

    /// Called after the last key: a required key that was missing.
    fn missing(&self) -> Option<&'static str> {
        None
    }
}

/// The seed for one object.
pub struct Object<'c, 'k, K> {
    context: &'c Context,
    keys: &'k mut K,
}

impl<'c, 'k, K> Object<'c, 'k, K> {
    /// An object whose values are read by `keys`.
    pub fn new(context: &'c Context, keys: &'k mut K) -> Object<'c, 'k, K> {
        Object { context, keys }
    }
}

impl<'de, K: Keys> DeserializeSeed<'de> for Object<'_, '_, K> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
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

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        self.context.check::<(), A::Error>(self.keys.begin())?;
        while let Some(key) = map.next_key::<String>()? {
            if !self.keys.value(self.context, &key, &mut map)? {
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

    fn value<'de, A: MapAccess<'de>>(
        &mut self,
        context: &Context,
        key: &str,
        map: &mut A,
    ) -> std::result::Result<bool, A::Error> {
        if key != self.key {
            return Ok(false);
        }
        self.found = true;
        map.next_value_seed(Object::new(context, self.keys))?;
        Ok(true)
    }

    fn missing(&self) -> Option<&'static str> {
        (!self.found).then_some(self.key)
    }
}

/// A list whose elements, of type T, are passed to `each`. `null` counts as an empty list.
pub struct List<'c, T, F> {
    context: &'c Context,
    each: F,
    element: PhantomData<T>,
}

impl<'c, T, F> List<'c, T, F> {
    /// The seed for one list.
    pub fn new(context: &'c Context, each: F) -> List<'c, T, F> {
        List { context, each, element: PhantomData }
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T) -> Result<()>> DeserializeSeed<'de> for List<'_, T, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: DeserializeOwned, F: FnMut(T) -> Result<()>> Visitor<'de> for List<'_, T, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> std::result::Result<(), A::Error> {
        while let Some(element) = list.next_element::<T>()? {
            self.context.check::<(), A::Error>((self.each)(element))?;
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
pub fn end_of_row<'de, A: SeqAccess<'de>>(row: &mut A) -> std::result::Result<(), A::Error> {
    match row.next_element::<IgnoredAny>()? {
        None => Ok(()),
        Some(_) => Err(A::Error::custom("too many elements in a row")),
    }
}
