//! The system calls that `rustix` lacks, as safe functions: starting a program without copying the
//! address space, signal descriptors, a few ioctls, file-system credentials of one thread, packets of a device.
//! Every `unsafe` block of the guest agent is here, each with the reason why it is sound.
#![deny(unsafe_op_in_unsafe_fn)]
#![deny(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod cache;
mod device;
mod packet;
mod reset;
mod signal;
mod spawn;
mod thread;

pub use cache::is_cached;
pub use device::{ENTROPY_BYTES_MAX, add_entropy, block_device_bytes, resize_ext4, set_hardware_address};
pub use packet::bare_resets;
pub use reset::{acknowledge_reset, acknowledge_reset_in};
pub use signal::{Sent, SignalFd, block_signals, signal_everybody};
pub use spawn::{Credentials, Program, SpawnFailure, SpawnStage, spawn};
pub use thread::{Scheduling, close_inherited, limit_heap, own_mounts, own_network, set_file_user, set_scheduling};
