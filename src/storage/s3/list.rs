//! Listing: pages of at most a thousand keys, until what was asked for is there.

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;

use super::engine::Engine;
use crate::storage::{ErrorKind, Listed, ObjectName, Result, StorageError};

/// How many keys an answer has at most, by S3's own limit.
const PAGE: usize = 1000;

/// The most folders that one may have. There is one a backup, and one a timeline.
const MOST_FOLDERS: usize = 100_000;

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
        let mut order = Order { prefix: self.settings.key(prefix), last: None };
        let mut from = match after {
            Some(after) => {
                let key = self.settings.key(after);
                order.last = Some(key.clone());
                From::Key(key)
            }
            None => From::Start,
        };
        while found.len() < limit {
            let page = self.page(prefix, None, &from, limit - found.len()).await?;
            for object in page.contents() {
                let Some(key) = object.key() else { continue };
                order.next(key).map_err(|why| self.not_a_listing(prefix, why))?;
                let name = self.settings.name(key);
                // Others may keep what they like beside the objects; it isn't one of ours.
                if let Some(name) = name.and_then(|name| ObjectName::new(name).ok()) {
                    let size = object.size().unwrap_or_default().unsigned_abs();
                    found.push(Listed { name, size });
                }
                // Whatever the server thinks of how many were asked for.
                if found.len() == limit {
                    return Ok(found);
                }
            }
            match next(&page, &from).map_err(|why| self.not_a_listing(prefix, why))? {
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
        let mut order = Order { prefix: self.settings.key(&prefix), last: None };
        let mut from = From::Start;
        loop {
            let page = self.page(&prefix, Some("/"), &from, PAGE).await?;
            for common in page.common_prefixes() {
                let Some(key) = common.prefix() else { continue };
                order.next(key).map_err(|why| self.not_a_listing(&prefix, why))?;
                let folder = self
                    .settings
                    .name(key)
                    .and_then(|name| name.strip_prefix(&prefix))
                    .and_then(|name| name.strip_suffix('/'))
                    .filter(|name| ObjectName::new(*name).is_ok() && !name.contains('/'));
                found.extend(folder.map(str::to_owned));
            }
            if found.len() > MOST_FOLDERS {
                return Err(self.not_a_listing(&prefix, "there are too many folders in it"));
            }
            match next(&page, &from).map_err(|why| self.not_a_listing(&prefix, why))? {
                Some(token) => from = From::Token(token),
                None => break,
            }
        }
        found.sort();
        Ok(found)
    }

    /// What isn't seen would count as absent, so a listing is right or none.
    pub(super) fn not_a_listing(&self, prefix: &str, why: &str) -> StorageError {
        self.about("list", prefix).error(ErrorKind::Refused, why)
    }

    async fn page(
        &self,
        prefix: &str,
        delimiter: Option<&str>,
        from: &From,
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

/// The order in which keys come: each after the one before it, all with the prefix that was asked for. A server
/// that doesn't read a question's parts, or begins again, shows itself by it, and a listing ends.
struct Order {
    prefix: String,
    last: Option<String>,
}

impl Order {
    fn next(&mut self, key: &str) -> Result<(), &'static str> {
        if !key.starts_with(&self.prefix) {
            return Err("the server lists what wasn't asked for");
        }
        if self.last.as_deref().is_some_and(|last| key <= last) {
            return Err("the server doesn't list in the order of names, or begins again");
        }
        self.last = Some(key.to_owned());
        Ok(())
    }
}

/// What the page after the one from `from` begins after; `None` behind the last one. A server that says that
/// there is more, and not where, knows only the older form of listing: what isn't seen would count as absent.
fn next(page: &ListObjectsV2Output, from: &From) -> Result<Option<String>, &'static str> {
    match (page.next_continuation_token(), page.is_truncated().unwrap_or(false)) {
        (Some(token), _) if matches!(from, From::Token(before) if before == token) => {
            Err("the server goes on where it began")
        }
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
        let start = From::Start;
        assert_eq!(next(&page().build(), &start), Ok(None));
        assert_eq!(next(&page().is_truncated(false).build(), &start), Ok(None));
        let more = page().is_truncated(true).next_continuation_token("x").build();
        assert_eq!(next(&more, &start), Ok(Some("x".into())));
        assert_eq!(next(&more, &From::Token("w".into())), Ok(Some("x".into())));
        assert!(next(&more, &From::Token("x".into())).is_err(), "it would never end");
        assert!(next(&page().is_truncated(true).build(), &start).is_err());
    }

    #[test]
    fn a_listing_that_begins_again_or_has_something_else_is_refused() {
        let mut order = Order { prefix: "a/".into(), last: Some("a/b".into()) };
        assert!(order.next("a/b").is_err(), "not after it");
        assert!(order.next("b/c").is_err());
        assert_eq!(order.next("a/c"), Ok(()));
        assert_eq!(order.next("a/c/d"), Ok(()));
        assert!(order.next("a/c").is_err());
    }
}
