//! PKCS#11 libraries and the sessions with their tokens.
//!
//! A library is initialised once in a process, whoever uses it, so they are kept here for its life.
//! A session is used by one thread at a time; those that are free wait in the library's pool.
//!
//! A library may hang in any of its functions, for as long as the network or the device behind it
//! does. No lock that the users of other tokens need is held across one, but for what the standard
//! wants alone in a process: initialising and ending the library.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;

use super::error::HsmError;
use super::lane::Lane;
use super::token::HsmToken;
use crate::secret_file::read_secret;
use keys::{sha256, with_wiped_call_stack};

/// Free sessions that are kept for a token at most.
const POOL: usize = 8;
/// How long sessions in use are waited for before the library is initialised anew.
const IN_USE_PATIENCE: Duration = Duration::from_secs(2);

/// A library that is loaded and initialised.
pub(super) struct Module {
    path: PathBuf,
    /// Read by whoever uses a session; written to initialise the library anew, when no session is
    /// in use.
    library: RwLock<Option<Pkcs11>>,
    free: Mutex<BTreeMap<String, Vec<Session>>>,
    tokens: Mutex<BTreeMap<String, Arc<TokenState>>>,
}

/// What is known of one token of a library.
#[derive(Default)]
struct TokenState {
    lane: Arc<Lane>,
    /// The digest of a PIN that it has refused: trying again would lock it. Held across a login, so
    /// that two threads do not try the same.
    refused: Mutex<Option<[u8; 32]>>,
}

/// An operation in a session with a token.
pub(super) trait Operation<T>: Fn(&Session) -> Result<T, HsmError> + Send + 'static {}
impl<T, F: Fn(&Session) -> Result<T, HsmError> + Send + 'static> Operation<T> for F {}

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
                tokens: Mutex::default(),
            })
        });
        module.clone()
    }

    /// Runs `operation` in a session with a token in which its user is logged in, in a thread of its
    /// own. After `limit` nobody waits for it any more; should it succeed later all the same, `late`
    /// is given its result.
    pub fn with_session<T: Send + 'static>(
        self: &Arc<Self>,
        token: &HsmToken,
        limit: Duration,
        operation: impl Operation<T>,
        late: impl FnOnce(&Self, T) + Send + 'static,
    ) -> Result<T, HsmError> {
        let hangs = || HsmError::Hangs(limit.as_secs());
        let deadline = Instant::now() + limit;
        let state = self.state_of(token);
        let place = state.lane.enter(deadline).ok_or_else(hangs)?;
        let number = place.number();
        let (answer, answered) = sync_channel(1);
        let (module, its_token) = (Arc::clone(self), token.clone());
        thread::Builder::new()
            .name("hsm".into())
            .spawn(move || {
                // A decrypted key was on this stack, which another thread may get.
                let outcome = with_wiped_call_stack(|| module.run(&its_token, &operation));
                if let Err(late_answer) = answer.send(outcome)
                    && let Ok(value) = late_answer.0
                {
                    late(&module, value);
                }
                drop(place);
            })
            .map_err(HsmError::Thread)?;
        let left = deadline.saturating_duration_since(Instant::now());
        match answered.recv_timeout(left) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                state.lane.hangs(number);
                Err(hangs())
            }
            Err(RecvTimeoutError::Disconnected) => Err(HsmError::Senseless("end")),
        }
    }

    /// As [`with_session`](Self::with_session), in this thread and without a limit. A session that
    /// the token has ended since its last use is replaced once.
    pub fn run<T>(
        &self,
        token: &HsmToken,
        operation: &impl Fn(&Session) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        match self.attempt(token, operation) {
            Err(error) if error.session_is_over() => {
                self.forget_sessions(token);
                if error.token_is_gone() {
                    self.initialise_anew()?;
                }
                self.attempt(token, operation)
            }
            outcome => outcome,
        }
    }

    fn attempt<T>(
        &self,
        token: &HsmToken,
        operation: &impl Fn(&Session) -> Result<T, HsmError>,
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
            let surplus = self.keep(token, session);
            // Ending a session asks the token, so it is done without the lock.
            drop(surplus);
        }
        outcome
    }

    /// Keeps a session for the next operation, or gives it back when there are enough.
    fn keep(&self, token: &HsmToken, session: Session) -> Option<Session> {
        let mut free = locked(&self.free);
        let sessions = free.entry(token.label.clone()).or_default();
        if sessions.len() >= POOL {
            return Some(session);
        }
        sessions.push(session);
        None
    }

    fn state_of(&self, token: &HsmToken) -> Arc<TokenState> {
        Arc::clone(locked(&self.tokens).entry(token.label.clone()).or_default())
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
        let deadline = Instant::now() + IN_USE_PATIENCE;
        let mut library = loop {
            match self.library.try_write() {
                Ok(library) => break library,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                // Waiting for the lock itself would keep the other tokens' users out meanwhile.
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(10));
                }
                Err(TryLockError::WouldBlock) => return Err(HsmError::InUse),
            }
        };
        let sessions = std::mem::take(&mut *locked(&self.free));
        drop(sessions);
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
        let sessions = locked(&self.free).remove(&token.label);
        // Without the lock: the token is asked to end each.
        drop(sessions);
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
        let state = self.state_of(token);
        let mut refused = locked(&state.refused);
        if *refused == Some(digest) {
            return Err(HsmError::Pin);
        }
        let pin = AuthPin::from(pin.as_str().to_owned());
        match session.login(UserType::User, Some(&pin)) {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(Error::Pkcs11(
                RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange,
                _,
            )) => {
                *refused = Some(digest);
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
