//! Whether a clock is believed that says that something deleted is to be destroyed now.
//!
//! What is purged is gone for good, and a clock that jumps ahead, after a battery died or by a wrong time
//! server, makes all that is deleted due at once. So where the last record of the log is long ago, the
//! end of what is due is put off by a day, in which the clock is most likely put right, or somebody sees
//! that it is wrong. That is noted in the transaction of the next record, whatever it is: after it the
//! last record is not long ago any more. A vault that nobody has used for long waits for that day, too.

use database::Connection;
use time::{Duration, OffsetDateTime};

use crate::VaultError;
use crate::store::{self, DueKind, Retry};

/// No vault that is used goes without a record for so long.
const LONG: Duration = Duration::days(7);
/// For how long an end is put off.
const PUT_OFF: Duration = Duration::DAY;
/// What stands for the vault itself where names of keys do, which are never empty.
pub(crate) const WHOLE_VAULT: &str = "";

/// Whether the end of the deleted key `name`, which is due by the clock, is put off. The caller has a
/// transaction, and commits it.
pub(crate) fn puts_off(
    db: &Connection,
    name: &str,
    now: OffsetDateTime,
) -> Result<bool, VaultError> {
    if let Some(retry) = store::retry(db, DueKind::Purge, name)? {
        // It was begun before.
        if retry.attempts > 0 {
            return Ok(false);
        }
        // What else was noted was by a clock that was put right since, or about an earlier deletion.
        if now < retry.next && retry.next - now <= PUT_OFF {
            return Ok(true);
        }
        if now >= retry.next {
            return Ok(false);
        }
    }
    if !is_doubted(db, now)? {
        return Ok(false);
    }
    log::warn!(
        "the clock says that it is time to destroy the deleted {}; as it also says that nothing was \
         recorded for {} days, which may be wrong, that is put off by a day",
        match name {
            WHOLE_VAULT => "key vault".to_owned(),
            key => format!("key '{key}'"),
        },
        LONG.whole_days()
    );
    let retry = Retry {
        attempts: 0,
        next: now + PUT_OFF,
    };
    store::put_retry(db, DueKind::Purge, name, &retry)?;
    Ok(true)
}

/// Whether the clock may have jumped ahead since the last record.
pub(super) fn is_doubted(db: &Connection, now: OffsetDateTime) -> Result<bool, VaultError> {
    let last = store::last_recorded(db)?;
    Ok(last.is_some_and(|last| now - last > LONG))
}
