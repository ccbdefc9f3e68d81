//! Having the program die at a named moment (`pgkeep::steps`).

use std::{fs, path::PathBuf};

use super::{Scratch, scratch, wait_until};

/// The file that says at which step the next process dies.
pub struct Death {
    file: PathBuf,
}

impl Death {
    /// Nobody dies yet.
    pub fn in_folder(scratch: &Scratch) -> Self {
        Death { file: scratch.folder("death").join("step") }
    }

    /// The variable to give to those who may die, and its value.
    pub fn variable(&self) -> (&'static str, &PathBuf) {
        ("DIE_AT_STEP", &self.file)
    }

    /// The same before a command of a shell.
    pub fn before(&self, command: &str) -> String {
        format!("DIE_AT_STEP={} {command}", self.file.display())
    }

    /// Has who comes to this step first die there.
    pub fn at(&self, step: &str) {
        let new = self.file.with_extension("new");
        scratch::write(&new, step);
        fs::rename(&new, &self.file).expect("ask for a death");
    }

    /// Nobody has to die any more; false when somebody has.
    pub fn take_back(&self) -> bool {
        fs::remove_file(&self.file).is_ok()
    }

    /// Whether who was asked to die has died.
    pub fn has_come(&self) -> bool {
        !self.file.exists()
    }

    /// Waits for the death.
    pub fn wait(&self, step: &str) {
        wait_until(&format!("somebody dies at {step:?}"), 60, || self.has_come());
    }
}
