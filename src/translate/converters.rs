//! The converters that the tables name: which JSON a key accepts, what is stored for it, and how it is written (spec,
//! collection-format.md 3.2 and the conversion columns of sections 4 to 6).

use super::field_table::{Converter, Value, one};
use super::json;

pub const U8: Converter = int::<0, 0xff>("an integer of 8 bits");
pub const U16: Converter = int::<0, 0xffff>("an integer of 16 bits");
pub const U32: Converter = int::<0, 0xffff_ffff>("an unsigned integer of 32 bits");
pub const I32: Converter = int::<{ i32::MIN as i64 }, { i32::MAX as i64 }>("an integer of 32 bits");
pub const I64: Converter = int::<{ i64::MIN }, { i64::MAX }>("an integer");
/// A number, or a string that holds one, as clients before 2.1 wrote ids.
pub const I64S: Converter =
    one("an integer, perhaps as a string", read_int_or_digits, write_int::<{ i64::MIN }, { i64::MAX }>);
pub const OPT_U16: Converter = opt_int::<0, 0xffff>("an integer of 16 bits, or null");
pub const OPT_U32: Converter = opt_int::<0, 0xffff_ffff>("an unsigned integer of 32 bits, or null");
pub const OPT_I64: Converter = opt_int::<{ i64::MIN }, { i64::MAX }>("an integer, or null");
pub const BOOL: Converter = one("true or false", read_bool, |v, out| json::put_bool(out, v.int() != 0));
pub const ANY_BOOL: Converter =
    one("true, false, 1 or 0", read_any_bool, |v, out| json::put_bool(out, v.int() != 0));
pub const F32: Converter = one("a number", read_f32, |v, out| json::put_f32(out, v.float()));
pub const STR: Converter = one("a string", read_text, |v, out| json::put_string(out, v.text()));
pub const F32S: Converter = one("numbers", read_floats, write_floats);
/// On reading, `null` and everything that is not an array of numbers is an empty list. An empty list is written as `null`.
pub const OPT_F32S: Converter = one("numbers, or null", read_opt_floats, write_opt_floats);

/// A bool that is stored negated: JSON `true` is false in the message.
pub const NOT: Converter = one("true or false", read_not, |v, out| json::put_bool(out, v.int() == 0));
/// A bool that is 0 or 1 in JSON.
pub const FLAG: Converter =
    one("an integer of 8 bits", read_flag, |v, out| json::put_int(out, v.int().min(1)));
/// A signed number in JSON, an unsigned one in the message; negative means 0.
pub const COUNT: Converter =
    one("an integer of 32 bits", read_count, write_int::<{ i32::MIN as i64 }, { i32::MAX as i64 }>);
/// As `COUNT`, also accepted as a string of digits.
pub const COUNT_S: Converter = one(
    "an integer of 32 bits, perhaps as a string",
    read_count_or_digits,
    write_int::<{ i32::MIN as i64 }, { i32::MAX as i64 }>,
);
/// Thousandths in JSON, a factor in the message.
pub const PERMILLE: Converter = one("an integer of 16 bits", read_permille, write_permille);
/// Whole percents in JSON, a fraction in the message.
pub const OPT_PERCENT: Converter = one("an integer of 32 bits, or null", read_opt_percent, write_opt_percent);

/// An enum of two values.
pub const ENUM_2: Converter = up_to::<1>("0 or 1");
/// An enum of five values.
pub const ENUM_5: Converter = up_to::<4>("an integer from 0 to 4");

/// An integer from 0 to `MAX`. A stored value outside that range is written as 0.
const fn up_to<const MAX: i64>(expects: &'static str) -> Converter {
    one(expects, read_int::<0, MAX>, |v, out| {
        let value = v.int();
        json::put_int(out, if (0..=MAX).contains(&value) { value } else { 0 })
    })
}

const fn int<const MIN: i64, const MAX: i64>(expects: &'static str) -> Converter {
    one(expects, read_int::<MIN, MAX>, write_int::<MIN, MAX>)
}

const fn opt_int<const MIN: i64, const MAX: i64>(expects: &'static str) -> Converter {
    one(expects, read_opt_int::<MIN, MAX>, |value, out| match value {
        Value::Unset => put_null(value, out),
        _ => write_int::<MIN, MAX>(value, out),
    })
}

fn number(text: &str) -> Option<i64> {
    // `parse` refuses fractions and exponents. It would accept a leading `+`, which JSON does not have.
    text.parse().ok()
}

fn in_range<const MIN: i64, const MAX: i64>(value: i64) -> Option<Value<'static>> {
    (MIN..=MAX).contains(&value).then_some(Value::Int(value))
}

fn read_int<const MIN: i64, const MAX: i64>(text: &str) -> Option<Value<'_>> {
    in_range::<MIN, MAX>(number(text)?)
}

