//! What an attach process keeps of a frontend's connection, so that the next data plane can go on with it.
//!
//! A data plane that dies takes nothing along that the attach process does not have as well: whatever the
//! frontend says is sent on as a [`Change`] before the frontend gets its answer, each in a packet of its own,
//! with the descriptor that belongs to it. [`KeptThings`] has what is left of them. The next data plane gets
//! each thing as a [`Change::Put`], in the order of [`KeptKey`], which is one in which they can be restored.
//!
//! The attach process interprets none of it. A guest may have taken over who sends it: packets are short, each
//! kind of thing has one place, and how many there are is limited.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::ProtocolError;

/// Memory regions that a frontend may have: as many as the kernel's vhost takes.
pub const MAX_MEMORY_REGIONS: usize = 509;

/// One thing that a frontend has set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Kept {
    /// The connection itself, with its socket. Nothing is kept without it.
    Connection,
    /// The features that the frontend acknowledged last.
    Features {
        /// The bits.
        acknowledged: u64,
        /// They count; else the device was reset since.
        in_use: bool,
    },
    /// The protocol features that it acknowledged last.
    ProtocolFeatures(u64),
    /// A part of the guest's memory, with its file.
    Memory(KeptMemory),
    /// Where written pages are noted, with the file.
    Log {
        /// Where it begins in the file.
        offset: u64,
        /// Bytes of it.
        len: u64,
    },
    /// The frontend's own in-flight region, with its file.
    Inflight(InflightPlace),
    /// A ring.
    Ring(KeptRing),
    /// The descriptor through which the frontend is told of used entries.
    Call {
        /// Of which ring.
        ring: u16,
    },
    /// The descriptor through which the frontend is told of errors.
    Err {
        /// Of which ring.
        ring: u16,
    },
    /// The descriptor through which the guest kicks.
    Kick {
        /// Of which ring.
        ring: u16,
    },
    /// The channel for messages to the frontend, with its socket.
    Channel,
}

/// A part of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptMemory {
    /// Its address in the guest.
    pub guest: u64,
    /// Bytes of it.
    pub len: u64,
    /// Its address in the frontend.
    pub user: u64,
    /// Where it begins in its file.
    pub offset: u64,
}

/// Where an in-flight region is, and its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InflightPlace {
    /// Where it begins in its file.
    pub offset: u64,
    /// Queues that it is for.
    pub queues: u16,
    /// Entries of each.
    pub entries: u16,
}

/// A ring, without its descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeptRing {
    /// Which of the device's it is.
    pub index: u16,
    /// Entries; 0 while none were said.
    pub size: u16,
    /// Where its three parts are in the guest: descriptors, avail ring, used ring.
    pub addresses: Option<[u64; 3]>,
    /// The index of the avail ring at which it goes on, unless the in-flight region has another.
    pub next_avail: u16,
    /// It is to be served.
    pub enabled: bool,
}

/// The place of a thing: there is one thing at each. Their order is one in which the things can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "they are those of `Kept`")]
pub enum KeptKey {
    Connection,
    ProtocolFeatures,
    Features,
    Memory { guest: u64 },
    Log,
    Inflight,
    Ring { ring: u16 },
    Call { ring: u16 },
    Err { ring: u16 },
    Kick { ring: u16 },
    Channel,
}

/// What becomes of the things that are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Change {
    /// This one is as said from now on. A new connection begins with nothing else.
    Put(Kept),
    /// There is no such thing any more. Nothing is left without a connection.
    Forget(KeptKey),
    /// The guest has no memory any more.
    ForgetMemory,
    /// Nothing was said of a ring.
    ForgetRing {
        /// Of which.
        ring: u16,
    },
    /// Nothing was said but that there is a connection.
    ForgetSetup,
}

impl Kept {
    /// Its place.
    pub fn key(&self) -> KeptKey {
        match *self {
            Self::Connection => KeptKey::Connection,
            Self::Features { .. } => KeptKey::Features,
            Self::ProtocolFeatures(_) => KeptKey::ProtocolFeatures,
            Self::Memory(KeptMemory { guest, .. }) => KeptKey::Memory { guest },
            Self::Log { .. } => KeptKey::Log,
            Self::Inflight(_) => KeptKey::Inflight,
            Self::Ring(KeptRing { index: ring, .. }) => KeptKey::Ring { ring },
            Self::Call { ring } => KeptKey::Call { ring },
            Self::Err { ring } => KeptKey::Err { ring },
            Self::Kick { ring } => KeptKey::Kick { ring },
            Self::Channel => KeptKey::Channel,
        }
    }

    /// Whether a descriptor belongs to it.
    pub fn has_descriptor(&self) -> bool {
        match self {
            Self::Features { .. } | Self::ProtocolFeatures(_) | Self::Ring(_) => false,
            Self::Connection
            | Self::Memory(_)
            | Self::Log { .. }
            | Self::Inflight(_)
            | Self::Call { .. }
            | Self::Err { .. }
            | Self::Kick { .. }
            | Self::Channel => true,
        }
    }
}

