//! Archives both ways, in the PAX form of tar. What comes in is hostile: every size, name and number
//! is checked, and nothing is written outside of the target directory.
pub mod header;
pub mod pack;
pub mod reader;
pub mod sparse;
pub mod unpack;
