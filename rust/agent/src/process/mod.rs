//! The processes that were started here: running ones, and for a while those that have ended.
pub mod attach;
pub mod input;
pub mod log;
pub mod logs;
pub mod methods;
pub mod output;
pub mod reap;
pub mod ring;
pub mod start;
pub mod table;
pub mod typed;
