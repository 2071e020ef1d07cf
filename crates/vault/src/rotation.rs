//! Rotation policies of keys, in the form that the Azure Key Vault API has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde::{Deserializer, Serializer};
use time::{Duration, Month, OffsetDateTime};

use super::{VaultError, VaultErrorCode};

/// Azure's shortest life of a version that a policy may give.
const MIN_EXPIRY: Period = Period {
    months: 0,
    days: 28,
};
/// Azure's shortest time before expiry or after creation.
const MIN_TRIGGER: Period = Period { months: 0, days: 7 };

/// When a key gets a new version by itself, and how long its versions live.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationPolicy {
    /// What happens in the life of a version.
    #[serde(default)]
    pub lifetime_actions: Vec<LifetimeAction>,
    /// What new versions get.
    #[serde(default)]
    pub attributes: RotationAttributes,
}

/// Something that happens at a time in the life of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LifetimeAction {
    /// When.
    pub trigger: RotationTrigger,
    /// What.
    pub action: RotationAction,
}

/// A time in the life of a version; one of the two is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationTrigger {
    /// So long after the version was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_after_create: Option<Period>,
    /// So long before the version expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_before_expiry: Option<Period>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationAction {
    /// Of what kind.
    #[serde(rename = "type")]
    pub kind: RotationActionKind,
}

/// The kinds of actions. Clients write them in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotationActionKind {
    /// A new version is made.
    Rotate,
    /// Somebody is told; this vault only keeps it.
    Notify,
}

/// What new versions get, and when the policy was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RotationAttributes {
    /// How long a new version may be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expiry_time: Option<Period>,
    /// When the policy was made first.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::timestamp::option"
    )]
    pub created: Option<OffsetDateTime>,
    /// When it was changed last.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "time::serde::timestamp::option"
    )]
    pub updated: Option<OffsetDateTime>,
}

impl Default for RotationPolicy {
    /// What Azure shows for a key that was given none: a note 30 days before expiry.
    fn default() -> Self {
        Self {
            lifetime_actions: vec![LifetimeAction {
                trigger: RotationTrigger {
                    time_after_create: None,
                    time_before_expiry: Some(Period::days(30)),
                },
                action: RotationAction {
                    kind: RotationActionKind::Notify,
                },
            }],
            attributes: RotationAttributes::default(),
        }
    }
}

impl RotationPolicy {
    /// Checks a policy by Azure's rules.
    pub(super) fn check(&self) -> Result<(), VaultError> {
        let expiry = self.attributes.expiry_time;
        if expiry.is_some_and(|expiry| expiry.is_shorter_than(MIN_EXPIRY)) {
            return Err(bad("expiryTime is shorter than 28 days (P28D)"));
        }
        let of_kind = |kind| {
            let actions = self.lifetime_actions.iter();
            actions.filter(move |a| a.action.kind == kind).count()
        };
        let kinds = [RotationActionKind::Rotate, RotationActionKind::Notify];
        if kinds.into_iter().any(|kind| of_kind(kind) > 1) {
            return Err(bad("there is more than one action of a kind"));
        }
        self.lifetime_actions
            .iter()
            .try_for_each(|action| action.check(expiry))
    }

    /// When a version that was made at `created` and expires at `expires` is to be followed by
    /// another; `None` when nothing is due ever.
    pub(super) fn rotates_at(
        &self,
        created: OffsetDateTime,
        expires: Option<OffsetDateTime>,
    ) -> Option<OffsetDateTime> {
        let rotate = self
            .lifetime_actions
            .iter()
            .find(|action| action.action.kind == RotationActionKind::Rotate)?;
        match &rotate.trigger {
            RotationTrigger {
                time_after_create: Some(period),
                ..
            } => period.after(created),
            RotationTrigger {
                time_before_expiry: Some(period),
                ..
            } => period.before(expires?),
            _ => None,
        }
    }

    /// When a version that is made at `created` expires.
    pub(super) fn expires_at(&self, created: OffsetDateTime) -> Option<OffsetDateTime> {
        self.attributes.expiry_time?.after(created)
    }
}

