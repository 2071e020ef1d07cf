//! Which disks are shown, and in which order.

use crate::column::Column;
use live::{DiskRow, KeyRow};

/// Which disks are shown, and in which order.
#[derive(Debug, Clone)]
pub struct View {
    /// The column by which they are sorted.
    pub sort: Column,
    /// The other way round.
    pub reversed: bool,
    /// What must be in a disk's name, its key's URL, its state or its job, in any case; all disks for nothing.
    pub filter: String,
}

impl View {
    /// All disks, by their names.
    #[cfg(test)]
    pub(crate) fn all() -> Self {
        Self {
            sort: Column::Name,
            reversed: false,
            filter: String::new(),
        }
    }

    /// The disks that are shown, in their order.
    pub(crate) fn of<'a>(&self, rows: &'a [DiskRow]) -> Vec<&'a DiskRow> {
        let filter = self.filter.to_lowercase();
        let mut shown: Vec<_> = rows.iter().filter(|row| matches(row, &filter)).collect();
        shown.sort_by(|one, other| {
            let order = self.sort.compare(one, other);
            if self.reversed {
                order.reverse()
            } else {
                order
            }
        });
        shown
    }

    /// Sorts by the column beside, from left to right or the other way.
    pub(crate) fn next_column(&mut self, forward: bool) {
        let count = Column::ALL.len();
        let at = Column::ALL.iter().position(|column| *column == self.sort);
        let at = at.unwrap_or_default();
        let next = if forward { at + 1 } else { at + count - 1 };
        self.sort = Column::ALL[next % count];
    }
}

fn matches(row: &DiskRow, filter: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(filter);
    let key_has = |key: &KeyRow| has(&key.url);
    filter.is_empty()
        || has(&row.name)
        || has(row.standing.words())
        || row.key.as_ref().is_some_and(key_has)
        || has(&Column::Key.cell(row, 'u'))
        || has(&Column::Job.cell(row, 'u'))
}
