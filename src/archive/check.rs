//! stub
#![allow(missing_docs)]
pub struct CheckOptions;
pub struct CheckReport;
pub struct CheckStep;
pub struct StepState;
pub fn check() {}
