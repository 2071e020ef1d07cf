//! PKCS#11 libraries and the sessions with their tokens.
//!
//! A library is initialised once in a process, whoever uses it, so they are kept here for its life.
//! A session is used by one thread at a time; those that are free wait in the library's pool.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::HsmToken;
use super::error::HsmError;
use crate::keys::sha256;
use crate::vault::secret_file::read_secret;

/// Free sessions that are kept for a token at most.
const POOL: usize = 8;

/// A library that is loaded and initialised.
pub(super) struct Module {
    path: PathBuf,
    /// Read by whoever uses a session; written to initialise the library anew, when no session is
    /// in use.
    library: RwLock<Option<Pkcs11>>,
    free: Mutex<BTreeMap<String, Vec<Session>>>,
    /// Digests of PINs that a token has refused: trying again would lock it.
    refused: Mutex<BTreeMap<String, [u8; 32]>>,
}

/// The libraries of this process, by path.
static MODULES: Mutex<BTreeMap<PathBuf, Arc<Module>>> = Mutex::new(BTreeMap::new());

impl Module {
    /// The library at `path`.
    pub fn at(path: &Path) -> Arc<Self> {
        let mut modules = locked(&MODULES);
        let module = modules.entry(path.to_owned()).or_insert_with(|| {
            Arc::new(Self {
                path: path.to_owned(),
                library: RwLock::new(None),
                free: Mutex::default(),
                refused: Mutex::default(),
            })
        });
        module.clone()
    }

    /// Runs `operation` in a session with a token in which its user is logged in. A session that the
    /// token has ended since its last use is replaced once.
    pub fn with_session<T>(
        &self,
        token: &HsmToken,
        operation: impl Fn(&Session) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        match self.attempt(token, &operation) {
            Err(error) if error.session_is_over() => {
                self.forget_sessions(token);
                if error.token_is_gone() {
                    self.initialise_anew()?;
                }
                self.attempt(token, &operation)
            }
            outcome => outcome,
        }
    }

    fn attempt<T>(
        &self,
        token: &HsmToken,
        operation: impl Fn(&Session) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        self.initialise()?;
        let library = self.library.read().unwrap_or_else(PoisonError::into_inner);
        let library = library.as_ref().ok_or(HsmError::NoToken)?;
        let waiting = locked(&self.free).get_mut(&token.label).and_then(Vec::pop);
        let session = match waiting {
            Some(session) => session,
            None => self.open_session(library, token)?,
        };
        let outcome = operation(&session);
        // What a failed operation left behind in a session is not worth finding out.
        if outcome.is_ok() {
            let mut free = locked(&self.free);
            let sessions = free.entry(token.label.clone()).or_default();
            if sessions.len() < POOL {
                sessions.push(session);
            }
        }
        outcome
    }

    fn initialise(&self) -> Result<(), HsmError> {
        let loaded = |library: &Option<Pkcs11>| library.is_some();
        if loaded(&self.library.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(());
        }
        let mut library = self.library.write().unwrap_or_else(PoisonError::into_inner);
        if !loaded(&library) {
            *library = Some(self.load()?);
        }
        Ok(())
    }

    /// Some libraries look for tokens only while they are initialised.
    fn initialise_anew(&self) -> Result<(), HsmError> {
        let mut library = self.library.write().unwrap_or_else(PoisonError::into_inner);
        locked(&self.free).clear();
        if let Some(old) = library.take() {
            // A library that cannot even end is loaded anew all the same.
            let _ = old.finalize();
        }
        *library = Some(self.load()?);
        Ok(())
    }

    fn load(&self) -> Result<Pkcs11, HsmError> {
        let fail = |source| HsmError::Library {
            path: self.path.clone(),
            source,
        };
        let library = Pkcs11::new(&self.path).map_err(fail)?;
        match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(library),
            Err(e) => Err(fail(e)),
        }
    }

    fn forget_sessions(&self, token: &HsmToken) {
        locked(&self.free).remove(&token.label);
    }

    fn open_session(&self, library: &Pkcs11, token: &HsmToken) -> Result<Session, HsmError> {
        let slot = slot(library, &token.label)?;
        let session = library.open_rw_session(slot)?;
        self.log_in(library, slot, &session, token)?;
        Ok(session)
    }

    /// Logs the token's user in, unless another session has. A login counts for all sessions of a
    /// process. A PIN that was refused is not tried again, nor is the last try used that a token
    /// leaves before it locks itself: that one belongs to a person.
    fn log_in(
        &self,
        library: &Pkcs11,
        slot: Slot,
        session: &Session,
        token: &HsmToken,
    ) -> Result<(), HsmError> {
        use cryptoki::session::SessionState::{RoUser, RwUser};
        if matches!(session.get_session_info()?.session_state(), RwUser | RoUser) {
            return Ok(());
        }
        let pin =
            read_secret(token.pin_file.as_deref(), &token.credential).map_err(HsmError::PinFile)?;
        let digest = sha256(pin.as_bytes());
        let info = library.get_token_info(slot)?;
        if info.user_pin_locked() || info.user_pin_final_try() {
            return Err(HsmError::LastTry);
        }
        let mut refused = locked(&self.refused);
        if refused.get(&token.label) == Some(&digest) {
            return Err(HsmError::Pin);
        }
        let pin = AuthPin::from(pin.as_str().to_owned());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                refused.insert(token.label.clone(), digest);
                Err(HsmError::Pin)
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// The slot in which the token with that label is.
fn slot(library: &Pkcs11, label: &str) -> Result<Slot, HsmError> {
    let mut found = Vec::new();
    for slot in library.get_slots_with_initialized_token()? {
        // A token that goes away while it is looked at is not the one.
        if library
            .get_token_info(slot)
            .is_ok_and(|info| info.label() == label)
        {
            found.push(slot);
        }
    }
    match found.as_slice() {
        [slot] => Ok(*slot),
        [] => Err(HsmError::NoToken),
        _ => Err(HsmError::SeveralTokens),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic elsewhere left is a map that is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
