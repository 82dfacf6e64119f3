//! Text of others on a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// The text without characters that a terminal acts on: control characters, those that turn
/// the direction of writing (Unicode's bidirectional controls) and line separators are
/// written as escapes. A message stays on one line and cannot look like another.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other if acts(other) => {
                write!(out, "{}", other.escape_unicode()).expect("a String takes every text");
            }
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}

fn acts(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{feff}'
            | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_on_is_left() {
        for (text, expected) in [
            ("grüße, 世界 \\ \"x\"", "grüße, 世界 \\ \"x\""),
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}[2J\u{7}\0\u{7f}", "\\u{1b}[2J\\u{7}\\u{0}\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}drow", "\\u{202e}drow"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }
}
