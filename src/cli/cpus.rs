//! Lists of CPUs, as `taskset --cpu-list` takes them.

/// The highest number of a CPU, as Linux can have them at most on x86-64.
const MAX_CPU: u16 = 8191;

/// CPUs in the order in which they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CpuList(Vec<u16>);

impl CpuList {
    /// Takes numbers and ranges with commas between: `0-3,8`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("the range {part} ends before it begins"));
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(format!("CPU {cpu} is named twice"));
                }
                cpus.push(cpu);
            }
        }
        Ok(Self(cpus))
    }

    /// The numbers.
    pub(super) fn into_cpus(self) -> Vec<u16> {
        self.0
    }
}

fn number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(cpu) if cpu <= MAX_CPU => Ok(cpu),
        Ok(cpu) => Err(format!("there is no CPU {cpu}")),
        Err(_) => Err(format!(
            "'{text}' is no number of a CPU; give a list as 0-3,8"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges_are_taken_in_their_order() {
        let parsed = |text| CpuList::parse(text).map(CpuList::into_cpus);
        assert_eq!(parsed("8,0-2"), Ok(vec![8, 0, 1, 2]));
        assert_eq!(parsed("5-5"), Ok(vec![5]));
        for bad in [
            "", ",", "1,", "a", "-1", "1-", "3-1", "0,0-1", "8192", "65536", "0-8191,1",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