impl LifetimeAction {
    fn check(&self, expiry: Option<Period>) -> Result<(), VaultError> {
        let (period, name) = match (
            self.trigger.time_after_create,
            self.trigger.time_before_expiry,
        ) {
            (Some(period), None) => (period, "timeAfterCreate"),
            (None, Some(period)) => (period, "timeBeforeExpiry"),
            _ => {
                return Err(bad(
                    "a trigger needs one of timeAfterCreate and timeBeforeExpiry",
                ));
            }
        };
        if period.is_shorter_than(MIN_TRIGGER) {
            return Err(bad(format!("{name} is shorter than 7 days (P7D)")));
        }
        let rotates = self.action.kind == RotationActionKind::Rotate;
        if !rotates && self.trigger.time_after_create.is_some() {
            return Err(bad("a Notify action takes timeBeforeExpiry only"));
        }
        match expiry {
            None if rotates && self.trigger.time_before_expiry.is_some() => Err(bad(
                "a Rotate action with timeBeforeExpiry needs attributes.expiryTime",
            )),
            Some(expiry) if !period.is_shorter_than(expiry) => Err(bad(format!(
                "{name} is not shorter than attributes.expiryTime"
            ))),
            _ => Ok(()),
        }
    }
}

/// A length of time in whole days, as the calendar has them: `P90D`, `P1Y6M`, `P2W` (ISO 8601).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period {
    months: u32,
    days: u32,
}

impl Period {
    /// That many days.
    pub const fn days(days: u32) -> Self {
        Self { months: 0, days }
    }

    /// The moment so long after `time`; `None` beyond what a calendar can tell. A month that has no
    /// such day ends earlier.
    fn after(self, time: OffsetDateTime) -> Option<OffsetDateTime> {
        add_months(time, i64::from(self.months))?.checked_add(Duration::days(self.days.into()))
    }

    /// The moment so long before `time`.
    fn before(self, time: OffsetDateTime) -> Option<OffsetDateTime> {
        add_months(time, -i64::from(self.months))?.checked_sub(Duration::days(self.days.into()))
    }

    /// Compares with months of the shortest length, which is what a minimum has to go by.
    fn is_shorter_than(self, other: Self) -> bool {
        let shortest = |period: Self| u64::from(period.months) * 28 + u64::from(period.days);
        shortest(self) < shortest(other)
    }
}

fn add_months(time: OffsetDateTime, months: i64) -> Option<OffsetDateTime> {
    let month = i64::from(time.year()) * 12 + i64::from(u8::from(time.month())) - 1 + months;
    let year = i32::try_from(month.div_euclid(12)).ok()?;
    let month = Month::try_from(u8::try_from(month.rem_euclid(12)).ok()? + 1).ok()?;
    let day = time.day().min(month.length(year));
    let date = time::Date::from_calendar_date(year, month, day).ok()?;
    Some(time.replace_date(date))
}

impl FromStr for Period {
    type Err = VaultError;

    fn from_str(text: &str) -> Result<Self, VaultError> {
        let refuse = || {
            let text: String = text.chars().take(32).collect();
            bad(format!(
                "'{text}' is no length of time in days, months or years; write it as P90D, P3M or \
                 P1Y6M"
            ))
        };
        let mut rest = text.strip_prefix('P').ok_or_else(refuse)?;
        let mut period = Self { months: 0, days: 0 };
        let mut units = [
            ("Y", 12, true),
            ("M", 1, true),
            ("W", 7, false),
            ("D", 1, false),
        ]
        .into_iter();
        if rest.is_empty() {
            return Err(refuse());
        }
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(refuse)?;
            let number: u32 = rest[..digits].parse().map_err(|_| refuse())?;
            rest = &rest[digits..];
            // Units come in this order, each once.
            let (unit, factor, in_months) = units
                .find(|(unit, ..)| rest.starts_with(unit))
                .ok_or_else(refuse)?;
            rest = &rest[unit.len()..];
            let sum = match in_months {
                true => &mut period.months,
                false => &mut period.days,
            };
            let more = number.checked_mul(factor).ok_or_else(refuse)?;
            *sum = sum.checked_add(more).ok_or_else(refuse)?;
        }
        Ok(period)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("P")?;
        let (years, months) = (self.months / 12, self.months % 12);
        for (number, unit) in [(years, 'Y'), (months, 'M'), (self.days, 'D')] {
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        match (self.months, self.days) {
            (0, 0) => f.write_str("0D"),
            _ => Ok(()),
        }
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for RotationActionKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            Self::Rotate => "Rotate",
            Self::Notify => "Notify",
        })
    }
}

impl<'de> Deserialize<'de> for RotationActionKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.to_ascii_lowercase().as_str() {
            "rotate" => Ok(Self::Rotate),
            "notify" => Ok(Self::Notify),
            _ => Err(serde::de::Error::unknown_variant(
                &text,
                &["Rotate", "Notify"],
            )),
        }
    }
}

