//! The CPUs that the queues of a disk run on.

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::error::AttachError;

/// Sees that this process, and so its data plane, may run on each of `cpus`.
///
/// # Errors
/// [`AttachError::Cpu`].
pub(crate) fn check(cpus: &[u16]) -> Result<(), AttachError> {
    // What the kernel does not tell is found out when a queue starts, which goes on elsewhere then.
    let Ok(allowed) = sched_getaffinity(None) else {
        return Ok(());
    };
    let may_run_on = |cpu: usize| cpu < CpuSet::MAX_CPU && allowed.is_set(cpu);
    match cpus.iter().find(|cpu| !may_run_on(usize::from(**cpu))) {
        None => Ok(()),
        Some(cpu) => Err(AttachError::Cpu {
            cpu: *cpu,
            allowed: in_words((0..CpuSet::MAX_CPU).filter(|cpu| may_run_on(*cpu))),
        }),
    }
}

/// Numbers as ranges: `0-3,8`.
fn in_words(cpus: impl Iterator<Item = usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let words = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    words.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_a_range() {
        for (cpus, words) in [
            (vec![], ""),
            (vec![3], "3"),
            (vec![0, 1, 2, 8, 10, 11], "0-2,8,10-11"),
        ] {
            assert_eq!(in_words(cpus.into_iter()), words);
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        assert!(check(&[]).is_ok());
        for cpu in [1023, 1024, u16::MAX] {
            assert!(
                matches!(check(&[cpu]), Err(AttachError::Cpu { cpu: found, .. }) if found == cpu)
            );
        }
    }
}
