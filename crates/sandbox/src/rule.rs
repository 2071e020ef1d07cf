//! What is printed of a confinement.

use std::borrow::Cow;

/// Something that a confined process may do, or that is kept from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which process.
    pub process: &'static str,
    /// By which means of the kernel it is enforced.
    pub by: &'static str,
    /// What it is, by the kernel's name.
    pub what: Cow<'static, str>,
    /// Whether it is allowed, and with which arguments.
    pub allowed: Cow<'static, str>,
    /// The reason.
    pub why: Cow<'static, str>,
}
