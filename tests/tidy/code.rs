//! Rust source as the rules look at it: comments, literals and tests are blanks, at the same offsets.

use crate::read;

/// A source file.
pub struct Code {
    /// From the root of the repository.
    pub path: String,
    /// As it is in the file.
    pub text: String,
    /// The same without comments, the content of literals, and items of `#[cfg(test)]`.
    pub shipped: String,
}

impl Code {
    pub fn load(path: &str) -> Self {
        let text = read(path);
        let shipped = without_tests(&without_comments_and_literals(&text));
        Self {
            path: path.to_owned(),
            text,
            shipped,
        }
    }
}

/// Blanks a range of bytes, but not its line breaks.
fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

fn without_comments_and_literals(text: &str) -> String {
    let source = text.as_bytes();
    let mut bare = source.to_vec();
    let mut at = 0;
    while at < source.len() {
        let (len, keep) = token(source, at);
        // The first and last byte of a literal stay: its quotes.
        let keep = keep.min(len / 2);
        blank(&mut bare[at + keep..at + len - keep]);
        at += len.max(1);
    }
    // What is left of characters of several bytes stands in identifiers, of which there are none here.
    bare.iter_mut()
        .filter(|b| !b.is_ascii())
        .for_each(|b| *b = b' ');
    String::from_utf8(bare).unwrap()
}

/// The length of the comment or literal that begins here, or 0, and how much of both ends is kept.
fn token(source: &[u8], at: usize) -> (usize, usize) {
    let rest = &source[at..];
    let after_name = at > 0 && (source[at - 1].is_ascii_alphanumeric() || source[at - 1] == b'_');
    if rest.starts_with(b"//") {
        (find(rest, b"\n").unwrap_or(rest.len()), 0)
    } else if rest.starts_with(b"/*") {
        (block_comment(rest), 0)
    } else if rest[0] == b'"' {
        (quoted(rest, b'"'), 1)
    } else if rest[0] == b'\'' {
        (character(rest), 1)
    } else if !after_name {
        (raw_string(rest), 0)
    } else {
        (0, 0)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// The length of a literal up to its closing quote.
fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of a character, or 0 for a lifetime.
fn character(rest: &[u8]) -> usize {
    if rest.get(1) == Some(&b'\\') {
        return quoted(rest, b'\'');
    }
    // A character has up to four bytes.
    let end = rest.iter().skip(2).take(4).position(|byte| *byte == b'\'');
    let len = end.map_or(0, |end| end + 3);
    let inside = &rest[1..len.max(2) - 1];
    if std::str::from_utf8(inside).is_ok_and(|text| text.chars().count() == 1) {
        len
    } else {
        0
    }
}

/// The length of `r"…"`, `r#"…"#` and their forms with `b` and `c`, or 0.
fn raw_string(rest: &[u8]) -> usize {
    let prefix = rest.iter().take_while(|byte| b"bcr".contains(byte)).count();
    if prefix == 0 || prefix > 2 || rest[prefix - 1] != b'r' {
        return 0;
    }
    let hashes = rest[prefix..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    let open = prefix + hashes;
    if rest.get(open) != Some(&b'"') {
        return 0;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let end = find(&rest[open + 1..], &close);
    end.map_or(rest.len(), |end| open + 1 + end + close.len())
}

/// Blanks what is compiled for tests only.
fn without_tests(bare: &str) -> String {
    let mut shipped = bare.to_owned().into_bytes();
    let mut from = 0;
    while let Some(at) = ["#[cfg(test)]", "#[cfg(all(test"]
        .iter()
        .filter_map(|attribute| bare[from..].find(attribute))
        .min()
    {
        let begin = from + at;
        let end = end_of_item(bare, begin);
        blank(&mut shipped[begin..end]);
        from = end;
    }
    String::from_utf8(shipped).unwrap()
}

/// Where the item ends whose attributes begin at an offset: at its `;`, or at its closing brace.
fn end_of_item(bare: &str, begin: usize) -> usize {
    let bytes = bare.as_bytes();
    let (mut round, mut depth) = (0, 0);
    for (at, byte) in bytes.iter().enumerate().skip(begin) {
        match byte {
            b'(' | b'[' => round += 1,
            b')' | b']' => round -= 1,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            // A field or a variant ends so too.
            b';' | b',' if round == 0 && depth == 0 => return at + 1,
            _ => {}
        }
    }
    bytes.len()
}
