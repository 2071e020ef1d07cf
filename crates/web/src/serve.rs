//! The life of a server.

use tokio::signal::unix::{SignalKind, signal};

use crate::connections::{Connections, Service};
use crate::listen::Listener;
use crate::{Listen, ServeError};

/// Serves until SIGTERM or SIGINT. `service` is made once the address is listened on, which it is told; then
/// `ready` is called.
///
/// # Errors
/// [`ServeError`], or what `service` returns: nothing was served.
pub fn serve<S: Service, E: From<ServeError>>(
    listen: Listen,
    service: impl FnOnce(&Listen) -> Result<S, E>,
    ready: impl FnOnce(&Listen),
) -> Result<(), E> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServeError::system("start the server"))?;
    runtime.block_on(async {
        let handle = |kind| signal(kind).map_err(ServeError::system("handle signals"));
        // Before anybody can connect, who may then end this at once: the socket is to go with it.
        let mut terminate = handle(SignalKind::terminate())?;
        let mut interrupt = handle(SignalKind::interrupt())?;
        let (listener, listening) = Listener::open(listen).await?;
        let connections = Connections::new(service(&listening)?);
        ready(&listening);
        tokio::select! {
            () = listener.accept_all(&connections) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
