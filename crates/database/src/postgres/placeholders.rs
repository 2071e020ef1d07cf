//! `?` and `?1` as PostgreSQL writes them.

/// The statement with `$1` in place of `?1`, and of the first `?`. Literals, quoted names and comments stay as they are.
pub(super) fn numbered(sql: &str) -> String {
    let mut out = String::with_capacity(sql.len() + 16);
    let mut rest = sql;
    let mut largest = 0;
    while let Some(at) = rest.find(['?', '\'', '"', '-']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let end = match from.as_bytes() {
            [b'?', ..] => {
                let digits = from[1..].bytes().take_while(u8::is_ascii_digit).count();
                let number = from[1..=digits].parse().unwrap_or(largest + 1);
                largest = number.max(largest);
                out.push('$');
                out.push_str(&number.to_string());
                rest = &from[1 + digits..];
                continue;
            }
            [b'-', b'-', ..] => from.find('\n').unwrap_or(from.len()),
            [b'-', ..] => 1,
            // A quote that is doubled ends one literal and begins another.
            [quote, inside @ ..] => {
                let end = inside.iter().position(|byte| byte == quote);
                end.map_or(from.len(), |end| end + 2)
            }
            [] => 0,
        };
        out.push_str(&from[..end]);
        rest = &from[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::numbered;

    #[test]
    fn places_are_numbered_as_sqlite_does_and_nothing_else_is_touched() {
        for (sql, expected) in [
            ("SELECT 1", "SELECT 1"),
            ("VALUES (?, ?, ?)", "VALUES ($1, $2, $3)"),
            ("a = ?2 OR b = ?1 OR c = ?", "a = $2 OR b = $1 OR c = $3"),
            ("a = ?12", "a = $12"),
            (
                "'?' || ? || 'it''s ?' || \"a?\"",
                "'?' || $1 || 'it''s ?' || \"a?\"",
            ),
            ("a - ? -- why?\n+ ?", "a - $1 -- why?\n+ $2"),
            ("- -?", "- -$1"),
            ("'ä?' = ?", "'ä?' = $1"),
            ("'?", "'?"),
        ] {
            assert_eq!(numbered(sql), expected);
        }
    }
}
