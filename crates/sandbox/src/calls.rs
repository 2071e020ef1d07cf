//! System calls, by seccomp: lists of what a process may call, or may not, each with its reason.
//!
//! A filter is made of the same list that is printed, so that neither says what the other does not.

use std::collections::BTreeMap;
use std::fmt::Write;

use rustix::thread::set_no_new_privs;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use crate::SandboxError;
use crate::error::io_error;

/// A system call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number on this machine.
    pub number: i64,
    /// Its name.
    pub name: &'static str,
    /// What must hold of its arguments, all of it.
    pub only: Vec<Only>,
    /// What needs it; or, in a list of what is refused, what it could be used for.
    pub why: &'static str,
}

/// What must hold of an argument, whose lower half is looked at. The first one has number 0.
#[derive(Debug, Clone)]
pub enum Only {
    /// It is one of these values. A call has one of this kind at most.
    OneOf(u8, Vec<(&'static str, u32)>),
    /// None of these bits is set.
    Without(u8, Vec<(&'static str, u32)>),
    /// No other bit than these is set.
    Within(u8, Vec<(&'static str, u32)>),
    /// All of these bits are set.
    With(u8, Vec<(&'static str, u32)>),
    /// At least one of these bits is set. A call has one of this kind, or of the first, at most.
    WithAny(u8, Vec<(&'static str, u32)>),
    /// It is this process, so that no other is reached.
    Oneself(u8),
}

/// System calls by their names in `libc`, with what each is for.
#[macro_export]
macro_rules! listed {
    ($($why:literal: $($name:ident),+;)+) => {
        vec![$($($crate::calls::Call {
            number: libc::$name,
            name: &stringify!($name)[4..],
            only: Vec::new(),
            why: $why,
        }),+),+]
    };
}

/// Name and value of constants of `libc`.
#[macro_export]
macro_rules! named {
    ($($name:ident),+ $(,)?) => { vec![$((stringify!($name), libc::$name as u32)),+] };
}

impl Call {
    /// Adds what must hold of an argument.
    #[must_use]
    pub fn only(mut self, only: Only) -> Self {
        self.only.push(only);
        self
    }

    /// What must hold of its arguments, in words.
    pub fn arguments(&self) -> String {
        let mut text = String::new();
        for only in &self.only {
            let separator = if text.is_empty() { "" } else { "; " };
            // Writing to a string does not fail.
            let _ = write!(text, "{separator}{}", only.in_words());
        }
        text
    }

    fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        let mut always = Vec::new();
        let mut either = Vec::new();
        for only in &self.only {
            match only {
                Only::OneOf(argument, values) => {
                    for (_, value) in values {
                        either.push(equal(*argument, *value)?);
                    }
                }
                Only::Without(argument, bits) => always.push(masked(*argument, mask(bits), 0)?),
                Only::Within(argument, bits) => always.push(masked(*argument, !mask(bits), 0)?),
                Only::With(argument, bits) => {
                    always.push(masked(*argument, mask(bits), mask(bits))?);
                }
                Only::WithAny(argument, bits) => {
                    for (_, bit) in bits {
                        either.push(masked(*argument, *bit, *bit)?);
                    }
                }
                Only::Oneself(argument) => always.push(equal(*argument, std::process::id())?),
            }
        }
        if always.is_empty() && either.is_empty() {
            return Ok(Vec::new());
        }
        if either.is_empty() {
            return Ok(vec![SeccompRule::new(always)?]);
        }
        let with = |one: SeccompCondition| {
            let mut all = always.clone();
            all.push(one);
            SeccompRule::new(all)
        };
        either.into_iter().map(with).collect()
    }
}

impl Only {
    fn in_words(&self) -> String {
        let list = |values: &[(&str, u32)]| {
            let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
            names.join(" ")
        };
        match self {
            Self::OneOf(_, values) => format!("only {}", list(values)),
            Self::Without(_, bits) => format!("without {}", list(bits)),
            Self::Within(_, bits) => format!("nothing but {}", list(bits)),
            Self::With(_, bits) => format!("only with {}", list(bits)),
            Self::WithAny(_, bits) => format!("with any of {}", list(bits)),
            Self::Oneself(_) => "only itself".into(),
        }
    }
}

fn mask(bits: &[(&str, u32)]) -> u32 {
    bits.iter().fold(0, |all, (_, bit)| all | bit)
}

fn equal(argument: u8, value: u32) -> Result<SeccompCondition, BackendError> {
    let (len, is) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
    SeccompCondition::new(argument, len, is, u64::from(value))
}

fn masked(argument: u8, mask: u32, value: u32) -> Result<SeccompCondition, BackendError> {
    let is = SeccompCmpOp::MaskedEq(u64::from(mask));
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, u64::from(value))
}

/// Lets the calling thread, and those that it will start, make these calls and no others for good: all else fails
/// with `EPERM`. `clone3` is as if the kernel did not have it, since no filter sees its flags: a C library then takes
/// `clone`.
///
/// It is not killed for a call that is not listed: a C library that tries a newer call first and falls back must
/// not take a guest's disk away.
///
/// # Errors
/// [`SandboxError::Filter`] or [`SandboxError::Seccomp`].
pub fn allow(calls: &[Call]) -> Result<(), SandboxError> {
    let mut rules = rules(calls)?;
    rules.insert(libc::SYS_clone3, Vec::new());
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let listed = compiled(rules, refuse, SeccompAction::Allow)?;
    apply(&without_clone3()?)?;
    apply(&listed)
}

/// Has these calls fail with `EPERM`, in all threads of this process, for good. `clone3` is as if the kernel did not
/// have it.
///
/// # Errors
/// [`SandboxError::Filter`] or [`SandboxError::Seccomp`].
pub fn refuse(calls: &[Call]) -> Result<(), SandboxError> {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let listed = compiled(rules(calls)?, SeccompAction::Allow, refuse)?;
    set_no_new_privs(true).map_err(io_error("give up new privileges"))?;
    for program in [without_clone3()?, listed] {
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

fn without_clone3() -> Result<BpfProgram, BackendError> {
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = [(libc::SYS_clone3, Vec::new())].into();
    compiled(clone3, SeccompAction::Allow, absent)
}

fn rules(calls: &[Call]) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let rule = |call: &Call| Ok((call.number, call.rules()?));
    calls.iter().map(rule).collect()
}

/// `listed` becomes of a call that is among the rules, `others` of every other one.
fn compiled(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    others: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, others, listed, arch)?.try_into()
}

fn apply(program: &BpfProgram) -> Result<(), SandboxError> {
    set_no_new_privs(true).map_err(io_error("give up new privileges"))?;
    Ok(seccompiler::apply_filter(program)?)
}
