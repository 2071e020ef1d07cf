//! Logins of users: identities that have a password, and logins on a device that the operator of this host approves.
//!
//! A password is kept as its scrypt hash (RFC 7914), as `scrypt$LOG_N$R$P$SALT$HASH`. To check one takes some 50 ms and
//! 32 MiB: whoever serves logins bounds how many are checked at once, and how often one user may be wrong.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::catalog::{CatalogError, DeviceLogin, IdentityOwner, IdentityRecord, Kind};
use crate::{Installation, InstallationError};
use keys::{fill_random, sha256};
use vault::audit::AuditRecord;
use vault::{Caller, VaultError, VaultErrorCode};

/// How long a device code is good for.
pub const DEVICE_LIFETIME: Duration = Duration::minutes(15);
/// Device codes that wait at most: who asks for more keeps nobody's memory busy.
const MAX_DEVICE_LOGINS: usize = 256;
/// Those that one address has begun, so that nobody keeps all others from logging in.
const MAX_OF_PEER: usize = 16;
/// Letters of a code that a person types: no vowels, and none that looks like another.
const CODE_LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";
/// Letters of a code: 34 bits, of which the operator is the only one who can try any.
const CODE_LEN: usize = 8;
/// Characters of a password, at least and at most.
const PASSWORD_LEN: std::ops::RangeInclusive<usize> = 12..=256;
/// Cost of a hash: OWASP's recommendation for scrypt with 32 MiB.
const LOG_N: u8 = 15;
const R: u32 = 8;
const P: u32 = 3;
const HASH_LEN: usize = 32;
const SALT_LEN: usize = 16;

/// What a device shows and asks with, of a login that waits.
pub struct NewDeviceLogin {
    /// What the user reads and the operator types.
    pub user_code: String,
    /// What the device asks with.
    pub device_code: Zeroizing<String>,
}

/// How far a login on a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceState {
    /// Nobody has approved it yet.
    Pending,
    /// It was not used in time, or never was.
    Expired,
    /// It is approved for this identity, and used thereby; for which service tokens were wanted.
    Approved(IdentityRecord, String),
}

impl Installation {
    /// Makes an identity one of a user, who logs in with that password.
    ///
    /// # Errors
    /// When there is no such identity, or the password is too short or too long.
    pub fn set_password(&self, name: &str, password: &str) -> Result<(), InstallationError> {
        if !PASSWORD_LEN.contains(&password.chars().count()) {
            let message = format!(
                "a password has {} to {} characters",
                PASSWORD_LEN.start(),
                PASSWORD_LEN.end()
            );
            return Err(VaultError::new(VaultErrorCode::BadParameter, message).into());
        }
        let identity = self.catalog().identity(name)?.record;
        let hash = hashed(password)?;
        self.recorded_identity(self.login_record("UserSetPassword", &identity), || {
            Ok(self
                .catalog()
                .set_password(identity.object_id, Some(&hash))?)
        })
    }

    /// Lets a user log in with a password no more.
    ///
    /// # Errors
    /// When there is no such identity.
    pub fn delete_password(&self, name: &str) -> Result<(), InstallationError> {
        let identity = self.catalog().identity(name)?.record;
        self.recorded_identity(self.login_record("UserDeletePassword", &identity), || {
            Ok(self.catalog().set_password(identity.object_id, None)?)
        })
    }

