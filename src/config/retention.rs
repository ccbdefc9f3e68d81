//! From the keys of `[repository.NAME.retention]` to rules.

use serde::Serialize;

use super::source::Section;
use crate::error::Result;

/// What a repository keeps: the union of what the rules keep. Without a rule nothing expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RetentionSettings {
    /// `full`: so many of the newest full backups, and everything since the oldest of them.
    pub full: Option<u32>,
    /// `days`: what is needed to restore to every moment of so many days.
    pub days: Option<u32>,
    /// `daily`: the newest backup of so many days.
    pub daily: Option<u32>,
    /// `weekly`: the newest backup of so many weeks.
    pub weekly: Option<u32>,
    /// `monthly`: the newest backup of so many months.
    pub monthly: Option<u32>,
    /// `yearly`: the newest backup of so many years.
    pub yearly: Option<u32>,
    /// `minimum`: so many of the newest usable backups.
    pub minimum: Option<u32>,
    /// `after-backup`: whether a backup is followed by an expiry.
    #[serde(skip)]
    pub after_backup: bool,
}

impl RetentionSettings {
    /// No rule.
    pub const NONE: RetentionSettings = RetentionSettings {
        full: None,
        days: None,
        daily: None,
        weekly: None,
        monthly: None,
        yearly: None,
        minimum: None,
        after_backup: true,
    };

    /// Whether there is any rule.
    pub fn has_rules(&self) -> bool {
        *self != RetentionSettings { after_backup: self.after_backup, ..Self::NONE }
    }
}

/// The settings of a repository's section.
pub(super) fn settings(section: &Section) -> Result<RetentionSettings> {
    let number = |key: &str, most: i64| {
        let entry = section.get(&format!("retention.{key}"));
        entry.map(|entry| entry.number(1, most).map(|n| n as u32)).transpose()
    };
    let backups = |key: &str| number(key, 10_000);
    Ok(RetentionSettings {
        full: backups("full")?,
        days: number("days", 36_500)?,
        daily: backups("daily")?,
        weekly: backups("weekly")?,
        monthly: backups("monthly")?,
        yearly: backups("yearly")?,
        minimum: backups("minimum")?,
        after_backup: section
            .get("retention.after-backup")
            .map_or(Ok(true), |entry| entry.truth())?,
    })
}
