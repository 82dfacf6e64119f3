//! Paths and queries: percent-encoding (RFC 3986, section 2.1).

use super::Problem;

/// Decodes `%XX`. A `+` stays a plus: only queries write a space that way.
///
/// # Errors
/// 400 when an escape is incomplete or the result is not UTF-8.
pub fn percent_decode(text: &str) -> Result<String, Problem> {
    decode(text, false)
}

/// The names and values of a query, decoded, in order.
///
/// # Errors
/// 400 when an escape is incomplete or the result is not UTF-8.
pub fn query_pairs(query: &str) -> Result<Vec<(String, String)>, Problem> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| Ok((decode(name, true)?, decode(value, true)?)))
        .collect()
}

fn decode(text: &str, plus_is_space: bool) -> Result<String, Problem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match first {
            b'%' => {
                let [high, low, after @ ..] = rest else {
                    return Err(incomplete(text));
                };
                let (Some(high), Some(low)) = (hex(*high), hex(*low)) else {
                    return Err(incomplete(text));
                };
                bytes.push(high << 4 | low);
                rest = after;
            }
            b'+' if plus_is_space => bytes.push(b' '),
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).map_err(|_| {
        Problem::new(
            400,
            format!("{text:?} is not UTF-8 once its percent-encoding is undone"),
        )
    })
}

fn incomplete(text: &str) -> Problem {
    Problem::new(
        400,
        format!(
            "a % in {text:?} is not followed by two hexadecimal digits; write %25 for a percent sign"
        ),
    )
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_after_the_split() {
        assert_eq!(percent_decode("a%2Fb%20c+d").expect("a name"), "a/b c+d");
        assert_eq!(percent_decode("%C3%BC").expect("a name"), "ü");
        let pairs = query_pairs("a=1+2&&b&c=%26").expect("a query");
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(pairs, [("a", "1 2"), ("b", ""), ("c", "&")]);
    }

    #[test]
    fn broken_escapes_are_refused() {
        for text in ["%", "%1", "%zz", "a%f", "%ff", "%C3"] {
            assert_eq!(percent_decode(text).expect_err(text).status, 400);
        }
    }
}
