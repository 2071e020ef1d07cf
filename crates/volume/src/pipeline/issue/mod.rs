//! Beginning the pieces of a request: which blocks, under which mark, from or into which buffer. One file for
//! each operation.

mod copy_up;
mod in_place;
mod partial;
mod read;
mod write;
mod zero;
