//! Tolerant parsing of numbers and texts. Old clients send REAL and NULL values from SQLite unchanged, and ids as
//! strings (sync-protocol.md 6.3, 6.7). These are accepted, because their meaning is clear.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, Visitor};

/// An integer. Fractions are truncated, `null` is 0, and decimal strings are parsed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Int(pub i64);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Int, D::Error> {
        deserializer.deserialize_any(IntVisitor)
    }
}

struct IntVisitor;

impl Visitor<'_> for IntVisitor {
    type Value = Int;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_i64<E>(self, value: i64) -> Result<Int, E> {
        Ok(Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Int, E> {
        Ok(Int(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Int, E> {
        Ok(Int(value as i64)) // saturates
    }

    fn visit_unit<E>(self) -> Result<Int, E> {
        Ok(Int(0))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Int, E> {
        let whole = text.parse().ok();
        let number = whole
            .or_else(|| text.parse::<f64>().ok().filter(|float| float.is_finite()).map(|float| float as i64));
        number.map(Int).ok_or_else(|| E::custom("a string that is not a number"))
    }
}

/// `deserialize_with` for `u64` fields: an `Int`; negative numbers become 0.
pub fn not_negative<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    Int::deserialize(deserializer).map(|int| u64::try_from(int.0).unwrap_or_default())
}

/// `deserialize_with` for `i64` fields: an `Int`.
pub fn any<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    Int::deserialize(deserializer).map(|int| int.0)
}

/// The seed that reads a string into a reused buffer; `null` is an empty string.
pub struct Text<'b>(pub &'b mut String);

impl Text<'_> {
    /// A buffer that has grown beyond this size is shrunk before the next text.
    const KEPT_BYTES: usize = 64 * 1024;
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        self.0.clear();
        self.0.shrink_to(Text::KEPT_BYTES);
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.push_str(text);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}
