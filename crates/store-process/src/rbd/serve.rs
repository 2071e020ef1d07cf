//! A store process that works on a cluster.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ceph::{Client, Pool, Settings};
use sandbox::Launch;

use super::backend::RbdBackend;
use super::place::RbdPlace;
use super::stack::Stack;
use super::told;
use crate::channel::Channel;
use crate::confine::{Confinement, Reach};
use crate::engine::EngineHandle;
use crate::messages::{Answer, Command, LayerOf, PoolOf};
use crate::place::obey;
use crate::session::{Reply, serve_with};
use crate::{PlaceError, StoreProcessError};

/// Connects to a cluster, confined by then, and serves until the other end is closed.
pub(crate) fn serve_rbd(
    channel: &Channel,
    launch: Launch,
    of: PoolOf,
) -> Result<(), StoreProcessError> {
    let refuse = |error: ceph::CephError| StoreProcessError::Refused(error.to_string());
    let confinement = Confinement::begin(launch, Reach::Network)?;
    let PoolOf {
        pool,
        namespace,
        client,
    } = of;
    // The keyring may be root's, and no thread may be there before the process is confined.
    let client = Client::new(Settings::from(client)).map_err(refuse)?;
    confinement.finish()?;
    let cluster = client.connect().map_err(refuse)?;
    let images = Pool::open(&cluster, &pool, &namespace).map_err(refuse)?;
    let mut disk = Disk {
        // Its own handle, by which nobody else reads objects.
        place: RbdPlace::new(Pool::open(&cluster, &pool, &namespace).map_err(refuse)?),
        images,
        stack: Stack::default(),
    };
    let backend = RbdBackend::new().map_err(StoreProcessError::io("make an eventfd"))?;
    let first = Answer::Connected {
        address: cluster.address().into(),
    };
    serve_with(channel, backend, first, |handle, command, bytes| {
        disk.obey(handle, command, bytes)
    })
}

/// What the process has of a disk.
struct Disk {
    place: RbdPlace,
    images: Arc<Pool>,
    /// What the thread that serves lanes works on, too.
    stack: Stack,
}

impl Disk {
    fn obey(
        &mut self,
        handle: &EngineHandle<RbdBackend>,
        command: Command,
        bytes: &[u8],
    ) -> Result<Reply, StoreProcessError> {
        match command {
            Command::Place(command) => {
                let (answer, bytes) = obey(&self.place, command, bytes);
                Ok(Reply {
                    bytes,
                    ..Reply::of(Answer::Place(answer))
                })
            }
            Command::Open {
                layers,
                read_only,
                take_from,
            } => match self.open(&layers, read_only, take_from.as_deref()) {
                Ok((stack, maps)) => {
                    self.serve(handle, stack)?;
                    Ok(Reply {
                        fds: maps.into_iter().map(OwnedFd::from).collect(),
                        ..Reply::of(Answer::Opened)
                    })
                }
                Err(error) => Ok(Reply::of(Answer::NotDone(error))),
            },
            Command::Grow { data_len, map_len } => match self.grown(data_len, map_len) {
                Ok(stack) => {
                    self.serve(handle, stack)?;
                    Ok(Reply::of(Answer::Done))
                }
                Err(error) => Ok(Reply::of(Answer::NotDone(error))),
            },
            Command::Close => {
                self.serve(handle, Stack::default())?;
                Ok(Reply::of(Answer::Done))
            }
            other => Err(StoreProcessError::Refused(format!(
                "{other:?} is no command for a store process of a cluster"
            ))),
        }
    }

    fn open(
        &self,
        layers: &[LayerOf],
        read_only: bool,
        take_from: Option<&str>,
    ) -> Result<(Stack, Vec<File>), PlaceError> {
        let stack = Stack::open(&self.images, layers, read_only, take_from, &self.stack)?;
        let maps = stack.maps()?;
        Ok((stack, maps))
    }

    /// The same stack, with a top layer that is longer.
    fn grown(&self, data_len: u64, map_len: u64) -> Result<Stack, PlaceError> {
        let mut stack = self.stack.share();
        let no_disk = || PlaceError::Failed("no disk is open to be written to".into());
        let is_writable = !stack.read_only;
        let top = stack.layers.first_mut().filter(|_| is_writable);
        let top = top.ok_or_else(no_disk)?;
        let fail = |error: ceph::CephError| told(&error, || format!("layer {}", top.of.layer));
        let bytes = super::DATA_AT.saturating_add(data_len);
        if top.image.size().map_err(fail)? < bytes {
            top.image.resize(bytes).map_err(fail)?;
        }
        let of = LayerOf {
            data_len: data_len.max(top.of.data_len),
            map_len: map_len.max(top.of.map_len),
            ..top.of
        };
        top.of = of;
        Ok(stack)
    }

    /// Has lanes work on other layers. What is open no more is closed, by whoever has it last.
    fn serve(
        &mut self,
        handle: &EngineHandle<RbdBackend>,
        stack: Stack,
    ) -> Result<(), StoreProcessError> {
        let shared = stack.share();
        handle.with_backend(move |backend| backend.set_stack(shared))?;
        self.stack = stack;
        Ok(())
    }
}
