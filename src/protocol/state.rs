//! A feed's state: any JSON value, and when two of them are the same.

use serde::de::Error as _;
use serde_json::{Map, Number, Value};

/// Deepest nesting of arrays and objects. The parser reads 127 levels, and what is derived
/// from a state must be read again although it has some more.
const MAX_DEPTH: usize = 100;

/// Any JSON value: its text without insignificant white space, otherwise as its publisher
/// wrote it, down to the order of keys and the digits of numbers.
#[derive(Debug, Clone)]
pub struct State {
    text: String,
    value: Value,
    /// It has a number of which the value is only the nearest double.
    inexact: bool,
}

impl State {
    /// Reads JSON.
    ///
    /// # Errors
    /// Tells line and column of what is not JSON, or that it is nested too deep: 100 levels
    /// are allowed.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let value = serde_json::from_slice(json)?;
        let json = str::from_utf8(json).expect("the parser has seen that it is UTF-8");
        let Compact {
            text,
            depth,
            inexact,
        } = compact(json);
        if depth > MAX_DEPTH {
            return Err(serde_json::Error::custom(format!(
                "arrays and objects are nested {depth} deep, {MAX_DEPTH} levels are allowed"
            )));
        }
        Ok(Self {
            text,
            value,
            inexact,
        })
    }

    /// The JSON text, in one line.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The JSON text alone.
    pub fn into_text(self) -> String {
        self.text
    }

    /// The value.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// Whether this JSON text is the same value: the order of keys, white space and the
    /// notation of strings and numbers don't matter. Of a key that is there twice the last
    /// counts. With a number that neither 64 bits nor a double hold exactly, only the same text
    /// is the same.
    pub fn is_same(&self, other: &str) -> bool {
        self.text == other
            || !self.inexact
                && Self::parse(other.as_bytes())
                    .is_ok_and(|other| !other.inexact && same(&self.value, &other.value))
    }
}

impl From<Value> for State {
    fn from(value: Value) -> Self {
        Self {
            text: value.to_string(),
            value,
            inexact: false,
        }
    }
}

/// A JSON text without white space, and what is seen on the way.
struct Compact {
    text: String,
    /// Levels of arrays and objects.
    depth: usize,
    inexact: bool,
}

/// Takes the white space out of a valid JSON text, but for that in strings.
fn compact(json: &str) -> Compact {
    let mut text = String::with_capacity(json.len());
    let (mut in_string, mut escaped, mut start) = (false, false, 0);
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut inexact, mut number) = (false, None);
    for (at, byte) in json.bytes().enumerate() {
        let is_of_number = matches!(byte, b'0'..=b'9' | b'.' | b'+' | b'-' | b'e' | b'E');
        if in_string || !is_of_number {
            if let Some(begin) = number.take() {
                inexact |= is_inexact(&json[begin..at]);
            }
        } else if byte == b'-' || byte.is_ascii_digit() {
            number.get_or_insert(at);
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b' ' | b'\t' | b'\n' | b'\r' if !in_string => {
                text.push_str(&json[start..at]);
                start = at + 1;
            }
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth -= 1,
            _ => {}
        }
    }
    text.push_str(&json[start..]);
    inexact |= number.is_some_and(|begin| is_inexact(json[begin..].trim_end()));
    Compact {
        text,
        depth: deepest,
        inexact,
    }
}

/// Whether a number has more digits than its value holds: 17 are enough for every double.
fn is_inexact(number: &str) -> bool {
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    digits > 17 && number.parse::<i64>().is_err() && number.parse::<u64>().is_err()
}

fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => same_number(one, other),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => same_object(one, other),
        _ => one == other,
    }
}

/// [`State::is_same`] for two objects.
pub(crate) fn same_object(one: &Map<String, Value>, other: &Map<String, Value>) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .all(|(key, one)| other.get(key).is_some_and(|other| same(one, other)))
}

/// 1 is 1.0, but no integer is a double that merely is the nearest to it.
fn same_number(one: &Number, other: &Number) -> bool {
    match (one.as_i128(), other.as_i128()) {
        (Some(one), Some(other)) => one == other,
        (None, None) => one.as_f64() == other.as_f64(),
        (Some(integer), None) => is_integer(other, integer),
        (None, Some(integer)) => is_integer(one, integer),
    }
}

fn is_integer(double: &Number, integer: i128) -> bool {
    double
        .as_f64()
        .is_some_and(|double| double.fract() == 0.0 && double as i128 == integer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(json: &str) -> State {
        State::parse(json.as_bytes()).expect(json)
    }

    #[test]
    fn the_text_is_the_publisher_s_without_its_white_space() {
        for (json, text) in [
            (
                " {\"b\" : 1.10,\r\n\t\"a\":[ 1 , 2 ]}\n",
                r#"{"b":1.10,"a":[1,2]}"#,
            ),
            (r#"["a  \" b", "\\" ]"#, r#"["a  \" b","\\"]"#),
            ("  12345678901234567890123 ", "12345678901234567890123"),
            (r#" "é \u00e9" "#, r#""é \u00e9""#),
        ] {
            assert_eq!(state(json).as_str(), text);
        }
        assert_eq!(
            State::from(serde_json::json!({"a": [1]})).as_str(),
            r#"{"a":[1]}"#
        );
    }

    #[test]
    fn the_same_value_in_another_notation_is_no_change() {
        for (one, other) in [
            (r#"{"a":1,"b":[{"c":null}]}"#, r#"{"b":[{"c":null}],"a":1}"#),
            (r#""é""#, r#""\u00e9""#),
            ("1", "1.0"),
            ("100", "1e2"),
            ("0", "-0.0"),
            (
                r#"{"a":1795643642123456789,"b":"12345678901234567890123"}"#,
                r#"{"b":"12345678901234567890123","a":1795643642123456789}"#,
            ),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
        ] {
            assert!(state(one).is_same(other), "{one} {other}");
            assert!(state(other).is_same(one), "{other} {one}");
        }
    }

    #[test]
    fn another_value_is_a_change() {
        for (one, other) in [
            ("[1,2]", "[2,1]"),
            ("[1]", "[1,1]"),
            ("1", r#""1""#),
            ("null", "0"),
            (r#"{"a":1}"#, r#"{"a":1,"b":null}"#),
            (r#"{"a":null}"#, r#"{"b":null}"#),
            ("9007199254740993", "9007199254740992.0"),
            ("18446744073709551615", "-1"),
            ("0.1", "0.2"),
            (r#""a ""#, r#""a""#),
            ("12345678901234567890123", "12345678901234567890124"),
            ("[0.12345678901234567890]", "[0.12345678901234567891]"),
            ("18446744073709551615", "18446744073709551614"),
        ] {
            assert!(!state(one).is_same(other), "{one} {other}");
            assert!(!state(other).is_same(one), "{other} {one}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_with_its_place() {
        for json in ["", "{", "1 2", "nul", "{'a':1}", "\u{feff}1", r#""\ud800""#] {
            let error = State::parse(json.as_bytes()).expect_err(json).to_string();
            assert!(error.contains("line"), "{error}");
        }
        assert!(State::parse(b"\"\xff\"").is_err());
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(State::parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        for depth in [MAX_DEPTH + 1, 127, 128, 100_000] {
            assert!(State::parse(nested(depth).as_bytes()).is_err(), "{depth}");
        }
        // Brackets in strings nest nothing.
        let text = format!("{:?}", nested(MAX_DEPTH + 1));
        assert!(State::parse(text.as_bytes()).is_ok());
    }
}
