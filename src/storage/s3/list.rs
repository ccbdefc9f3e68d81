//! Listing: pages of at most a thousand keys, until what was asked for is there.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

use super::engine::Engine;
use crate::storage::{ErrorKind, Listed, ObjectName, Result, StorageError};

/// How many keys an answer has at most, by S3's own limit.
const PAGE: usize = 1000;

/// What a page begins after.
#[derive(Debug, Clone)]
enum From {
    Start,
    Key(String),
    Token(String),
}

impl Engine {
    /// The objects whose names begin with `prefix`, after `after`. S3 sorts keys by their bytes.
    pub async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Listed>> {
        let mut found = Vec::new();
        let mut from = match after {
            Some(after) => From::Key(self.settings.key(after)),
            None => From::Start,
        };
        while found.len() < limit {
            let page = self.page(prefix, None, from, limit - found.len()).await?;
            for object in page.contents() {
                let name = object.key().and_then(|key| self.settings.name(key));
                // Others may keep what they like beside the objects; it isn't one of ours.
                if let Some(name) = name.and_then(|name| ObjectName::new(name).ok()) {
                    let size = object.size().unwrap_or_default().unsigned_abs();
                    found.push(Listed { name, size });
                }
            }
            match next(&page).map_err(|why| self.cut_short(prefix, why))? {
                Some(token) => from = From::Token(token),
                None => break,
            }
        }
        Ok(found)
    }

    /// The folders directly in `folder`.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let mut found = Vec::new();
        let mut from = From::Start;
        loop {
            let page = self.page(&prefix, Some("/"), from, PAGE).await?;
            for common in page.common_prefixes() {
                let name = common.prefix().and_then(|key| self.settings.name(key));
                let folder = name
                    .and_then(|name| name.strip_prefix(&prefix))
                    .and_then(|name| name.strip_suffix('/'))
                    .filter(|name| ObjectName::new(*name).is_ok());
                found.extend(folder.map(str::to_owned));
            }
            match next(&page).map_err(|why| self.cut_short(&prefix, why))? {
                Some(token) => from = From::Token(token),
                None => break,
            }
        }
        found.sort();
        Ok(found)
    }

    fn cut_short(&self, prefix: &str, why: &str) -> StorageError {
        self.about("list", prefix).error(ErrorKind::Refused, why)
    }

    async fn page(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        from: From,
        limit: usize,
    ) -> Result<ListObjectsV2Output> {
        let about = self.about("list", prefix);
        let client = self.client(&about).await?;
        let answer = self
            .attempts(|| async {
                let request = client
                    .list_objects_v2()
                    .bucket(&self.settings.bucket)
                    .prefix(self.settings.key(prefix))
                    .set_delimiter(delimiter.map(str::to_owned))
                    .max_keys(limit.min(PAGE) as i32);
                let request = match from.clone() {
                    From::Start => request,
                    From::Key(key) => request.start_after(key),
                    From::Token(token) => request.continuation_token(token),
                };
                request.send().await.map_err(|e| about.failure(&e))
            })
            .await?;
        Ok(answer)
    }
}

/// What the next page begins after; `None` behind the last one. A server that says that there is more,
/// and not where, knows only the older form of listing: what isn't seen would count as absent.
fn next(page: &ListObjectsV2Output) -> Result<Option<String>, &'static str> {
    match (page.next_continuation_token(), page.is_truncated().unwrap_or(false)) {
        (Some(token), _) => Ok(Some(token.to_owned())),
        (None, false) => Ok(None),
        (None, true) => Err("the server cuts the listing short and doesn't say where it goes on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_is_cut_short_is_never_taken_for_all() {
        let page = ListObjectsV2Output::builder;
        assert_eq!(next(&page().build()), Ok(None));
        assert_eq!(next(&page().is_truncated(false).build()), Ok(None));
        let more = page().is_truncated(true).next_continuation_token("x").build();
        assert_eq!(next(&more), Ok(Some("x".into())));
        assert!(next(&page().is_truncated(true).build()).is_err());
    }
}