    /// A password that nobody can guess.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn new_password() -> Result<Zeroizing<String>, InstallationError> {
        Ok(Zeroizing::new(URL_SAFE_NO_PAD.encode(random::<24>()?)))
    }

    /// The identity of the user of that name, if that is its password. One who is not there takes as long.
    ///
    /// # Errors
    /// When the catalog cannot be read, or nothing can be hashed.
    pub fn user_by_password(
        &self,
        name: &str,
        password: &str,
    ) -> Result<Option<IdentityRecord>, InstallationError> {
        let identity = match self.catalog().identity(name) {
            Ok(found) => Some(found.record),
            Err(CatalogError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let known = match &identity {
            Some(identity) => self.catalog().password(identity.object_id)?,
            None => None,
        };
        let (stored, is_known) = match &known {
            Some(stored) => (Stored::parse(stored), true),
            None => (None, false),
        };
        let stored = stored.unwrap_or_default();
        let equal = stored.is_of(password)?;
        Ok(identity.filter(|_| equal && is_known))
    }

    /// What changes with the password and the secret of an identity: tokens that renew a login are bound to it.
    ///
    /// # Errors
    /// When the catalog cannot be read.
    pub fn login_stamp(&self, identity: &IdentityRecord) -> Result<String, InstallationError> {
        let password = self
            .catalog()
            .password(identity.object_id)?
            .unwrap_or_default();
        let secret = identity.secret_hash.unwrap_or_default();
        let all = [
            b"sealdisk login stamp v1\0".as_slice(),
            identity.object_id.as_bytes(),
            &secret,
            password.as_bytes(),
        ];
        Ok(URL_SAFE_NO_PAD.encode(&sha256(&all.concat())[..16]))
    }

    /// Begins a login on a device, for tokens for a service. The code is good for this client alone.
    ///
    /// # Errors
    /// [`VaultErrorCode::Throttled`] when too many wait.
    pub fn begin_device_login(
        &self,
        peer: SocketAddr,
        client: &str,
        resource: &str,
    ) -> Result<NewDeviceLogin, InstallationError> {
        let device_code = Zeroizing::new(URL_SAFE_NO_PAD.encode(random::<32>()?));
        let mut user_code = String::new();
        // A byte above the last multiple of 20 would make some letters likelier.
        while user_code.len() < CODE_LEN {
            let letters = random::<32>()?.into_iter().filter(|byte| *byte < 240);
            let letters = letters.map(|byte| char::from(CODE_LETTERS[usize::from(byte % 20)]));
            user_code.extend(letters.take(CODE_LEN - user_code.len()));
        }
        let created = OffsetDateTime::now_utc().replace_nanosecond(0);
        let created = created.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let login = DeviceLogin {
            user_code: user_code.clone(),
            device_hash: device_hash(&device_code, client),
            peer: peer.ip().to_canonical().to_string(),
            resource: resource.into(),
            created,
            expires: created + DEVICE_LIFETIME,
            identity: None,
        };
        match self
            .catalog()
            .insert_device_login(&login, MAX_DEVICE_LOGINS, MAX_OF_PEER)?
        {
            true => Ok(NewDeviceLogin {
                user_code: shown_code(&user_code),
                device_code,
            }),
            false => {
                let message = "too many logins wait to be approved; try again later";
                Err(VaultError::new(VaultErrorCode::Throttled, message).into())
            }
        }
    }

    /// The login with that code, which still waits to be approved.
    ///
    /// # Errors
    /// When there is none.
    pub fn device_login(&self, user_code: &str) -> Result<DeviceLogin, InstallationError> {
        let code = normal_code(user_code);
        let all = self.catalog().device_logins()?;
        let now = OffsetDateTime::now_utc();
        let waits = |login: &DeviceLogin| login.identity.is_none() && now < login.expires;
        let found = all
            .into_iter()
            .find(|login| login.user_code == code && waits(login));
        found.ok_or_else(|| no_login(user_code))
    }

    /// Approves a login on a device: whoever has begun it is that identity.
    ///
    /// # Errors
    /// When there is no such identity, or no login with that code waits.
    pub fn approve_device_login(
        &self,
        user_code: &str,
        name: &str,
    ) -> Result<(), InstallationError> {
        let login = self.device_login(user_code)?;
        let identity = self.catalog().identity(name)?.record;
        let record = self.login_record("DeviceLoginApprove", &identity);
        let record = record.with_detail(format!(
            "{} {}, from {}",
            identity.object_id, identity.owner, login.peer
        ));
        self.recorded_identity(record, || {
            let catalog = self.catalog();
            match catalog.approve_device_login(&login.user_code, identity.object_id)? {
                true => Ok(()),
                false => Err(no_login(user_code)),
            }
        })
    }

    /// How far the login is that a client asks for. One that is approved is used by that. To another client than has begun
    /// it there is none.
    ///
    /// # Errors
    /// When the catalog cannot be read or written.
    pub fn poll_device_login(
        &self,
        device_code: &str,
        client: &str,
    ) -> Result<DeviceState, InstallationError> {
        let found = self
            .catalog()
            .take_device_login(&device_hash(device_code, client))?;
        let now = OffsetDateTime::now_utc();
        let Some(login) = found.filter(|login| now < login.expires) else {
            return Ok(DeviceState::Expired);
        };
        let Some(identity) = login.identity else {
            return Ok(DeviceState::Pending);
        };
        let identity = self.catalog().identity_by_object(identity)?;
        Ok(identity.map_or(DeviceState::Expired, |identity| {
            DeviceState::Approved(identity, login.resource)
        }))
    }

    fn login_record(&self, operation: &str, identity: &IdentityRecord) -> AuditRecord {
        let operator: Caller = self.operator();
        AuditRecord::new(operator.object_id, &operator.origin, operation)
            .with_detail(format!("{} {}", identity.object_id, identity.owner))
    }

    /// The name of the user in what a client gives as that: the name, or `NAME@TENANT`.
    pub fn user_name<'a>(&self, given: &'a str) -> &'a str {
        match given.rsplit_once('@') {
            Some((name, tenant)) if tenant.eq_ignore_ascii_case(&self.id().to_string()) => name,
            _ => given,
        }
    }

    /// What a user is called in tokens.
    pub fn principal_name(&self, identity: &IdentityRecord) -> String {
        match &identity.owner {
            IdentityOwner::Named(name) => format!("{name}@{}", self.id()),
            IdentityOwner::DiskEncryptionSet(_) => identity.owner.to_string(),
        }
    }
}

