//! What a change is, how it is encoded, and the rules by which every node decides alike.
//!
//! The extension writes these bytes inside PostgreSQL, the relay carries them through Kafka, and the extension of
//! another node reads them. This crate knows neither PostgreSQL nor tokio, so plain `cargo test` covers all of it.
//!
//! | module | subject |
//! |---|---|
//! | [`version`] | timestamps, and the version of a row |
//! | [`record`] | one Kafka record: a [`record::Header`] and a piece of a transaction's body |
//! | [`entry`] | what a transaction's body is made of: relations, origins, changes |
//! | [`encode`] | writing entries without building them first, for capture's hot path |
//! | [`sqlstate`] | what PostgreSQL's errors mean to whoever applies a change |
//! | [`stream`] | reading entries back from pieces that may cut through the middle of one |
//! | [`codec`] | bincode's settings, in one place, and the errors of decoding |
//! | [`rules`] | the rules by which every node decides alike: versions, columns, unique values, counters |
//! | [`value`] | the raw images of PostgreSQL's built-in types: checking them, and turning them into text |
//! | [`json`] | the same stream for people |
//!
//! The layout is written down in `docs/format.md` and held by the golden-bytes tests.

pub mod codec;
pub mod encode;
pub mod entry;
pub mod json;
pub mod record;
pub mod rules;
pub mod sqlstate;
pub mod stream;
pub mod value;
pub mod version;
