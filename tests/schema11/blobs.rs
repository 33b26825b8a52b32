//! Protobuf blobs as JSON objects, so that what is compared is what they say: `other` is JSON whose keys have no order.
//! Written from collection-format.md 4 to 6, and knowing nothing of the code under test.

use serde_json::{Map, Value, json};

#[derive(Clone, Copy)]
pub enum Kind {
    Int,
    Bool,
    F32,
    Text,
    Json,
    Floats,
    Ints,
    Message(&'static [Field]),
    Messages(&'static [Field]),
}
use Kind::*;

type Field = (u64, &'static str, Kind);

/// The messages of a column, if it holds one.
pub fn fields_of(table: &str, column: &str) -> Option<&'static [Field]> {
    Some(match (table, column) {
        ("decks", "common") => COMMON,
        ("decks", "kind") => KIND,
        ("deck_config", "config") => OPTIONS,
        ("notetypes", "config") => NOTETYPE,
        ("fields", "config") => FIELD,
        ("templates", "config") => TEMPLATE,
        _ => return None,
    })
}

const COMMON: &[Field] = &[
    (1, "study_collapsed", Bool),
    (2, "browser_collapsed", Bool),
    (3, "last_day_studied", Int),
    (4, "new_studied", Int),
    (5, "review_studied", Int),
    (6, "learning_studied", Int),
    (7, "milliseconds_studied", Int),
    (255, "other", Json),
];
const KIND: &[Field] = &[(1, "normal", Message(NORMAL)), (2, "filtered", Message(FILTERED))];
const DAY_LIMIT: &[Field] = &[(1, "limit", Int), (2, "today", Int)];
const NORMAL: &[Field] = &[
    (1, "config_id", Int),
    (2, "extend_new", Int),
    (3, "extend_review", Int),
    (4, "description", Text),
    (5, "markdown_description", Bool),
    (6, "review_limit", Int),
    (7, "new_limit", Int),
    (8, "review_limit_today", Message(DAY_LIMIT)),
    (9, "new_limit_today", Message(DAY_LIMIT)),
    (10, "desired_retention", F32),
];
const FILTERED: &[Field] = &[
    (1, "reschedule", Bool),
    (2, "search_terms", Messages(&[(1, "search", Text), (2, "limit", Int), (3, "order", Int)])),
    (3, "delays", Floats),
    (4, "preview_delay", Int),
    (5, "preview_hard_secs", Int),
    (6, "preview_good_secs", Int),
    (7, "preview_again_secs", Int),
];
const OPTIONS: &[Field] = &[
    (1, "learn_steps", Floats),
    (2, "relearn_steps", Floats),
    (3, "fsrs_params_4", Floats),
    (4, "easy_days_percentages", Floats),
    (5, "fsrs_params_5", Floats),
    (6, "fsrs_params_6", Floats),
    (9, "new_per_day", Int),
    (10, "reviews_per_day", Int),
    (11, "initial_ease", F32),
    (12, "easy_multiplier", F32),
    (13, "hard_multiplier", F32),
    (14, "lapse_multiplier", F32),
    (15, "interval_multiplier", F32),
    (16, "maximum_review_interval", Int),
    (17, "minimum_lapse_interval", Int),
    (18, "graduating_interval_good", Int),
    (19, "graduating_interval_easy", Int),
    (20, "new_card_insert_order", Int),
    (21, "leech_action", Int),
    (22, "leech_threshold", Int),
    (23, "disable_autoplay", Bool),
    (24, "cap_answer_time_to_secs", Int),
    (25, "show_timer", Bool),
    (26, "skip_question_when_replaying_answer", Bool),
    (27, "bury_new", Bool),
    (28, "bury_reviews", Bool),
    (29, "bury_interday_learning", Bool),
    (30, "new_mix", Int),
    (31, "interday_learning_mix", Int),
    (32, "new_card_sort_order", Int),
    (33, "review_order", Int),
    (34, "new_card_gather_priority", Int),
    (35, "new_per_day_minimum", Int),
    (36, "question_action", Int),
    (37, "desired_retention", F32),
    (38, "stop_timer_on_answer", Bool),
    (40, "historical_retention", F32),
    (41, "seconds_to_show_question", F32),
    (42, "seconds_to_show_answer", F32),
    (43, "answer_action", Int),
    (44, "wait_for_audio", Bool),
    (45, "param_search", Text),
    (46, "ignore_revlogs_before_date", Text),
    (255, "other", Json),
];
const NOTETYPE: &[Field] = &[
    (1, "kind", Int),
    (2, "sort_field_idx", Int),
    (3, "css", Text),
    (4, "target_deck_id_unused", Int),
    (5, "latex_pre", Text),
    (6, "latex_post", Text),
    (7, "latex_svg", Bool),
    (8, "reqs", Messages(&[(1, "card_ord", Int), (2, "kind", Int), (3, "field_ords", Ints)])),
    (9, "original_stock_kind", Int),
    (10, "original_id", Int),
    (255, "other", Json),
];
const FIELD: &[Field] = &[
    (1, "sticky", Bool),
    (2, "rtl", Bool),
    (3, "font_name", Text),
    (4, "font_size", Int),
    (5, "description", Text),
    (6, "plain_text", Bool),
    (7, "collapsed", Bool),
    (8, "exclude_from_search", Bool),
    (9, "id", Int),
    (10, "tag", Int),
    (11, "prevent_deletion", Bool),
    (255, "other", Json),
];
const TEMPLATE: &[Field] = &[
    (1, "q_format", Text),
    (2, "a_format", Text),
    (3, "q_format_browser", Text),
    (4, "a_format_browser", Text),
    (5, "target_deck_id", Int),
    (6, "browser_font_name", Text),
    (7, "browser_font_size", Int),
    (8, "id", Int),
    (255, "other", Json),
];

/// Decodes a message to JSON. Panics if the bytes are not a protobuf message.
pub fn decode(mut blob: &[u8], fields: &[Field]) -> Value {
    let mut object = Map::new();
    while !blob.is_empty() {
        let tag = varint(&mut blob);
        let (_, name, kind) = *fields.iter().find(|field| field.0 == tag >> 3).expect("a known field");
        let value = match tag & 7 {
            0 => match (varint(&mut blob), kind) {
                (value, Bool) => json!(value != 0),
                (value, _) => json!(value as i64),
            },
            5 => float(&take(&mut blob, 4)),
            2 => {
                let length = varint(&mut blob) as usize;
                delimited(&take(&mut blob, length), kind)
            }
            other => panic!("wire type {other}"),
        };
        if let Messages(_) = kind {
            object.entry(name).or_insert(json!([])).as_array_mut().unwrap().push(value);
        } else {
            object.insert(name.to_owned(), value);
        }
    }
    object.into()
}

fn delimited(mut bytes: &[u8], kind: Kind) -> Value {
    match kind {
        Text => json!(std::str::from_utf8(bytes).unwrap()),
        Json => serde_json::from_slice(bytes).unwrap(),
        Floats => bytes.chunks(4).map(float).collect(),
        Ints => {
            let mut values = Vec::new();
            while !bytes.is_empty() {
                values.push(varint(&mut bytes));
            }
            json!(values)
        }
        Message(fields) | Messages(fields) => decode(bytes, fields),
        Int | Bool | F32 => panic!("a number with a length"),
    }
}

/// The shortest decimal of a single, as vectors have it.
fn float(bytes: &[u8]) -> Value {
    let single = f32::from_le_bytes(bytes.try_into().unwrap());
    json!(single.to_string().parse::<f64>().unwrap())
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn take(bytes: &mut &[u8], count: usize) -> Vec<u8> {
    let (taken, rest) = bytes.split_at(count);
    *bytes = rest;
    taken.to_vec()
}
