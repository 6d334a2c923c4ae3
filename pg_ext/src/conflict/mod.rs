//! Which of two writes of a row stays.

pub(crate) mod version;
