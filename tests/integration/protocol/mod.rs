//! The protocol by which backups come and go: its model, and the code that follows it.

mod model;
mod real;
mod steps;
