//! The guest agent of Hutch: see docs/agent-protocol.md for what it speaks.
#![forbid(unsafe_code)]

pub mod agent;
pub mod boot_id;
pub mod clock;
pub mod configure;
pub mod connect;
pub mod connection;
pub mod console;
pub mod dispatch;
pub mod etc;
pub mod fault;
pub mod files;
pub mod identity;
pub mod itself;
pub mod jobs;
pub mod kernel;
pub mod layer;
pub mod link;
pub mod machine;
pub mod memory_guard;
pub mod metrics;
pub mod netlink;
pub mod oom;
pub mod output;
pub mod ports;
pub mod process;
pub mod root;
pub mod sending;
pub mod settings;
pub mod shutdown;
pub mod signals;
pub mod stream;
pub mod tar;
pub mod timers;
pub mod users;
pub mod wire;