impl KeptKey {
    /// The ring that it is of, if it is of one.
    fn ring(self) -> Option<u16> {
        match self {
            Self::Ring { ring }
            | Self::Call { ring }
            | Self::Err { ring }
            | Self::Kick { ring } => Some(ring),
            _ => None,
        }
    }
}

/// What is kept of the frontend's connection.
#[derive(Debug)]
pub struct KeptThings {
    queues: u16,
    things: BTreeMap<KeptKey, (Kept, Option<OwnedFd>)>,
}

impl KeptThings {
    /// Nothing, of a device with so many queues.
    pub fn new(queues: u16) -> Self {
        Self {
            queues,
            things: BTreeMap::new(),
        }
    }

    /// Makes a change. `descriptor` is what came with it.
    ///
    /// # Errors
    /// [`ProtocolError::Cargo`]: it is none that a data plane makes, and nothing has changed.
    pub fn apply(
        &mut self,
        change: Change,
        descriptor: Option<OwnedFd>,
    ) -> Result<(), ProtocolError> {
        let refuse = |why: &str| Err(ProtocolError::Cargo(format!("{change:?} {why}")));
        let has_descriptor = matches!(change, Change::Put(kept) if kept.has_descriptor());
        if has_descriptor != descriptor.is_some() {
            return refuse("with a descriptor too few or too many");
        }
        match change {
            Change::Put(Kept::Connection) => self.things.clear(),
            Change::Put(kept) => {
                let key = kept.key();
                if !self.things.contains_key(&KeptKey::Connection) {
                    return refuse("without a connection");
                }
                if key.ring().is_some_and(|ring| ring >= self.queues) {
                    return refuse("of a queue that the device does not have");
                }
                let is_memory = |key: &KeptKey| matches!(key, KeptKey::Memory { .. });
                let regions = self.things.keys().filter(|key| is_memory(key)).count();
                if is_memory(&key)
                    && regions >= MAX_MEMORY_REGIONS
                    && !self.things.contains_key(&key)
                {
                    return refuse("of too many parts of memory");
                }
            }
            Change::Forget(KeptKey::Connection) => self.things.clear(),
            Change::Forget(key) => drop(self.things.remove(&key)),
            Change::ForgetMemory => {
                self.things
                    .retain(|key, _| !matches!(key, KeptKey::Memory { .. }));
            }
            Change::ForgetRing { ring } => {
                self.things.retain(|key, _| key.ring() != Some(ring));
            }
            Change::ForgetSetup => self.things.retain(|key, _| *key == KeptKey::Connection),
        }
        if let Change::Put(kept) = change {
            self.things.insert(kept.key(), (kept, descriptor));
        }
        Ok(())
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.things.clear();
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.things.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.things.is_empty()
    }

