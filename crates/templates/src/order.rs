//! In which order resources are made.

use std::collections::BTreeSet;

/// The resources, each after those that it depends on and otherwise as they stand in the template; or a circle.
pub(crate) fn order(dependencies: &[BTreeSet<usize>]) -> Result<Vec<usize>, Vec<usize>> {
    let mut waits: Vec<_> = dependencies.iter().map(BTreeSet::len).collect();
    let mut waiting = vec![Vec::new(); dependencies.len()];
    for (at, all) in dependencies.iter().enumerate() {
        for on in all {
            waiting[*on].push(at);
        }
    }
    let ready = |(at, count): (usize, &usize)| (*count == 0).then_some(at);
    let mut free: BTreeSet<usize> = waits.iter().enumerate().filter_map(ready).collect();
    let mut ordered = Vec::with_capacity(dependencies.len());
    while let Some(at) = free.pop_first() {
        ordered.push(at);
        for next in &waiting[at] {
            waits[*next] -= 1;
            if waits[*next] == 0 {
                free.insert(*next);
            }
        }
    }
    if ordered.len() == dependencies.len() {
        Ok(ordered)
    } else {
        Err(circle(dependencies, &waits))
    }
}

/// Who waits for one who waits: whoever comes up again closes a circle.
fn circle(dependencies: &[BTreeSet<usize>], waits: &[usize]) -> Vec<usize> {
    let mut way: Vec<usize> = Vec::new();
    let mut next = waits.iter().position(|count| *count > 0);
    while let Some(at) = next {
        if let Some(begin) = way.iter().position(|seen| *seen == at) {
            return way.split_off(begin);
        }
        way.push(at);
        next = dependencies[at].iter().copied().find(|on| waits[*on] > 0);
    }
    way
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(lists: &[&[usize]]) -> Vec<BTreeSet<usize>> {
        lists
            .iter()
            .map(|list| list.iter().copied().collect())
            .collect()
    }

    #[test]
    fn what_is_depended_on_comes_first_and_the_rest_as_written() {
        assert_eq!(order(&sets(&[&[2], &[], &[3], &[]])), Ok(vec![1, 3, 2, 0]));
    }

    #[test]
    fn a_diamond_is_no_circle() {
        let diamond = sets(&[&[1, 2], &[3], &[3], &[]]);
        assert_eq!(order(&diamond), Ok(vec![3, 1, 2, 0]));
    }

    #[test]
    fn a_circle_is_told_without_what_leads_there() {
        let sets = sets(&[&[1], &[2], &[3], &[1], &[]]);
        assert_eq!(order(&sets), Err(vec![1, 2, 3]));
        assert_eq!(order(&[BTreeSet::from([0])]), Err(vec![0]));
    }
}
