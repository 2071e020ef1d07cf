//! New images that QEMU writes: a `qemu-nbd` child behind a private socket gets the plaintext and puts
//! it where it is to be, so that there is no intermediate file.

use std::path::Path;

use super::nbd::NbdClient;
use super::writer::{NewImage, Server};
use super::{Cancel, ImageFormat, ImportError};

/// A new image. Dropped before it is finished, it is worth nothing.
pub struct TargetImage {
    // In the order of dropping: the connection, which ends the server, then the server.
    client: NbdClient,
    server: Server,
    image: NewImage,
    cancel: Cancel,
}

impl TargetImage {
    /// Makes an image of `size` bytes, all zeros, in the empty file at `path`.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn create(
        path: &Path,
        format: ImageFormat,
        size: u64,
        cancel: &Cancel,
    ) -> Result<Self, ImportError> {
        let image = NewImage::new(path, format)?;
        image.create(size, cancel)?;
        let (mut server, stream) = image.serve()?;
        let client = NbdClient::connect(stream, cancel.clone())
            .map_err(|error| server.explain(&image, error))?;
        if client.size() != size {
            return Err(ImportError::Nbd(format!(
                "the image has {} bytes where {size} were asked for",
                client.size()
            )));
        }
        Ok(Self {
            client,
            server,
            image,
            cancel: cancel.clone(),
        })
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), ImportError> {
        self.client.write_at(offset, bytes)
    }

    /// Completes the image and waits until QEMU has let go of it. What was not written is zeros.
    ///
    /// # Errors
    /// [`ImportError`].
    pub fn finish(self) -> Result<(), ImportError> {
        let Self {
            mut client,
            server,
            image,
            cancel,
        } = self;
        client.flush()?;
        drop(client);
        server.finish(&image, &cancel)
    }
}
