//! Small HTTP servers of a host: where they listen, and how many clients may take how long.
//!
//! What is served is for people and programs of this host, a few at a time: one thread, no TLS, a request for each
//! connection. [`Service`] says what is answered.

mod connections;
mod error;
mod listen;
mod serve;

pub use connections::{Answer, Service, answer};
pub use error::ServeError;
pub use listen::Listen;
pub use serve::serve;