    /// The descriptor of a thing, if that is kept and has one.
    pub fn descriptor(&self, key: KeptKey) -> Option<BorrowedFd<'_>> {
        let (_, descriptor) = self.things.get(&key)?;
        descriptor.as_ref().map(AsFd::as_fd)
    }

    /// The frontend's own in-flight region, if it has one, with its file.
    pub fn inflight(&self) -> Option<(InflightPlace, BorrowedFd<'_>)> {
        match self.things.get(&KeptKey::Inflight) {
            Some((Kept::Inflight(place), Some(file))) => Some((*place, file.as_fd())),
            _ => None,
        }
    }

    /// All things, in an order in which they can be restored, with their descriptors.
    pub fn iter(&self) -> impl Iterator<Item = (Kept, Option<BorrowedFd<'_>>)> {
        self.things
            .values()
            .map(|(kept, descriptor)| (*kept, descriptor.as_ref().map(AsFd::as_fd)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        tempfile::tempfile().unwrap().into()
    }

    fn put(things: &mut KeptThings, kept: Kept) -> Result<(), ProtocolError> {
        let descriptor = kept.has_descriptor().then(descriptor);
        things.apply(Change::Put(kept), descriptor)
    }

    fn memory(guest: u64) -> Kept {
        Kept::Memory(KeptMemory {
            guest,
            len: 4096,
            user: guest,
            offset: 0,
        })
    }

    fn ring(index: u16, next_avail: u16) -> Kept {
        Kept::Ring(KeptRing {
            index,
            size: 128,
            addresses: Some([1, 2, 3]),
            next_avail,
            enabled: true,
        })
    }

    fn keys(things: &KeptThings) -> Vec<KeptKey> {
        things.iter().map(|(kept, _)| kept.key()).collect()
    }

    #[test]
    fn the_last_word_counts_and_the_order_is_one_to_restore_in() {
        let mut things = KeptThings::new(2);
        for kept in [
            Kept::Connection,
            Kept::Channel,
            Kept::Kick { ring: 0 },
            ring(0, 5),
            memory(4096),
            Kept::ProtocolFeatures(9),
            memory(0),
            ring(0, 7),
        ] {
            put(&mut things, kept).unwrap();
        }
        let expected = [
            KeptKey::Connection,
            KeptKey::ProtocolFeatures,
            KeptKey::Memory { guest: 0 },
            KeptKey::Memory { guest: 4096 },
            KeptKey::Ring { ring: 0 },
            KeptKey::Kick { ring: 0 },
            KeptKey::Channel,
        ];
        assert_eq!(keys(&things), expected);
        assert!(things.iter().any(|(kept, _)| kept == ring(0, 7)));
        things.apply(Change::ForgetMemory, None).unwrap();
        things.apply(Change::ForgetRing { ring: 0 }, None).unwrap();
        things
            .apply(Change::Forget(KeptKey::Channel), None)
            .unwrap();
        assert_eq!(keys(&things), expected[..2]);
        things.apply(Change::ForgetSetup, None).unwrap();
        assert_eq!(keys(&things), [KeptKey::Connection]);
        put(&mut things, ring(1, 0)).unwrap();
        // The next connection, or none.
        put(&mut things, Kept::Connection).unwrap();
        assert_eq!(keys(&things), [KeptKey::Connection]);
        put(&mut things, ring(1, 0)).unwrap();
        things
            .apply(Change::Forget(KeptKey::Connection), None)
            .unwrap();
        assert!(things.is_empty());
    }

    #[test]
    fn a_data_plane_that_was_taken_over_has_little_kept() {
        let mut things = KeptThings::new(2);
        assert!(put(&mut things, memory(0)).is_err(), "without a connection");
        put(&mut things, Kept::Connection).unwrap();
        for guest in 0..600 {
            let kept = put(&mut things, memory(guest));
            assert_eq!(kept.is_ok(), guest < MAX_MEMORY_REGIONS as u64, "{guest}");
        }
        put(&mut things, memory(7)).unwrap();
        assert!(put(&mut things, ring(2, 0)).is_err(), "no such queue");
        assert!(put(&mut things, Kept::Kick { ring: 9 }).is_err());
        let few = Change::Put(Kept::Channel);
        assert!(things.apply(few, None).is_err());
        let many = Change::Put(Kept::ProtocolFeatures(0));
        assert!(things.apply(many, Some(descriptor())).is_err());
        let many = Change::ForgetMemory;
        assert!(things.apply(many, Some(descriptor())).is_err());
        assert_eq!(things.len(), 1 + MAX_MEMORY_REGIONS);
    }

    /// Whoever changes this has made another version of the protocol.
    #[test]
    fn version_1_is_encoded_like_this() {
        let inflight = InflightPlace {
            offset: 1,
            queues: 2,
            entries: 3,
        };
        let features = Kept::Features {
            acknowledged: 5,
            in_use: true,
        };
        for (change, json) in [
            (Change::Put(Kept::Connection), r#"{"put":"connection"}"#),
            (
                Change::Put(features),
                r#"{"put":{"features":{"acknowledged":5,"in_use":true}}}"#,
            ),
            (
                Change::Put(Kept::ProtocolFeatures(5)),
                r#"{"put":{"protocol-features":5}}"#,
            ),
            (
                Change::Put(memory(1)),
                r#"{"put":{"memory":{"guest":1,"len":4096,"user":1,"offset":0}}}"#,
            ),
            (
                Change::Put(Kept::Log { offset: 1, len: 2 }),
                r#"{"put":{"log":{"offset":1,"len":2}}}"#,
            ),
            (
                Change::Put(Kept::Inflight(inflight)),
                r#"{"put":{"inflight":{"offset":1,"queues":2,"entries":3}}}"#,
            ),
            (
                Change::Put(ring(1, 2)),
                r#"{"put":{"ring":{"index":1,"size":128,"addresses":[1,2,3],"next_avail":2,"enabled":true}}}"#,
            ),
            (
                Change::Put(Kept::Call { ring: 1 }),
                r#"{"put":{"call":{"ring":1}}}"#,
            ),
            (
                Change::Put(Kept::Err { ring: 1 }),
                r#"{"put":{"err":{"ring":1}}}"#,
            ),
            (
                Change::Put(Kept::Kick { ring: 1 }),
                r#"{"put":{"kick":{"ring":1}}}"#,
            ),
            (Change::Put(Kept::Channel), r#"{"put":"channel"}"#),
            (
                Change::Forget(KeptKey::Memory { guest: 1 }),
                r#"{"forget":{"memory":{"guest":1}}}"#,
            ),
            (Change::Forget(KeptKey::Channel), r#"{"forget":"channel"}"#),
            (Change::ForgetMemory, r#""forget-memory""#),
            (
                Change::ForgetRing { ring: 1 },
                r#"{"forget-ring":{"ring":1}}"#,
            ),
            (Change::ForgetSetup, r#""forget-setup""#),
        ] {
            assert_eq!(serde_json::to_string(&change).unwrap(), json);
            assert_eq!(serde_json::from_str::<Change>(json).unwrap(), change);
        }
    }
}
