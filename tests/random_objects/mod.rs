//! Random objects as clients send them: valid, with unknown keys, in any order.

use serde_json::{Value, json};

/// xorshift64: enough to be odd, and the same on every machine.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }

    pub fn string(&mut self) -> String {
        let parts = [
            "a",
            "\u{e9}",
            "e\u{301}",
            "::",
            " ",
            "\\",
            "\"",
            "\n",
            "\u{1f}",
            "\u{0}",
            "\u{1f600}",
            "{{c1}}",
            ":",
        ];
        (0..self.below(6)).map(|_| self.pick(&parts)).collect()
    }

    /// A value of the same type and range as one that is known to be valid.
    pub fn like(&mut self, valid: &Value, key: &str) -> Value {
        let flags = ["dyn", "type", "timer", "order", "leechAction", "questionAction"];
        match valid {
            Value::Bool(_) => json!(self.chance(2)),
            Value::String(_) => json!(self.string()),
            Value::Number(n) if n.is_f64() => json!(self.below(4000) as f64 / 1000.0),
            Value::Number(_) if key == "dyn" => valid.clone(),
            Value::Number(_) if flags.contains(&key) => json!(self.below(2)),
            Value::Number(_) if key == "answerAction" => json!(self.below(5)),
            // Beyond these, some values lose one, and some of those (4095) one more on the next pass.
            Value::Number(_) if key == "desiredRetention" => json!(self.below(101)),
            Value::Number(_) if key == "initialFactor" => json!(1000 + 10 * self.below(500)),
            Value::Number(_) if key == "bsize" => json!(self.below(256)),
            Value::Number(_) if self.chance(3) => json!(self.below(60000)),
            Value::Number(_) => json!(self.below(100)),
            Value::Array(items) => items.iter().map(|item| self.like(item, "")).collect(),
            Value::Object(_) => json!({"limit": self.below(99), "today": self.below(99)}),
            Value::Null => Value::Null,
        }
    }

    /// JSON text of something unknown; numbers in forms that no parser keeps.
    pub fn unknown(&mut self, depth: usize) -> String {
        let leaves =
            ["1.50", "1e3", "-0.0", "123456789012345678901234567890", "null", "true", "[ ]", "{ \"a\" : 1 }"];
        match self.below(if depth < 4 { 4 } else { 2 }) {
            0 => self.pick(&leaves).to_owned(),
            1 => json!(self.string()).to_string(),
            2 => format!("[{}, {}]", self.unknown(depth + 1), self.unknown(depth + 1)),
            _ => format!("{{\"k\":{},\"l\": {}}}", self.unknown(depth + 1), self.unknown(depth + 1)),
        }
    }

    /// The text of an object like `valid`, with unknown keys, in any order, some keys twice. Returns also the unknown
    /// ones as `"key":value`, which must come out as they are.
    pub fn object(&mut self, valid: &Value, unknown: &mut Vec<String>) -> String {
        let mut pairs = Vec::new();
        for (key, value) in valid.as_object().unwrap() {
            let value = match (key.as_str(), value) {
                ("tmpls" | "flds", Value::Array(items)) => {
                    let count = self.below(3);
                    let items: Vec<_> = (0..count).map(|_| self.object(&items[0], unknown)).collect();
                    format!("[{}]", items.join(","))
                }
                ("new" | "rev" | "lapse", _) => self.object(value, unknown),
                ("req", _) => value.to_string(),
                ("delays" | "easyDaysPercentages", _) if self.chance(3) => "[]".to_owned(),
                _ => self.like(value, key).to_string(),
            };
            pairs.push(format!("\"{key}\":{value}"));
        }
        for i in 0..self.below(5) {
            let key = if i < 3 { format!("x{i}") } else { String::new() };
            let pair = format!("\"{key}\":{}", self.unknown(0));
            pairs.push(pair.clone());
            unknown.push(pair);
        }
        for i in (1..pairs.len()).rev() {
            pairs.swap(i, self.below(i + 1));
        }
        if self.chance(4) {
            // Superseded by the later one.
            let key = pairs[pairs.len() - 1].split_once(':').unwrap().0.to_owned();
            pairs.insert(0, format!("{key}:{}", self.unknown(0)));
        }
        format!("{{{}}}", pairs.join(if self.chance(2) { "," } else { " ,\n" }))
    }
}

/// A notetype, a normal deck, a filtered one, and deck options, with every key that there is.
pub fn bases() -> [Value; 4] {
    let matrix: Value = serde_json::from_str(include_str!("../vectors/tolerance_matrix.json")).unwrap();
    ["notetype", "deck_normal", "deck_filtered", "config"].map(|name| matrix[name]["base"].clone())
}
