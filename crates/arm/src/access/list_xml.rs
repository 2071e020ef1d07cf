//! Lists of ranges as Azure storage has them.

use std::fmt::Write;

use disks::Page;

/// A page of a list: at most `most` ranges of `pages`, and where the next page begins, if there is more.
pub fn list(pages: &[Page], most: usize) -> String {
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"utf-8\"?><PageList>");
    for page in pages.iter().take(most) {
        let (name, range) = match page {
            Page::Data(range) => ("PageRange", range),
            Page::Clear(range) => ("ClearRange", range),
        };
        let (start, end) = (range.start, range.end - 1);
        // Writing to a string does not fail.
        let _ = write!(
            xml,
            "<{name}><Start>{start}</Start><End>{end}</End></{name}>"
        );
    }
    if let Some(Page::Data(next) | Page::Clear(next)) = pages.get(most) {
        let _ = write!(xml, "<NextMarker>{}</NextMarker>", next.start);
    }
    xml.push_str("</PageList>");
    xml
}

/// Text for XML.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no way to write these.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_ends_in_a_marker_when_there_is_more() {
        let pages = [
            Page::Data(0..512),
            Page::Clear(1024..2048),
            Page::Data(4096..8192),
        ];
        assert_eq!(
            list(&pages, 2),
            "<?xml version=\"1.0\" encoding=\"utf-8\"?><PageList><PageRange><Start>0</Start><End>511</End></PageRange>\
             <ClearRange><Start>1024</Start><End>2047</End></ClearRange><NextMarker>4096</NextMarker></PageList>"
        );
        assert!(!list(&pages, 3).contains("Marker"));
        assert_eq!(escaped("<a&\"\u{1}>"), "&lt;a&amp;&quot; &gt;");
    }
}
