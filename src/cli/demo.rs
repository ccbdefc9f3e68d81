//! `pgkeep demo`.

use std::path::PathBuf;

use clap::Args;

use super::{Global, output, runtime};
use crate::{
    demo::{self, DemoOptions},
    error::Result,
};

/// The whole story on a throwaway cluster: backup, accident, and back to just before it
///
/// Makes a PostgreSQL cluster, an encrypted repository, a full backup under load; drops a table,
/// restores to just before that, and counts the rows. It needs a PostgreSQL server of a supported
/// version on this host, talks to nothing outside its own directory below /tmp, and removes that at
/// the end. As root it runs as the user postgres (or nobody).
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  pgkeep demo
  pgkeep demo --keep")]
pub(super) struct Demo {
    /// Leave everything in place, to look at
    #[arg(long)]
    keep: bool,
    /// Work in this directory, which is empty and this user's own
    #[arg(long, hide = true, value_name = "DIR")]
    home: Option<PathBuf>,
}

impl Demo {
    pub fn run(&self, _: &Global) -> Result<u8> {
        if demo::is_root() {
            let arguments: Vec<_> = std::env::args_os().skip(1).collect();
            return Err(demo::as_server_user(&arguments));
        }
        let options = DemoOptions { keep: self.keep, home: self.home.clone() };
        let tell = |line: &str| {
            // A reader that went away is no reason to leave servers behind.
            let _ = output::print(&format!("{line}\n"));
        };
        runtime::together(2, runtime::until_signal(demo::demo(&options, &tell)))?;
        Ok(0)
    }
}
