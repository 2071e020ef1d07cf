//! What an attach process (the control process) and its data plane say to each other, over the socket
//! that the data plane gets as descriptor [`CONTROL_FD`].

mod command;
mod error;
mod frontend_memory;
mod limits;
mod message;
mod waiter;

pub use command::{ControlCommand, receive_command};
pub use error::ProtocolError;
pub use frontend_memory::{FileId, FrontendMemory};
pub use limits::Limits;
pub use message::{
    CONTROL_FD, COPY, COPY_STOP, COPY_STOPPED, COPYING, CopyProgress, CopyRequest, CopyState,
    DESTROYED, DISCONNECT, Discard, DiskFiles, FREEZE, FRONTEND_MEMORY, FROZEN, LIMITS,
    MEMORY_NOT_SHARED, NOT_COPYING, NOT_FROZEN, NOT_RESIZED, NOT_RESTACKED, NOT_RESTORED, OnFull,
    OnRevoke, PROGRESS, PROGRESS_IS, READY, REFUSED, RESIZE, RESIZED, RESTACK, RESTACKED, RESTORE,
    RESTORED, REVOKE, ReceivedStack, SOCKET_FD, STORAGE_FULL, STORAGE_OK, SYNC_FAILED, Setup,
    Stack, StackLayer, THAW, THAWED, receive_setup, receive_stack, send_setup, send_stack,
};
pub use waiter::{Waiter, signal_pipe};
