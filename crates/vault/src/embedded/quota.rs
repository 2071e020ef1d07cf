//! A limit on what one identity may have recorded, so that it neither fills the log nor keeps others
//! from the vault.
//!
//! A vault takes so many records of an identity in [`SPAN`], at once or spread over it; from then on
//! it takes them as they would fit into that time (the generic cell rate algorithm of ATM, ITU-T
//! I.371). A refusal weighs as much as [`REFUSAL`] records. What only counts costs nothing, and the
//! checks of a running disk only count, so that a disk is never refused because of what its identity
//! does besides.

use database::{Connection, params};
use thiserror::Error;
use time::{Duration, OffsetDateTime};

use super::subject::is_essential;
use super::vault::EmbeddedVault;
use crate::audit::{AuditError, AuditRecord};
use crate::{Caller, Origin, VaultError, VaultErrorCode, store};

/// The time that the limit is about; Azure's is about 10 seconds too.
const SPAN: Duration = Duration::seconds(10);
/// What a refusal weighs.
const REFUSAL: i64 = 10;
/// Identities that are kept in mind; those that have asked for nothing in a while are forgotten.
const KNOWN: i64 = 1000;

/// The audit log's name for what was refused because of the limit.
pub(super) const THROTTLED: &str = "Throttled";

/// When an identity over its limit may come again.
#[derive(Debug, Error)]
#[error("the limit is over for {seconds} s")]
pub struct Throttle {
    /// In so many seconds, at least 1.
    pub seconds: u64,
}

impl EmbeddedVault {
    /// Whether the caller may have something recorded now: there is room for it, and it is within the
    /// caller's limit.
    pub(super) fn admit(
        &self,
        db: &Connection,
        caller: &Caller,
        operation: &str,
    ) -> Result<(), VaultError> {
        if caller.origin == Origin::Vault || is_essential(operation) {
            return Ok(());
        }
        if operation != "KeyUnwrap" && self.place.is_spent() {
            return Err(AuditError::Full.into());
        }
        let now = micros(self.clock.now());
        let over = until(db, caller, now)? - now - SPAN_MICROS;
        if over <= 0 {
            return Ok(());
        }
        let seconds = over.unsigned_abs().div_ceil(1_000_000);
        let limit = store::operations_limit(db)?;
        Err(VaultError {
            code: VaultErrorCode::Throttled,
            message: format!(
                "the identity {} has used the key vault '{}' more often than {limit} times in {} s \
                 (a refusal counts as {REFUSAL}); try again in {seconds} s, or raise the limit with \
                 `sealdisk keyvault update {} --operations-limit N`",
                caller.object_id,
                self.name,
                SPAN.whole_seconds(),
                self.name
            ),
            source: Some(Box::new(Throttle { seconds })),
        })
    }

    /// Notes what a record of the caller weighs; `counted` for one that is only counted.
    pub(super) fn charge(
        &self,
        db: &Connection,
        caller: &Caller,
        record: &AuditRecord,
        counted: bool,
    ) -> Result<(), VaultError> {
        let weight = match &record.event.code {
            _ if caller.origin == Origin::Vault || record.event.operation == THROTTLED => 0,
            Some(_) => REFUSAL,
            None if counted => 0,
            None => 1,
        };
        if weight == 0 {
            return Ok(());
        }
        let now = micros(self.clock.now());
        let until = until(db, caller, now)?.max(now) + weight * each(db)?;
        // What is never refused because of the limit comes to no more than what is.
        let until = until.min(most(db, now)?);
        let sql = "INSERT INTO audit_quota (caller, until) VALUES (?, ?) \
                   ON CONFLICT (caller) DO UPDATE SET until = excluded.until";
        db.execute(sql, params![caller.object_id.to_string(), until])?;
        let known: i64 = db.the_value("SELECT count(*) FROM audit_quota", &[])?;
        if known > KNOWN {
            db.execute("DELETE FROM audit_quota WHERE until < ?", params![now])?;
        }
        Ok(())
    }
}

/// [`SPAN`] in microseconds.
const SPAN_MICROS: i64 = SPAN.whole_seconds() * 1_000_000;

/// The identity that is nearest to its limit, and how much of that it has used up, in per cent.
pub(crate) fn busiest(
    db: &Connection,
    now: OffsetDateTime,
) -> Result<Option<(String, u64)>, VaultError> {
    let sql = "SELECT caller, until FROM audit_quota ORDER BY until DESC LIMIT 1";
    let found = db.first(sql, &[], |row| {
        Ok::<_, VaultError>((row.get::<String>(0)?, row.get::<i64>(1)?))
    })?;
    Ok(found.and_then(|(caller, until)| {
        let used = until.saturating_sub(micros(now));
        let percent = used.max(0).unsigned_abs() / (SPAN_MICROS.unsigned_abs() / 100);
        (percent > 0).then_some((caller, percent))
    }))
}

/// What one record takes of the time, in microseconds.
fn each(db: &Connection) -> Result<i64, VaultError> {
    Ok(SPAN_MICROS / store::operations_limit(db)?.max(1))
}

/// Until when what the caller had recorded would have taken, in microseconds since 1970.
///
/// A time that nobody can have got to by now is of a clock that was ahead, and has been put right, or of another host's
/// that is: the caller is at its limit then, and does not wait until that time.
fn until(db: &Connection, caller: &Caller, now: i64) -> Result<i64, VaultError> {
    let sql = "SELECT until FROM audit_quota WHERE caller = ?";
    let found: Option<i64> = db.value(sql, params![caller.object_id.to_string()])?;
    let found = found.unwrap_or(0);
    Ok(match found > most(db, now)? {
        true => now + SPAN_MICROS,
        false => found,
    })
}

/// The last time that anybody can have got to by now: that of one who was at the limit and had something refused.
fn most(db: &Connection, now: i64) -> Result<i64, VaultError> {
    Ok(now + SPAN_MICROS + REFUSAL * each(db)?)
}

fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX)
}
