//! The protocol without any input or output: bytes in, frames out, and back.
pub mod decoder;
pub mod fields;
pub mod frame;
pub mod value;
