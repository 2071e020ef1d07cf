//! Numbers of users and groups.

/// A number that can be that of a user or a group: the last one stands for "as it is" (setresuid(2), chown(2)).
///
/// # Errors
/// What is to be said of it.
pub(super) fn id(number: u32) -> Result<u32, String> {
    match number {
        u32::MAX => Err(format!("{number} is the number of no user and no group")),
        id => Ok(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_that_stands_for_no_change_is_refused() {
        assert_eq!(id(0), Ok(0));
        assert_eq!(id(u32::MAX - 1), Ok(u32::MAX - 1));
        assert!(id(u32::MAX).is_err());
    }
}
