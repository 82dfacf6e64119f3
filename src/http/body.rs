//! How a request's body is delimited (RFC 9112, section 6), and the chunked coding undone.

use super::Problem;

/// Longest line of a chunk's size, its extensions included, and longest trailer section.
const MAX_CHUNK_LINE: usize = 4096;

/// How the body of a request ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After this many bytes.
    Length(usize),
    /// With the last chunk.
    Chunked,
}

/// Undoes the chunked coding piece by piece, whatever the pieces are.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    state: State,
    body: Vec<u8>,
    trailer_bytes: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start of a chunk's size line.
    #[default]
    Size,
    /// Inside a chunk, with so many bytes to come.
    Data(usize),
    /// At the CRLF behind a chunk.
    DataEnd,
    /// Behind the last chunk, at the start of a trailer line.
    Trailer,
}

impl Chunks {
    /// Takes what it can of `input`; returns how much that was and whether the body is complete.
    ///
    /// # Errors
    /// 400 where the coding is broken, 413 beyond `max_body` bytes.
    pub(super) fn decode(
        &mut self,
        input: &[u8],
        max_body: usize,
    ) -> Result<(usize, bool), Problem> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match self.state {
                State::Size => {
                    let Some(line) = line(rest)? else {
                        return Ok((used, false));
                    };
                    // httparse takes a line without any digit for a size of 0.
                    let has_digits = rest[0].is_ascii_hexdigit();
                    let size = match httparse::parse_chunk_size(&rest[..line + 2]) {
                        Ok(httparse::Status::Complete((_, size))) if has_digits => size,
                        _ => {
                            return Err(Problem::new(
                                400,
                                "a chunk does not start with its size in hexadecimal digits",
                            ));
                        }
                    };
                    let size = usize::try_from(size).unwrap_or(usize::MAX);
                    if size > max_body - self.body.len() {
                        return Err(too_large(max_body));
                    }
                    used += line + 2;
                    self.state = if size == 0 {
                        State::Trailer
                    } else {
                        State::Data(size)
                    };
                }
                State::Data(left) => {
                    let taken = left.min(rest.len());
                    self.body.extend_from_slice(&rest[..taken]);
                    used += taken;
                    if taken < left {
                        self.state = State::Data(left - taken);
                        return Ok((used, false));
                    }
                    self.state = State::DataEnd;
                }
                State::DataEnd => match rest {
                    [] | [b'\r'] => return Ok((used, false)),
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        self.state = State::Size;
                    }
                    _ => return Err(Problem::new(400, "a chunk is longer than its size says")),
                },
                State::Trailer => {
                    let Some(line) = line(rest)? else {
                        return Ok((used, false));
                    };
                    used += line + 2;
                    if line == 0 {
                        return Ok((used, true));
                    }
                    // Trailers are read and dropped: nothing here asks for one.
                    self.trailer_bytes += line;
                    if self.trailer_bytes > MAX_CHUNK_LINE {
                        return Err(Problem::new(
                            431,
                            format!("the trailer section has more than {MAX_CHUNK_LINE} bytes"),
                        ));
                    }
                }
            }
        }
    }

    pub(super) fn into_body(self) -> Vec<u8> {
        self.body
    }
}

/// Length of the line at the start of `input`, without its CRLF; `None` when it is not complete.
fn line(input: &[u8]) -> Result<Option<usize>, Problem> {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(at) if at > 0 && input[at - 1] == b'\r' => Ok(Some(at - 1)),
        Some(_) => Err(Problem::new(
            400,
            "a line of the chunked body ends with LF alone; CRLF is required",
        )),
        None if input.len() > MAX_CHUNK_LINE => Err(Problem::new(
            400,
            format!("a line of the chunked body has more than {MAX_CHUNK_LINE} bytes"),
        )),
        None => Ok(None),
    }
}

/// 413.
pub(super) fn too_large(max_body: usize) -> Problem {
    Problem::new(413, format!("the body is longer than {max_body} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8], piece: usize) -> Result<Vec<u8>, Problem> {
        let mut chunks = Chunks::default();
        let mut waiting = Vec::new();
        for bytes in input.chunks(piece) {
            waiting.extend_from_slice(bytes);
            let (used, complete) = chunks.decode(&waiting, 64)?;
            waiting.drain(..used);
            if complete {
                return Ok(chunks.into_body());
            }
        }
        panic!("incomplete: {:?}", String::from_utf8_lossy(input))
    }

    #[test]
    fn any_split_gives_the_same_body() {
        let input = b"5\r\nhello\r\n6;name=value\r\n world\r\n0\r\nTrailer: x\r\n\r\n";
        for piece in 1..=input.len() {
            assert_eq!(decode(input, piece).expect("a body"), b"hello world");
        }
    }

    #[test]
    fn broken_chunks_are_refused() {
        for (input, status) in [
            (&b"5\nhello\r\n0\r\n\r\n"[..], 400),
            (b"x\r\n\r\n", 400),
            (b"-1\r\n\r\n", 400),
            (b"\r\n", 400),
            (b"3\r\nhello\r\n", 400),
            (b"ffffffffffffffffff\r\n", 400),
            (b"fffffffffffffff\r\n", 413),
            (b"41\r\n", 413),
        ] {
            assert_eq!(
                decode(input, 3).expect_err("refused").status,
                status,
                "{:?}",
                String::from_utf8_lossy(input)
            );
        }
    }
}
