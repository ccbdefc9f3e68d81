//! Rows of a simple query: all values are texts.

use std::sync::Arc;

use bytes::Bytes;

/// One row of a result.
#[derive(Debug, Clone)]
pub struct Row {
    columns: Arc<[String]>,
    values: Vec<Option<Bytes>>,
}

impl Row {
    pub(super) fn new(columns: Arc<[String]>, values: Vec<Option<Bytes>>) -> Self {
        Row { columns, values }
    }

    /// The value of column `index`, from 0; `None` if it is NULL, not there, or not UTF-8.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.bytes(index).and_then(|b| std::str::from_utf8(b).ok())
    }

    /// The value's bytes: for what the server sends as it is, like the content of a file.
    pub fn bytes(&self, index: usize) -> Option<&Bytes> {
        self.values.get(index)?.as_ref()
    }

    /// The value of the first column called `name`, as [`Row::get`].
    pub fn named(&self, name: &str) -> Option<&str> {
        self.get(self.columns.iter().position(|c| c == name)?)
    }

    /// The number of columns.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}
