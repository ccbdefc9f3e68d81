//! The pgkeep command.
fn main() {}