fn bad(what: impl fmt::Display) -> VaultError {
    VaultError::new(
        VaultErrorCode::BadParameter,
        format!("the rotation policy is not acceptable: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use time::macros::datetime;

    fn policy(json: &str) -> Result<RotationPolicy, VaultError> {
        let policy: RotationPolicy = serde_json::from_str(json).unwrap();
        policy.check().map(|()| policy)
    }

    #[test]
    fn periods_are_read_and_follow_the_calendar() {
        for (text, shown) in [
            ("P90D", "P90D"),
            ("P1Y6M10D", "P1Y6M10D"),
            ("P18M", "P1Y6M"),
            ("P2W", "P14D"),
            ("P0D", "P0D"),
        ] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), shown);
        }
        for bad in [
            "",
            "P",
            "90D",
            "PD",
            "P1D1M",
            "P1M1M",
            "PT1H",
            "P-1D",
            "P1.5Y",
            "P99999999999D",
        ] {
            assert!(bad.parse::<Period>().is_err(), "{bad}");
        }
        let after = |text: &str, time| text.parse::<Period>().unwrap().after(time).unwrap();
        let start = datetime!(2027-01-31 12:00 UTC);
        assert_eq!(after("P1M", start), datetime!(2027-02-28 12:00 UTC));
        assert_eq!(after("P1Y1M", start), datetime!(2028-02-29 12:00 UTC));
        assert_eq!(after("P30D", start), datetime!(2027-03-02 12:00 UTC));
        let before: Period = "P2M".parse().unwrap();
        let time = datetime!(2027-01-31 12:00 UTC);
        assert_eq!(
            before.before(time).unwrap(),
            datetime!(2026-11-30 12:00 UTC)
        );
        assert_eq!(Period::days(u32::MAX).after(start), None);
        assert_eq!("P999999Y".parse::<Period>().unwrap().after(start), None);
    }

    #[test]
    fn azures_policies_are_read_and_its_rules_kept() {
        let valid = r#"{"lifetimeActions":[
            {"trigger":{"timeAfterCreate":"P60D"},"action":{"type":"rotate"}},
            {"trigger":{"timeBeforeExpiry":"P30D"},"action":{"type":"Notify"}}],
            "attributes":{"expiryTime":"P90D"}}"#;
        let policy_read = policy(valid).unwrap();
        let made = datetime!(2027-01-01 0:00 UTC);
        let rotates = policy_read.rotates_at(made, None).unwrap();
        assert_eq!(rotates, datetime!(2027-03-02 0:00 UTC));
        let expires = policy_read.expires_at(made).unwrap();
        assert_eq!(expires, datetime!(2027-04-01 0:00 UTC));
        let text = serde_json::to_string(&policy_read).unwrap();
        assert_eq!(policy(&text).unwrap(), policy_read);
        assert_eq!(
            RotationPolicy::default().rotates_at(made, Some(expires)),
            None
        );

        let before = policy(&valid.replace("timeAfterCreate", "timeBeforeExpiry")).unwrap();
        assert_eq!(
            before.rotates_at(made, None),
            None,
            "no expiry, no rotation"
        );
        let rotates = before.rotates_at(made, Some(expires)).unwrap();
        assert_eq!(rotates, datetime!(2027-01-31 0:00 UTC));
        for (from, to) in [
            ("P90D", "P27D"),
            ("P60D", "P6D"),
            ("P60D", "P90D"),
            ("Notify", "Rotate"),
            (r#""timeBeforeExpiry":"P30D""#, ""),
            (r#""timeBeforeExpiry""#, r#""timeAfterCreate""#),
            (
                r#"{"timeAfterCreate":"P60D"}"#,
                r#"{"timeAfterCreate":"P60D","timeBeforeExpiry":"P9D"}"#,
            ),
        ] {
            assert!(policy(&valid.replace(from, to)).is_err(), "{from} → {to}");
        }
        let endless = valid.replace(r#""expiryTime":"P90D""#, "");
        policy(&endless).unwrap();
        assert!(policy(&endless.replace("timeAfterCreate", "timeBeforeExpiry")).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_period_or_an_error(text in "P?([0-9]{0,12}[YMWDT]?){0,4}", at in 0i64..4_000_000_000) {
            if let Ok(period) = text.parse::<Period>() {
                let again: Period = period.to_string().parse().unwrap();
                prop_assert_eq!(again, period);
                let time = OffsetDateTime::from_unix_timestamp(at).unwrap();
                if let Some(later) = period.after(time) {
                    prop_assert!(later >= time);
                }
            }
        }
    }
}
