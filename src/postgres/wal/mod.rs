//! (to be written)

use serde::{Deserialize, Serialize};

/// (to be written)
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SegmentSummary {}