fn read_opt_int<const MIN: i64, const MAX: i64>(text: &str) -> Option<Value<'_>> {
    if text == "null" { Some(Value::Unset) } else { read_int::<MIN, MAX>(text) }
}

/// A stored value outside the range is truncated: its upper bits are dropped.
fn write_int<const MIN: i64, const MAX: i64>(value: &Value<'_>, out: &mut Vec<u8>) {
    let value = value.int();
    json::put_int(
        out,
        match (MIN, MAX) {
            (0, _) => value & MAX,
            (_, i64::MAX) => value,
            _ => i64::from(value as i32),
        },
    );
}

fn digits(text: &str) -> Option<i64> {
    if text.starts_with('"') { json::string(text)?.parse().ok() } else { number(text) }
}

fn read_int_or_digits(text: &str) -> Option<Value<'_>> {
    digits(text).map(Value::Int)
}

fn read_count(text: &str) -> Option<Value<'_>> {
    Some(Value::Int(i64::from(i32::try_from(number(text)?).ok()?.max(0))))
}

fn read_count_or_digits(text: &str) -> Option<Value<'_>> {
    Some(Value::Int(i64::from(i32::try_from(digits(text)?).ok()?.max(0))))
}

fn bool_text(text: &str) -> Option<bool> {
    match text {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn read_bool(text: &str) -> Option<Value<'_>> {
    bool_text(text).map(|value| Value::Int(value.into()))
}

fn read_not(text: &str) -> Option<Value<'_>> {
    bool_text(text).map(|value| Value::Int((!value).into()))
}

fn read_flag(text: &str) -> Option<Value<'_>> {
    match read_int::<0, 0xff>(text)? {
        Value::Int(value) => Some(Value::Int((value != 0).into())),
        _ => None,
    }
}

fn read_any_bool(text: &str) -> Option<Value<'_>> {
    let inner = if text.starts_with('"') { json::string(text)? } else { text.into() };
    if let Some(value) = bool_text(&inner.to_ascii_lowercase()) {
        return Some(Value::Int(value.into()));
    }
    match inner.parse::<f64>().ok()? {
        0.0 => Some(Value::Int(0)),
        1.0 => Some(Value::Int(1)),
        _ => None,
    }
}

fn float(text: &str) -> Option<f32> {
    // Rust also parses words such as "inf", which are not JSON numbers: only a digit or `-` may come first.
    text.starts_with(|c: char| c == '-' || c.is_ascii_digit()).then_some(())?;
    text.parse::<f64>().ok().map(|value| value as f32)
}

fn read_f32(text: &str) -> Option<Value<'_>> {
    float(text).map(Value::Float)
}

fn read_text(text: &str) -> Option<Value<'_>> {
    json::string(text).map(Value::Text)
}

fn read_floats(text: &str) -> Option<Value<'_>> {
    let mut values = Vec::new();
    json::each(text, |element| {
        values.push(float(element)?);
        Some(())
    })?;
    Some(Value::Floats(values))
}

/// Clients fail on `null` in the list, and the list is useless if elements are left out: with a NaN or infinity in it,
/// an empty list is written.
fn write_floats(value: &Value<'_>, out: &mut Vec<u8>) {
    json::put_array(out, finite(value), |out, value| json::put_f32(out, *value));
}

fn read_opt_floats(text: &str) -> Option<Value<'_>> {
    if text == "null" { Some(Value::Unset) } else { read_floats(text) }
}

fn write_opt_floats(value: &Value<'_>, out: &mut Vec<u8>) {
    if finite(value).is_empty() { put_null(value, out) } else { write_floats(value, out) }
}

fn finite<'v>(value: &'v Value<'_>) -> &'v [f32] {
    match value {
        Value::Floats(values) if values.iter().all(|value| value.is_finite()) => values,
        _ => &[],
    }
}

fn read_permille(text: &str) -> Option<Value<'_>> {
    let value = u16::try_from(number(text)?).ok()?;
    Some(Value::Float(f32::from(value) / 1000.0))
}

fn write_permille(value: &Value<'_>, out: &mut Vec<u8>) {
    json::put_int(out, i64::from((value.float() * 1000.0) as u16))
}

fn read_opt_percent(text: &str) -> Option<Value<'_>> {
    match read_opt_int::<0, 0xffff_ffff>(text)? {
        Value::Int(value) => Some(Value::Float(value as f32 / 100.0)),
        _ => Some(Value::Unset),
    }
}

fn write_opt_percent(value: &Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Float(value) => json::put_int(out, i64::from((value * 100.0) as u32)),
        _ => put_null(value, out),
    }
}

pub fn put_null(_: &Value<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"null");
}