/// By what a login is found again. The code that was given has no 0 in it.
fn device_hash(device_code: &str, client: &str) -> [u8; 32] {
    sha256(&[device_code.as_bytes(), b"\0", client.as_bytes()].concat())
}

fn no_login(user_code: &str) -> InstallationError {
    let name: String = user_code.chars().take(20).collect();
    let kind = Kind::DeviceLogin;
    CatalogError::NotFound { kind, name }.into()
}

/// As a person reads it: `ABCD-EFGH`.
fn shown_code(code: &str) -> String {
    match code.split_at_checked(CODE_LEN / 2) {
        Some((begin, rest)) => format!("{begin}-{rest}"),
        None => code.to_owned(),
    }
}

/// As it is stored, however it was typed.
fn normal_code(typed: &str) -> String {
    typed
        .chars()
        .filter(char::is_ascii_alphabetic)
        .map(|letter| letter.to_ascii_uppercase())
        .take(2 * CODE_LEN)
        .collect()
}

fn random<const N: usize>() -> Result<[u8; N], InstallationError> {
    let mut bytes = [0; N];
    fill_random(&mut bytes).map_err(|e| {
        VaultError::caused(VaultErrorCode::Internal, "there are no random numbers", e)
    })?;
    Ok(bytes)
}

/// The parts of a stored hash.
struct Stored {
    log_n: u8,
    r: u32,
    p: u32,
    salt: Vec<u8>,
    hash: Vec<u8>,
}

/// Of no password: what is compared for a user who is not there.
impl Default for Stored {
    fn default() -> Self {
        Self {
            log_n: LOG_N,
            r: R,
            p: P,
            salt: vec![0; SALT_LEN],
            hash: vec![0; HASH_LEN],
        }
    }
}

impl Stored {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("scrypt$")?.split('$');
        let this = Self {
            log_n: parts.next()?.parse().ok()?,
            r: parts.next()?.parse().ok()?,
            p: parts.next()?.parse().ok()?,
            salt: URL_SAFE_NO_PAD.decode(parts.next()?).ok()?,
            hash: URL_SAFE_NO_PAD.decode(parts.next()?).ok()?,
        };
        // Whoever changes the catalog could have a check take all memory.
        let is_sane = this.log_n <= 20 && this.r <= 32 && this.p <= 16;
        (parts.next().is_none() && is_sane && this.hash.len() == HASH_LEN).then_some(this)
    }

    fn text(&self) -> String {
        format!(
            "scrypt${}${}${}${}${}",
            self.log_n,
            self.r,
            self.p,
            URL_SAFE_NO_PAD.encode(&self.salt),
            URL_SAFE_NO_PAD.encode(&self.hash)
        )
    }

    fn derive(&self, password: &str) -> Result<Zeroizing<[u8; HASH_LEN]>, InstallationError> {
        let failed = |e: &dyn std::fmt::Display| {
            VaultError::new(
                VaultErrorCode::Internal,
                format!("a password could not be hashed: {e}"),
            )
        };
        let params =
            scrypt::Params::new(self.log_n, self.r, self.p, HASH_LEN).map_err(|e| failed(&e))?;
        let mut derived = Zeroizing::new([0; HASH_LEN]);
        scrypt::scrypt(
            password.as_bytes(),
            &self.salt,
            &params,
            derived.as_mut_slice(),
        )
        .map_err(|e| failed(&e))?;
        Ok(derived)
    }

    fn is_of(&self, password: &str) -> Result<bool, InstallationError> {
        let derived = self.derive(password)?;
        let equal = aws_lc_rs::constant_time::verify_slices_are_equal(&derived[..], &self.hash);
        Ok(equal.is_ok())
    }
}

