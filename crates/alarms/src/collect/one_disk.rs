//! A disk as who has it attached knows it.

use uuid::Uuid;

/// A disk that whoever has it attached looks at. Its state is known there, and to read its maps again would cost what
/// they are long.
#[derive(Debug, Clone, Copy)]
pub struct OneDisk<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its id.
    pub id: Uuid,
    /// The sets and the key versions of its layers, as its header has them.
    pub keys: &'a [(Option<String>, String)],
}
