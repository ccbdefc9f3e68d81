//! (to be written)

mod crc;
mod frames;
pub mod guard;
pub mod marker;
pub mod settings;
mod target;
mod tree;
mod windows;
pub mod write;
