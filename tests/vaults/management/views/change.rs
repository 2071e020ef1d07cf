//! Changes, and who makes them.

/// Who makes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Api,
    CommandLine,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Disk,
    Snapshot,
    Image,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Disk, Self::Snapshot, Self::Image];

    /// To the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Snapshot => "snapshot",
            Self::Image => "image",
        }
    }

    /// To the API.
    pub fn words(self) -> &'static str {
        match self {
            Self::Disk => "disks",
            Self::Snapshot => "snapshots",
            Self::Image => "images",
        }
    }
}

/// A key of the one vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    One,
    Two,
}

impl Key {
    pub const ALL: [Self; 2] = [Self::One, Self::Two];

    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Two => "two",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    PutGroup {
        name: String,
        tag: String,
    },
    DeleteGroup {
        name: String,
    },
    CreateSet {
        name: String,
        group: String,
        key: Key,
        twice: bool,
    },
    MoveSet {
        name: String,
        key: Key,
    },
    DeleteSet {
        name: String,
    },
    Grant {
        set: String,
        on: bool,
    },
    Enable {
        key: Key,
        on: bool,
    },
    Rotate {
        key: Key,
    },
    CreateDisk {
        name: String,
        group: String,
        size: u64,
        set: Option<String>,
    },
    /// A disk of a snapshot or an image, or one of those of a disk, or an image of a snapshot.
    Copy {
        kind: Kind,
        name: String,
        group: String,
        of: (Kind, String),
    },
    Resize {
        name: String,
        size: u64,
    },
    Move {
        kind: Kind,
        name: String,
        set: Option<String>,
    },
    Tag {
        kind: Kind,
        name: String,
        tag: String,
    },
    Delete {
        kind: Kind,
        name: String,
    },
}

impl Change {
    /// Whether the command line has none like it.
    pub fn is_of_api_alone(&self) -> bool {
        matches!(
            self,
            Self::PutGroup { .. } | Self::DeleteGroup { .. } | Self::Tag { .. }
        )
    }
}
