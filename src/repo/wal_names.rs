//! Under which name a file of the archive lies.
//!
//! Where the storage refuses to create an object that is there, a file has its plain name, and the
//! second of two contents is refused. Where it would overwrite, the name holds the content's
//! checksum too, so that no content can take another's place; a file is then found by listing, and
//! two contents of one file are a conflict that every reader sees.

use super::{
    catalog::PAGE,
    repository::Names,
    wal::{StoredSummary, WalObject, WalStore},
};
use crate::{
    error::{Error, Kind, Result},
    postgres::WalFile,
    storage::ObjectName,
};

impl WalStore {
    /// The object in which a file with this content lies or will lie.
    pub fn object_of(&self, file: WalFile, content: &StoredSummary) -> ObjectName {
        match (file, self.repository().names()) {
            (WalFile::Partial(segment), _) => self.partial(segment, content),
            (_, Names::Plain) => self.plain(file),
            (_, Names::Content) => {
                self.layout().wal_variant(self.system(), file, content.short_checksum())
            }
        }
    }

    /// The object in which a file lies. `None` when it is known not to be there; where names are
    /// plain, that shows only when the object is read.
    ///
    /// Two contents of one file are an error ([`Kind::Conflict`]): which of them is the right one
    /// can't be told.
    pub async fn find(&self, file: WalFile) -> Result<Option<ObjectName>> {
        if self.repository().names() == Names::Plain {
            return Ok(Some(self.plain(file)));
        }
        let mut found = self.contents(file).await?.into_iter();
        match (found.next(), found.next()) {
            (Some(one), Some(other)) => Err(self.two_contents(file, &one, &other)),
            (found, _) => Ok(found),
        }
    }

    /// Whether a file is there; "can't tell" is an error.
    pub async fn has(&self, file: WalFile) -> Result<bool> {
        match self.repository().names() {
            Names::Plain => super::catalog::exists(self.repository(), &self.plain(file)).await,
            Names::Content => Ok(self.find(file).await?.is_some()),
        }
    }

    /// After a file was stored: makes sure that no other content of it is there. Where the storage
    /// overwrites, two that store at the same time both succeed, and see each other here.
    pub async fn prove_alone(&self, file: WalFile, stored: &ObjectName) -> Result<()> {
        if self.repository().names() == Names::Plain || matches!(file, WalFile::Partial(_)) {
            return Ok(());
        }
        match self.contents(file).await?.iter().find(|name| *name != stored) {
            Some(other) => Err(self.two_contents(file, stored, other)),
            None => Ok(()),
        }
    }

    /// Whether an object means something in this repository.
    pub(super) fn counts(&self, object: &WalObject) -> bool {
        match object {
            WalObject::Content(..) => self.repository().names() == Names::Content,
            WalObject::Plain(_)
            | WalObject::Partial(..)
            | WalObject::Repair(..)
            | WalObject::Part(..) => true,
        }
    }

    async fn contents(&self, file: WalFile) -> Result<Vec<ObjectName>> {
        let prefix = format!("{}.", self.plain(file));
        let listed = self.repository().storage().list(&prefix, None, PAGE).await?;
        let of_file = |name: &ObjectName| {
            matches!(
                WalObject::parse(name.file_name()),
                Some(WalObject::Content(of, _)) if of == file
            )
        };
        Ok(listed.into_iter().map(|object| object.name).filter(of_file).collect())
    }

    fn two_contents(&self, file: WalFile, one: &ObjectName, other: &ObjectName) -> Error {
        let address = self.repository().storage().address();
        let checksum = |name: &ObjectName| {
            let name = name.file_name();
            name.rsplit_once('.').map_or(name, |(_, checksum)| checksum).to_owned()
        };
        Error::new(
            Kind::Conflict,
            format!(
                "{address} has two contents of {file}: SHA-256 {}… and {}…",
                checksum(one),
                checksum(other)
            ),
        )
        .hint("both were left as they are; the one that isn't this cluster's has to be removed by hand")
        .hint(
            "two servers archive into the same place, or a server went back in time on the same \
             timeline: give a copy a cluster name or a repository of its own",
        )
    }
}