fn hashed(password: &str) -> Result<String, InstallationError> {
    let mut stored = Stored {
        salt: random::<SALT_LEN>()?.to_vec(),
        ..Stored::default()
    };
    stored.hash = stored.derive(password)?.to_vec();
    Ok(stored.text())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::{Place, on_each};

    const PASSWORD: &str = "correct horse battery";

    fn installation(place: &Place) -> Installation {
        let installation = place.installation();
        installation.create_identity("alice").unwrap();
        installation
    }

    #[test]
    fn a_password_is_its_users_until_it_is_changed_or_taken_away() {
        on_each(|place| {
            let installation = installation(place);
            let who = |name: &str, password: &str| {
                let found = installation.user_by_password(name, password).unwrap();
                found.map(|identity| identity.owner.to_string())
            };
            let alice = installation.catalog().identity("alice").unwrap().record;
            let stamp = || installation.login_stamp(&alice).unwrap();
            let before = stamp();
            assert_eq!(who("alice", ""), None, "she has none yet");
            installation.set_password("alice", PASSWORD).unwrap();
            assert_ne!(stamp(), before);
            assert_eq!(who("alice", PASSWORD).as_deref(), Some("alice"));
            for (name, password) in [
                ("alice", "correct horse batterx"),
                ("alice", ""),
                ("bob", PASSWORD),
                ("", PASSWORD),
            ] {
                assert_eq!(who(name, password), None, "{name} {password}");
            }
            let stored = installation
                .catalog()
                .password(alice.object_id)
                .unwrap()
                .unwrap();
            assert!(
                stored.starts_with("scrypt$") && !stored.contains("horse"),
                "{stored}"
            );
            installation
                .set_password("alice", "another long password")
                .unwrap();
            assert_eq!(who("alice", PASSWORD), None);
            installation.delete_password("alice").unwrap();
            assert_eq!(who("alice", "another long password"), None);
            assert!(installation.set_password("alice", "short").is_err());
            assert!(installation.set_password("nobody", PASSWORD).is_err());
        });
    }

    #[test]
    fn a_hash_that_is_none_lets_nobody_in() {
        for bad in [
            "",
            "scrypt$15$8$3$AA",
            "scrypt$40$8$3$AAAA$AAAA",
            "scrypt$15$8$3$AAAA$AAAA",
            "argon2$15$8$3$AAAA$AAAA",
        ] {
            assert!(Stored::parse(bad).is_none(), "{bad}");
        }
        let hash = hashed(PASSWORD).unwrap();
        assert_eq!(Stored::parse(&hash).unwrap().text(), hash);
        assert!(Stored::parse(&format!("{hash}$x")).is_none());
    }

    #[test]
    fn a_login_on_a_device_is_approved_once_and_used_once() {
        on_each(|place| {
            let installation = installation(place);
            let peer = ([192, 0, 2, 1], 9).into();
            let login = installation
                .begin_device_login(peer, "az", "https://h")
                .unwrap();
            let poll = || {
                installation
                    .poll_device_login(&login.device_code, "az")
                    .unwrap()
            };
            assert_eq!(poll(), DeviceState::Pending);
            assert_eq!(
                installation.poll_device_login("guessed", "az").unwrap(),
                DeviceState::Expired
            );
            let approve = |code: &str, name: &str| installation.approve_device_login(code, name);
            assert!(approve("AAAA-AAAA", "alice").is_err());
            assert!(approve(&login.user_code, "nobody").is_err());
            let typed = login.user_code.to_lowercase().replace('-', " ");
            assert_eq!(installation.device_login(&typed).unwrap().peer, "192.0.2.1");
            approve(&typed, "alice").unwrap();
            assert!(approve(&login.user_code, "alice").is_err(), "twice");
            let alice = installation.catalog().identity("alice").unwrap().record;
            assert_eq!(poll(), DeviceState::Approved(alice, "https://h".into()));
            assert_eq!(poll(), DeviceState::Expired, "it is used");
        });
    }

    #[test]
    fn logins_that_wait_are_bounded_and_go_with_time_and_identity() {
        on_each(|place| {
            let installation = installation(place);
            let peer = |last: u8| ([192, 0, 2, last], 9).into();
            let begin = |last| installation.begin_device_login(peer(last), "az", "https://h");
            let mut logins = Vec::new();
            for last in 0..(MAX_DEVICE_LOGINS / MAX_OF_PEER) as u8 {
                logins.extend((0..MAX_OF_PEER).map(|_| begin(last).unwrap()));
                assert!(begin(last).is_err(), "others have room");
            }
            assert!(begin(255).is_err());
            installation
                .approve_device_login(&logins[0].user_code, "alice")
                .unwrap();
            installation.delete_identity("alice").unwrap();
            let poll = |at: usize| {
                installation
                    .poll_device_login(&logins[at].device_code, "az")
                    .unwrap()
            };
            assert_eq!(poll(0), DeviceState::Expired);
            // Past their time they make room.
            let mut old = installation.catalog().device_logins().unwrap().remove(0);
            let code = old.user_code.clone();
            assert!(installation.catalog().delete_device_login(&code).unwrap());
            old.expires = old.created - DEVICE_LIFETIME;
            assert!(
                installation
                    .catalog()
                    .insert_device_login(&old, MAX_DEVICE_LOGINS, MAX_OF_PEER)
                    .unwrap()
            );
            assert!(installation.device_login(&code).is_err());
            begin(255).unwrap();
        });
    }
}
