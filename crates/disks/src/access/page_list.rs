//! Which parts of a disk have data, or changed.

use std::ops::Range;

/// Pages of a list. One that would have more says less exactly what is data.
const MOST: usize = 1 << 16;
/// How far apart two ranges may be that become one then, at first.
const GAP: u64 = 64 << 10;

/// A range of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// It has data, or may have.
    Data(Range<u64>),
    /// It had data, and is a hole now.
    Clear(Range<u64>),
}

/// Ranges in order, of bytes.
///
/// Of a list of too many ranges those that are near to each other become one, with what is between them: whoever reads
/// it finds zeros there, or what did not change.
#[derive(Debug)]
pub struct PageList {
    pages: Vec<Page>,
    /// How far apart two ranges may be that become one.
    gap: u64,
    most: usize,
}

impl Default for PageList {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            gap: 0,
            most: MOST,
        }
    }
}

impl PageList {
    /// Adds a range, which is not before the last one.
    pub(super) fn add(&mut self, page: Page) {
        let (Page::Data(range) | Page::Clear(range)) = &page;
        if range.is_empty() {
            return;
        }
        let page = match page {
            // A hole between two ranges that became one is read as zeros.
            Page::Clear(range) if self.gap > 0 => Page::Data(range),
            page => page,
        };
        match (self.pages.last_mut(), &page) {
            (Some(Page::Data(last)), Page::Data(next)) if next.start <= last.end + self.gap => {
                last.end = last.end.max(next.end);
            }
            (Some(Page::Clear(last)), Page::Clear(next)) if next.start <= last.end => {
                last.end = last.end.max(next.end);
            }
            _ => self.pages.push(page),
        }
        while self.pages.len() > self.most {
            self.gap = (self.gap * 2).max(GAP);
            for page in std::mem::take(&mut self.pages) {
                self.add(page);
            }
        }
    }

    /// The ranges.
    pub fn into_pages(self) -> Vec<Page> {
        self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(most: usize, pages: &[Page]) -> Vec<Page> {
        let mut list = PageList {
            most,
            ..PageList::default()
        };
        for page in pages {
            list.add(page.clone());
        }
        list.into_pages()
    }

    #[test]
    fn neighbours_are_one_range() {
        use Page::{Clear, Data};
        let pages = [
            Data(0..512),
            Data(512..1024),
            Clear(1024..1536),
            Clear(1536..2048),
            Data(4096..4096),
        ];
        assert_eq!(listed(MOST, &pages), [Data(0..1024), Clear(1024..2048)]);
    }

    #[test]
    fn a_list_that_grows_too_long_covers_what_it_did() {
        let every = |n: u64| Page::Data(n * 8192..n * 8192 + 4096);
        let pages: Vec<_> = (0..1000).map(every).collect();
        assert_eq!(listed(1000, &pages).len(), 1000);
        assert_eq!(listed(999, &pages), [Page::Data(0..999 * 8192 + 4096)]);
        let far: Vec<_> = (0..1000)
            .map(|n| Page::Data(n << 20..(n << 20) + 1))
            .collect();
        let found = listed(16, &far);
        assert!(found.len() <= 16);
        assert!(matches!(&found[0], Page::Data(range) if range.start == 0));
        assert!(matches!(found.last(), Some(Page::Data(range)) if range.end == (999 << 20) + 1));
        let holes = [
            Page::Data(0..1),
            Page::Clear(1 << 30..(1 << 30) + 1),
            Page::Data(1 << 40..(1 << 40) + 1),
        ];
        assert!(
            listed(2, &holes)
                .iter()
                .all(|page| matches!(page, Page::Data(_)))
        );
    }
}
